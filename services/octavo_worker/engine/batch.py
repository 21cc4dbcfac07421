"""One packed batch: the rows of all scheduled sequences behind each other, grouped by adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_kernels.layout import KvTable, RowGroups, RowTable
from octavo_worker.engine import sequence
from octavo_worker.engine.page_run import PageRun
from octavo_worker.model.context import LayerGroupInputs, StepInputs
from octavo_worker.model.kv_shape import KvShape


@dataclass(frozen=True)
class Part:
    """The next ``num_tokens`` uncomputed tokens of a sequence; its pages already reach that far."""

    sequence: sequence.Sequence
    num_tokens: int

    @property
    def is_sampled(self) -> bool:
        """Whether these are all that is missing, so that the last row yields a token."""
        is_last = self.sequence.num_cached_tokens + self.num_tokens == len(self.sequence.tokens)
        return is_last and not self.sequence.is_scored

    @property
    def scored_tokens(self) -> list[int]:
        """The tokens that its first rows are scored by: those that follow them, in a prompt that is scored."""
        begin = self.sequence.num_cached_tokens + 1
        return self.sequence.tokens[begin : begin + self.num_tokens] if self.sequence.is_scored else []


@dataclass(frozen=True)
class Batch:
    """Packed tensors of one step.

    Shapes: N rows, B parts of which S yield a token, T rows that are scored
        tokens, positions  [N] int64
        rows               [S + T] int64, the last row of each part in ``sampled``, then those of the parts in
                           ``scored``; the last of all when there is none
    """

    parts: tuple[Part, ...]
    sampled: tuple[Part, ...]
    scored: tuple[Part, ...]
    inputs: StepInputs
    tokens: Tensor
    positions: Tensor
    rows: Tensor


def build(
    parts: Sequence[Part],
    slots: Sequence[int],
    tables: Mapping[str, RowTable],
    arena: Tensor,
    shape: KvShape,
) -> Batch:
    """Pack ``parts``, whose adapters have ``slots`` (-1: none).

    Parts of one slot stand together, so that each adapter is one row group.
    """
    device = arena.device
    ordered = sorted(range(len(parts)), key=lambda i: (slots[i], parts[i].sequence.order))
    parts = [parts[i] for i in ordered]
    counts = np.array([part.num_tokens for part in parts], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    begins = np.array([part.sequence.num_cached_tokens for part in parts], dtype=np.int64)

    part_of_row = np.repeat(np.arange(len(parts)), counts)
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1] - begins, counts)
    tokens = [
        token
        for part, begin in zip(parts, begins.tolist(), strict=True)
        for token in part.sequence.tokens[begin : begin + part.num_tokens]
    ]
    slot_of_part = np.array([slots[i] for i in ordered], dtype=np.int32)
    is_first = np.concatenate([[True], np.diff(slot_of_part) != 0])
    sampled = [i for i, part in enumerate(parts) if part.is_sampled]
    scored = [i for i, part in enumerate(parts) if part.scored_tokens]
    read = [starts[1:][sampled] - 1, *(starts[i] + np.arange(len(parts[i].scored_tokens)) for i in scored)]

    def on_device(values: object, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=dtype).to(device, non_blocking=True)

    query_starts, context_lens = on_device(starts, torch.int32), on_device(begins + counts, torch.int32)
    kv = []
    for index, group in enumerate(shape.groups):
        page_offsets = _page_offsets([part.sequence.runs[index] for part in parts])
        token_offsets = page_offsets[part_of_row, positions // group.page_tokens]
        token_offsets += positions % group.page_tokens * shape.head_dim
        table = KvTable(
            page_offsets=on_device(page_offsets, torch.int64),
            query_starts=query_starts,
            context_lens=context_lens,
            page_tokens=group.page_tokens,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
        )
        kv.append(LayerGroupInputs(table, on_device(token_offsets, torch.int64)))
    inputs = StepInputs(
        arena=arena,
        kv=tuple(kv),
        groups=RowGroups(
            starts=on_device(np.append(starts[:-1][is_first], starts[-1]), torch.int32),
            slots=on_device(slot_of_part[is_first], torch.int32),
        ),
        tables=tables,
    )
    return Batch(
        parts=tuple(parts),
        sampled=tuple(parts[i] for i in sampled),
        scored=tuple(parts[i] for i in scored),
        inputs=inputs,
        tokens=on_device(tokens, torch.int64),
        positions=on_device(positions, torch.int64),
        rows=on_device(np.concatenate(read) if sampled or scored else starts[-1:] - 1, torch.int64),
    )


def _page_offsets(runs: Sequence[PageRun]) -> NDArray[np.int64]:
    """Return the offsets of all sequences' pages in one group, [B, P]; 0 behind the last."""
    offsets = np.zeros((len(runs), max(run.end for run in runs)), dtype=np.int64)
    for row, run in zip(offsets, runs, strict=True):
        row[: run.end] = run.offsets
    return offsets
