"""The background audit's look at signed statements: held to the signing keys that the ledger had when each came."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from octavo_identity.heads import HeadStore
from octavo_identity.in_flight import Pause
from octavo_identity.signers import Signers
from octavo_shared import subjects
from octavo_shared.ledger_statements import KnownKeys, StatementRefused, check_made, made_by
from octavo_shared.merkle import Tree
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.messages.signers import REGISTRY_PRINCIPAL
from octavo_shared.sealed_event import EventNotOpened, open_event

_PRINCIPALS_MAX = 4_096
"""Whose keys are kept at a time; beyond it they are looked for again."""


@dataclass(frozen=True)
class BadStatement:
    """``problem`` names nobody and no adapter: findings are logged, and shown to the auditors of all tenants."""

    sequence: int
    problem: str


@dataclass(frozen=True)
class _Known:
    """A principal's signing keys since ``sequence`` (0: there are none), and the event that changes them next.

    ``keys`` is None as well where an event of them does not say any more what it said.
    """

    keys: KnownKeys | None
    sequence: int
    following: LedgerEvent | None


class StatementAudit:
    """Raises ``DependencyUnavailable`` where the streams do not answer; nothing is taken note of then.

    What does not open is not judged: it is of an erased adapter, or damaged, which its leaf or its data key tells.
    """

    def __init__(self, heads: HeadStore, signers: Signers, confirm_s: float, pause: Pause) -> None:
        self._heads = heads
        self._signers = signers
        self._confirm_s = confirm_s
        self._pause = pause
        self._believed_s = float("-inf")
        self._known: dict[str, _Known] = {}
        self.num_reads = 0
        """Of single messages, beside those of the events themselves."""

    def forget(self) -> None:
        """Look for keys anew: what was the newest event of somebody's need not be any more."""
        self._known.clear()

    async def bad_among(self, events: Sequence[LedgerEvent], remembered: Tree | None) -> list[BadStatement]:
        """Return the statements of ``events``, all of them as they were signed, that do not verify.

        Whose keys were asked of a leader that was deposed are asked for again before that is believed.
        """
        opened = await self._open(events)
        found = await self._judge(opened, remembered)
        loop = asyncio.get_running_loop()
        if found:
            if loop.time() > self._believed_s:
                await asyncio.sleep(self._confirm_s)
                self.forget()
                found = await self._judge(opened, remembered)
            self._believed_s = loop.time() + self._confirm_s
        return found

    async def _open(self, events: Sequence[LedgerEvent]) -> list[LedgerEvent]:
        owned = [event for event in events if subjects.adapter_of(event.subject) is not None]
        self.num_reads += len({event.subject for event in owned})
        await self._pause()
        opener = await self._heads.opener(owned)
        opened = []
        for event in owned:
            with contextlib.suppress(EventNotOpened):
                opened.append(msgspec.structs.replace(event, data=open_event(event, opener.key_of(event))))
        return opened

    async def _judge(self, opened: Sequence[LedgerEvent], remembered: Tree | None) -> list[BadStatement]:
        found = []
        for event in opened:
            made = made_by(event)
            if made is None or not made.statement:
                continue
            known = [
                await self._known_before(who, event.sequence, remembered) for who in (made.actor, REGISTRY_PRINCIPAL)
            ]
            if any(one.keys is None and one.sequence for one in known):
                # The event of these keys is not what it was, which is a finding of its own.
                continue
            # Two signatures take half a millisecond, for which nobody else should wait.
            await self._pause()
            try:
                check_made(made, {one.keys.principal: one.keys for one in known if one.keys is not None})
            except StatementRefused as error:
                found.append(BadStatement(event.sequence, error.problem))
        return found

    async def _known_before(self, principal: str, sequence: int, remembered: Tree | None) -> _Known:
        subject = self._signers.subject(principal)
        known = self._known.get(principal)
        if known is None or known.sequence >= sequence:
            known = _Known(None, 0, await self._next(subject, 1))
        while (event := known.following) is not None and event.sequence < sequence:
            keys = KnownKeys.of(event) if _is_what_it_was(event, remembered) else None
            if keys is not None and keys.principal != principal:
                keys = None
            known = _Known(keys, event.sequence, await self._next(subject, event.sequence + 1))
        if len(self._known) >= _PRINCIPALS_MAX:
            self.forget()
        self._known[principal] = known
        return known

    async def _next(self, subject: str, first: int) -> LedgerEvent | None:
        self.num_reads += 1
        return await self._heads.next_on(subject, first)


def _is_what_it_was(event: LedgerEvent, remembered: Tree | None) -> bool:
    is_known = remembered is not None and event.sequence <= remembered.size
    return not is_known or remembered is None or remembered.leaf(event.sequence - 1) == event.leaf_hash()
