"""Has the view of the registry made by a process of its own, while it is far behind."""

import asyncio
import contextlib
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from octavo_identity.applying import Applied
from octavo_identity.catalogue import Position
from octavo_identity.key_source import KeySource
from octavo_identity.view_process import Answer, Order, Start, frame, read_frame
from octavo_shared import decoding
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.merkle import HASH_BYTES

_PROGRAM = (sys.executable, "-P", "-m", "octavo_identity.view_process")
_ANSWER_S = 60.0
_ANSWER_BYTES_MAX = 1024 * 1024
_GRACE_S = 5.0


class MakerEnded(Exception):
    """The child ended, or did not answer in time; what it was to do is done, or not at all."""


class ViewMaker:
    """One child, started when it is first needed. Its calls come one after the other."""

    def __init__(
        self, path: Path, nats_url: str, seed_file: str, keys: KeySource, program: Sequence[str] = _PROGRAM,
        answer_s: float = _ANSWER_S,
    ) -> None:  # fmt: skip
        self._start = Start(str(path), nats_url, seed_file, keys)
        self._program = program
        self._answer_s = answer_s
        self._child: asyncio.subprocess.Process | None = None
        self._used_s = 0.0

    async def apply(self, first: int, last: int, position: Position) -> Applied:
        """Take over the events from ``first`` to ``position``. There are events to ``last``.

        Raises ``DependencyUnavailable``, ``sqlite3.DatabaseError`` when the file is damaged, and ``MakerEnded``.
        """
        assert position.created is not None
        order = Order(first, position.sequence, last, position.created, position.begun_ms)
        try:
            async with asyncio.timeout(self._answer_s):
                answer = await self._ask(order)
        except (TimeoutError, OSError, EOFError, msgspec.MsgspecError) as error:
            await self._kill()
            raise MakerEnded(type(error).__name__) from error
        except BaseException:
            # Its answer would be taken for that to the next order.
            await self._kill()
            raise
        if answer.problem and answer.is_of_file:
            raise sqlite3.DatabaseError(answer.problem)
        if answer.problem:
            raise DependencyUnavailable(answer.problem)
        leaves = answer.leaves
        return Applied(
            [leaves[begin : begin + HASH_BYTES] for begin in range(0, len(leaves), HASH_BYTES)], answer.erased,
            answer.keys,
        )  # fmt: skip

    async def _ask(self, order: Order) -> Answer:
        if self._child is None:
            self._child = await asyncio.create_subprocess_exec(
                *self._program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_ANSWER_BYTES_MAX
            )
            self._send(self._child, self._start)
        self._send(self._child, order)
        assert self._child.stdout is not None
        data = await read_frame(self._child.stdout.readexactly)
        self._used_s = asyncio.get_running_loop().time()
        return decoding.from_msgpack(data, Answer)

    @staticmethod
    def _send(child: asyncio.subprocess.Process, message: msgspec.Struct) -> None:
        assert child.stdin is not None
        child.stdin.write(frame(message))

    async def rest(self, idle_s: float = 0.0) -> None:
        """End the child if it had nothing to do for so long; it is started again when there is."""
        child = self._child
        if child is None or asyncio.get_running_loop().time() < self._used_s + idle_s:
            return
        assert child.stdin is not None
        child.stdin.close()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.wait(), _GRACE_S)
        finally:
            # Also when whoever ends this does not wait for a child that takes its time.
            await self._kill()

    async def _kill(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
