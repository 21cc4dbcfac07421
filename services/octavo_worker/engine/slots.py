"""Slots: where the adapters of the running batch stand in the tables that the kernels read."""

import torch
from torch import Tensor

from octavo_kernels.layout import RowTable
from octavo_shared.references import PackKey
from octavo_worker.adapters.placement import Placement

_NUM_SLOTS_MIN = 8


class SlotTables:
    """Row tables of all modules for the adapters in use: one row per slot, written once when an adapter joins.

    An adapter keeps its slot between steps, so an unchanged set of adapters costs nothing. The tables of one
    module are a contiguous piece [slots, ranks] of one tensor [modules, slots, ranks].
    """

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self._names = names
        self._device = device
        self._slot_of: dict[PackKey, int] = {}
        self._placed: dict[PackKey, Placement] = {}
        self._allocate(_NUM_SLOTS_MIN, 1)
        self._cached: tuple[tuple[PackKey, ...], dict[str, RowTable]] = ((), {})

    def _allocate(self, num_slots: int, rank_max: int) -> None:
        shape = (len(self._names), num_slots, rank_max)
        self._a_offsets = torch.zeros(shape, dtype=torch.int64, device=self._device)
        self._b_offsets = torch.zeros(shape, dtype=torch.int64, device=self._device)
        self._ranks = torch.zeros(shape[:2], dtype=torch.int32, device=self._device)
        self._scalings = torch.zeros(shape[:2], dtype=torch.float32, device=self._device)
        self._free = list(range(num_slots - 1, -1, -1))
        self._num_slots, self._rank_max = num_slots, rank_max

    def slot_of(self, key: PackKey | None) -> int:
        """Return the slot of an adapter that ``select`` was called with; -1 for the base."""
        return -1 if key is None else self._slot_of[key]

    def select(self, adapters: dict[PackKey, Placement]) -> dict[str, RowTable]:
        """Return the tables for a batch that uses ``adapters``, by module; none for modules nobody targets."""
        keys = tuple(sorted(adapters))
        if keys == self._cached[0] and all(self._placed[key] is adapters[key] for key in keys):
            return self._cached[1]
        self._make_room(adapters)
        for key, placement in adapters.items():
            if self._placed.get(key) is not placement:
                self._write(key, placement)
        self._cached = (keys, self._tables([self._slot_of[key] for key in keys]))
        return self._cached[1]

    def _make_room(self, adapters: dict[PackKey, Placement]) -> None:
        num_new = sum(key not in self._slot_of for key in adapters)
        rank_max = max((placement.rank_max for placement in adapters.values()), default=0)
        if num_new > len(self._free):
            for key in [key for key in self._slot_of if key not in adapters]:
                self._release(key)
        if num_new > len(self._free) or rank_max > self._rank_max:
            num_slots = self._num_slots
            while num_slots < len(adapters):
                num_slots *= 2
            self._slot_of.clear()
            self._placed.clear()
            self._allocate(num_slots, max(rank_max, 1))

    def _release(self, key: PackKey) -> None:
        self._free.append(self._slot_of.pop(key))
        del self._placed[key]

    def _write(self, key: PackKey, placement: Placement) -> None:
        # Also reached when the adapter was evicted and came back at other pages.
        slot = self._slot_of[key] if key in self._slot_of else self._free.pop()
        rank_max = placement.rank_max
        self._a_offsets[:, slot, :rank_max] = placement.a_offsets
        self._b_offsets[:, slot, :rank_max] = placement.b_offsets
        self._ranks[:, slot] = placement.ranks
        self._scalings[:, slot] = placement.scalings
        self._slot_of[key], self._placed[key] = slot, placement

    def _tables(self, slots: list[int]) -> dict[str, RowTable]:
        if not slots:
            return {}
        is_targeted: Tensor = (self._ranks[:, slots] > 0).any(dim=1)
        return {
            self._names[m]: RowTable(
                a_offsets=self._a_offsets[m],
                b_offsets=self._b_offsets[m],
                ranks=self._ranks[m],
                scalings=self._scalings[m],
            )
            for m in is_targeted.nonzero()[:, 0].tolist()
        }
