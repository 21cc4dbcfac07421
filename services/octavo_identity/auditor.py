"""Reads the whole ledger again and again, slowly, and says where it is not what was signed."""

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from octavo_identity import metrics
from octavo_identity.audit_round import AuditRound, Passed
from octavo_identity.checkpoints import KEPT_MAX, Checkpoints
from octavo_identity.heads import HeadStore
from octavo_identity.in_flight import Pause, no_pause
from octavo_identity.projection import Projection
from octavo_identity.signers import Signers
from octavo_identity.statement_audit import StatementAudit
from octavo_identity.stream import SHORTER_S, StreamState
from octavo_shared import decoding
from octavo_shared.checkpoint import Checkpoint, CheckpointRefused, Verifier
from octavo_shared.clock import wall_ms
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.merkle import Tree
from octavo_shared.messages.auditing import AuditFinding, AuditState
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.telemetry import log

_ROUND_EVERY_S = 60.0
"""A small ledger is not gone over more often than this."""
_CONFIRM_S = SHORTER_S + 5.0
"""What is not as it should be is read once more after so long: a leader that was deposed may not have had it."""
_VIEW_WAIT_S = 60.0
"""For the leaf hashes, without which a round names ranges of events and no single ones."""
_POLL_S = 0.1
_RETRY_S = 1.0
_KEEP_EVERY_S = 5.0
_GROUPS_PER_S = 100
"""Many, and so small ones: what is read together is taken in together, and a request that comes then waits for it."""
_GROUP_MAX = 32
_IDLE_SHARE = 3
"""Reading takes a quarter of the time at most: where others wait too, reads take longer, and the audit gives way."""
_BACK_MAX = 32
"""So many damaged checkpoints are passed over in looking for the newest one that is sound."""
_KEPT = "audit"


class _Record(msgspec.Struct, frozen=True):
    """What is kept in the view's file. ``earlier`` was found in the last round that finished."""

    created: str = ""
    passed: Passed | None = None
    seen: tuple[int, str] = (0, "")
    num_rounds: int = 0
    finished_ms: int = 0
    finished_size: int = 0
    earlier: tuple[AuditFinding, ...] = ()
    num_earlier: int = 0


@dataclass(frozen=True)
class _Newest:
    """The newest checkpoint that is sound, where it is, and as it is stored."""

    sequence: int
    note: str
    checkpoint: Checkpoint


