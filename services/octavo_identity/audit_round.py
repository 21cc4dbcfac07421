"""One pass of the background audit over the ledger. Pure: what was read goes in, what is wrong with it comes out."""

from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from octavo_shared.checkpoint import Checkpoint, CheckpointRefused, Verifier
from octavo_shared.merkle import Frontier, Tree
from octavo_shared.messages.auditing import AuditFinding, FindingKind
from octavo_shared.messages.ledger import LedgerEvent

_KEPT_MAX = 100
"""Of findings. All are counted and logged; more than this many tell nobody anything new."""
_NEAR_LEAVES = 4_096
"""Where an event that stands in another one's place is looked for."""


class Passed(msgspec.Struct, frozen=True):
    """How far a round is: what has to survive a restart for it to go on.

    ``hashes`` are those of the frontier of the first ``position`` leaves, None once a leaf was lost for good;
    ``agreed_size`` is the size of the newest checkpoint that it led to, ``checkpoint`` the sequence of the last one
    that was looked at and ``checkpoint_size`` its size.
    """

    position: int = 0
    hashes: tuple[bytes, ...] | None = ()
    agreed_size: int = 0
    is_contradicted: bool = False
    checkpoint: int = 0
    checkpoint_size: int = 0
    findings: tuple[AuditFinding, ...] = ()
    num_findings: int = 0


