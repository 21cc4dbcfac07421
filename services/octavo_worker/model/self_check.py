"""The start-up self-check: a base is served only if the packed, paged model computes what the unmodified one does,
and if no prompt's answer depends on the prompts beside it."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from octavo_worker.model.context import StepContext, UnsupportedBase
from octavo_worker.model.experts import one_row_at_a_time
from octavo_worker.model.linear import MultiAdapterLinear
from octavo_worker.model.packed_run import NUM_ROWS_KEPT, PackedPrompts
from octavo_worker.model.routes import Routes

_SEED = 20_260_101
_LENGTHS = (37, 21)
_CHUNK_SHARES = (0.6, 0.4)
"""How much of each sequence the first chunk holds: neither ends with a page, both chunks see both sequences."""
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""Largest relative distance of logits; rounding gives about 1e-6, 2e-3 and 2e-2, a wrong mask or position 0.3."""


@dataclass(frozen=True)
class Expectation:
    """Two prompts and the logits that the unmodified model gave each of them alone; [rows, vocabulary]."""

    prompts: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]
    routes: Routes
    vocab_size: int


def expect(model: PreTrainedModel, vocab_size: int, window_max: int, context_tokens: int) -> Expectation:
    """Run two prompts longer than every window, each alone, through the still unmodified ``model``."""
    generator = torch.Generator().manual_seed(_SEED)
    device = next(model.parameters()).device
    lengths = [min(length + window_max, context_tokens) for length in _LENGTHS]
    prompts = tuple(torch.randint(0, vocab_size, (length,), generator=generator).to(device) for length in lengths)
    routes = Routes(model)
    with torch.inference_mode(), routes.noted():
        logits = tuple(
            model(input_ids=prompt[None], use_cache=False, logits_to_keep=NUM_ROWS_KEPT).logits[0].float()
            for prompt in prompts
        )
    return Expectation(prompts, logits, routes, vocab_size)


def check(
    model: PreTrainedModel,
    context: StepContext,
    expected: Expectation,
    dtype: torch.dtype,
    linears: Mapping[str, MultiAdapterLinear],
) -> set[str]:
    """Run both prompts packed, in two chunks, over pages; return the names of the ``linears`` adapters may target.

    Raises ``UnsupportedBase`` unless the logits are near those of the unmodified model, and equal in every bit
    whatever the other prompt is.
    """
    with _rows_watched(linears, context) as has_all_rows:
        _check_distance(model, context, expected, dtype)
        _check_neighbours(model, context, expected, dtype)
    return {name for name, is_whole in has_all_rows.items() if is_whole}


@contextlib.contextmanager
def _rows_watched(linears: Mapping[str, MultiAdapterLinear], context: StepContext) -> Iterator[dict[str, bool]]:
    """Note of each linear that is called in this block whether every call gave it exactly the rows of the batch.

    Adapters are chosen by a row's place in the batch, so a linear that sees fewer rows (only those whose logits are
    wanted, only those of one expert) cannot take one. Watched through hooks: a served step pays nothing for it.
    """
    has_all_rows: dict[str, bool] = {}

    def watch(name: str, linear: MultiAdapterLinear) -> RemovableHandle:
        def note(_module: nn.Module, _arguments: object, output: Tensor) -> None:
            assert context.inputs is not None, "the model was called outside a step"
            is_whole = output.numel() == context.inputs.kv[0].token_offsets.numel() * linear.out_features
            has_all_rows[name] = has_all_rows.get(name, True) and is_whole

        return linear.register_forward_hook(note)

    handles = [watch(name, linear) for name, linear in linears.items()]
    try:
        yield has_all_rows
    finally:
        for handle in handles:
            handle.remove()


