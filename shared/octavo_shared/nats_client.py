"""nats-py's client, mended where one bad message or server would silence a service."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError, MaxPayloadError, OutboundBufferLimitError
from nats.errors import Error as NatsError

from octavo_shared.telemetry import log

Take = Callable[[bytes, bytes], None]
"""Gets the headers of a message as they came, with their first line, and its data. It must not wait."""


class PatientClient(Client):
    """A message that it cannot decode is dropped, and a server that takes a connection and says nothing is closed.

    In nats-py such a message ends the read loop without a reconnect: two bytes from anybody who may publish would make
    a service deaf until its pings time out. Such a server is given up there, and its connection stays open.
    """

    def __init__(self) -> None:
        super().__init__()
        self._takers: dict[int, Take] = {}

    async def _connect_to_server(self, server: Any) -> None:
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(server)

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """Return what it returns there, but without a look at each character of each name."""
        found: dict[str, str] = {}
        for line in raw.split(b"\r\n"):
            name, separator, value = line.partition(b":")
            name = name.strip()
            if separator and name.isascii() and len(name.split()) < 2:
                found[name.decode("ascii")] = value.strip().decode("utf-8", "replace")
        return found

    async def publish_together(self, messages: Iterable[tuple[str, bytes, bytes]]) -> None:
        """Publish many messages, each a subject, headers and data, as ``publish`` would one after the other.

        The headers are ready lines, each with its CRLF. No subject and no header is looked at, and all goes out in one
        piece: for what this process has made itself. Raises ``ConnectionClosedError``, ``OutboundBufferLimitError`` and
        ``MaxPayloadError``.
        """
        if self.is_closed or self.is_draining_pubs:
            raise ConnectionClosedError
        if not self.is_connected:
            raise OutboundBufferLimitError
        parts: list[bytes] = []
        for subject, lines, data in messages:
            header = b"NATS/1.0\r\n%b\r\n" % lines
            header_size, size = len(header), len(header) + len(data)
            if size > self.max_payload:
                raise MaxPayloadError
            parts += (b"HPUB %b %d %d\r\n" % (subject.encode(), header_size, size), header, data, b"\r\n")
        if parts:
            await self._send_command(b"".join(parts))
            await self._flush_pending()

    @asynccontextmanager
    async def collecting(self, subject: str, take: Take) -> AsyncIterator[None]:
        """Hand every message on ``subject`` to ``take`` while the block runs.

        For thousands of them: as each is read from the connection, without a queue, a task and a look at ten headers.
        """
        subscription = await self.subscribe(subject, cb=_taken_before)
        self._takers[subscription._id] = take
        try:
            yield
        finally:
            del self._takers[subscription._id]
            with suppress(NatsError):
                await subscription.unsubscribe()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        try:
            if (take := self._takers.get(sid)) is not None:
                # None where there are none, whatever its types say.
                take(headers or b"", data)
                return
            await super()._process_msg(sid, subject, reply, data, headers)
        except OSError:
            raise
        except Exception as error:
            log.warning("message_dropped", error=type(error).__name__, size_bytes=len(data))


async def _taken_before(message: Msg) -> None:
    """Never called: what is collected reaches no queue."""