class AuditRound:
    """Events and checkpoints are taken in order, a checkpoint before the event that is its last leaf.

    Each event is held against the leaf hash that was remembered when it was new, and each checkpoint against the root
    of all events up to it, which is computed here from nothing else. A bad event counts as it was remembered, so that
    what comes behind it is still judged by itself.
    """

    def __init__(self, verifier: Verifier, passed: Passed | None = None) -> None:
        passed = passed or Passed()
        self._verifier = verifier
        self.position = passed.position
        self._frontier = Frontier(passed.position, passed.hashes) if passed.hashes is not None else None
        self._agreed_size = passed.agreed_size
        self._is_contradicted = passed.is_contradicted
        self._judged = passed.checkpoint, passed.checkpoint_size
        self.next_checkpoint = passed.checkpoint + 1
        self._pending: deque[tuple[int, Checkpoint]] = deque()
        self._findings = {(one.kind, one.first, one.last): one for one in passed.findings}
        self._num_findings = passed.num_findings
        self._lost_until = 0

    @property
    def passed(self) -> Passed:
        hashes = self._frontier.hashes if self._frontier is not None else None
        return Passed(
            self.position, hashes, self._agreed_size, self._is_contradicted, *self._judged,
            tuple(self._findings.values()), self._num_findings,
        )  # fmt: skip

    @property
    def lost_until(self) -> int:
        """Up to this sequence events are known to be lost, and need not be asked for."""
        return self._lost_until

    def needs_checkpoints(self, until: int) -> bool:
        """Tell whether checkpoints of up to ``until`` events may be missing here."""
        return not self._pending or self._pending[-1][1].size < until

    def differ(self, events: Sequence[LedgerEvent | None], remembered: Tree | None) -> bool:
        """Tell whether any of ``events``, which are behind ``position``, is lost or not as it was remembered."""
        return any(event is None or is_changed for event, is_changed in self._compared(events, remembered))

    def as_signed(self, events: Sequence[LedgerEvent | None], remembered: Tree | None) -> list[LedgerEvent]:
        """Return those of ``events``, which are behind ``position``, that are there as they were remembered."""
        return [event for event, is_changed in self._compared(events, remembered) if event and not is_changed]

    def refuse_statement(self, sequence: int, problem: str) -> list[AuditFinding]:
        """Note that the statement in an event does not hold; returns what is new of it."""
        detail = f"the statement in event {sequence} {problem}"
        return self._note(FindingKind.STATEMENT_BAD, sequence, sequence, detail)

    def lose(self, until: int) -> list[AuditFinding]:
        """Note that all events behind ``position`` are lost up to ``until``; returns what is new of it."""
        self._lost_until = until
        first = self.position + 1
        which = f"event {first} is" if first == until else f"events {first} to {until} are"
        return self._note(FindingKind.EVENT_LOST, first, until, f"{which} missing in the stream")

    def take_events(self, events: Sequence[LedgerEvent | None], remembered: Tree | None) -> list[AuditFinding]:
        """Take the next events, None for each that is lost; returns what is new.

        ``remembered`` has the leaf hashes; None while there are none that could be trusted.
        """
        found: list[AuditFinding] = []
        for sequence, event in enumerate(events, self.position + 1):
            leaf = self._leaf(remembered, sequence)
            if event is None:
                if sequence > self._lost_until:
                    found += self.lose(sequence)
            else:
                own = event.leaf_hash()
                if leaf is not None and own != leaf:
                    found += self._note_changed(sequence, own, remembered)
                leaf = leaf or own
            self._grow(leaf)
            self.position = sequence
            found += self._compare()
        return found

    def take_checkpoint(self, sequence: int, note: str | None) -> list[AuditFinding]:
        """Take the next checkpoint as it is stored, None for one that is lost; returns what is new."""
        self.next_checkpoint = sequence + 1
        if note is None:
            return self._note(FindingKind.CHECKPOINT_LOST, sequence, sequence, f"checkpoint {sequence} is missing")
        try:
            checkpoint = self._verifier.open(note)
        except CheckpointRefused as error:
            return self._note(FindingKind.CHECKPOINT_CHANGED, sequence, sequence, f"checkpoint {sequence}: {error}")
        before = self._pending[-1][1].size if self._pending else self._judged[1]
        if checkpoint.size <= before:
            detail = f"checkpoint {sequence} is of {checkpoint.size} events, and one before it of {before}"
            return self._note(FindingKind.CHECKPOINT_CHANGED, sequence, sequence, detail)
        self._pending.append((sequence, checkpoint))
        return []

    def miss_checkpoints(self, first: int, last: int, detail: str) -> list[AuditFinding]:
        """Note that checkpoints are gone, or are not what they were when they were last looked at."""
        return self._note(FindingKind.CHECKPOINT_LOST, first, last, detail)

    def _compared(
        self, events: Sequence[LedgerEvent | None], remembered: Tree | None
    ) -> Iterator[tuple[LedgerEvent | None, bool]]:
        """Yield each event behind ``position``, and whether another one was remembered in its place."""
        for sequence, event in enumerate(events, self.position + 1):
            leaf = self._leaf(remembered, sequence) if event is not None else None
            yield event, event is not None and leaf is not None and event.leaf_hash() != leaf

    def _leaf(self, remembered: Tree | None, sequence: int) -> bytes | None:
        return remembered.leaf(sequence - 1) if remembered is not None and sequence <= remembered.size else None

    def _grow(self, leaf: bytes | None) -> None:
        if leaf is None:
            # No root can be computed any more; events are still held to what is remembered of them.
            self._frontier = None
        elif self._frontier is not None:
            self._frontier.append(leaf)

    def _note_changed(self, sequence: int, own: bytes, remembered: Tree | None) -> list[AuditFinding]:
        if remembered is not None:
            first, last = max(0, sequence - _NEAR_LEAVES), min(remembered.size - 1, sequence + _NEAR_LEAVES)
            index = remembered.find(own, first, last)
            if index is not None:
                detail = f"where event {sequence} was, event {index + 1} stands"
                return self._note(FindingKind.EVENT_MOVED, sequence, sequence, detail)
        return self._note(FindingKind.EVENT_CHANGED, sequence, sequence, f"event {sequence} is not what it was")

    def _compare(self) -> list[AuditFinding]:
        """Hold the checkpoint that ends at ``position``, if there is one, to the root of all events up to it."""
        found: list[AuditFinding] = []
        while self._pending and self._pending[0][1].size <= self.position:
            sequence, checkpoint = self._pending.popleft()
            self._judged = sequence, checkpoint.size
            if self._frontier is None:
                continue
            agrees = checkpoint.size == self.position and checkpoint.root == self._frontier.root()
            if not agrees and not self._is_contradicted:
                first = self._agreed_size + 1
                which = f"events {first} to {checkpoint.size}"
                detail = f"{which} do not lead to the root that checkpoint {sequence} has for them"
                found += self._note(FindingKind.ROOT_CONTRADICTED, first, checkpoint.size, detail)
            # Whatever contradicts one root contradicts all later ones, which tell nothing more.
            self._is_contradicted = not agrees
            self._agreed_size = checkpoint.size if agrees else self._agreed_size
        return found

    def _note(self, kind: FindingKind, first: int, last: int, detail: str) -> list[AuditFinding]:
        if (kind, first, last) in self._findings:
            return []
        found = AuditFinding(kind, first, last, detail)
        self._num_findings += 1
        if len(self._findings) < _KEPT_MAX:
            self._findings[kind, first, last] = found
        return [found]
