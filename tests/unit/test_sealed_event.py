"""Sealed events: each opens with its own key and in its own place, into one text."""

import random

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from octavo_shared import sealed_event
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.sealed_event import EventNotOpened, StoredEvent, event_key, field_key, open_event, seal_event

SUBJECT = "octavo.v1.registry.s0.t.a"
FIELDS = field_key(bytes(32))
OUTER = StoredEvent("granted", 1_700_000_000_000, 7)
PLAIN = b"bob may read it"


def sealed(plain: bytes = PLAIN, outer: StoredEvent = OUTER, fields: bytes = FIELDS) -> LedgerEvent:
    return LedgerEvent(8, SUBJECT, seal_event(plain, SUBJECT, outer, fields))


def changed(event: LedgerEvent, **fields: object) -> LedgerEvent:
    """Return the event with something else said of it in the clear."""
    stored = msgspec.msgpack.decode(event.data, type=StoredEvent)
    return msgspec.structs.replace(event, data=msgspec.msgpack.encode(msgspec.structs.replace(stored, **fields)))


def test_an_event_opens_with_its_own_key_only() -> None:
    event, next_one = sealed(), sealed()
    assert PLAIN not in event.data
    assert open_event(event, event_key(event, FIELDS)) == PLAIN
    # The same once more is sealed under another key.
    assert event.data != next_one.data
    for key in (
        event_key(next_one, FIELDS),
        FIELDS,
        bytes(32),
        b"",
        bytes(65),
        event_key(event, field_key(bytes([1]) * 32)),
    ):
        with pytest.raises(EventNotOpened):
            open_event(event, key)


def test_it_opens_in_its_own_place_only() -> None:
    event = sealed()
    key = event_key(event, FIELDS)
    moved = [
        msgspec.structs.replace(event, subject=SUBJECT[:-1] + "b"),
        changed(event, kind="revoked"),
        changed(event, at_ms=OUTER.at_ms + 1),
        changed(event, previous_sequence=6),
    ]
    for other in moved:
        for own in (key, event_key(other, FIELDS)):
            with pytest.raises(EventNotOpened):
                open_event(other, own)


def test_with_any_bit_changed_it_says_nothing_else() -> None:
    event = sealed()
    chosen = random.Random(20_261_128)
    num_refused = 0
    for _ in range(1_000):
        bit = chosen.randrange(8 * len(event.data))
        data = bytearray(event.data)
        data[bit // 8] ^= 1 << bit % 8
        other = msgspec.structs.replace(event, data=bytes(data))
        try:
            opened = open_event(other, event_key(event, FIELDS))
        except EventNotOpened:
            num_refused += 1
            continue
        # The salt made the key, and is not needed again; and without its field for it, nothing is sealed.
        assert opened in (PLAIN, other.data), bit
    assert num_refused > 500


def test_a_second_key_that_the_cipher_would_take_is_refused() -> None:
    """Whoever forges bytes that open with two keys can commit to one of them."""
    event, second = sealed(), bytes([9]) * 32
    stored = msgspec.msgpack.decode(event.data, type=StoredEvent)
    place = sealed_event._place(SUBJECT, OUTER)
    other = sealed_event._cipher(second).encrypt(bytes(12), b"mallory may", place)
    forged = changed(event, sealed=stored.sealed[:48] + other)
    with pytest.raises(EventNotOpened, match="another event's"):
        open_event(forged, second)
    assert isinstance(sealed_event._cipher(second), AESGCM)


def test_what_is_in_the_clear_is_read_as_it_is() -> None:
    event = LedgerEvent(1, SUBJECT, msgspec.msgpack.encode(OUTER))
    assert not sealed_event.is_sealed(event)
    assert open_event(event, b"") == event.data
    for data in (b"", b"\xc1", b"\x80"):
        with pytest.raises(EventNotOpened):
            open_event(msgspec.structs.replace(event, data=data), b"")
