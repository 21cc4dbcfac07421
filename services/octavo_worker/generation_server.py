"""The verbs ``generate`` and ``cancel``: every accepted attempt gets ``Started``, its tokens and one end."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import msgspec
from nats.aio.msg import Msg
from opentelemetry import trace

from octavo_shared import decoding, subjects
from octavo_shared.bus import Bus
from octavo_shared.errors import (
    BaseMismatch,
    DependencyUnavailable,
    OctavoError,
    Overloaded,
    Refusal,
    WorkerLost,
)
from octavo_shared.messages.generation import Busy, Cancel, Generate, GenerationEvent, Lease, Tier
from octavo_shared.references import AdapterId, Fingerprint, WorkerId
from octavo_shared.telemetry import log
from octavo_worker import metrics
from octavo_worker.adapters.loader import Loader
from octavo_worker.engine.sequence import (
    SequenceFailed,
    SequenceFinished,
    SequenceStarted,
    StepEvent,
    TokensDecoded,
)
from octavo_worker.leases import GatewayLeases
from octavo_worker.open_request import OpenRequest, open_span
from octavo_worker.open_requests import Generator, OpenRequests
from octavo_worker.settings import Cadence

_LANDING_TIMEOUT_S = 1.0


class GenerationServer:
    """Answers attempts at requests. Belongs to the event loop.

    ``num_open_max`` bounds what is accepted; beyond it, and while draining, the answer is ``Busy``. A gateway
    from which neither a lease nor a request was heard for ``cadence.lease_timeout_ms`` counts as gone.
    """

    def __init__(
        self,
        bus: Bus,
        engine: Generator,
        loader: Loader,
        worker_id: WorkerId,
        base: Fingerprint,
        base_name: str,
        num_open_max: int,
        cadence: Cadence,
    ) -> None:
        self._bus = bus
        self._engine = engine
        self._loader = loader
        self._worker_id = worker_id
        self._base = base
        self._base_name = base_name
        self._num_open_max = num_open_max
        self._open = OpenRequests(engine, loader, cadence.order_grace_ms, self._spawn_fail)
        self._leases = GatewayLeases(cadence.lease_timeout_ms)
        self._failing: set[asyncio.Task[None]] = set()
        self.is_draining = False
        self.on_change: Callable[[], None] = lambda: None

    @property
    def num_open(self) -> int:
        return len(self._open)

    async def subscribe(self) -> None:
        """Begin to take requests."""
        await self._bus.serve(subjects.LEASE, Lease, self._leases.renew)
        await self._bus.serve(subjects.worker(self._worker_id, "cancel"), Cancel, self.cancel)
        await self._bus.subscribe(subjects.worker(self._worker_id, "generate"), self.generate)

    async def generate(self, message: Msg) -> None:
        """Accept one attempt, or answer ``Busy`` or ``Failed``. A repeated message changes nothing."""
        try:
            generate = decoding.from_msgpack(message.data, Generate)
        except msgspec.MsgspecError as problem:
            log.error("message_undecodable", subject=message.subject, detail=str(problem))
            return
        if not message.reply:
            return
        self._leases.heard(generate.gateway_id)
        adapter = generate.adapter
        found = self._loader.find(adapter.pack_key) if adapter else Tier.BASE
        request = OpenRequest(generate, message.reply, found, trace.INVALID_SPAN)
        attempts = self._open.those(lambda other: other.generate.request_id == generate.request_id)
        if any(other.generate.attempt >= generate.attempt for other in attempts):
            return
        for older in attempts:
            # Its gateway gave it up; its end is news to nobody.
            self._engine.cancel(older.engine_id)
        if self.is_draining or len(self._open) >= self._num_open_max:
            await self._send(request, self._busy(request))
            return
        for asked_of in (generate.base, adapter.base if adapter else generate.base):
            if asked_of != self._base:
                await self._refuse(request, BaseMismatch(adapter_base=asked_of, served_base=self._base))
                return
        request.span = open_span(generate, self._worker_id, self._base_name)
        try:
            self._open.enter(request)
        except Overloaded:
            request.end_span(None, None)
            await self._send(request, self._busy(request))
        except OctavoError as error:
            request.end_span(None, error.refusal())
            await self._refuse(request, error)
        else:
            self.on_change()

    async def cancel(self, cancel: Cancel) -> None:
        """End every open attempt at a request; idempotent."""
        for request in self._open.those(lambda one: one.generate.request_id == cancel.request_id):
            self._engine.cancel(request.engine_id)

    async def watch_leases(self) -> None:
        """Stop generating for gateways that have gone silent; runs until cancelled."""
        await self._leases.watch(self._cancel_for)

    async def deliver(self, events: Sequence[StepEvent]) -> None:
        """Send what one step brought, in order. Of attempts that have ended here already, nothing is sent."""
        for event in events:
            request = self._open.get(event.request_id)
            if request is None:
                if isinstance(event, SequenceFinished | SequenceFailed):
                    # Given up here before: only now are its pages and its pin free.
                    self._loader.room_changed()
                continue
            match event:
                case SequenceStarted():
                    await self._land(request)
                    request.is_started = True
                    await self._send(request, request.started(self._worker_id, event.timings))
                case TokensDecoded():
                    metrics.TOKENS.inc(len(event.tokens))
                    await self._send(request, request.chunk(event))
                case SequenceFinished():
                    request.take_load()
                    self._close(request, event.reason.value, event)
                    await self._send(request, request.finished(event))
                case SequenceFailed():
                    self._close(request, event.refusal.code, refusal=event.refusal)
                    await self._send(request, request.failed(event.refusal))

    async def drain(self, grace_s: float) -> None:
        """Refuse what is new and wait for what runs; what is left after ``grace_s`` goes on at another worker."""
        self.is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._open.wait_until_empty()
        await self.abandon()

    async def abandon(self) -> None:
        """Give up every open attempt with an error that makes its gateway fail over."""
        self.is_draining = True
        for request in self._open.those():
            await self._fail(request, WorkerLost(request.generate.attempt + 1))

    async def end_requests(self, error: OctavoError, adapter_id: AdapterId | None = None) -> int:
        """End the open attempts with an adapter (None: with any) with ``error``; returns how many there were."""
        ending = self._open.those(lambda one: one.key is not None and adapter_id in (None, one.key[0]))
        for request in ending:
            await self._fail(request, error)
        return len(ending)

    def _cancel_for(self, gateway_ids: set[str]) -> None:
        for request in self._open.those(lambda one: one.generate.gateway_id in gateway_ids):
            log.warning("gateway_silent", request_id=request.generate.request_id)
            self._engine.cancel(request.engine_id)

    async def _land(self, request: OpenRequest) -> None:
        # The engine may begin as soon as the rows are there, a moment before the load's task has ended.
        if request.load is not None:
            await asyncio.wait([request.load], timeout=_LANDING_TIMEOUT_S)
            request.take_load()

    def _spawn_fail(self, request: OpenRequest, error: OctavoError) -> None:
        if request in self._open:
            task = asyncio.create_task(self._fail(request, error), name="fail request")
            self._failing.add(task)
            task.add_done_callback(self._failing.discard)

    async def _fail(self, request: OpenRequest, error: OctavoError) -> None:
        if request not in self._open:
            return
        refusal = error.refusal()
        self._close(request, refusal.code, refusal=refusal)
        self._engine.cancel(request.engine_id)
        await self._send(request, request.failed(refusal))

    def _close(
        self,
        request: OpenRequest,
        outcome: str,
        event: SequenceFinished | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        self._open.leave(request, outcome, event, refusal)
        self.on_change()

    def _busy(self, request: OpenRequest) -> Busy:
        reason = "draining" if self.is_draining else "queue is full"
        metrics.REQUESTS.labels("busy").inc()
        return request.busy(reason)

    async def _refuse(self, request: OpenRequest, error: OctavoError) -> None:
        metrics.REQUESTS.labels(error.code).inc()
        await self._send(request, request.failed(error.refusal()))

    async def _send(self, request: OpenRequest, event: GenerationEvent) -> None:
        # Without NATS nobody can hear it; the gateway notices the gap by the chunks' numbers.
        with contextlib.suppress(DependencyUnavailable):
            await self._bus.publish(request.reply, event)
