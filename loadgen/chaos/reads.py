"""Which place in the order of writes a read can have. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from enum import Enum
from itertools import accumulate

from chaos.history import Operation
from chaos.model import State, shows

_NEVER_S = float("inf")


class Place(Enum):
    """Where a read stands that is not merely stale."""

    FRESH = "it fits"
    TOO_EARLY = "that came only after the read was over"
    NOWHERE = "that never was"


class Timeline:
    """The states of one adapter, the writes between them, and the reads that were placed so far.

    State ``i`` is the one behind the first ``i`` writes. A read's place is bounded below by the writes and reads that
    were complete before it was invoked, and above by the writes that were invoked after it was complete. Reads come in
    the order of their completion and get the lowest place that they can have; as reads only ever bound others from
    below, there is a way to place all of them if and only if this one is.
    """

    def __init__(self, writes: Sequence[Operation], states: Sequence[State]) -> None:
        self._states = states
        # Number of the write, by when it was known to have happened; with each, the latest one known by then.
        known = sorted((_completed_s(write), number) for number, write in enumerate(writes, 1))
        self._known_s = [at_s for at_s, _ in known]
        self._known = list(accumulate((number for _, number in known), max))
        # The same by invocation, from the end: with each, the earliest write that was not yet asked for.
        asked = sorted((write.invoked_s, number) for number, write in enumerate(writes, 1))
        self._asked_s = [at_s for at_s, _ in asked]
        self._asked = list(accumulate((number for _, number in reversed(asked)), min))[::-1]
        self._placed_s: list[float] = []
        self._placed: list[int] = []
        # With each state, when it was known to have been replaced: by a later write, or by a read of a later state.
        replaced = list(accumulate((_completed_s(write) for write in reversed(writes)), min))[::-1]
        self._replaced_s = [*replaced, _NEVER_S]

    def place(self, read: Operation) -> Place | float:
        """Return how the read fits, or for how many seconds what it shows had been replaced when it was asked for."""
        completed_s = _completed_s(read)
        first, last = self._first(read.invoked_s), self._last(completed_s)
        for number in range(first, last + 1):
            if self._shows(number, read):
                self._placed_s.append(completed_s)
                self._placed.append(max(number, self._placed[-1] if self._placed else 0))
                for earlier in range(number - 1, -1, -1):
                    if self._replaced_s[earlier] <= completed_s:
                        break
                    self._replaced_s[earlier] = completed_s
                return Place.FRESH
        for number in range(first - 1, -1, -1):
            if self._shows(number, read):
                return max(0.0, read.invoked_s - self._replaced_s[number])
        is_later = any(self._shows(number, read) for number in range(last + 1, len(self._states)))
        return Place.TOO_EARLY if is_later else Place.NOWHERE

    def _shows(self, number: int, read: Operation) -> bool:
        return shows(self._states[number], read.call, read.seen[0])

    def _first(self, invoked_s: float) -> int:
        num_known = bisect_left(self._known_s, invoked_s)
        num_placed = bisect_left(self._placed_s, invoked_s)
        return max(self._known[num_known - 1] if num_known else 0, self._placed[num_placed - 1] if num_placed else 0)

    def _last(self, completed_s: float) -> int:
        num_asked = bisect_right(self._asked_s, completed_s)
        return self._asked[num_asked] - 1 if num_asked < len(self._asked) else len(self._states) - 1


def _completed_s(operation: Operation) -> float:
    return _NEVER_S if operation.completed_s is None else operation.completed_s
