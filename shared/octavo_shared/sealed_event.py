"""An adapter's event as it is stored: what finds and orders it is in the clear, all else is sealed.

    salt, 16 bytes | commitment, 32 bytes | ciphertext of the whole event, with its tag of 16 bytes

Every event has a key of its own: keyed BLAKE2b (RFC 7693) of a fresh salt and of the event's place, under the adapter's
field key, which comes from its data key. So the key of one event, which a proof carries, opens no other, and once the
data key is gone nothing opens any. A nonce would have nothing to tell apart. The place (subject, kind, time and the
sequence of the event before) is associated data.

The commitment is a hash of the event's key. GCM alone binds nobody: who knows two keys can make bytes that open with
both, into two texts, and one leaf of the ledger would prove either.
"""

import hashlib
import hmac
import os

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from octavo_shared import decoding
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.seal import KEY_BYTES

_SALT_BYTES, _HASH_BYTES = 16, 32
_HEADER_BYTES = _SALT_BYTES + _HASH_BYTES
_NONCE = bytes(12)
"""Every key seals once."""


class EventNotOpened(Exception):
    """The bytes are no sealed event, or the key is not this event's."""


class StoredEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """What anybody may read of an event. Without ``sealed`` all of it is in the clear, in further fields."""

    kind: str
    at_ms: int
    previous_sequence: int
    sealed: bytes = b""


_decoder = decoding.msgpack_decoder(StoredEvent)


def field_key(data_key: bytes) -> bytes:
    """Return the key that the keys of an adapter's events come from."""
    return _mac(data_key, b"octavo event fields 1")


def seal_event(plain: bytes, subject: str, stored: StoredEvent, fields: bytes) -> bytes:
    """Return the bytes to store for an event on ``subject``: ``stored`` with ``plain`` sealed under its own key.

    ``fields`` is the adapter's field key.
    """
    place, salt = _place(subject, stored), os.urandom(_SALT_BYTES)
    key = _mac(fields, salt + place)
    sealed = salt + _commitment(key) + _cipher(key).encrypt(_NONCE, plain, place)
    return msgspec.msgpack.encode(StoredEvent(stored.kind, stored.at_ms, stored.previous_sequence, sealed))


def outside_of(event: LedgerEvent) -> StoredEvent:
    """Return what anybody may read of the event; raises ``EventNotOpened``."""
    try:
        return _decoder.decode(event.data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EventNotOpened(str(error)) from None


def is_sealed(event: LedgerEvent) -> bool:
    """Tell whether a key is needed to read the event; raises ``EventNotOpened``."""
    return bool(outside_of(event).sealed)


def event_key(event: LedgerEvent, fields: bytes) -> bytes:
    """Return the key that opens this event and no other; raises ``EventNotOpened``."""
    stored = outside_of(event)
    return _key(stored, _place(event.subject, stored), fields)


def open_event(event: LedgerEvent, key: bytes) -> bytes:
    """Return what was sealed with the event's own ``key``, or all of an event in the clear; raises ``EventNotOpened``.

    There is one key, and one text, that any event opens with.
    """
    stored = outside_of(event)
    return _open(stored, _place(event.subject, stored), key) if stored.sealed else event.data


def open_with_fields(event: LedgerEvent, fields: bytes) -> bytes:
    """Return what ``open_event`` does with the event's ``event_key``; raises ``EventNotOpened``."""
    stored = outside_of(event)
    if not stored.sealed:
        return event.data
    place = _place(event.subject, stored)
    return _open(stored, place, _key(stored, place, fields))


def _key(stored: StoredEvent, place: bytes, fields: bytes) -> bytes:
    return _mac(fields, stored.sealed[:_SALT_BYTES] + place)


def _open(stored: StoredEvent, place: bytes, key: bytes) -> bytes:
    if len(key) != KEY_BYTES or not hmac.compare_digest(_commitment(key), stored.sealed[_SALT_BYTES:_HEADER_BYTES]):
        raise EventNotOpened("the key is another event's")
    try:
        return _cipher(key).decrypt(_NONCE, stored.sealed[_HEADER_BYTES:], place)
    except (InvalidTag, ValueError):
        raise EventNotOpened("the event was changed") from None


def _place(subject: str, stored: StoredEvent) -> bytes:
    return f"{subject}\0{stored.kind}\0{stored.at_ms}\0{stored.previous_sequence}".encode()


def _commitment(key: bytes) -> bytes:
    return _mac(key, b"octavo event commitment 1")


def _cipher(key: bytes) -> AESGCM:
    return AESGCM(_mac(key, b"octavo event seal 1"))


def _mac(key: bytes, message: bytes) -> bytes:
    # A quarter of the time that HMAC-SHA256 takes for so little, and every read of a head waits for it.
    return hashlib.blake2b(message, key=key, digest_size=_HASH_BYTES).digest()
