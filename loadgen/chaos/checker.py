"""Decides whether a history is one that the registry may have. Pure.

An adapter is a register whose writes append to a list, its ledger. The ledger is the order in which the writes claim to
have happened, so nothing has to be searched: the order is checked against the model, against what clients were told and
against real time, and reads are given the places in it that they can have (``chaos/reads.py``).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from chaos.history import (
    GONE,
    Evaluate,
    Finding,
    History,
    Imported,
    LedgerEntry,
    Operation,
    Outcome,
    Push,
    Resolve,
    Seen,
    Snapshot,
)
from chaos.model import Impossible, State, apply, can_be_idle
from chaos.reads import Place, Timeline


class Kind(StrEnum):
    LOST = "lost"
    """An acknowledged write is not in the ledger."""
    FORKED = "forked"
    """One revision number stands for two revisions, or two heads follow the same one."""
    DUPLICATE = "duplicate"
    """One write happened twice."""
    PHANTOM = "phantom"
    """Something happened that nobody asked for, or that was refused."""
    STATE = "state"
    """A head is not what its write makes of the head before."""
    ANSWER = "answer"
    """A client was told something else than what the write left."""
    ORDER = "order"
    """A write took effect before it was asked for, or after it was acknowledged."""
    READ = "read"
    """A read was answered with what never was, or was not yet."""
    STALE = "stale"
    """A read was answered with what had been replaced for longer than is allowed."""


@dataclass(frozen=True)
class Violation:
    kind: Kind
    adapter: str
    problem: str


@dataclass(frozen=True)
class StaleRead:
    """A read, asked for at ``invoked_s``, of what had been replaced for ``late_s``, which is within the bound."""

    adapter: str
    invoked_s: float
    late_s: float


@dataclass(frozen=True)
class Verdict:
    """What was found."""

    violations: tuple[Violation, ...]
    stale: tuple[StaleRead, ...]

    def count(self, kind: Kind) -> int:
        """Return how many violations are of ``kind``."""
        return sum(violation.kind is kind for violation in self.violations)


def check(history: History, stale_max_s: float) -> Verdict:
    """Return what is wrong with ``history``.

    ``stale_max_s`` is for how long an isolated leader may go on answering reads: a read of what was replaced is wrong
    when it was asked for longer than that after the replacement was known. Writes get no such allowance.
    """
    by_adapter: dict[str, list[Operation]] = {adapter: [] for adapter in history.ledger}
    for operation in history.operations:
        by_adapter.setdefault(operation.adapter, []).append(operation)
    violations: list[Violation] = []
    stale: list[StaleRead] = []
    for adapter, operations in by_adapter.items():
        one = _Adapter(operations, history.ledger.get(adapter, ()))
        violations += [Violation(kind, adapter, problem) for kind, problem in one.problems(stale_max_s)]
        stale += [StaleRead(adapter, *found) for found in one.stale]
    return Verdict(tuple(violations), tuple(stale))


Problem = tuple[Kind, str]


class _Adapter:
    """One adapter's operations against its ledger."""

    def __init__(self, operations: Sequence[Operation], ledger: Sequence[LedgerEntry]) -> None:
        self._operations = operations
        self._ledger = ledger
        self._writes = {one.write: one for one in operations if one.write}
        self.stale: list[tuple[float, float]] = []

    def problems(self, stale_max_s: float) -> Iterator[Problem]:
        """Yield what is wrong; also counts stale reads."""
        yield from self._links()
        yield from self._numbers()
        yield from self._origins()
        yield from self._acknowledged()
        yield from self._order()
        states, problem = self._states()
        if problem is not None:
            # Without the states there is nothing to hold reads against.
            yield problem
            return
        yield from self._reads(states, stale_max_s)

    def _links(self) -> Iterator[Problem]:
        """Each event follows the one before it, or none behind an erasure: two that follow the same are a fork."""
        before, latest = 0, 0
        for entry in self._ledger:
            if entry.previous_sequence != before:
                yield Kind.FORKED, f"event {entry.sequence} follows {entry.previous_sequence}, not {before}"
            if entry.sequence <= latest:
                yield Kind.ORDER, f"event {entry.sequence} stands behind {latest}"
            latest = entry.sequence
            before = 0 if entry.snapshot == GONE else latest

    def _numbers(self) -> Iterator[Problem]:
        """A revision number stands for one write and one digest between two erasures, whoever was told of it."""
        pushed: dict[tuple[int, int], tuple[str, str]] = {}
        for write, life, snapshot in (*self._pushed_in_ledger(), *self._pushed_by_answers()):
            number = snapshot.num_revisions
            told = (write, snapshot.latest_digest)
            if (before := pushed.setdefault((life, number), told)) != told:
                yield Kind.FORKED, f"revision {number} is {told[1]} of {told[0]} and {before[1]} of another"

    def _pushed_in_ledger(self) -> Iterator[tuple[str, int, Snapshot]]:
        number = life = 0
        for entry in self._ledger:
            if entry.snapshot.num_revisions != number:
                number = entry.snapshot.num_revisions
                if number:
                    yield entry.write, life, entry.snapshot
            life += entry.snapshot == GONE

    def _pushed_by_answers(self) -> Iterator[tuple[str, int, Snapshot]]:
        lives = {write: life for write, life, _ in self._pushed_in_ledger()}
        # Where nothing was ever erased there is no doubt which adapter an answer is about.
        only = None if any(entry.snapshot == GONE for entry in self._ledger) else 0
        for one in self._operations:
            life = lives.get(one.write, only)
            for seen in one.seen:
                if isinstance(one.call, Push) and isinstance(seen, Snapshot) and life is not None:
                    yield one.write, life, seen

    def _origins(self) -> Iterator[Problem]:
        """Each event has a write that asked for it and was not refused, and no write has two."""
        for write, number in Counter(entry.write for entry in self._ledger).items():
            if number > 1:
                yield Kind.DUPLICATE, f"write {write} happened {number} times"
            asked = self._writes.get(write)
            if asked is None:
                yield Kind.PHANTOM, f"nobody asked for write {write}"
            elif asked.outcome is Outcome.FAIL:
                yield Kind.PHANTOM, f"write {write} was refused and happened: {asked.call}"

    def _acknowledged(self) -> Iterator[Problem]:
        """Each acknowledged write is in the ledger, and every answer to it showed what it left."""
        entries = {entry.write: entry for entry in self._ledger}
        for write, one in self._writes.items():
            if one.outcome is not Outcome.OK or isinstance(one.call, Resolve):
                continue
            entry = entries.get(write)
            if entry is None:
                # One that found all as it wants leaves no event; it is checked as a read.
                if not can_be_idle(one.call):
                    yield Kind.LOST, f"write {write} was acknowledged and is not in the ledger: {one.call}"
                continue
            for seen in one.seen:
                if not _tells(seen, entry):
                    left = entry.recorded or entry.snapshot
                    yield Kind.ANSWER, f"write {write} left {left} and its client was told {seen}"

    def _order(self) -> Iterator[Problem]:
        """No write that was complete before another was invoked stands behind it."""
        latest_s, latest = float("-inf"), ""
        for entry in self._ledger:
            one = self._writes.get(entry.write)
            if one is None:
                continue
            if one.completed_s is not None and one.completed_s < latest_s:
                yield Kind.ORDER, f"write {entry.write} was complete before {latest} began and stands behind it"
            if one.invoked_s > latest_s:
                latest_s, latest = one.invoked_s, entry.write

    def _states(self) -> tuple[list[State], Problem | None]:
        """Return the states from before the first event to behind the last one, and the first that is wrong."""
        states = [State()]
        for entry in self._ledger:
            one = self._writes.get(entry.write)
            if one is None or isinstance(one.call, Resolve):
                return states, (Kind.STATE, f"event {entry.sequence} is of no known write")
            try:
                state = apply(states[-1], one.call)
            except Impossible as problem:
                return states, (Kind.STATE, f"event {entry.sequence} cannot have been accepted: {problem}: {one.call}")
            if state.snapshot() != entry.snapshot:
                problem_text = f"{one.call} leaves {state.snapshot()}, and event {entry.sequence} {entry.snapshot}"
                return states, (Kind.STATE, problem_text)
            recorded = one.call.finding if isinstance(one.call, Evaluate) else None
            if (recorded, state.findings) != (entry.recorded, entry.findings):
                problem_text = f"event {entry.sequence} holds {entry.recorded} and its head {entry.findings}"
                return states, (Kind.STATE, f"{one.call} leaves {state.findings}, and {problem_text}")
            states.append(state)
        return states, None

    def _reads(self, states: Sequence[State], stale_max_s: float) -> Iterator[Problem]:
        timeline = Timeline(list(self._as_they_happened()), states)
        for one in sorted(self._idle_and_reads(), key=lambda one: one.completed_s or 0.0):
            place = timeline.place(one)
            if place is Place.FRESH:
                continue
            if isinstance(place, Place):
                yield Kind.READ, f"{one.call} showed {one.seen[0]}: {place.value}"
            elif place <= stale_max_s:
                self.stale.append((one.invoked_s, place))
            else:
                yield Kind.STALE, f"{one.call} showed {one.seen[0]}, which was replaced for {place:.1f} s"

    def _as_they_happened(self) -> Iterator[Operation]:
        """Yield the ledger's writes. One that is there again was acknowledged for its first time, so nobody knows when
        the second was: reads are not to be found wrong for it."""
        seen: set[str] = set()
        for entry in self._ledger:
            one = self._writes[entry.write]
            yield replace(one, completed_s=None) if entry.write in seen else one
            seen.add(entry.write)

    def _idle_and_reads(self) -> Iterable[Operation]:
        """Return all that changed nothing and was told something: reads, refused swaps, writes that found no work."""
        made = {entry.write for entry in self._ledger}
        return (one for one in self._operations if one.seen and one.completed_s is not None and one.write not in made)


def _tells(seen: Seen, left: LedgerEntry) -> bool:
    """Tell whether an answer shows what its write left."""
    if isinstance(seen, Imported):
        return (seen.number, seen.digest) == (left.snapshot.num_revisions, left.snapshot.latest_digest)
    return seen == (left.recorded if isinstance(seen, Finding) else left.snapshot)
