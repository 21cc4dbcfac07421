"""One of the writers of a run: calls one after the other, retried under their key, and put down as they were seen."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from chaos import history as h
from chaos.adapters import BASE, TinyAdapter
from chaos.calls import IdentityCaller
from chaos.model import can_be_idle
from chaos.workload import Adapters, choose_call
from octavo_identity.registry import write_mark
from octavo_shared.errors import AliasMoved, OctavoError
from octavo_shared.messages.importing import ImportItem

_ATTEMPTS_MAX = 5
_PAUSE_S = 0.15
_GIVE_UP_SHARE = 0.1
"""Of writes whose outcome is unknown, so many are not tried again: their clients went away."""
_REPEAT_SHARE = 0.04
_REPEATED_AFTER_S = (1.0, 20.0)
_REPEATS_MAX = 64


@dataclass(frozen=True)
class Acknowledged:
    """An attempt of a write that was acknowledged. ``is_push`` tells whether it needed the object store."""

    sent_s: float
    acknowledged_s: float
    is_push: bool


@dataclass
class Record:
    """What all writers saw. Reads that got no answer told nothing and are only counted."""

    operations: list[h.Operation] = field(default_factory=list)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    known: dict[str, h.Snapshot] = field(default_factory=dict)
    num_acknowledged: int = 0
    num_unanswered_reads: int = 0
    num_not_staged: int = 0
    num_repeated: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def note(self, operation: h.Operation) -> None:
        """Add what became of one call."""
        self.operations.append(operation)
        self.num_acknowledged += operation.outcome is h.Outcome.OK

    def note_error(self, error: OctavoError) -> None:
        """Count an answer that was none, or a refusal."""
        self.errors[error.code] = self.errors.get(error.code, 0) + 1


@dataclass(frozen=True)
class _Repeat:
    """A write that was acknowledged and will be sent once more, as by a client that did not hear of it."""

    due_s: float
    place: int
    key: str
    upload_id: str


@dataclass
class Writer:
    """Runs until ``stop``. ``owner`` owns all adapters; ``readers`` hold grants now and then.

    ``own`` is the adapter that nobody else writes to.
    """

    name: str
    owner: IdentityCaller
    own: str
    readers: Mapping[str, IdentityCaller]
    adapters: Adapters
    files: Sequence[TinyAdapter]
    record: Record
    random: Random
    has_keys: Callable[[], Awaitable[bool]]
    _repeats: list[_Repeat] = field(default_factory=list)

    async def run(self, stop: asyncio.Event) -> None:
        """Do one call after the other."""
        while not stop.is_set():
            await self._repeat_what_is_due()
            adapter = self.adapters.choose(self.random, self.own)
            known = self.record.known.get(adapter, h.GONE)
            digests = [files.digest for files in self.files]
            call = choose_call(self.random, known, digests, may_erase=adapter == self.own)
            if isinstance(call, h.Resolve):
                await self._read(self.adapters.choose_to_read(self.random, adapter), call)
            elif isinstance(call, h.Erase) and not await self.has_keys():
                # What would be erased now could not be checked afterwards.
                continue
            elif isinstance(call, h.Import):
                await self._import(adapter, call)
            else:
                await self.write(adapter, call)

    async def _read(self, adapter: str, call: h.Resolve) -> None:
        caller = self.owner if call.reader is None else self.readers[call.reader]
        invoked_s = _now_s()
        try:
            seen = await caller.resolve(adapter, call)
        except OctavoError as error:
            self.record.note_error(error)
            self.record.num_unanswered_reads += 1
            await asyncio.sleep(_PAUSE_S)
            return
        self.record.note(h.Operation(self.name, adapter, call, invoked_s, _now_s(), h.Outcome.OK, (seen,)))

    async def write(self, adapter: str, call: h.Write) -> None:
        """Do ``call``, again while its outcome is unknown, and put it down."""
        upload_id = ""
        if isinstance(call, h.Push):
            staged = await self._stage(adapter, call.digest)
            if staged is None:
                return
            upload_id = staged
        key = secrets.token_hex(8)
        invoked_s = _now_s()
        outcome, seen = h.Outcome.FAIL, None
        for attempt in range(_ATTEMPTS_MAX):
            sent_s = _now_s()
            try:
                seen = await self.owner.write(adapter, call, key, upload_id)
            except OctavoError as error:
                self.record.note_error(error)
                if not _is_unknown(error):
                    # After an attempt whose outcome is unknown, a refusal only speaks for itself.
                    if isinstance(error, AliasMoved) and outcome is h.Outcome.FAIL:
                        seen_named = h.AliasNamed(int(error.fields["actual"]))
                        self._note(adapter, call, invoked_s, _now_s(), outcome, (seen_named,), key)
                        return
                    break
                outcome = h.Outcome.UNKNOWN
                # One that found all as it wants is forgotten, so its repetition would be another write.
                if can_be_idle(call) or self.random.random() < _GIVE_UP_SHARE or attempt == _ATTEMPTS_MAX - 1:
                    break
                await asyncio.sleep(_PAUSE_S * (1 + self.random.random()))
            else:
                outcome = h.Outcome.OK
                self.record.acknowledged.append(Acknowledged(sent_s, _now_s(), isinstance(call, h.Push)))
                if isinstance(seen, h.Snapshot):
                    self.record.known[adapter] = seen
                break
        if seen is None:
            self._note(adapter, call, invoked_s, None, outcome, (), key)
            return
        self._note(adapter, call, invoked_s, _now_s(), outcome, (seen,), key)
        is_repeatable = adapter != self.own and not can_be_idle(call)
        if is_repeatable and len(self._repeats) < _REPEATS_MAX and self.random.random() < _REPEAT_SHARE:
            after_s = self.random.choice((0.0, self.random.uniform(*_REPEATED_AFTER_S)))
            self._repeats.append(_Repeat(_now_s() + after_s, len(self.record.operations) - 1, key, upload_id))

    async def _import(self, first: str, call: h.Import) -> None:
        """Import what ``call`` says to several adapters at once; each of them is a write of its own."""
        items = []
        for adapter in self.adapters.choose_to_import(self.random, first):
            if (upload_id := await self._stage(adapter, call.digest)) is not None:
                items.append(ImportItem(adapter, secrets.token_hex(8), BASE.fingerprint, upload_id, alias=call.alias))
        if not items:
            return
        invoked_s = _now_s()
        answers: Sequence[h.Imported | OctavoError]
        try:
            answers = await self.owner.register(items)
        except OctavoError as error:
            answers = [error] * len(items)
        for item, answer in zip(items, answers, strict=True):
            completed_s: float | None = _now_s()
            outcome, seen = h.Outcome.OK, (answer,) if isinstance(answer, h.Imported) else ()
            if isinstance(answer, OctavoError):
                self.record.note_error(answer)
                outcome = h.Outcome.UNKNOWN if _is_unknown(answer) else h.Outcome.FAIL
                completed_s = None
            self._note(item.adapter, call, invoked_s, completed_s, outcome, seen, item.idempotency_key)

    async def _stage(self, adapter: str, digest: str) -> str | None:
        files = next(files for files in self.files if files.digest == digest)
        try:
            return await self.owner.stage(adapter, files)
        except OctavoError as error:
            self.record.note_error(error)
            self.record.num_not_staged += 1
            await asyncio.sleep(_PAUSE_S)
            return None

    def _note(
        self, adapter: str, call: h.Write, invoked_s: float, completed_s: float | None, outcome: h.Outcome,
        seen: tuple[h.Seen, ...], key: str,
    ) -> None:  # fmt: skip
        mark = write_mark(self.owner.principal, key)
        self.record.note(h.Operation(self.name, adapter, call, invoked_s, completed_s, outcome, seen, mark))

    async def _repeat_what_is_due(self) -> None:
        due = [repeat for repeat in self._repeats if repeat.due_s <= _now_s()]
        for repeat in due:
            self._repeats.remove(repeat)
            await self._repeat(repeat)

    async def _repeat(self, repeat: _Repeat) -> None:
        done = self.record.operations[repeat.place]
        assert not isinstance(done.call, h.Resolve)
        try:
            seen = await self.owner.write(done.adapter, done.call, repeat.key, repeat.upload_id)
        except OctavoError as error:
            self.record.note_error(error)
            if _is_unknown(error):
                return
            self.record.operations[repeat.place] = _with_answer(done, h.Refused(error.code))
        else:
            self.record.operations[repeat.place] = _with_answer(done, seen)
        self.record.num_repeated += 1


def _with_answer(done: h.Operation, seen: h.Seen) -> h.Operation:
    return h.Operation(
        done.client, done.adapter, done.call, done.invoked_s, done.completed_s, done.outcome, (*done.seen, seen),
        done.write,
    )  # fmt: skip


def _is_unknown(error: OctavoError) -> bool:
    """Tell whether the write may have happened all the same: whoever could not say is not to be taken for a no."""
    return error.http_status >= 500


def _now_s() -> float:
    return asyncio.get_running_loop().time()
