"""The one way to talk over NATS: typed requests, typed handlers, errors that keep their class, traces that go on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ConnectionClosedError, NoRespondersError
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout
from nats.js import JetStreamContext
from opentelemetry import context as otel_context

from octavo_shared import decoding
from octavo_shared.beats import beating
from octavo_shared.credentials import BusCredentials
from octavo_shared.denials import Denials
from octavo_shared.errors import DependencyUnavailable, InternalError, OctavoError, Refusal, from_refusal
from octavo_shared.nats_client import PatientClient
from octavo_shared.permissions import INBOX, inbox_prefix, is_inbox
from octavo_shared.tasks import cancellable
from octavo_shared.telemetry import extract_context, inject_context, log

_ERROR_HEADER = "octavo-error"
_HANDLERS_MAX = 256
_PENDING_BYTES_MAX = 64 * 1024 * 1024
_PING_INTERVAL_S = 2
_PINGS_MAX = 2
"""A server that is suspended or cut off keeps its connections: it is left for another one after 6 s without an answer.
A client whose own loop stalls loses nothing by this, as it reads the answers before it counts the next ping."""

T = TypeVar("T")
Handler = Callable[[Any], Awaitable[Any]]
RawHandler = Callable[[Msg], Awaitable[None]]

encode = msgspec.msgpack.encode


class Bus:
    """A NATS connection with bounded handlers. An async context manager; leaving it drains what runs.

    nats-py awaits a subscription's callback one message at a time, so each message is handed to a task;
    a bounded number runs per subscription, and further messages wait in the client's bounded buffer.

    ``url`` may be several, separated by commas: servers of one cluster, of which any will do.
    Without ``credentials`` it connects as nobody, which only an open server lets in.
    """

    def __init__(
        self,
        url: str,
        name: str,
        drain_timeout_s: float = 10.0,
        connect_timeout_s: float = 60.0,
        credentials: BusCredentials | None = None,
    ) -> None:
        self._url = url
        self._name = name
        self._credentials = credentials
        self._denials = Denials(name)
        self._connect_timeout_s = connect_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._subscriptions: list[Subscription] = []
        self._running: set[asyncio.Task[None]] = set()
        self.client = PatientClient()

    async def __aenter__(self) -> Self:
        credentials = self._credentials
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self.client.connect(
                    self._url.split(","),
                    name=self._name,
                    # Also the first connection is tried again, until the time-out above; later ones forever.
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    ping_interval=_PING_INTERVAL_S,
                    max_outstanding_pings=_PINGS_MAX,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_reconnected,
                    pending_size=_PENDING_BYTES_MAX,
                    nkeys_seed_str=credentials.seed if credentials else None,
                    inbox_prefix=inbox_prefix(credentials.role, credentials.member) if credentials else INBOX,
                )
        except TimeoutError as error:
            # An attempt that the server refused leaves its socket behind.
            await self._close()
            raise DependencyUnavailable("NATS") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()
        await self._close()

    async def _close(self) -> None:
        with contextlib.suppress(NatsError, OSError):
            await self.client.close()

    @property
    def is_connected(self) -> bool:
        return bool(self.client.is_connected)

    @property
    def jetstream(self) -> JetStreamContext:
        return self.client.jetstream()

    async def _on_error(self, error: Exception) -> None:
        if not self._denials.note(error):
            log.warning("bus_error", error=type(error).__name__, detail=str(error))

    async def _on_disconnected(self) -> None:
        log.warning("bus_disconnected")

    async def _on_reconnected(self) -> None:
        log.info("bus_reconnected")

    async def drain(self) -> None:
        """Take no more messages, then wait for the handlers of those that came, then cancel those that are left."""
        await asyncio.gather(*(self.leave(subscription) for subscription in list(self._subscriptions)))
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=self._drain_timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def leave(self, subscription: Subscription) -> None:
        """Take no more messages on ``subscription``, and hand those that have already come to their handlers."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            async with asyncio.timeout(self._drain_timeout_s):
                # Unsubscribing alone would discard what waits in the client's buffer, and leave its senders waiting.
                if self.is_connected:
                    await subscription.drain()  # type: ignore[no-untyped-call]
                else:
                    await subscription.unsubscribe()

    async def publish(self, subject: str, message: msgspec.Struct, reply: str = "") -> None:
        """Send ``message``; core NATS promises no delivery. Raises ``DependencyUnavailable`` while disconnected."""
        if not self.is_connected:
            # The client would buffer it and deliver it late, when nobody waits any more.
            raise DependencyUnavailable("NATS")
        try:
            with cancellable():
                await self.client.publish(subject, encode(message), reply=reply, headers=inject_context({}))
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("NATS") from error

    async def request(
        self, subject: str, message: msgspec.Struct, reply: type[T], timeout_s: float, who: str = "service"
    ) -> T:
        """Send ``message`` and return the answer; the other side's error is raised here with its own class.

        Raises ``DependencyUnavailable(who)`` when nobody answers in ``timeout_s``.
        """
        if not self.is_connected:
            raise DependencyUnavailable("NATS")
        try:
            with cancellable():
                answer = await self.client.request(
                    subject, encode(message), timeout=timeout_s, headers=inject_context({})
                )
        except (TimeoutError, NatsTimeout, NoRespondersError, ConnectionClosedError) as error:
            raise DependencyUnavailable(who) from error
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("NATS") from error
        return answer_of(answer, reply)

    async def serve(self, subject: str, kind: type[Any], handler: Handler, queue: str = "") -> None:
        """Answer messages of type ``kind`` on ``subject`` with what ``handler`` returns or raises.

        An ``OctavoError`` travels to the caller; anything else is logged and leaves as ``internal`` with an id.
        Handlers that return None answer nothing.
        """
        decoder = decoding.msgpack_decoder(kind)

        async def answer(message: Msg) -> None:
            try:
                async with beating(self.client, message):
                    result = await handler(decoder.decode(message.data))
            except OctavoError as error:
                await self._refuse(message, error)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.error("message_undecodable", subject=subject, detail=str(error))
                await self._refuse(message, InternalError())
            except Exception:
                failure = InternalError()
                log.exception("handler_failed", subject=subject, error_id=failure.fields["error_id"])
                await self._refuse(message, failure)
            else:
                if result is not None and message.reply:
                    await self.client.publish(message.reply, encode(result))

        await self.subscribe(subject, answer, queue)

    async def subscribe(
        self, subject: str, handler: RawHandler, queue: str = "", num_handlers_max: int = _HANDLERS_MAX
    ) -> Subscription:
        """Run ``handler`` for every message on ``subject`` in a task of its own, inside the sender's trace.

        Messages whose reply subject is no inbox are dropped: an answer must not go where only the answerer may write.
        The server knows the subscription when this returns. It ends with the bus, or by ``leave``.
        """
        slots = asyncio.Semaphore(num_handlers_max)

        async def run(message: Msg) -> None:
            token = otel_context.attach(extract_context(message.headers))
            try:
                if message.reply and not is_inbox(message.reply):
                    log.warning("message_refused", subject=message.subject, detail="its reply subject is no inbox")
                    return
                await handler(message)
            except Exception:
                log.exception("handler_failed", subject=subject)
            finally:
                otel_context.detach(token)
                slots.release()

        async def hand_over(message: Msg) -> None:
            await slots.acquire()
            task = asyncio.create_task(run(message), name=f"handle {subject}")
            self._running.add(task)
            task.add_done_callback(self._running.discard)

        subscription = await self.client.subscribe(subject, queue=queue, cb=hand_over)
        self._subscriptions.append(subscription)
        # Whoever hears that this service is ready may publish at once.
        await self.settled()
        return subscription

    async def settled(self) -> None:
        """Return once the server has processed all that was sent so far: subscriptions are known, or gone."""
        # nats-py writes a flush's PING ahead of what is still buffered: only the second one is behind it.
        await self.client.flush()
        await self.client.flush()

    @contextlib.asynccontextmanager
    async def inbox(self, num_messages_max: int = 4096) -> AsyncIterator[tuple[str, Subscription]]:
        """Yield a fresh reply subject and its subscription (``await subscription.next_msg(timeout=s)``)."""
        subject = self.client.new_inbox()
        try:
            subscription = await self.client.subscribe(subject, pending_msgs_limit=num_messages_max)
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("NATS") from error
        try:
            yield subject, subscription
        finally:
            with contextlib.suppress(NatsError):
                await subscription.unsubscribe()

    async def _refuse(self, message: Msg, error: OctavoError) -> None:
        if not message.reply:
            log.warning("message_refused", subject=message.subject, code=error.code, detail=error.message)
            return
        with contextlib.suppress(NatsError):
            await self.client.publish(message.reply, encode(error.refusal()), headers={_ERROR_HEADER: error.code})


def answer_of(message: Msg, reply: type[T]) -> T:
    """Return the answer that ``message`` is; raises the refusal that it is instead."""
    if message.headers and _ERROR_HEADER in message.headers:
        raise from_refusal(decoding.from_msgpack(message.data, Refusal))
    return decoding.from_msgpack(message.data, reply)
