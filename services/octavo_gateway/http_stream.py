"""Server-sent events that end as soon as the client does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from litestar.response.streaming import Stream
from litestar.types import ASGIApp, Receive, Scope, Send

from octavo_gateway.call import Call
from octavo_gateway.http_request import AnyRequest
from octavo_gateway.replies import error_body
from octavo_gateway.writing import ChunkReader
from octavo_shared.errors import OctavoError

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody is left to answer."""


async def unless_gone(request: AnyRequest, work: Awaitable[T]) -> T:
    """Return what ``work`` returns; raises ``ClientGone`` when the client disconnects first.

    The request's body must have been read: what else the client sends is not looked at.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for pending in (task, watch):
            pending.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Ending:
    """A response that cancels its call when it is over, whichever way, even if it never began."""

    def __init__(self, response: ASGIApp, call: Call) -> None:
        self._response = response
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            self._call.cancel()


class EventStream(Stream):
    """The chunks of one call as server-sent events; an error on the way is the last event, never a hang."""

    def __init__(self, call: Call, chunks: ChunkReader, headers: dict[str, str]) -> None:
        super().__init__(
            _events(chunks),
            # Proxies must pass each event on at once.
            headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"},
            media_type="text/event-stream; charset=utf-8",
            status_code=200,
        )
        self._call = call

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> Any:
        """Return the ASGI form; Litestar only calls it."""
        return _Ending(super().to_asgi_response(*args, **kwargs), self._call)


async def _events(chunks: ChunkReader) -> AsyncIterator[bytes]:
    try:
        while not chunks.is_final:
            yield b"data: " + await chunks.next() + b"\n\n"
    except OctavoError as error:
        yield b"data: " + error_body(error) + b"\n\n"
        return
    yield b"data: [DONE]\n\n"
