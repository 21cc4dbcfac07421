"""Which bases there are and what became of them: one head in the registry stream for all, read from the leader."""

from collections.abc import Callable

import msgspec

from octavo_identity.heads import HeadStore
from octavo_identity.records import WRITES_IN_HEAD_MAX, BasesHead, RegisteredBase, RegistryEvent
from octavo_shared import subjects
from octavo_shared.bases import base_label, find_base
from octavo_shared.clock import wall_ms
from octavo_shared.errors import BaseRetired, BaseUnknown, InvalidRequest, RevisionConflict
from octavo_shared.messages.bases import BASES_MAX, BaseState
from octavo_shared.references import Fingerprint

_ATTEMPTS_MAX = 8

Change = Callable[["Book", int], RegisteredBase | None]
"""(all bases, time) → the one that is new or has changed, or None when all is as wanted."""


class Book:
    """All bases at one moment. Pure."""

    def __init__(self, head: BasesHead) -> None:
        self.head = head
        self._known = {one.fingerprint: one for one in head.bases}

    def find(self, fingerprint: Fingerprint) -> RegisteredBase | None:
        return self._known.get(fingerprint)

    def known(self, fingerprint: Fingerprint) -> RegisteredBase:
        """Return a base that was found before: none is ever removed."""
        return self._known[fingerprint]

    def meant(self, text: str, field: str = "base") -> RegisteredBase:
        """Return the base that a label, a name or a fingerprint means; raises as ``find_base`` does."""
        return self._known[find_base(text, {one.fingerprint: one.name for one in self.head.bases}, field)]

    def label(self, fingerprint: Fingerprint) -> str:
        """Return what a base is called, registered or not."""
        known = self.find(fingerprint)
        return base_label(known.name if known else "", fingerprint)

    def successor(self, base: RegisteredBase) -> RegisteredBase | None:
        """Return what adapters on ``base`` are to be trained for: the end of the chain, which has no circles."""
        last = base
        while last.superseded_by and (following := self.find(last.superseded_by)) is not None:
            last = following
        return None if last is base else last

    def successor_label(self, base: RegisteredBase) -> str:
        found = self.successor(base)
        return self.label(found.fingerprint) if found else ""

    def outdated(self) -> tuple[Fingerprint, ...]:
        """Return the bases that what sits on them should leave."""
        return tuple(one.fingerprint for one in self.head.bases if state_of(one) is not BaseState.CURRENT)

    def check_new(self, fingerprint: Fingerprint) -> None:
        """Raise ``BaseRetired`` or ``BaseUnknown`` when nothing new may be put on a base."""
        known = self.find(fingerprint)
        if known is None:
            raise BaseUnknown(fingerprint)
        if known.retired_at_ms:
            raise BaseRetired(self.label(fingerprint), self.successor_label(known))

    def warnings(self, fingerprint: Fingerprint) -> tuple[str, ...]:
        """Return what somebody who puts something on a base should know."""
        known = self.find(fingerprint)
        state = state_of(known) if known else BaseState.CURRENT
        if known is None or state is BaseState.CURRENT:
            return ()
        successor = self.successor_label(known)
        instead = f" by {successor}: train the next revision for that" if successor else ""
        return (f"base {self.label(fingerprint)} is {state}{instead}",)


class Bases:
    """Reads the book from the stream's leader and changes it by compare-and-set."""

    def __init__(self, heads: HeadStore) -> None:
        self._heads = heads
        self._last = Book(BasesHead())

    async def read(self) -> Book:
        """Return the bases as the leader has them now."""
        return (await self._read())[0]

    async def register(self, fingerprint: Fingerprint, name: str) -> Book:
        """Note a base that was seen; one that is known stays as it is. Raises ``InvalidRequest`` for one too many."""

        def add(book: Book, now_ms: int) -> RegisteredBase | None:
            if book.find(fingerprint) is not None:
                return None
            if len(book.head.bases) >= BASES_MAX:
                raise InvalidRequest("base", f"would be one more than the {BASES_MAX} that a registry may have")
            return RegisteredBase(fingerprint, name, now_ms)

        return await self.change("base_registered", "identity", "", add)

    async def change(self, kind: str, actor: str, mark: str, change: Change) -> Book:
        """Append what ``change`` makes, and return the book with it. A ``mark`` that is remembered changes nothing."""
        for _ in range(_ATTEMPTS_MAX):
            book, sequence = await self._read()
            if mark and mark in book.head.writes:
                return book
            now_ms = wall_ms()
            changed = change(book, now_ms)
            if changed is None:
                return book
            bases = tuple(changed if one.fingerprint == changed.fingerprint else one for one in book.head.bases)
            if book.find(changed.fingerprint) is None:
                bases = (*bases, changed)
            writes = (*book.head.writes, mark)[-WRITES_IN_HEAD_MAX:] if mark else book.head.writes
            new = Book(BasesHead(bases, writes))
            detail = new.label(changed.fingerprint)
            if changed.superseded_by:
                detail += f" -> {new.label(changed.superseded_by)}"
            try:
                await self._heads.append(
                    subjects.BASES, RegistryEvent(kind, actor, now_ms, sequence, new.head, detail)
                )  # fmt: skip
            except RevisionConflict:
                continue
            return new
        raise RevisionConflict("the bases changed at the same time; look again and retry")

    async def _read(self) -> tuple[Book, int]:
        found = await self._heads.read(subjects.BASES)
        if found is None:
            return Book(BasesHead()), 0
        assert isinstance(found[0].head, BasesHead), "the subject of bases holds nothing else"
        if found[0].head != self._last.head:
            self._last = Book(found[0].head)
        return self._last, found[1]


def state_of(base: RegisteredBase) -> BaseState:
    """Return what became of a base."""
    if base.retired_at_ms:
        return BaseState.RETIRED
    return BaseState.SUPERSEDED if base.superseded_by else BaseState.CURRENT


def superseded(base: RegisteredBase, by: RegisteredBase) -> RegisteredBase:
    """Return ``base`` superseded by ``by``; raises ``InvalidRequest`` unless that is another one, and current."""
    if base.fingerprint == by.fingerprint:
        raise InvalidRequest("by", "must be another base")
    if state_of(by) is not BaseState.CURRENT:
        # So that a chain of them always ends, and in a base that one can train for.
        label = base_label(by.name, by.fingerprint)
        raise InvalidRequest("by", f"must be a current base, and {label} is {state_of(by)}")
    return msgspec.structs.replace(base, superseded_by=by.fingerprint)
