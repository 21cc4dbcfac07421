"""The start-up self-check: a base is served only if the packed, paged model computes what the unmodified one does."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octavo_kernels.layout import KvTable, RowGroups
from octavo_worker.model.context import KvShape, StepContext, StepInputs, UnsupportedBase

_SEED = 20_260_101
_LENGTHS = (37, 21)
_CHUNK_SHARES = (0.6, 0.4)
"""How much of each sequence the first chunk holds: neither ends with a page, both chunks see both sequences."""
_ROWS_COMPARED = 4
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""Largest relative distance of logits; rounding gives about 1e-6, 2e-3 and 2e-2, a wrong mask or position 0.3."""


@dataclass(frozen=True)
class Expectation:
    """Two prompts and the logits that the unmodified model gave each of them alone; [rows, vocabulary]."""

    prompts: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]


def expect(model: nn.Module, vocab_size: int, window_max: int) -> Expectation:
    """Run two prompts longer than every window, each alone, through the still unmodified ``model``."""
    generator = torch.Generator().manual_seed(_SEED)
    device = next(model.parameters()).device
    prompts = tuple(
        torch.randint(0, vocab_size, (length + window_max,), generator=generator).to(device) for length in _LENGTHS
    )
    with torch.inference_mode():
        logits = tuple(
            model(input_ids=prompt[None], use_cache=False, logits_to_keep=_ROWS_COMPARED).logits[0].float()
            for prompt in prompts
        )
    return Expectation(prompts, logits)


def check(model: nn.Module, context: StepContext, expected: Expectation, dtype: torch.dtype) -> None:
    """Run both prompts packed, in two chunks, over pages; raises ``UnsupportedBase`` unless the logits agree."""
    context.layers_called.clear()
    firsts = [int(len(prompt) * share) for prompt, share in zip(expected.prompts, _CHUNK_SHARES, strict=True)]
    lengths = [len(prompt) for prompt in expected.prompts]
    paged = _TwoSequences(context.kv_shape, lengths, dtype, expected.prompts[0].device)
    paged.run(model, context, expected.prompts, [0, 0], firsts)
    logits = paged.run(model, context, expected.prompts, firsts, lengths)
    missing = set(range(context.kv_shape.num_layers)) - context.layers_called
    if missing:
        raise UnsupportedBase(f"layer {min(missing)} of this base does not attend through the paged attention")
    for got, want in zip(logits, expected.logits, strict=True):
        distance = float((got - want).norm() / want.norm())
        # Written so that NaN refuses too.
        if not distance <= _TOLERANCE[dtype]:
            raise UnsupportedBase(
                f"this base computes something else packed than alone: relative distance {distance:.2g} of logits, "
                f"{_TOLERANCE[dtype]:.2g} allowed for {dtype}"
            )


class _TwoSequences:
    """The smallest arena that holds the prompts, pages dealt out in turn so that neither lies in one piece."""

    def __init__(self, shape: KvShape, lengths: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self._shape = shape
        num_pages = max(shape.num_pages(length) for length in lengths)
        count = len(lengths)
        pages = torch.arange(num_pages * count, device=device).view(num_pages, count).T
        self._page_offsets = (pages * shape.page_elements).contiguous()
        # What nobody wrote must not be read.
        self._arena = torch.full((num_pages * count * shape.page_elements,), torch.nan, dtype=dtype, device=device)

    def run(
        self,
        model: nn.Module,
        context: StepContext,
        prompts: Sequence[Tensor],
        begins: Sequence[int],
        ends: Sequence[int],
    ) -> list[Tensor]:
        """Compute tokens ``begins[i]`` to ``ends[i]`` of each prompt as one packed batch; returns the last logits."""
        device = self._arena.device
        spans = [torch.arange(begin, end, device=device) for begin, end in zip(begins, ends, strict=True)]
        starts = torch.tensor([0, *(len(span) for span in spans)], device=device).cumsum(0).to(torch.int32)
        shape = self._shape
        inputs = StepInputs(
            arena=self._arena,
            kv=KvTable(
                page_offsets=self._page_offsets,
                query_starts=starts,
                context_lens=torch.tensor(ends, dtype=torch.int32, device=device),
                page_tokens=shape.page_tokens,
                num_kv_heads=shape.num_kv_heads,
                head_dim=shape.head_dim,
            ),
            token_offsets=torch.cat(
                [
                    self._page_offsets[i][span // shape.page_tokens] + span % shape.page_tokens * shape.head_dim
                    for i, span in enumerate(spans)
                ]
            ),
            groups=RowGroups(
                starts=torch.tensor([0, int(starts[-1])], dtype=torch.int32, device=device),
                slots=torch.tensor([-1], dtype=torch.int32, device=device),
            ),
            tables={},
        )
        tokens = torch.cat([prompt[span] for prompt, span in zip(prompts, spans, strict=True)])
        rows = torch.cat([torch.arange(int(end) - _ROWS_COMPARED, int(end), device=device) for end in starts[1:]])
        logits = run_packed(model, context, inputs, tokens, torch.cat(spans), rows)
        return list(torch.split(logits.float(), _ROWS_COMPARED))


def run_packed(
    model: nn.Module, context: StepContext, inputs: StepInputs, tokens: Tensor, positions: Tensor, rows: Tensor
) -> Tensor:
    """Run one packed batch and return the logits of ``rows`` only.

    Shapes: N rows in the batch, B of them wanted
        tokens, positions  [N] int64
        rows               [B] int64
        result             [B, vocabulary], in the base's dtype
    """
    with torch.inference_mode(), context.step(inputs):
        # The model's own forward, so that soft-capped or scaled heads are right too; it selects before the head.
        output = model(input_ids=tokens[None], position_ids=positions[None], use_cache=False, logits_to_keep=rows)
    logits: Tensor = output.logits[0]
    return logits
