"""``octavo.v1.generate``: the same JSON as over HTTP, answered on the message's reply subject.

Chunks are those of the HTTP stream; the last message, a chunk or an error body, has the header ``octavo-final``.
A body that says ``"stream": false`` gets one message with the whole answer.
"""

import contextlib
from collections.abc import AsyncIterator

from nats.aio.msg import Msg

from octavo_gateway.admission import Admission
from octavo_gateway.bodies import check_size
from octavo_gateway.call import Call
from octavo_gateway.credentials import credential_of
from octavo_gateway.front import Asked, FrontDesk
from octavo_gateway.replies import error_body
from octavo_gateway.writing import ChunkReader, headers_of, whole_answer
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.clock import now_ms
from octavo_shared.errors import OctavoError
from octavo_shared.telemetry import extract_context, log

_SHEDDING_MAX = 64
"""Messages beyond the bound of requests in flight that are being refused at the same time."""
_FINAL = {"octavo-final": "1"}


class NatsEntry:
    """Serves the subject for the queue group of all gateways, within the same bound as HTTP."""

    def __init__(self, bus: Bus, front: FrontDesk, admission: Admission) -> None:
        self._bus = bus
        self._front = front
        self._admission = admission

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Take requests while the block runs; what has come when it ends is still handed over, not dropped."""
        # More handlers than requests in flight: whoever finds no place hears so at once instead of waiting for one.
        num_handlers_max = self._admission.num_in_flight_max + _SHEDDING_MAX
        subscription = await self._bus.subscribe(
            subjects.GENERATE, self._on_message, subjects.GATEWAY_QUEUE, num_handlers_max
        )
        try:
            yield
        finally:
            await self._bus.leave(subscription)

    async def _on_message(self, message: Msg) -> None:
        if not message.reply:
            log.warning("request_without_reply_subject", subject=message.subject)
            return
        call: Call | None = None
        try:
            headers = {name.lower(): value for name, value in (message.headers or {}).items()}
            credential = credential_of(headers.get("authorization"))
            check_size(message.data)
            self._admission.knock(credential)
            ticket = self._admission.enter(now_ms())
            asked = Asked(message.data, None, "nats", is_stream_default=True)
            call = self._front.begin(ticket, credential, asked, extract_context(headers))
            await self._answer(message.reply, call)
        except OctavoError as error:
            await self._send(message.reply, error_body(error), _FINAL)
        finally:
            if call is not None:
                call.cancel()

    async def _answer(self, reply: str, call: Call) -> None:
        head = await call.head()
        headers = headers_of(head)
        if not head.ask.is_stream:
            await self._send(reply, await whole_answer(call, head), headers | _FINAL)
            return
        chunks = ChunkReader(call, head)
        while not chunks.is_final:
            chunk = await chunks.next()
            await self._send(reply, chunk, headers | _FINAL if chunks.is_final else headers)
            headers = {}

    async def _send(self, reply: str, data: bytes, headers: dict[str, str]) -> None:
        await self._bus.client.publish(reply, data, headers=headers or None)