def _check_distance(model: PreTrainedModel, context: StepContext, expected: Expectation, dtype: torch.dtype) -> None:
    """Raise ``UnsupportedBase`` unless the packed logits are near those of the unmodified model.

    In a mixture, rounding can send a token to another expert where two are nearly tied, which moves the logits by far
    more than rounding does. So what is too far off may try once more, choosing the experts that the unmodified model
    chose.
    """
    distance = _distance(expected, run_in_two_chunks(model, context, expected.prompts, dtype))
    # Written so that NaN refuses too.
    if not distance <= _TOLERANCE[dtype] and expected.routes:
        distance = _distance(expected, run_in_two_chunks(model, context, expected.prompts, dtype, expected.routes))
    if not distance <= _TOLERANCE[dtype]:
        raise UnsupportedBase(
            f"this base computes something else packed than alone: relative distance {distance:.2g} of logits, "
            f"{_TOLERANCE[dtype]:.2g} allowed for {dtype}"
        )


def _distance(expected: Expectation, logits: Sequence[Tensor]) -> float:
    """Return the largest relative distance of a prompt's logits; NaN where one is NaN."""
    distances = [(got - want).norm() / want.norm() for got, want in zip(logits, expected.logits, strict=True)]
    return float(torch.stack(distances).max())


def _check_neighbours(model: PreTrainedModel, context: StepContext, expected: Expectation, dtype: torch.dtype) -> None:
    """Raise ``UnsupportedBase`` when a prompt's logits change by one bit with the other prompt's tokens.

    What mixes rows (a state space, a convolution, a norm over the batch) may do so by less than rounding does, so
    no tolerance can find it. Nor is one needed: the shapes of all runs are equal and so are the places of all
    rows, so on every device the same instructions compute a row in the same order. But for experts that are not
    packed: how many rows one gets is the neighbours' doing, and its products may round accordingly. So bits that
    differ are forgiven if they no longer do once every row is multiplied alone.
    """
    if _has_equal_bits(model, context, expected, dtype):
        return
    with one_row_at_a_time(model) as is_other:
        if is_other and _has_equal_bits(model, context, expected, dtype):
            return
    raise UnsupportedBase("this base lets the other prompts of a batch change an answer")


def _has_equal_bits(model: PreTrainedModel, context: StepContext, expected: Expectation, dtype: torch.dtype) -> bool:
    # Windows do not matter here, so the prompts may be short.
    prompts = [prompt[:length] for prompt, length in zip(expected.prompts, _LENGTHS, strict=True)]
    together = run_in_two_chunks(model, context, prompts, dtype)
    # One token throughout sends all the neighbour's rows to the same experts, which leaves the others almost empty.
    for replace in (_other_tokens, _one_token):
        for index in range(len(prompts)):
            beside = [p if i == index else replace(p, expected.vocab_size) for i, p in enumerate(prompts)]
            if not torch.equal(run_in_two_chunks(model, context, beside, dtype)[index], together[index]):
                return False
    return True


def _other_tokens(prompt: Tensor, vocab_size: int) -> Tensor:
    """Return as many tokens, every one of them another."""
    generator = torch.Generator().manual_seed(_SEED)
    steps = torch.randint(1, vocab_size, prompt.shape, generator=generator).to(prompt.device)
    return (prompt + steps) % vocab_size


def _one_token(prompt: Tensor, vocab_size: int) -> Tensor:
    """Return as many times one token."""
    return torch.full_like(prompt, (int(prompt[0]) + 1) % vocab_size)


def run_in_two_chunks(
    model: PreTrainedModel,
    context: StepContext,
    prompts: Sequence[Tensor],
    dtype: torch.dtype,
    routes: Routes | None = None,
) -> list[Tensor]:
    """Return the logits of the last rows of ``prompts``, packed; ``routes`` says which experts are chosen."""
    lengths = [len(prompt) for prompt in prompts]
    firsts = [int(length * share) for length, share in zip(lengths, _CHUNK_SHARES, strict=True)]
    packed = PackedPrompts(model, context, prompts, dtype)
    logits: list[Tensor] = []
    for begins, ends in (([0] * len(prompts), firsts), (firsts, lengths)):
        with routes.followed(begins, ends) if routes else contextlib.nullcontext():
            logits = packed.run(begins, ends)
    return logits
