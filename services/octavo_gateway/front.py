"""One request from admission to its last token, the same for HTTP and NATS.

``FrontDesk.begin`` starts a task that owns the request: it checks, resolves, tokenises, generates and turns tokens
into text. Callers read its ``Call``; one that stops reading cancels the task, and the task its worker.
"""

import asyncio
import dataclasses
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from octavo_gateway.admission import Ticket
from octavo_gateway.attempt import Plan
from octavo_gateway.call import Call, End, Head, Piece
from octavo_gateway.choice import Choice
from octavo_gateway.dispatcher import Dispatcher
from octavo_gateway.meter import Meter
from octavo_gateway.openai import Ask, Kind, parse
from octavo_gateway.planner import Planner
from octavo_gateway.request_record import RequestRecord
from octavo_shared.errors import InternalError, NoWorker, OctavoError
from octavo_shared.messages.generation import Finished, Started
from octavo_shared.messages.requests import Credential
from octavo_shared.telemetry import current_trace_id, log, tracer


@dataclass(frozen=True)
class Asked:
    """A body as it arrived. ``kind`` None: the body itself tells. ``entry`` is http or nats, for the metrics."""

    raw: bytes
    kind: Kind | None
    entry: str
    is_stream_default: bool = False


class FrontDesk:
    """Runs requests; ``drain`` waits for those that run."""

    def __init__(self, planner: Planner, dispatcher: Dispatcher, meter: Meter) -> None:
        self._planner = planner
        self._dispatcher = dispatcher
        self._meter = meter
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, ticket: Ticket, credential: Credential, asked: Asked, parent: Context) -> Call:
        """Start a request that was admitted; the ticket is given back when it ends."""
        call = Call()
        call.task = asyncio.create_task(self._run(call, credential, asked, parent, ticket.at_ms), name="request")
        self._running.add(call.task)
        call.task.add_done_callback(self._running.discard)

        def ended(task: asyncio.Task[None]) -> None:
            # Also a task that is cancelled before its first step gives its place back and says so.
            ticket.leave()
            if task.cancelled():
                call.put(_ended_early())

        call.task.add_done_callback(ended)
        return call

    async def drain(self, timeout_s: float) -> None:
        """Wait for the running requests, then end those that are left."""
        if not self._running:
            return
        _, late = await asyncio.wait(self._running, timeout=timeout_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _run(self, call: Call, credential: Credential, asked: Asked, parent: Context, at_ms: float) -> None:
        record = RequestRecord(uuid.uuid4().hex, asked.entry, at_ms)
        with tracer.start_as_current_span(
            "chat", context=parent, kind=SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            error: OctavoError | None = None
            try:
                await self._serve(call, credential, asked, record, span)
            except OctavoError as known:
                error = known
            except asyncio.CancelledError:
                error, record.is_cancelled = _ended_early(), True
                raise
            except Exception:
                error = InternalError()
                log.exception("request_crashed", request_id=record.request_id, error_id=error.fields["error_id"])
            finally:
                if error is not None:
                    call.put(error)
                    span.set_attribute("error.type", error.code)
                    if error.http_status >= 500:
                        span.set_status(Status(StatusCode.ERROR, error.code))
                record.finish(error, span)
                record.meter(self._meter)

    async def _serve(self, call: Call, credential: Credential, asked: Asked, record: RequestRecord, span: Span) -> None:
        ask = parse(asked.raw, asked.kind, is_stream_default=asked.is_stream_default)
        plan, text = await self._planner.plan(credential, ask, record)
        record.describe(span, ask, plan, text.manifest.name)

        def show(piece: Piece) -> None:
            record.first_text()
            call.put(piece)

        def on_started(started: Started) -> None:
            if record.started is None:
                record.started = started
                call.put(Head(ask, record.request_id, current_trace_id() or record.request_id, started))

        choices = [Choice(_of_choice(plan, index, ask), text, ask.stop, show) for index in range(ask.num_choices)]

        async def run(choice: Choice) -> None:
            end = await choice.run(self._dispatcher, on_started)
            if ask.sampling.is_scored:
                assert choice.finished is not None, "no stop string is in what has no text"
                echo = await text.echo(ask, plan.prompt, scores_of(choice.finished))
                end = dataclasses.replace(end, echo=echo)
            call.put(end)

        try:
            await together([run(choice) for choice in choices])
        finally:
            # Also of a request that fails or whose caller leaves: what was generated was generated.
            record.num_completion_tokens = sum(choice.num_completion_tokens for choice in choices)
        first = choices[0].finished
        record.end(first)
        call.put(
            End(
                num_prompt_tokens=record.num_prompt_tokens,
                num_completion_tokens=record.num_completion_tokens,
                num_cached_tokens=first.num_cached_tokens if first else 0,
                timings=record.timings,
                worker_id=record.started.worker_id if record.started else "",
            )
        )


def scores_of(finished: Finished) -> list[float]:
    """Return the logprobs of a scored prompt; raises ``InternalError`` when the worker told them of another one."""
    values: list[float] = np.frombuffer(finished.prompt_logprobs, dtype="<f4").tolist()
    if len(values) != finished.num_prompt_tokens - 1:
        raise InternalError()
    return values


def _of_choice(plan: Plan, index: int, ask: Ask) -> Plan:
    if ask.num_choices == 1:
        return plan
    sampling = msgspec.structs.replace(plan.sampling, choice=index)
    return dataclasses.replace(plan, request_id=f"{plan.request_id}-{index}", sampling=sampling)


async def together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Do all of ``work`` at the same time; the first error ends the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except* OctavoError as errors:
        raise errors.exceptions[0] from None


def _ended_early() -> NoWorker:
    return NoWorker("the request was ended early: its caller left or this gateway stops")
