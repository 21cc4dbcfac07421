"""What a request about many adapters asks of the leader for each of them, and which is the same for all: asked once."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

MOMENT_S = 0.2
"""So long an answer counts as of now. Revocations and grants are effective within a second all the same."""

T = TypeVar("T")
Read = Callable[[str], Awaitable[T]]


class Moment(Generic[T]):
    """Answers that are shared by all that ask for the same within ``MOMENT_S`` of the first one's question."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._asked: dict[str, tuple[float, asyncio.Future[T]]] = {}

    async def read(self, subject: str, read: Read[T]) -> T:
        """Return what ``read`` says of ``subject``, or said a moment ago; raises what it raises."""
        known = self._asked.get(subject)
        if known is None or self._now_s() - known[0] > MOMENT_S:
            known = self._now_s(), asyncio.ensure_future(read(subject))
            self._asked[subject] = known
        # One that is cancelled while it waits takes the answer from nobody else.
        return await asyncio.shield(known[1])

    def forget(self, subject: str) -> None:
        """Let whoever comes next ask again."""
        self._asked.pop(subject, None)


_current: ContextVar["Moment[object] | None"] = ContextVar("moment", default=None)


@contextmanager
def shared_reads() -> Iterator[None]:
    """Let all tasks that are started in the block share what they read (see ``read``)."""
    token = _current.set(Moment())
    try:
        yield
    finally:
        _current.reset(token)


async def read(subject: str, read: Read[T]) -> T:
    """Return what ``read`` says of ``subject``, also a moment ago where reads are shared."""
    moment: Moment[T] | None = _current.get()  # type: ignore[assignment]
    return await (read(subject) if moment is None else moment.read(subject, read))


def forget(subject: str) -> None:
    """Let the next ``read`` of ``subject`` ask again, because it was written to."""
    if (moment := _current.get()) is not None:
        moment.forget(subject)
