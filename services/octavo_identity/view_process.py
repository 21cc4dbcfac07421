"""The child that makes the view when it is far behind the stream, so that whoever asks identity does not wait for that.

It has a connection of its own and writes the view's file. It speaks to its parent (``view_maker``) over its standard
input and output, in frames of four bytes of length and MessagePack: one answer for each order. It ends with its input.
"""

import asyncio
import contextlib
import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from octavo_identity.applying import APPLIED_MAX, Copied, apply_events, copy_events
from octavo_identity.catalogue import Catalogue, Position
from octavo_identity.data_keys import DataKeys
from octavo_identity.heads import HeadStore
from octavo_identity.key_source import KeySource
from octavo_shared import decoding
from octavo_shared.bus import Bus
from octavo_shared.credentials import read_credentials
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.permissions import BusRole
from octavo_shared.references import AdapterId
from octavo_shared.service import spare_collections
from octavo_shared.telemetry import start_telemetry

LENGTH_BYTES = 4
_NICENESS = 10
"""Requests, and what they wait for, come first where processors are few."""
_NICENESS_OF_SESSION = 10
"""A tenth of what another session gets: enough to go on where many are busy, which leave it more than that."""

Exact = Callable[[int], Awaitable[bytes]]
"""So many bytes; raises ``IncompleteReadError`` at the end."""


class Start(msgspec.Struct, frozen=True):
    """The view's file, how to reach the stream, and what opens what is sealed there."""

    path: str
    nats_url: str
    seed_file: str
    keys: KeySource


class Order(msgspec.Struct, frozen=True):
    """Take over the events ``first`` to ``until``, after which the file is at the position given.

    There are events up to ``last``; the next order is likely to be about those behind ``until``.
    """

    first: int
    until: int
    last: int
    created: str
    begun_ms: int


class Answer(msgspec.Struct, frozen=True):
    """Leaf hashes, one behind the other, what was erased, and field keys of what was not; or what was wrong: with the
    file, or else with NATS.
    """

    leaves: bytes = b""
    problem: str = ""
    is_of_file: bool = False
    erased: tuple[AdapterId, ...] = ()
    keys: dict[AdapterId, bytes] = {}


def frame(message: msgspec.Struct) -> bytes:
    """Return ``message`` as it is sent."""
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


async def read_frame(read_exactly: Exact) -> bytes:
    """Return what the next frame holds; raises ``IncompleteReadError`` at the end."""
    return await read_exactly(int.from_bytes(await read_exactly(LENGTH_BYTES), "big"))


class _Maker:
    def __init__(self, catalogue: Catalogue, heads: HeadStore) -> None:
        self._catalogue = catalogue
        self._heads = heads
        self._ahead: tuple[int, int, asyncio.Task[Copied]] | None = None

    async def make(self, order: Order) -> Answer:
        try:
            if self._catalogue.position().sequence != order.first - 1:
                # It was damaged, and begun anew where it was opened here.
                return Answer(problem="it does not go up to where it should", is_of_file=True)
            copied = await self._copied(order.first, order.until)
            if order.until < order.last:
                self._copy_ahead(order.until + 1, min(order.until + APPLIED_MAX, order.last))
            position = Position(order.created, order.until, order.begun_ms)
            applied = await asyncio.to_thread(apply_events, self._catalogue, copied, position)
        except DependencyUnavailable as error:
            return Answer(problem=error.message)
        except (sqlite3.DatabaseError, OSError) as error:
            return Answer(problem=str(error), is_of_file=True)
        return Answer(b"".join(applied.leaves), erased=(*applied.erased,), keys=dict(applied.keys))

    async def _copied(self, first: int, until: int) -> Copied:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[:2] == (first, until):
            return await ahead[2]
        if ahead is not None:
            ahead[2].cancel()
        return await copy_events(self._heads, first, until)

    def _copy_ahead(self, first: int, until: int) -> None:
        task = asyncio.create_task(copy_events(self._heads, first, until), name="copy ahead")
        # What goes wrong is seen by who waits for it, and by nobody when that is not asked for.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._ahead = first, until, task


async def _run() -> None:
    loop = asyncio.get_running_loop()
    parent = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin.buffer)
    start = decoding.from_msgpack(await read_frame(parent.readexactly), Start)
    catalogue, provider = Catalogue(Path(start.path)), start.keys.provider()
    try:
        credentials = read_credentials(BusRole.IDENTITY, start.seed_file)
        async with Bus(start.nats_url, "identity-view", credentials=credentials) as bus:
            maker = _Maker(catalogue, HeadStore(bus, 1, DataKeys(bus, 1, provider)))
            while True:
                try:
                    data = await read_frame(parent.readexactly)
                except asyncio.IncompleteReadError:
                    return
                answer = await maker.make(decoding.from_msgpack(data, Order))
                sys.stdout.buffer.write(frame(answer))
                sys.stdout.buffer.flush()
    finally:
        provider.close()
        catalogue.close()


def _give_way() -> None:
    """Let requests, registrations and the server that both wait for come first."""
    os.nice(_NICENESS)
    # Where Linux shares its processors out among sessions, niceness counts within one only: this gets its own.
    # That its parent has ended is told by the input, as before.
    with contextlib.suppress(OSError):
        os.setsid()
        Path("/proc/self/autogroup").write_text(str(_NICENESS_OF_SESSION))


def main() -> None:
    """Carry out orders until the input ends."""
    _give_way()
    start_telemetry("identity-view", "warning")
    spare_collections()
    asyncio.run(_run())


if __name__ == "__main__":
    main()
