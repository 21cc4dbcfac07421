"""What a registration costs at least: a bare server that takes its two messages, and one bare signature."""

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nats.js.api import RetentionPolicy, StorageType, StreamConfig

from bench.million.processor import each_us, used_s
from octavo_cli.local_servers import NatsServer
from octavo_identity.batching import BATCH_MAX, Entry, append_batch
from octavo_shared.bus import Bus
from octavo_shared.dsse import Signer

EVENT_BYTES, KEY_BYTES = 1_900, 135
"""What both messages of a registration hold, without subjects and headers."""
_BATCHES_AT_ONCE = 4
_NUM_SIGNED = 2_000
_STREAMS = ("BARE_EVENTS", "BARE_KEYS")


@dataclass(frozen=True)
class Floor:
    """Pairs of messages that a server of its own took each second while nobody read from it, and microseconds of
    processor time: of that server and of this client for a pair, and for a signature.
    """

    pairs_per_s: float
    server_us: float
    client_us: float
    sign_us: float

    @property
    def most_per_s(self) -> float:
        """How many registrations a second all of this machine's processors could make if each took only that."""
        return len(os.sched_getaffinity(0)) * 1e6 / (self.server_us + self.client_us + self.sign_us)

    def __str__(self) -> str:
        return (
            f"{self.pairs_per_s:,.0f} bare pairs of messages/s; {self.most_per_s:,.0f} if a pair ({self.server_us:.0f} "
            f"us in the server, {self.client_us:.0f} in its client) and a signature ({self.sign_us:.0f}) were all"
        )


async def measure_floor(num_pairs: int, folder: Path) -> Floor:
    """Measure both for a while, with a server whose data is in ``folder``."""
    sign_us = _sign_us()
    server = NatsServer(folder)
    await server.start()
    try:
        assert server.process is not None
        parts = {"server": [server.process.pid]}
        async with Bus(server.url, "bare") as bus:
            for name in _STREAMS:
                await bus.jetstream.add_stream(_stream(name))
            await _append(bus, iter([range(num_pairs, num_pairs + BATCH_MAX)]))
            before, begun_s, client_s = used_s(parts), time.perf_counter(), time.process_time()
            firsts = range(0, num_pairs, BATCH_MAX)
            batches = iter([range(first, min(first + BATCH_MAX, num_pairs)) for first in firsts])
            await asyncio.gather(*(_append(bus, batches) for _ in range(_BATCHES_AT_ONCE)))
            took_s, client_s = time.perf_counter() - begun_s, time.process_time() - client_s
            server_us = each_us(before, used_s(parts), num_pairs)["server"]
    finally:
        await server.stop()
    return Floor(num_pairs / took_s, server_us, client_s / num_pairs * 1e6, sign_us)


async def _append(bus: Bus, batches: Iterator[range]) -> None:
    event, key = os.urandom(EVENT_BYTES), os.urandom(KEY_BYTES)
    for numbers in batches:
        for name, data in zip(_STREAMS, (event, key), strict=True):
            await append_batch(bus, [Entry(f"{name}.{number:056x}", data, 0) for number in numbers])


def _stream(name: str) -> StreamConfig:
    return StreamConfig(
        name=name, subjects=[f"{name}.>"], retention=RetentionPolicy.LIMITS, storage=StorageType.FILE, allow_atomic=True
    )


def _sign_us() -> float:
    signer, data = Signer(os.urandom(32)), os.urandom(800)
    begun_s = time.process_time()
    for _ in range(_NUM_SIGNED):
        signer.sign(data)
    return (time.process_time() - begun_s) / _NUM_SIGNED * 1e6
