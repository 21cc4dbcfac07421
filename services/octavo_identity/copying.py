"""Many messages of a stream for one request, from whichever replica answers: for copies, never for a decision."""

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
from nats.errors import Error as NatsError

from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.ledger import LedgerEvent

COPIED_MAX = 1_024
_BYTES_MAX = 8 * 1024 * 1024
_TIMEOUT_S = 4.0
_SUBJECT, _SEQUENCE = b"\r\nNats-Subject: ", b"\r\nNats-Sequence: "


async def copy_run(bus: Bus, stream: str, first: int, last: int) -> dict[int, LedgerEvent]:
    """Return messages of ``stream`` from sequence ``first`` to ``last``, ``COPIED_MAX`` at most, by sequence.

    What is not among them may be there all the same: a replica may be behind, an answer ends where it gets large, and
    a stream may allow no direct reads at all. Whoever needs it asks the leader.
    """
    assert 1 <= first <= last < first + COPIED_MAX
    events = await _ask(bus, stream, {"seq": first, "batch": last - first + 1, "max_bytes": _BYTES_MAX})
    return {event.sequence: event for event in events if first <= event.sequence <= last}


async def copy_last(bus: Bus, stream: str, of: Sequence[str]) -> dict[str, LedgerEvent]:
    """Return the last message on each of the subjects ``of``, ``COPIED_MAX`` at most, by subject; see ``copy_run``."""
    assert 1 <= len(of) <= COPIED_MAX
    events = await _ask(bus, stream, {"multi_last": of, "batch": len(of), "max_bytes": _BYTES_MAX})
    return {event.subject: event for event in events}


async def _ask(bus: Bus, stream: str, request: Mapping[str, object]) -> list[LedgerEvent]:
    if not bus.is_connected:
        raise DependencyUnavailable("NATS")
    found: list[LedgerEvent] = []
    ended = asyncio.get_running_loop().create_future()

    def take(headers: bytes, data: bytes) -> None:
        event = _event(headers, data)
        if event is not None:
            found.append(event)
        elif not ended.done():
            ended.set_result(None)

    try:
        inbox = bus.client.new_inbox()
        async with bus.client.collecting(inbox, take):
            await bus.client.publish(subjects.copies(stream), msgspec.json.encode(request), reply=inbox)
            await _until(ended, found)
    except (NatsError, OSError) as error:
        raise DependencyUnavailable("JetStream") from error
    return found


async def _until(ended: "asyncio.Future[None]", found: list[LedgerEvent]) -> None:
    """Return when the answer has ended; raises ``TimeoutError`` when nothing of it came for a while."""
    while not ended.done():
        num_found = len(found)
        await asyncio.wait([ended], timeout=_TIMEOUT_S)
        if not ended.done() and len(found) == num_found:
            raise TimeoutError


def _event(headers: bytes, data: bytes) -> LedgerEvent | None:
    """Return the message, or None at the end of the answer, which has a status and no sequence."""
    sequence, subject = _value(headers, _SEQUENCE), _value(headers, _SUBJECT)
    if sequence is None or subject is None:
        return None
    return LedgerEvent(int(sequence), subject.decode(), data)


def _value(headers: bytes, name: bytes) -> bytes | None:
    """Return the value of the last header of that name: the server's own come behind those that were stored."""
    begin = headers.rfind(name)
    if begin < 0:
        return None
    begin += len(name)
    return headers[begin : headers.index(b"\r\n", begin)]