class Auditor:
    """Holds the stream, as its leader shows it, to what this replica remembers and to every checkpoint that is kept.

    A round goes over all events that the newest checkpoint covers, and over the statements in them. What it finds is
    logged, and shown until a whole round no longer finds it. Reading is all that it does.
    """

    def __init__(
        self,
        heads: HeadStore,
        projection: Projection,
        checkpoints: Checkpoints,
        verifier: Verifier,
        signers: Signers,
        events_per_s: int,
        pause: Pause = no_pause,
    ) -> None:
        self._heads = heads
        self._projection = projection
        self._checkpoints = checkpoints
        self._verifier = verifier
        self._statements = StatementAudit(heads, signers, _CONFIRM_S, self._give_way)
        self._pause = pause
        self._paused_s = 0.0
        self._events_per_s = events_per_s
        self._group = max(1, min(_GROUP_MAX, events_per_s // _GROUPS_PER_S))
        self._replica = f"{socket.gethostname()}-{secrets.token_hex(2)}"
        self._record = _Record()
        self._round: AuditRound | None = None
        self._size = 0
        self._kept_s = self._believed_s = float("-inf")

    @property
    def state(self) -> AuditState:
        """How far it is and what it has found."""
        record, passed = self._record, self._round.passed if self._round else Passed()
        findings = {(one.kind, one.first, one.last): one for one in (*passed.findings, *record.earlier)}
        num_findings = max(len(findings), passed.num_findings, record.num_earlier)
        return AuditState(
            self._replica, self._events_per_s, passed.position, self._size, record.num_rounds, record.finished_ms,
            record.finished_size, tuple(findings.values()), num_findings,
        )  # fmt: skip

    async def run(self) -> None:
        """Audit for ever; what cannot be read now is waited for."""
        loop = asyncio.get_running_loop()
        await self._resume()
        while True:
            began_s, is_done = loop.time(), False
            try:
                is_done = await self.finish_round()
            except DependencyUnavailable as error:
                log.debug("audit_waits", detail=error.message)
            await asyncio.sleep(max(_RETRY_S, began_s + _ROUND_EVERY_S - loop.time()) if is_done else _RETRY_S)

    async def finish_round(self) -> bool:
        """Begin a round, or go on with one, until its end; tells whether there was anything to go over.

        Raises ``DependencyUnavailable``; the next call goes on where this one stopped.
        """
        state, signed = await self._heads.state(), await self._checkpoints.state()
        if self._record.created != state.created:
            self._record, self._round = _Record(state.created), None
        if self._round is None:
            self._round = AuditRound(self._verifier)
        current = self._round
        self._statements.forget()
        is_seen = await self._check_what_was_seen(current, signed)
        newest = await self._newest(signed)
        checkpoint = newest.checkpoint if newest else None
        # Where no checkpoint is sound, all that is left to find is which events are gone.
        self._size = checkpoint.size if checkpoint else state.last_sequence if signed.last_sequence else 0
        await self._wait_for_view(checkpoint)
        while current.position < self._size:
            await self._take_group(current, checkpoint, signed.last_sequence)
            await self._keep()
        await self._take_checkpoints(current, self._size + 1, signed.last_sequence)
        passed = current.passed
        if not self._size and not passed.num_findings:
            return False
        seen = (newest.sequence, newest.note) if newest and is_seen else self._record.seen
        num_rounds = self._record.num_rounds + 1
        self._record = _Record(
            state.created, None, seen, num_rounds, wall_ms(), self._size, passed.findings, passed.num_findings
        )
        self._round = None
        log.info("audit_finished", num_events=self._size, num_findings=passed.num_findings, num_rounds=num_rounds)
        await self._keep(is_due=True)
        return True

    async def _check_what_was_seen(self, current: AuditRound, signed: StreamState) -> bool:
        """Hold the checkpoints that are left to how many must be, and to the newest one that a round has seen.

        Tells whether that one is there: it is looked for until it is.
        """
        current.next_checkpoint = max(current.next_checkpoint, signed.first_sequence)
        first = max(1, signed.last_sequence - KEPT_MAX + 1)
        if first < signed.first_sequence <= signed.last_sequence:
            detail = f"checkpoints {first} to {signed.first_sequence - 1} are missing"
            self._report(current.miss_checkpoints(first, signed.first_sequence - 1, detail))
        sequence, note = self._record.seen

        async def is_there() -> bool:
            is_kept = sequence <= (await self._checkpoints.state()).last_sequence
            return is_kept and (await self._checkpoints.read_range(sequence, sequence))[0] == note

        if not note or sequence < first or await _holds(is_there):
            return True
        detail = f"checkpoint {sequence} is gone, or is another one than was seen there before"
        self._report(current.miss_checkpoints(sequence, sequence, detail))
        return False

    async def _newest(self, signed: StreamState) -> _Newest | None:
        last = signed.last_sequence
        for sequence in range(last, max(signed.first_sequence - 1, last - _BACK_MAX, 0), -1):
            (note,) = await self._checkpoints.read_range(sequence, sequence)
            try:
                if note is not None:
                    return _Newest(sequence, note, self._verifier.open(note))
            except CheckpointRefused:
                # It is found when its turn comes.
                continue
        return None

    async def _take_group(self, current: AuditRound, newest: Checkpoint | None, last_checkpoint: int) -> None:
        """Read and judge the next few events, and the checkpoints among them."""
        first, until = current.position + 1, min(current.position + self._group, self._size)
        await self._take_checkpoints(current, until, last_checkpoint)
        began_s, num_reads = asyncio.get_running_loop().time(), 0
        events: list[LedgerEvent | None] = [None] * (min(until, current.lost_until) - current.position)
        if not events:
            num_reads = until - current.position
            events = await self._read(first, until)
            if current.differ(events, self._remembered(newest)):
                await self._check_stream()
                if asyncio.get_running_loop().time() > self._believed_s:
                    await asyncio.sleep(_CONFIRM_S)
                    events = await self._read(first, until)
                self._believed_s = asyncio.get_running_loop().time() + _CONFIRM_S
            if events[0] is None:
                following = await self._heads.next_sequence(first)
                self._report(current.lose(min(self._size, following - 1 if following else self._size)))
            if None in events:
                # What is lost begins a group of its own.
                events = events[: events.index(None)]
        num_before, remembered = self._statements.num_reads, self._remembered(newest)
        for bad in await self._statements.bad_among(current.as_signed(events, remembered), remembered):
            self._report(current.refuse_statement(bad.sequence, bad.problem))
        self._report(current.take_events(events, remembered))
        await self._breathe(num_reads + self._statements.num_reads - num_before, began_s)

    async def _take_checkpoints(self, current: AuditRound, until: int, last: int) -> None:
        """Read on in the checkpoints until none of up to ``until`` events can follow."""
        while current.next_checkpoint <= last and current.needs_checkpoints(until):
            began_s, first = asyncio.get_running_loop().time(), current.next_checkpoint
            to = min(first + self._group - 1, last)
            notes = await self._checkpoints.read_range(first, to)
            if None in notes:
                await asyncio.sleep(_CONFIRM_S)
                notes = await self._checkpoints.read_range(first, to)
            for sequence, note in enumerate(notes, first):
                self._report(current.take_checkpoint(sequence, note))
            await self._breathe(len(notes), began_s)

    async def _read(self, first: int, last: int) -> list[LedgerEvent | None]:
        await self._give_way()
        found = {event.sequence: event for event in await self._heads.read_what_is_left(first, last)}
        return [found.get(sequence) for sequence in range(first, last + 1)]

    def _remembered(self, newest: Checkpoint | None) -> Tree | None:
        """Return the tree if it leads to what was signed: one that does not says nothing of single events."""
        tree = self._projection.tree
        is_sound = newest is not None and newest.size <= tree.size and tree.root(newest.size) == newest.root
        return tree if is_sound else None

    async def _wait_for_view(self, newest: Checkpoint | None) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _VIEW_WAIT_S
        while newest is not None and self._remembered(newest) is None and loop.time() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)

    async def _check_stream(self) -> None:
        """Raise ``DependencyUnavailable`` when the stream is not the one that the round began with."""
        if (await self._heads.state()).created != self._record.created:
            raise DependencyUnavailable("the stream that the audit began with")

    async def _give_way(self) -> None:
        """Wait for a moment without requests."""
        began_s = asyncio.get_running_loop().time()
        await self._pause()
        self._paused_s += asyncio.get_running_loop().time() - began_s

    async def _breathe(self, num_reads: int, began_s: float) -> None:
        """Sleep so long that the rate is kept and that others come first."""
        passed_s, paused_s = asyncio.get_running_loop().time() - began_s, self._paused_s
        self._paused_s = 0.0
        await asyncio.sleep(max(num_reads / self._events_per_s - passed_s, _IDLE_SHARE * (passed_s - paused_s)))

    def _report(self, findings: list[AuditFinding]) -> None:
        for one in findings:
            log.error("ledger_contradicted", problem=one.detail, kind=str(one.kind), sequence=one.first, last=one.last)

    async def _resume(self) -> None:
        try:
            if (kept := await self._projection.kept(_KEPT)) is not None:
                self._record = decoding.from_msgpack(kept, _Record)
        except (DependencyUnavailable, msgspec.MsgspecError) as error:
            log.warning("audit_begins_again", detail=str(error))
        if self._record.passed is not None:
            self._round = AuditRound(self._verifier, self._record.passed)

    async def _keep(self, *, is_due: bool = False) -> None:
        metrics.show_audit(self.state)
        now_s = asyncio.get_running_loop().time()
        if is_due or now_s - self._kept_s >= _KEEP_EVERY_S:
            self._kept_s = now_s
            record = msgspec.structs.replace(self._record, passed=self._round.passed if self._round else None)
            await self._projection.keep(_KEPT, msgspec.msgpack.encode(record))


async def _holds(condition: Callable[[], Awaitable[bool]]) -> bool:
    """Tell whether ``condition`` holds, now or when it is confirmed."""
    if await condition():
        return True
    await asyncio.sleep(_CONFIRM_S)
    return await condition()
