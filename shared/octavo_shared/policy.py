"""Which adapter leaves a cache tier first: greedy-dual by reload cost per byte, with a capped frequency.

    H = L + min(frequency, 4) · cost / size

``cost`` is the reload time from the tier below in milliseconds, ``size`` the bytes held in this tier. ``L``
rises to the score of whatever was evicted last, so what is not used again ages without a clock.
Pure: values in, values out; the worker, the residency manager and the simulator run this same code.
Source: GreedyDual-Size-Frequency (Cherkasova, HPL-98-69).
"""

import heapq
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

FREQUENCY_MAX = 4.0
"""The cap keeps yesterday's favourite from outliving today's: four uses are as good as four thousand."""

K = TypeVar("K", bound=Hashable)


def score(floor: float, frequency: float, cost_ms: float, size_bytes: int) -> float:
    """Return ``H``; larger means: keep it longer."""
    return floor + min(frequency, FREQUENCY_MAX) * cost_ms / max(size_bytes, 1)


@dataclass(frozen=True)
class Entry:
    """What is remembered of one cached thing. ``order`` breaks ties: least recently used first."""

    size_bytes: int
    frequency: float
    score: float
    order: int


class EvictionPolicy(Generic[K]):
    """Scores of what one tier holds. It decides; whoever owns the tier evicts, then says so with ``evicted``."""

    def __init__(self) -> None:
        self._entries: dict[K, Entry] = {}
        self._floor = 0.0
        self._num_uses = 0

    @property
    def floor(self) -> float:
        """``L``: never falls."""
        return self._floor

    @property
    def used_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self._entries.values())

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def keys(self) -> Iterable[K]:
        return self._entries.keys()

    def score_of(self, key: K) -> float:
        """Return the score that ``key`` had when it was last used; raises ``KeyError`` when it is not held."""
        return self._entries[key].score

    def used(self, key: K, size_bytes: int, cost_ms: float, frequency: float | None = None) -> None:
        """Count one use of ``key``, admitting it if it is new.

        ``frequency`` replaces the count kept here, for callers who know more than this tier's own history.
        """
        if frequency is None:
            held = self._entries.get(key)
            frequency = min((held.frequency if held else 0.0) + 1.0, FREQUENCY_MAX)
        self._num_uses += 1
        self._entries[key] = Entry(
            size_bytes, frequency, score(self._floor, frequency, cost_ms, size_bytes), self._num_uses
        )

    def choose(self, needed_bytes: int, pinned: Collection[K] = ()) -> tuple[K, ...]:
        """Return whom to evict to free ``needed_bytes``, lowest score first; never one of ``pinned``.

        Returns every unpinned key when even all of them are not enough: the caller sees by the sum.
        Changes nothing.
        """
        if needed_bytes <= 0:
            return ()
        heap = [(entry.score, entry.order, key) for key, entry in self._entries.items() if key not in pinned]
        heapq.heapify(heap)
        chosen: list[K] = []
        while heap and needed_bytes > 0:
            _, _, key = heapq.heappop(heap)
            chosen.append(key)
            needed_bytes -= self._entries[key].size_bytes
        return tuple(chosen)

    def evicted(self, key: K) -> None:
        """``key`` was evicted to make room: forget it and let everything else age by its score."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._floor = max(self._floor, entry.score)

    def dropped(self, key: K) -> None:
        """``key`` left for another reason (an order, an erasure, a corrupt copy): forget it, nothing ages."""
        self._entries.pop(key, None)
