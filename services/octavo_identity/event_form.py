"""Between events and the bytes of the registry stream: what is of an adapter is sealed under the adapter's key."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import msgspec

from octavo_identity.records import AdapterHead, RegistryEvent
from octavo_shared import decoding, sealed_event, subjects
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.references import AdapterId, TenantId
from octavo_shared.sealed_event import EventNotOpened, StoredEvent
from octavo_shared.telemetry import log

_decoder = decoding.msgpack_decoder(RegistryEvent)
LOST = "a part of the registry stream"


def owner_of(stored: LedgerEvent) -> AdapterId | None:
    """Return whose key opens the event, None when it is in the clear; raises ``DependencyUnavailable`` for damage.

    In the clear is what is no adapter's, what is left of an erased one, and what was written before events were sealed.
    """
    adapter_id = subjects.adapter_of(stored.subject)
    if adapter_id is None:
        return None
    try:
        return AdapterId(adapter_id) if sealed_event.is_sealed(stored) else None
    except EventNotOpened as error:
        raise _damaged(stored, error) from error


def encode_event(subject: str, event: RegistryEvent, fields: Mapping[AdapterId, bytes]) -> bytes:
    """Return the bytes to store: sealed, if the event says anything of an adapter, with that one's field key."""
    plain = msgspec.msgpack.encode(event)
    if not isinstance(event.head, AdapterHead):
        return plain
    stored = StoredEvent(event.kind, event.at_ms, event.previous_sequence)
    return sealed_event.seal_event(plain, subject, stored, fields[event.head.adapter_id])


def decode_event(stored: LedgerEvent, fields: bytes | None) -> RegistryEvent:
    """Return what the bytes in the stream say, opened with the field key of ``owner_of`` the event.

    Raises ``DependencyUnavailable`` when somebody damaged them.
    """
    try:
        return _decoder.decode(sealed_event.open_with_fields(stored, fields) if fields is not None else stored.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, EventNotOpened) as error:
        raise _damaged(stored, error) from error


@dataclass(frozen=True)
class Forgotten:
    """What is left of an event of an erased adapter: of which tenant, of which kind and when it was."""

    sequence: int
    tenant_id: TenantId
    kind: str
    at_ms: int

    @classmethod
    def of(cls, stored: LedgerEvent) -> Self:
        outside = sealed_event.outside_of(stored)
        return cls(stored.sequence, TenantId(subjects.tenant_of(stored.subject)), outside.kind, outside.at_ms)


@dataclass(frozen=True)
class Opener:
    """Opens events with field keys that were fetched before; None stands for one that was destroyed."""

    keys: Mapping[AdapterId, bytes | None]

    def open(self, stored: LedgerEvent) -> RegistryEvent | None:
        """Return the event, or None when its adapter was erased; raises ``DependencyUnavailable`` for damage."""
        adapter_id = subjects.adapter_of(stored.subject)
        if adapter_id is not None and (known := self.keys.get(AdapterId(adapter_id))) is not None:
            return decode_event(stored, known)
        owner = owner_of(stored)
        if owner is None:
            return decode_event(stored, None)
        if owner not in self.keys:
            raise _damaged(stored, "there is no data key for it")
        return None

    def key_of(self, stored: LedgerEvent) -> bytes:
        """Return what opens this event and no other; nothing for one that is in the clear, erased or damaged."""
        try:
            owner = owner_of(stored)
        except DependencyUnavailable:
            return b""
        fields = self.keys.get(owner) if owner is not None else None
        return sealed_event.event_key(stored, fields) if fields is not None else b""


def _damaged(stored: LedgerEvent, detail: object) -> DependencyUnavailable:
    log.error("event_damaged", sequence=stored.sequence, detail=str(detail))
    return DependencyUnavailable(LOST)
