"""Running the model on a packed batch: as every step does, and as the self-check does without an engine."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from octavo_kernels.layout import KvTable, RowGroups
from octavo_worker.model.context import LayerGroupInputs, StepContext, StepInputs

NUM_ROWS_KEPT = 4
"""Logits that a chunk returns of each prompt: of its last rows, or of all where it has fewer."""


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


class PackedPrompts:
    """Prompts in the smallest arena that holds them, pages dealt out in turn so that none lies in one piece."""

    def __init__(self, model: nn.Module, context: StepContext, prompts: Sequence[Tensor], dtype: torch.dtype) -> None:
        self._model = model
        self._context = context
        self._prompts = prompts
        self._device = prompts[0].device
        shape = context.kv_shape
        count, length_max = len(prompts), max(len(prompt) for prompt in prompts)
        self._page_offsets: list[Tensor] = []  # [prompts, pages] of each layer group
        num_pages = 0
        for group in shape.groups:
            num_each = group.page_end(length_max)
            pages = torch.arange(num_pages, num_pages + num_each * count, device=self._device).view(num_each, count).T
            self._page_offsets.append((pages * shape.page_elements).contiguous())
            num_pages += num_each * count
        # What nobody wrote must not be read.
        self._arena = torch.full((num_pages * shape.page_elements,), torch.nan, dtype=dtype, device=self._device)

    def run(self, begins: Sequence[int], ends: Sequence[int]) -> list[Tensor]:
        """Compute tokens ``begins[i]`` to ``ends[i]`` of each prompt as one packed batch.

        Returns the fp32 logits of each prompt's last ``NUM_ROWS_KEPT`` rows, [rows, vocabulary].
        """
        spans = [torch.arange(begin, end, device=self._device) for begin, end in zip(begins, ends, strict=True)]
        starts = torch.tensor([0, *(len(span) for span in spans)], device=self._device).cumsum(0).to(torch.int32)
        tokens = torch.cat([prompt[span] for prompt, span in zip(self._prompts, spans, strict=True)])
        kept = [min(len(span), NUM_ROWS_KEPT) for span in spans]
        rows = torch.cat(
            [
                torch.arange(int(end) - count, int(end), device=self._device)
                for end, count in zip(starts[1:], kept, strict=True)
            ]
        )
        inputs = self._inputs(spans, starts, ends)
        logits = run_packed(self._model, self._context, inputs, tokens, torch.cat(spans), rows)
        return list(torch.split(logits.float(), kept))

    def _inputs(self, spans: Sequence[Tensor], starts: Tensor, ends: Sequence[int]) -> StepInputs:
        shape = self._context.kv_shape
        context_lens = torch.tensor(ends, dtype=torch.int32, device=self._device)
        kv = []
        for group, page_offsets in zip(shape.groups, self._page_offsets, strict=True):
            table = KvTable(page_offsets, starts, context_lens, group.page_tokens, shape.num_kv_heads, shape.head_dim)
            token_offsets = torch.cat(
                [
                    page_offsets[i][span // group.page_tokens] + span % group.page_tokens * shape.head_dim
                    for i, span in enumerate(spans)
                ]
            )
            kv.append(LayerGroupInputs(table, token_offsets))
        return StepInputs(
            arena=self._arena,
            kv=tuple(kv),
            groups=RowGroups(
                starts=torch.tensor([0, int(starts[-1])], dtype=torch.int32, device=self._device),
                slots=torch.tensor([-1], dtype=torch.int32, device=self._device),
            ),
            tables={},
        )
