"""Where the rows of one adapter lie: packed into pages, longest rows first, no row across two pages."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_kernels.copying import SOURCE_TYPES, copy_rows
from octavo_shared.errors import AdapterRefused
from octavo_shared.manifest import ModuleShape
from octavo_shared.pack import PackedModule
from octavo_worker.adapters.pages import Arena

_LAYOUTS_KEPT_MAX = 256

Ints = NDArray[np.int64]


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


@dataclass(frozen=True)
class Layout:
    """Where each row of an adapter goes, counted from its own first page; the same for all adapters of one form.

    Shapes: T rows, those of A then those of B of each module; M modules of the base, R the largest rank
        runs                   [2 · modules, 4], what ``copy_rows`` takes
        row_pages, row_begins  [T] page of each row and its first element there
        rank_rows              [2, M, R] which row is rank j of A, and of B, of module m; T where there is none
        ranks, scalings        [M] int32 and fp32, shared by all adapters of this layout
    """

    num_pages: int
    runs: Ints
    row_pages: Ints
    row_begins: Ints
    rank_rows: Ints
    ranks: Tensor
    scalings: Tensor


class Layouts:
    """Lays adapters of one base out in pages of ``page_elements`` on ``device``. Any thread.

    People's adapters come in few forms, and a layout depends on nothing else, so those made last are kept.
    """

    def __init__(
        self, shapes: Mapping[str, ModuleShape], page_elements: int, device: str | torch.device = "cpu"
    ) -> None:
        self._device = device
        self._shapes = dict(shapes)
        self._indices = {name: index for index, name in enumerate(shapes)}
        self._page_elements = page_elements
        self._kept: dict[tuple[PackedModule, ...], Layout] = {}

    def layout_of(self, modules: tuple[PackedModule, ...]) -> Layout:
        """Return where the rows of ``modules`` go; raises ``AdapterRefused`` when they do not fit the base."""
        found = self._kept.get(modules)
        if found is None:
            found = self._lay_out(modules)
            if len(self._kept) >= _LAYOUTS_KEPT_MAX:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[modules] = found
        return found

    def _lay_out(self, modules: Sequence[PackedModule]) -> Layout:
        for module in modules:
            self._check(module)
        runs = _runs_of(modules)
        num_pages, pages, begins = place([(num_rows, length) for _, num_rows, length, _ in runs], self._page_elements)
        firsts = np.cumsum([0, *(num_rows for _, num_rows, _, _ in runs)])
        rank_max = max((module.rank for module in modules), default=0)
        rank_rows = np.full((2, len(self._indices), rank_max), len(pages), dtype=np.int64)
        ranks = np.zeros(len(self._indices), dtype=np.int32)
        scalings = np.zeros(len(self._indices), dtype=np.float32)
        for position, module in enumerate(modules):
            m = self._indices[module.name]
            ranks[m], scalings[m] = module.rank, module.scaling
            for side in (0, 1):
                first = firsts[2 * position + side]
                rank_rows[side, m, : module.rank] = np.arange(first, first + module.rank)
        return Layout(
            num_pages=num_pages,
            runs=np.array(runs, dtype=np.int64).reshape(-1, 4),
            row_pages=pages,
            row_begins=begins,
            rank_rows=rank_rows,
            ranks=torch.from_numpy(ranks).to(self._device),
            scalings=torch.from_numpy(scalings).to(self._device),
        )

    def _check(self, module: PackedModule) -> None:
        shape = self._shapes.get(module.name)
        if shape is None:
            raise AdapterRefused("unknown_module", f"the base has no linear module '{module.name}' that takes adapters")
        if (shape.in_features, shape.out_features) != (module.in_features, module.out_features):
            raise AdapterRefused(
                "wrong_shape",
                f"'{module.name}' maps {module.in_features} to {module.out_features} features, "
                f"in the base {shape.in_features} to {shape.out_features}",
            )


def place(runs: Sequence[tuple[int, int]], page_elements: int) -> tuple[int, Ints, Ints]:
    """Decide where rows go, for runs of (rows, elements of a row): longest first; shorter ones fill the pages' ends.

    Returns how many pages they take, and for each row, in the order of the runs, its page and its first element there.
    Raises ``AdapterRefused`` when a row is longer than a page.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, (_, length) in enumerate(runs):
        by_length[length].append(index)
    if by_length and max(by_length) > page_elements:
        raise AdapterRefused(
            "row_exceeds_page", f"a row of {max(by_length)} elements exceeds a page of {page_elements}"
        )
    used = np.zeros(0, dtype=np.int64)  # elements taken at the start of each page
    places: list[tuple[Ints, Ints]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))] * len(runs)
    for length in sorted(by_length, reverse=True):
        members = by_length[length]
        num_rows = sum(runs[index][0] for index in members)
        per_page = page_elements // length
        missing = num_rows - int(((page_elements - used) // length).sum())
        used = np.concatenate([used, np.zeros(max(0, -(-missing // per_page)), dtype=np.int64)])
        # Rows per page, first pages first, until all rows have a place.
        room = (page_elements - used) // length
        taken = np.clip(num_rows - (np.cumsum(room) - room), 0, room)
        pages = np.repeat(np.arange(len(used)), taken)
        begins = used[pages] + (np.arange(num_rows) - np.repeat(np.cumsum(taken) - taken, taken)) * length
        used = used + taken * length
        bounds = np.cumsum([runs[index][0] for index in members])[:-1]
        for index, page, begin in zip(members, np.split(pages, bounds), np.split(begins, bounds), strict=True):
            places[index] = (page, begin)
    none = np.zeros(0, dtype=np.int64)
    return len(used), np.concatenate([none, *(p for p, _ in places)]), np.concatenate([none, *(b for _, b in places)])


def install(layout: Layout, pack: memoryview, pages: Sequence[int], arena: Arena) -> Placement:
    """Copy the rows of a pack of this layout into ``pages``, cast once, and return where they lie now.

    On a CPU rows go straight to the arena. What no row takes of the pages is left as it was: nobody reads it.
    """
    firsts = np.asarray(pages, dtype=np.int64) * arena.page_elements
    # One more for what is beyond a module's rank.
    offsets = np.zeros(len(layout.row_pages) + 1, dtype=np.int64)
    places = np.add(firsts[layout.row_pages], layout.row_begins, out=offsets[:-1])
    source, device = np.frombuffer(pack, dtype=np.uint8), arena.memory.device
    if device.type == "cpu":
        copy_rows(source, layout.runs, places, arena.memory)
    else:
        image = torch.zeros(layout.num_pages * arena.page_elements, dtype=arena.memory.dtype)
        copy_rows(source, layout.runs, layout.row_pages * arena.page_elements + layout.row_begins, image)
        arena.write(pages, image.view(layout.num_pages, arena.page_elements))
    of_ranks = torch.from_numpy(offsets[layout.rank_rows]).to(device)
    return Placement(
        pages=tuple(pages),
        size_bytes=len(pages) * arena.page_bytes,
        a_offsets=of_ranks[0],
        b_offsets=of_ranks[1],
        ranks=layout.ranks,
        scalings=layout.scalings,
    )


def _runs_of(modules: Sequence[PackedModule]) -> list[tuple[int, int, int, int]]:
    """Return a row of ``copy_rows``' table for A, then for B of each module."""
    return [
        run
        for m in modules
        for run in (
            (m.a_offset, m.rank, m.in_features, SOURCE_TYPES[m.a_dtype]),
            (m.b_offset, m.rank, m.out_features, SOURCE_TYPES[m.b_dtype]),
        )
    ]
