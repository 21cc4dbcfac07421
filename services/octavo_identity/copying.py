"""Many messages of a stream for one request, from whichever replica answers: for copies, never for a decision."""

import msgspec
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.ledger import LedgerEvent

COPIED_MAX = 1_024
_BYTES_MAX = 8 * 1024 * 1024
_TIMEOUT_S = 4.0
_SUBJECT, _SEQUENCE, _STATUS = "Nats-Subject", "Nats-Sequence", "Status"


async def copy_run(bus: Bus, stream: str, first: int, last: int) -> dict[int, LedgerEvent]:
    """Return messages of ``stream`` from sequence ``first`` to ``last``, ``COPIED_MAX`` at most, by sequence.

    What is not among them may be there all the same: a replica may be behind, an answer ends where it gets large, and
    a stream may allow no direct reads at all. Whoever needs it asks the leader.
    """
    assert 1 <= first <= last < first + COPIED_MAX
    if not bus.is_connected:
        raise DependencyUnavailable("NATS")
    request = msgspec.json.encode({"seq": first, "batch": last - first + 1, "max_bytes": _BYTES_MAX})
    found: dict[int, LedgerEvent] = {}
    try:
        async with bus.inbox(2 * COPIED_MAX) as (inbox, answers):
            await bus.client.publish(subjects.copies(stream), request, reply=inbox)
            while (event := _event(await answers.next_msg(timeout=_TIMEOUT_S))) is not None:
                found[event.sequence] = event
    except (NatsError, OSError, ValueError) as error:
        raise DependencyUnavailable("JetStream") from error
    return {sequence: event for sequence, event in found.items() if first <= sequence <= last}


def _event(message: Msg) -> LedgerEvent | None:
    """Return the message, or None at the end of the answer, which has a status and no sequence."""
    headers = message.headers or {}
    if _STATUS in headers or _SEQUENCE not in headers:
        return None
    return LedgerEvent(int(headers[_SEQUENCE]), headers[_SUBJECT], message.data)
