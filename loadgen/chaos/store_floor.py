"""How soon the object store itself stores again, asked of it directly: what nobody who needs it can be faster than."""

import asyncio

from chaos.deployment import Deployment
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.objects import ObjectStore
from octavo_shared.tasks import end

_KEY = "probe/written"
_EVERY_S = 0.1
_RUNNING_MAX = 8
_STORES_S = 60.0


async def until_it_stores(deployment: Deployment) -> float:
    """Return at which time the store took a write; raises ``TimeoutError``.

    Writes go out one after the other while others wait: one that came too early may be kept waiting for seconds.
    """
    store = ObjectStore(deployment.settings)
    running: set[asyncio.Task[None]] = set()
    try:
        async with asyncio.timeout(_STORES_S):
            while True:
                if len(running) < _RUNNING_MAX:
                    running.add(asyncio.create_task(store.write(_KEY, b"written"), name="probe the store"))
                done, running = await asyncio.wait(running, timeout=_EVERY_S)
                if any(_is_stored(one) for one in done):
                    return asyncio.get_running_loop().time()
                if done:
                    await asyncio.sleep(_EVERY_S)
    finally:
        await end(*running)
        store.close()


def _is_stored(write: asyncio.Task[None]) -> bool:
    try:
        write.result()
    except DependencyUnavailable:
        return False
    return True


async def restart_s(deployment: Deployment) -> float:
    """Kill the store and start it again; returns how long it takes until it stores, while nobody else wants it to."""
    process = deployment.s3.process
    assert process is not None, "the deployment runs"
    begun_s = asyncio.get_running_loop().time()
    process.kill()
    await process.wait(_STORES_S)
    _, stores_s = await asyncio.gather(deployment.s3.start(), until_it_stores(deployment))
    return stores_s - begun_s
