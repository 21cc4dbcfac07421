"""Atomic batches of one stream: all messages are stored, one behind the other, or none of them."""

import secrets
from collections.abc import Sequence
from typing import NoReturn

import msgspec
from nats.errors import Error as NatsError

from octavo_identity.stream import EXPECTED_SEQUENCE, WRONG_LAST_SEQUENCE
from octavo_shared import decoding
from octavo_shared.bus import Bus
from octavo_shared.errors import DependencyUnavailable, RevisionConflict
from octavo_shared.tasks import cancellable

BATCH_MAX = 500
"""Messages of one batch. The server takes 1,000; rates do not grow past some hundred, but what it holds back does."""
_ID, _SEQUENCE, _COMMIT = "Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit"
_LINES = f"{_ID}: %b\r\n{_SEQUENCE}: %d\r\n{EXPECTED_SEQUENCE}: %d\r\n".encode()
_TIMEOUT_S = 8.0
"""The server drops a batch that stands still for 10 s."""


class Entry(msgspec.Struct, frozen=True):
    """One message, to be stored only if the last one on its subject still is at ``previous_sequence``."""

    subject: str
    data: bytes
    previous_sequence: int


class BatchRefused(Exception):
    """The server takes no such batch, for another reason than a conflict. Nothing was stored."""


class _Error(msgspec.Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct, frozen=True):
    seq: int = 0
    count: int = 0
    error: _Error | None = None


async def append_batch(bus: Bus, entries: Sequence[Entry]) -> list[int]:
    """Append up to ``BATCH_MAX`` entries of different subjects; returns their sequences.

    Only the first and the last are acknowledged, so this costs two round trips. Raises ``RevisionConflict`` when
    somebody else was first on one of the subjects (the server does not say which) and ``BatchRefused``: then nothing
    was stored. Raises ``DependencyUnavailable`` when that is unknown.
    """
    assert 2 <= len(entries) <= BATCH_MAX
    assert len({entry.subject for entry in entries}) == len(entries), "a subject can move once in a batch"
    if not bus.is_connected:
        raise DependencyUnavailable("NATS")
    batch_id = secrets.token_hex(12)
    first, *rest, last = entries
    try:
        _check(await _ask(bus, first, _headers(batch_id, 1, first)))
        with cancellable():
            await bus.client.publish_together(
                (entry.subject, _lines(batch_id, number, entry), entry.data) for number, entry in enumerate(rest, 2)
            )
        ack = _check(await _ask(bus, last, _headers(batch_id, len(entries), last) | {_COMMIT: "1"}))
    except (NatsError, OSError, msgspec.MsgspecError) as error:
        raise DependencyUnavailable("JetStream") from error
    if ack.count != len(entries):
        # A server that knows no batches has stored the messages one by one, and whether all is not known.
        raise DependencyUnavailable("JetStream")
    return list(range(ack.seq - ack.count + 1, ack.seq + 1))


def _headers(batch_id: str, number: int, entry: Entry) -> dict[str, str]:
    return {_ID: batch_id, _SEQUENCE: str(number), EXPECTED_SEQUENCE: str(entry.previous_sequence)}


def _lines(batch_id: str, number: int, entry: Entry) -> bytes:
    return _LINES % (batch_id.encode(), number, entry.previous_sequence)


async def _ask(bus: Bus, entry: Entry, headers: dict[str, str]) -> _Ack:
    with cancellable():
        answer = await bus.client.request(entry.subject, entry.data, timeout=_TIMEOUT_S, headers=headers)
    # That a batch was begun is acknowledged with nothing.
    return decoding.from_json(answer.data, _Ack) if answer.data else _Ack()


def _check(ack: _Ack) -> _Ack:
    if ack.error is not None:
        _raise(ack.error)
    return ack


def _raise(error: _Error) -> NoReturn:
    if error.err_code in WRONG_LAST_SEQUENCE:
        raise RevisionConflict
    raise BatchRefused(error.description)
