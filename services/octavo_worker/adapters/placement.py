"""Where the rows of one adapter lie: packed into pages, longest rows first, no row across two pages."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_shared.errors import AdapterRefused
from octavo_shared.manifest import ModuleShape
from octavo_shared.pack import PackedModule
from octavo_worker.adapters.pages import Arena

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Run:
    """``num_rows`` rows of ``length`` elements that follow each other in the pack, from byte ``begin``."""

    begin: int
    num_rows: int
    length: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Plan:
    """Where each row of each run goes: ``offsets[i]`` [num_rows] int64, counted in elements from the first page."""

    runs: tuple[Run, ...]
    offsets: tuple[NDArray[np.int64], ...]
    num_pages: int


@dataclass(frozen=True)
class Placement:
    """An adapter in the arena, ready for the kernels. Module m is the m-th of the base's manifest.

    Shapes: M modules of the base, R the adapter's largest rank
        a_offsets, b_offsets  [M, R] int64, elements from the arena's start; rows beyond a module's rank are 0
        ranks                 [M] int32, 0 where the adapter does not target the module
        scalings              [M] fp32
    """

    pages: tuple[int, ...]
    size_bytes: int
    a_offsets: Tensor
    b_offsets: Tensor
    ranks: Tensor
    scalings: Tensor

    @property
    def rank_max(self) -> int:
        """The largest rank among the modules."""
        return int(self.a_offsets.shape[1])


def runs_of(modules: Sequence[PackedModule], shapes: Mapping[str, ModuleShape]) -> tuple[Run, ...]:
    """Return the runs of a pack, A then B of each module; raises ``AdapterRefused`` when one does not fit the base."""
    runs = []
    for module in modules:
        shape = shapes.get(module.name)
        if shape is None:
            raise AdapterRefused("unknown_module", f"the base has no linear module '{module.name}' that takes adapters")
        if (shape.in_features, shape.out_features) != (module.in_features, module.out_features):
            raise AdapterRefused(
                "wrong_shape",
                f"'{module.name}' maps {module.in_features} to {module.out_features} features, "
                f"in the base {shape.in_features} to {shape.out_features}",
            )
        runs.append(Run(module.a_offset, module.rank, module.in_features, _DTYPES[module.a_dtype]))
        runs.append(Run(module.b_offset, module.rank, module.out_features, _DTYPES[module.b_dtype]))
    return tuple(runs)


def plan(runs: Sequence[Run], page_elements: int) -> Plan:
    """Decide where rows go: longest first; shorter rows fill what longer ones left at the ends of pages.

    Raises ``AdapterRefused`` when a row is longer than a page.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        by_length[run.length].append(index)
    if by_length and max(by_length) > page_elements:
        raise AdapterRefused(
            "row_exceeds_page", f"a row of {max(by_length)} elements exceeds a page of {page_elements}"
        )
    used = np.zeros(0, dtype=np.int64)  # elements taken at the start of each page
    offsets: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)] * len(runs)
    for length in sorted(by_length, reverse=True):
        members = by_length[length]
        num_rows = sum(runs[index].num_rows for index in members)
        per_page = page_elements // length
        missing = num_rows - int(((page_elements - used) // length).sum())
        used = np.concatenate([used, np.zeros(max(0, -(-missing // per_page)), dtype=np.int64)])
        # Rows per page, first pages first, until all rows have a place.
        room = (page_elements - used) // length
        taken = np.clip(num_rows - (np.cumsum(room) - room), 0, room)
        page_of = np.repeat(np.arange(len(used)), taken)
        within = np.arange(num_rows) - np.repeat(np.cumsum(taken) - taken, taken)
        places = page_of * page_elements + used[page_of] + within * length
        used = used + taken * length
        bounds = np.cumsum([runs[index].num_rows for index in members])[:-1]
        for index, piece in zip(members, np.split(places, bounds), strict=True):
            offsets[index] = piece
    return Plan(tuple(runs), tuple(offsets), len(used))


def render(plan: Plan, pack: memoryview, page_elements: int, dtype: torch.dtype) -> Tensor:
    """Return the pages' content [num_pages, page_elements] on the host: rows cast to ``dtype`` once, slack zero.

    All copies are slices of whole runs, inside torch or numpy, which release the interpreter's lock.
    """
    image = torch.zeros(plan.num_pages * page_elements, dtype=dtype)
    # A copy, because torch only takes memory that it might write to.
    raw = torch.from_numpy(np.frombuffer(pack, dtype=np.uint8).copy())
    for run, offsets in zip(plan.runs, plan.offsets, strict=True):
        num_bytes = run.num_rows * run.length * run.dtype.itemsize
        source = raw[run.begin : run.begin + num_bytes]
        if run.begin % run.dtype.itemsize:
            source = source.clone()  # a view of wider elements must begin aligned
        rows = source.view(run.dtype).view(run.num_rows, run.length)
        # A run lies in one piece but for the page ends inside it.
        breaks = np.flatnonzero(np.diff(offsets) != run.length) + 1
        for begin, end in zip([0, *breaks.tolist()], [*breaks.tolist(), run.num_rows], strict=True):
            if begin < end:
                start = int(offsets[begin])
                image[start : start + (end - begin) * run.length].view(end - begin, run.length).copy_(rows[begin:end])
    return image.view(plan.num_pages, page_elements)


def locate(
    plan: Plan, modules: Sequence[PackedModule], names: Sequence[str], pages: Sequence[int], arena: Arena
) -> Placement:
    """Translate the plan's offsets to the arena's, for the pages that were allocated, on the arena's device."""
    index_of = {name: index for index, name in enumerate(names)}
    firsts = np.asarray(pages, dtype=np.int64) * arena.page_elements
    rank_max = max((module.rank for module in modules), default=0)
    a_offsets = np.zeros((len(names), rank_max), dtype=np.int64)
    b_offsets = np.zeros_like(a_offsets)
    ranks = np.zeros(len(names), dtype=np.int32)
    scalings = np.zeros(len(names), dtype=np.float32)
    for position, module in enumerate(modules):
        m = index_of[module.name]
        for table, local in ((a_offsets, plan.offsets[2 * position]), (b_offsets, plan.offsets[2 * position + 1])):
            table[m, : module.rank] = firsts[local // arena.page_elements] + local % arena.page_elements
        ranks[m], scalings[m] = module.rank, module.scaling
    device = arena.memory.device
    return Placement(
        pages=tuple(pages),
        size_bytes=len(pages) * arena.page_bytes,
        a_offsets=torch.from_numpy(a_offsets).to(device),
        b_offsets=torch.from_numpy(b_offsets).to(device),
        ranks=torch.from_numpy(ranks).to(device),
        scalings=torch.from_numpy(scalings).to(device),
    )
