"""The verbs ``generate`` and ``cancel``: every accepted attempt gets ``Started``, its tokens and one end."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from nats.aio.msg import Msg
from opentelemetry import context as otel_context
from opentelemetry import trace

from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.errors import (
    AdapterUnavailable,
    BaseMismatch,
    DeadlineExceeded,
    DependencyUnavailable,
    InternalError,
    OctavoError,
    Overloaded,
    Refusal,
    WorkerLost,
)
from octavo_shared.messages.generation import Busy, Cancel, Generate, GenerationEvent, Lease, Tier
from octavo_shared.references import AdapterId, Fingerprint, WorkerId
from octavo_shared.telemetry import log
from octavo_worker import metrics
from octavo_worker.adapters.loader import Loaded, Loader
from octavo_worker.engine.sequence import (
    SequenceFailed,
    SequenceFinished,
    SequenceRequest,
    SequenceStarted,
    StepEvent,
    TokensDecoded,
)
from octavo_worker.leases import GatewayLeases
from octavo_worker.open_request import OpenRequest, open_span
from octavo_worker.settings import Cadence

_LANDING_TIMEOUT_S = 1.0


class Generator(Protocol):
    """What this server asks of the engine; both are thread-safe and do not wait for a step."""

    def submit(self, request: SequenceRequest) -> None: ...

    def cancel(self, request_id: str) -> None: ...


class GenerationServer:
    """Open attempts of one worker. Belongs to the event loop.

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
        self._cadence = cadence
        self._open: dict[str, OpenRequest] = {}
        self._leases = GatewayLeases(cadence.lease_timeout_ms)
        self._failing: set[asyncio.Task[None]] = set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
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
            generate = msgspec.msgpack.decode(message.data, type=Generate)
        except msgspec.MsgspecError as problem:
            log.error("message_undecodable", subject=message.subject, detail=str(problem))
            return
        if not message.reply:
            return
        self._leases.heard(generate.gateway_id)
        adapter = generate.adapter
        found = self._loader.find((adapter.adapter_id, adapter.digest)) if adapter else Tier.BASE
        request = OpenRequest(generate, message.reply, found, trace.INVALID_SPAN)
        attempts = [r for r in self._open.values() if r.generate.request_id == generate.request_id]
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
            self._accept(request)
        except Overloaded:
            request.end_span(None, None)
            await self._send(request, self._busy(request))
        except OctavoError as error:
            request.end_span(None, error.refusal())
            await self._refuse(request, error)

    async def cancel(self, cancel: Cancel) -> None:
        """End every open attempt at a request; idempotent."""
        for request in [r for r in self._open.values() if r.generate.request_id == cancel.request_id]:
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
                await self._is_empty.wait()
        await self.abandon()

    async def abandon(self) -> None:
        """Give up every open attempt with an error that makes its gateway fail over."""
        self.is_draining = True
        for request in list(self._open.values()):
            await self._fail(request, WorkerLost(request.generate.attempt + 1))

    async def end_requests(self, error: OctavoError, adapter_id: AdapterId | None = None) -> int:
        """End the open attempts with an adapter (None: with any) with ``error``; returns how many there were."""
        ending = [r for r in self._open.values() if r.key is not None and adapter_id in (None, r.key[0])]
        for request in ending:
            await self._fail(request, error)
        return len(ending)

    def _cancel_for(self, gateway_ids: set[str]) -> None:
        for request in [r for r in self._open.values() if r.generate.gateway_id in gateway_ids]:
            log.warning("gateway_silent", request_id=request.generate.request_id)
            self._engine.cancel(request.engine_id)

    def _accept(self, request: OpenRequest) -> None:
        key, adapter = request.key, request.generate.adapter
        if key is not None:
            self._loader.check_not_erased(key[0])
        # Pinned before it is submitted: from here on it is in use, though it may still have to be loaded.
        if key is not None:
            self._loader.pin(key)
        try:
            self._engine.submit(request.sequence_request())
        except BaseException:
            if key is not None:
                self._loader.unpin(key)
            raise
        self._open[request.engine_id] = request
        self._is_empty.clear()
        loop = asyncio.get_running_loop()
        budget_ms = request.generate.budget_ms
        request.deadline = loop.call_later(
            budget_ms / 1e3, lambda: self._spawn_fail(request, DeadlineExceeded(budget_ms))
        )
        if adapter is not None and request.found is not Tier.RESIDENT:
            token = otel_context.attach(trace.set_span_in_context(request.span))
            try:
                request.load = asyncio.create_task(
                    self._loader.load_when_ordered(adapter, self._cadence.order_grace_ms), name="load for request"
                )
            finally:
                otel_context.detach(token)
            request.load.add_done_callback(lambda load: self._on_loaded(request, load))
        self.on_change()

    def _on_loaded(self, request: OpenRequest, load: asyncio.Task[Loaded]) -> None:
        if load.cancelled():
            error: OctavoError = AdapterUnavailable("the worker stops")
        elif (problem := load.exception()) is None:
            return
        elif isinstance(problem, OctavoError):
            error = problem
        else:
            error = InternalError()
            log.error("load_failed", error_id=error.fields["error_id"], exc_info=problem)
        self._spawn_fail(request, error)

    async def _land(self, request: OpenRequest) -> None:
        # The engine may begin as soon as the rows are there, a moment before the load's task has ended.
        if request.load is not None:
            await asyncio.wait([request.load], timeout=_LANDING_TIMEOUT_S)
            request.take_load()

    def _spawn_fail(self, request: OpenRequest, error: OctavoError) -> None:
        if request.engine_id in self._open:
            task = asyncio.create_task(self._fail(request, error), name="fail request")
            self._failing.add(task)
            task.add_done_callback(self._failing.discard)

    async def _fail(self, request: OpenRequest, error: OctavoError) -> None:
        if self._open.get(request.engine_id) is not request:
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
        del self._open[request.engine_id]
        if request.deadline is not None:
            request.deadline.cancel()
        if request.load is not None and not request.load.done():
            # Only this request's wait ends; the load itself goes on for others, or as a prefetch.
            request.load.cancel()
        if request.key is not None:
            self._loader.unpin(request.key)
        else:
            self._loader.room_changed()
        if not self._open:
            self._is_empty.set()
        request.end_span(event, refusal)
        metrics.REQUESTS.labels(outcome).inc()
        log.info(
            "attempt_ended",
            request_id=request.generate.request_id,
            attempt=request.generate.attempt,
            outcome=outcome,
            tier=request.found.value,
            num_tokens=event.num_completion_tokens if event else 0,
        )
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
