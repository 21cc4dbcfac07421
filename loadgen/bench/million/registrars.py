"""The processes that register, from the side of whoever orders it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from bench.million.population import Population
from bench.million.registrar import Order, Range, Registered
from bench.million.rig import Rig
from octavo_cli.processes import finish
from octavo_shared import decoding

_READY_S = 60.0
_BATCH_S = 60.0
"""No batch takes this long: a registrar that is silent for it has failed."""
_GRACE_S = 10.0


class Registrars:
    """So many processes that share each range between them."""

    def __init__(self, children: list[asyncio.subprocess.Process]) -> None:
        self._children = children

    def pids(self) -> Mapping[str, list[int]]:
        """Return the processes whose time is accounted for, by what they are."""
        return {"registrars": [child.pid for child in self._children]}

    async def register(self, first: int, last: int, report: Callable[[int], None]) -> float:
        """Register adapters ``first`` to ``last - 1``; returns the seconds until the last is acknowledged.

        ``report`` is told how many of them are. Raises ``RuntimeError`` when one of the processes fails.
        """
        loop = asyncio.get_running_loop()
        num_done = [0] * len(self._children)
        bounds = [first + (last - first) * part // len(self._children) for part in range(len(self._children) + 1)]
        begun_s = loop.time()

        async def one(part: int) -> None:
            wanted = Range(bounds[part], bounds[part + 1])
            if wanted.first == wanted.last:
                return
            child = self._children[part]
            assert child.stdin is not None
            child.stdin.write(msgspec.json.encode(wanted) + b"\n")
            await child.stdin.drain()
            while num_done[part] < wanted.last - wanted.first:
                num_done[part] = await _answer(child, _BATCH_S)
                report(sum(num_done))

        async with asyncio.TaskGroup() as tasks:
            for part in range(len(self._children)):
                tasks.create_task(one(part), name="registrar")
        return loop.time() - begun_s


@asynccontextmanager
async def registrars(rig: Rig, population: Population, num_processes: int, folder: Path) -> AsyncIterator[Registrars]:
    """Yield processes that are ready to register; they are ended with the block."""
    children: list[asyncio.subprocess.Process] = []
    try:
        for number in range(num_processes):
            own_dir = folder / f"registrar-{number + 1}"
            own_dir.mkdir(parents=True)
            order = Order(
                population.seed, population.num_tenants, rig.nats.url, str(rig.seed_file), str(rig.identity_dir),
                str(own_dir),
            )  # fmt: skip
            environ = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
            children.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "bench.million.registrar", msgspec.json.encode(order).decode()),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env=environ,
                    start_new_session=True,
                )
            )
        for child in children:
            await _answer(child, _READY_S)
        yield Registrars(children)
    finally:
        await finish(_end(children))


async def _answer(child: asyncio.subprocess.Process, timeout_s: float) -> int:
    assert child.stdout is not None
    try:
        line = await asyncio.wait_for(child.stdout.readline(), timeout_s)
    except TimeoutError:
        raise RuntimeError(f"a registrar said nothing for {timeout_s:.0f} s") from None
    if not line:
        raise RuntimeError("a registrar failed; its reason is above")
    return decoding.from_json(line, Registered).number


async def _end(children: list[asyncio.subprocess.Process]) -> None:
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
    for child in children:
        try:
            await asyncio.wait_for(child.wait(), _GRACE_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
