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
    """Where each row of an adapter goes, counted from its own first page; the same for all adapters of one shape.

    Shapes: T rows, those of A then those of B of each module; M modules of the base, R the largest rank
        row_pages, row_begins  [T] page of each row and its first element there
        a_rows, b_rows         [M, R] which row is rank j of module m; T where there is none
        ranks                  [M] int32
        module_indices         the place in the base's manifest of each of the adapter's modules
        runs                   what ``copy_rows`` takes, but for where each run begins in a pack
    """

    num_pages: int
    row_pages: Ints
    row_begins: Ints
    a_rows: Ints
    b_rows: Ints
    ranks: NDArray[np.int32]
    module_indices: list[int]
    runs: Ints


class Layouts:
    """Lays adapters of one base out in pages of ``page_elements``. Any thread.

    People's adapters come in a few shapes, and a layout depends on nothing else, so those seen last are kept.
    """

    def __init__(self, shapes: Mapping[str, ModuleShape], page_elements: int) -> None:
        self._shapes = dict(shapes)
        self._indices = {name: index for index, name in enumerate(shapes)}
        self._page_elements = page_elements
        self._kept: dict[tuple[object, ...], Layout] = {}

    def layout_of(self, modules: Sequence[PackedModule]) -> Layout:
        """Return where the rows of ``modules`` go; raises ``AdapterRefused`` when they do not fit the base."""
        key = tuple((m.name, m.rank, m.in_features, m.out_features, m.a_dtype, m.b_dtype) for m in modules)
        found = self._kept.get(key)
        if found is None:
            found = self._lay_out(modules)
            if len(self._kept) >= _LAYOUTS_KEPT_MAX:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[key] = found
        return found

    def _lay_out(self, modules: Sequence[PackedModule]) -> Layout:
        for module in modules:
            self._check(module)
        runs = _runs_of(modules)
        num_pages, pages, begins = place([(num_rows, length) for _, num_rows, length, _ in runs], self._page_elements)
        firsts = np.cumsum([0, *(num_rows for _, num_rows, _, _ in runs)])
        rank_max = max((module.rank for module in modules), default=0)
        a_rows = np.full((len(self._indices), rank_max), len(pages), dtype=np.int64)
        b_rows = a_rows.copy()
        ranks = np.zeros(len(self._indices), dtype=np.int32)
        indices = [self._indices[module.name] for module in modules]
        for position, (m, module) in enumerate(zip(indices, modules, strict=True)):
            ranks[m] = module.rank
            for side, rows in enumerate((a_rows, b_rows)):
                first = firsts[2 * position + side]
                rows[m, : module.rank] = np.arange(first, first + module.rank)
        return Layout(
            num_pages=num_pages,
            row_pages=pages,
            row_begins=begins,
            a_rows=a_rows,
            b_rows=b_rows,
            ranks=ranks,
            module_indices=indices,
            runs=np.array(runs, dtype=np.int64).reshape(-1, 4),
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


def install(
    layout: Layout, modules: Sequence[PackedModule], pack: memoryview, pages: Sequence[int], arena: Arena
) -> Placement:
    """Copy the rows of ``modules`` from their pack into ``pages``, cast once, and return where they lie now.

    On a CPU rows go straight to the arena. What no row takes of the pages is left as it was: nobody reads it.
    """
    firsts = np.asarray(pages, dtype=np.int64) * arena.page_elements
    offsets = firsts[layout.row_pages] + layout.row_begins
    source, runs = np.frombuffer(pack, dtype=np.uint8), layout.runs.copy()
    runs[:, 0] = [begin for module in modules for begin in (module.a_offset, module.b_offset)]
    if arena.memory.device.type == "cpu":
        copy_rows(source, runs, offsets, arena.memory)
    else:
        image = torch.zeros(layout.num_pages * arena.page_elements, dtype=arena.memory.dtype)
        copy_rows(source, runs, layout.row_pages * arena.page_elements + layout.row_begins, image)
        arena.write(pages, image.view(layout.num_pages, arena.page_elements))
    # One more row for what is beyond a module's rank.
    offsets = np.append(offsets, 0)
    scalings = np.zeros(len(layout.ranks), dtype=np.float32)
    scalings[layout.module_indices] = [module.scaling for module in modules]
    device = arena.memory.device
    return Placement(
        pages=tuple(pages),
        size_bytes=len(pages) * arena.page_bytes,
        a_offsets=torch.from_numpy(offsets[layout.a_rows]).to(device),
        b_offsets=torch.from_numpy(offsets[layout.b_rows]).to(device),
        ranks=torch.from_numpy(layout.ranks.copy()).to(device),
        scalings=torch.from_numpy(scalings).to(device),
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
