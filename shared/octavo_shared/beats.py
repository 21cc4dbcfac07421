"""Signs of life from whoever works on a request: who waits for minutes notices within seconds that nobody does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from octavo_shared.tasks import end

WANTED = {"octavo-beats": "1"}
"""The header of a request whose sender wants beats: others take the first message that comes for the answer."""
BEAT_INTERVAL_S = 1.0
SILENT_S = 3.5
"""So long after a beat, or after it was asked, whoever was asked has died, or nobody can hear it."""
_BEAT = {"octavo-beat": "1"}


@contextlib.asynccontextmanager
async def beating(client: Client, request: Msg) -> AsyncIterator[None]:
    """Send the sender of ``request`` a beat now and then while the block runs, if it wants any."""
    if not request.reply or not (request.headers or {}).keys() >= WANTED.keys():
        yield
        return
    task = asyncio.create_task(_beat(client, request.reply), name="beats")
    try:
        yield
    finally:
        await end(task)


async def _beat(client: Client, inbox: str) -> None:
    while True:
        await asyncio.sleep(BEAT_INTERVAL_S)
        with contextlib.suppress(NatsError, OSError):
            await client.publish(inbox, headers=_BEAT)


def is_beat(message: Msg) -> bool:
    """Tell whether ``message`` is a beat and not the answer."""
    return (message.headers or {}).keys() >= _BEAT.keys()
