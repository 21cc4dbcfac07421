"""The attempts that are open at this worker: each holds a pin, a deadline and, until its adapter is here, a load."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace

from octavo_shared.errors import AdapterUnavailable, DeadlineExceeded, InternalError, OctavoError, Refusal
from octavo_shared.messages.generation import Tier
from octavo_shared.telemetry import log
from octavo_worker import metrics
from octavo_worker.adapters.loader import Loaded, Loader
from octavo_worker.engine.sequence import SequenceFinished, SequenceRequest
from octavo_worker.open_request import OpenRequest


class Generator(Protocol):
    """What generating asks of the engine; both are thread-safe and do not wait for a step."""

    def submit(self, request: SequenceRequest) -> None: ...

    def cancel(self, request_id: str) -> None: ...


class OpenRequests:
    """Belongs to the event loop. ``on_failure`` is called when a deadline has passed or a load has failed.

    ``order_grace_ms``: how long the residency manager's order for a load is waited for.
    """

    def __init__(
        self,
        engine: Generator,
        loader: Loader,
        order_grace_ms: float,
        on_failure: Callable[[OpenRequest, OctavoError], None],
    ) -> None:
        self._engine = engine
        self._loader = loader
        self._order_grace_ms = order_grace_ms
        self._on_failure = on_failure
        self._open: dict[str, OpenRequest] = {}
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, request: OpenRequest) -> bool:
        return self._open.get(request.engine_id) is request

    def get(self, engine_id: str) -> OpenRequest | None:
        return self._open.get(engine_id)

    def those(self, wanted: Callable[[OpenRequest], bool] = lambda request: True) -> list[OpenRequest]:
        """Return the open attempts that are wanted, in order of arrival."""
        return [request for request in self._open.values() if wanted(request)]

    async def wait_until_empty(self) -> None:
        await self._is_empty.wait()

    def enter(self, request: OpenRequest) -> None:
        """Submit an attempt to the engine and begin to load its adapter; raises what the engine refuses it with."""
        key, adapter = request.key, request.generate.adapter
        if key is not None:
            self._loader.check_not_erased(key[0])
            # Pinned before it is submitted: from here on it is in use, though it may still have to be loaded.
            self._loader.pin(key)
        try:
            self._engine.submit(request.sequence_request())
        except BaseException:
            if key is not None:
                self._loader.unpin(key)
            raise
        self._open[request.engine_id] = request
        self._is_empty.clear()
        budget_ms = request.generate.budget_ms
        request.deadline = asyncio.get_running_loop().call_later(
            budget_ms / 1e3, lambda: self._on_failure(request, DeadlineExceeded(budget_ms))
        )
        if adapter is not None and request.found is not Tier.RESIDENT:
            token = otel_context.attach(trace.set_span_in_context(request.span))
            try:
                request.load = asyncio.create_task(
                    self._loader.load_when_ordered(adapter, self._order_grace_ms), name="load for request"
                )
            finally:
                otel_context.detach(token)
            request.load.add_done_callback(lambda load: self._on_loaded(request, load))

    def leave(
        self,
        request: OpenRequest,
        outcome: str,
        event: SequenceFinished | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        """Let go of all that an attempt held, and write it down."""
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
        self._on_failure(request, error)
