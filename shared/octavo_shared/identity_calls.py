"""Asking identity: for how long, and what to do when the replica that took a request has died."""

import asyncio
from typing import TypeVar

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout

from octavo_shared import subjects
from octavo_shared.beats import SILENT_S, WANTED, is_beat
from octavo_shared.bus import Bus, answer_of, encode
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.identity import SLOW_VERBS
from octavo_shared.tasks import cancellable
from octavo_shared.telemetry import inject_context, log

_TIMEOUT_S = 5.0
_SLOW_TIMEOUT_S = 120.0
_SENDS_MAX = 4
_SENT_AGAIN = frozenset({"commit", "branch"})
"""Slow verbs that leave an event whenever they are acknowledged, by which the registry knows a second one of the same
key for what it is, also one that was held up on its way and comes behind its own acknowledgement. One that may find all
as it wants leaves none: held up, it could undo what came after it. So its caller is told, and decides."""
_WHO = "identity"
_NO_RESPONDERS = "503"

T = TypeVar("T")


async def ask_identity(bus: Bus, verb: str, request: msgspec.Struct, reply: type[T]) -> T:
    """Return what the verb answers; raises what it refuses with, and ``DependencyUnavailable``.

    A slow verb has two minutes as long as somebody works on it. When it has been silent for ``SILENT_S``, one that may
    be sent again is, which another replica then takes; of others it is unknown what became of them.
    """
    subject = subjects.identity(verb)
    if verb not in SLOW_VERBS:
        return await bus.request(subject, request, reply, _TIMEOUT_S, _WHO)
    num_sends_max = _SENDS_MAX if verb in _SENT_AGAIN else 1
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + _SLOW_TIMEOUT_S
    async with bus.inbox() as (inbox, answers):
        for _ in range(num_sends_max):
            await _send(bus, subject, request, inbox)
            if (answer := await _answer(answers, deadline_s)) is not None:
                return answer_of(answer, reply)
            log.warning("identity_silent", verb=verb)
            if loop.time() >= deadline_s:
                break
    raise DependencyUnavailable(_WHO)


async def _send(bus: Bus, subject: str, request: msgspec.Struct, inbox: str) -> None:
    if not bus.is_connected:
        # The client would buffer it and deliver it late, when nobody waits any more.
        raise DependencyUnavailable("NATS")
    try:
        with cancellable():
            await bus.client.publish(subject, encode(request), reply=inbox, headers=inject_context(dict(WANTED)))
    except (NatsError, OSError) as error:
        raise DependencyUnavailable("NATS") from error


async def _answer(answers: Subscription, deadline_s: float) -> Msg | None:
    """Return the answer, or None when there has been neither it nor a beat for a while; raises when nobody is there."""
    loop = asyncio.get_running_loop()
    while (left_s := deadline_s - loop.time()) > 0:
        try:
            message = await answers.next_msg(timeout=min(SILENT_S, left_s))
        except (TimeoutError, NatsTimeout):
            return None
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("NATS") from error
        if (message.headers or {}).get("Status") == _NO_RESPONDERS:
            raise DependencyUnavailable(_WHO)
        if not is_beat(message):
            return message
    return None
