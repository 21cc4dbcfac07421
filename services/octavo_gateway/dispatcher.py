"""The attempt loop: one request, as many workers as it takes, one unbroken answer."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field

from octavo_gateway import metrics
from octavo_gateway.attempt import Attempt, AttemptLost, Loss, Plan, Progress, Waits
from octavo_gateway.fleet import FleetView
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.clock import now_ms
from octavo_shared.errors import NoWorker, OctavoError, Overloaded, WorkerLost
from octavo_shared.messages.fleet import Demand
from octavo_shared.messages.generation import Cancel, Finished, FinishReason, Generate, Started, TokenChunk
from octavo_shared.references import WorkerId
from octavo_shared.telemetry import log

_ATTEMPTS_MAX = 4
_BUSY_MAX = 16
_BUSY_RETRY_AFTER_S = 1


@dataclass
class _History:
    """Which workers were tried, and how that ended."""

    failed: set[WorkerId] = field(default_factory=set)
    """Lost, stalled or draining: chosen again only when there is no other."""
    refused: set[WorkerId] = field(default_factory=set)
    """Said Failed: asking them again would give the same answer."""
    busy: set[WorkerId] = field(default_factory=set)
    num_sent: int = 0
    num_busy: int = 0
    num_lost: int = 0
    lost_ms: float = 0.0
    """When a worker that was not merely busy was lost last."""
    error: OctavoError | None = None
    """The last refusal; it says more than that another worker was busy or away."""
    stale: WorkerId | None = None
    """May still be generating for the last attempt."""

    def note(self, worker_id: WorkerId, lost: AttemptLost) -> None:
        self.error = lost.error or self.error
        # After Busy and Failed there is nothing at the worker that could go on.
        self.stale = None if lost.loss in (Loss.BUSY, Loss.FAILED) else worker_id
        if lost.loss is Loss.BUSY:
            self.num_busy += 1
            self.busy.add(worker_id)
            return
        self.num_lost += 1
        self.lost_ms = now_ms()
        (self.refused if lost.loss in (Loss.FAILED, Loss.WRONG) else self.failed).add(worker_id)


class Dispatcher:
    """Sends requests to workers for this gateway."""

    def __init__(self, bus: Bus, fleet: FleetView, gateway_id: str, waits: Waits | None = None) -> None:
        self._bus = bus
        self._fleet = fleet
        self._gateway_id = gateway_id
        self._waits = waits or Waits()

    async def run(self, plan: Plan) -> AsyncGenerator[Started | TokenChunk | Finished, None]:
        """Yield ``Started`` once, then every token once and in order, then ``Finished``.

        Closing the generator early cancels the sequence on its worker. Raises ``NoWorker``, ``Overloaded`` (all
        workers are busy), ``WorkerLost``, ``DeadlineExceeded``, or what the last worker refused with.
        """
        progress, history = Progress(plan, self._waits), _History()
        async with self._bus.inbox() as (reply, inbox):
            while True:
                worker_id = await self._next_worker(progress, history)
                attempt = Attempt(progress, self._fleet, inbox, worker_id, history.num_sent, self._num_reconnects)
                history.num_sent += 1
                is_over = False
                try:
                    with self._fleet.sent_to(worker_id):
                        await self._send(progress, attempt, reply)
                        async with contextlib.aclosing(attempt.events()) as events:
                            async for event in events:
                                is_over = isinstance(event, Finished)
                                yield event
                    return
                except AttemptLost as lost:
                    is_over = True
                    history.note(worker_id, lost)
                    metrics.ATTEMPTS.labels(lost.loss.value).inc()
                    log.warning(
                        "attempt_lost",
                        request_id=plan.request_id,
                        attempt=attempt.number,
                        worker_id=worker_id,
                        reason=lost.loss.value,
                        num_delivered=len(progress.delivered),
                    )
                finally:
                    if not is_over:
                        await self._cancel(worker_id, plan.request_id)
                if (finished := _finished_already(progress)) is not None:
                    yield finished
                    return

    async def _next_worker(self, progress: Progress, history: _History) -> WorkerId:
        chosen: WorkerId | None = None
        try:
            chosen = await self._choose(progress, history)
            return chosen
        finally:
            # On the same worker a later attempt replaces the earlier one, and a late Cancel would end both.
            if history.stale is not None and history.stale != chosen:
                await self._cancel(history.stale, progress.plan.request_id)

    async def _choose(self, progress: Progress, history: _History) -> WorkerId:
        if history.num_lost >= _ATTEMPTS_MAX or (history.num_lost == 0 and history.num_busy >= _BUSY_MAX):
            raise _verdict(history)
        while (worker_id := self._pick(progress.plan, history)) is None:
            if history.num_lost == 0 or history.error is not None:
                raise _verdict(history)
            # The only worker died, or the others are full: wait a little for one to appear or to have room.
            wait_ms = self._waits.room_ms if history.busy else self._waits.worker_ms
            left_ms = min(history.lost_ms + wait_ms - now_ms(), progress.left_ms())
            if left_ms <= 0:
                raise _verdict(history)
            # By time and not by heartbeats: in a large fleet those come faster than room does.
            await asyncio.sleep(min(self._waits.poll_ms, left_ms) / 1000)
            history.busy.clear()
        return worker_id

    def _pick(self, plan: Plan, history: _History) -> WorkerId | None:
        never: Iterable[WorkerId] = history.busy | history.refused
        for excluded in (history.failed | set(never), set(never)):
            found = self._fleet.pick(plan.base, plan.adapter_key, plan.request_id, excluded)
            if found is not None:
                return found
        return None

    async def _send(self, progress: Progress, attempt: Attempt, reply: str) -> None:
        plan = progress.plan
        if plan.adapter is not None:
            # Demand goes first, so that the pack is on its way before the request reaches the front of the queue.
            await self._bus.publish(subjects.DEMAND, Demand(plan.adapter, attempt.worker_id, plan.request_id))
        message = Generate(
            request_id=plan.request_id,
            attempt=attempt.number,
            gateway_id=self._gateway_id,
            tenant_id=plan.tenant_id,
            base=plan.base,
            prompt=plan.prompt,
            sampling=plan.sampling,
            budget_ms=int(progress.left_ms()),
            adapter=plan.adapter,
            forced=tuple(progress.delivered),
        )
        await self._bus.publish(subjects.worker(attempt.worker_id, "generate"), message, reply)

    def _num_reconnects(self) -> int:
        return int(self._bus.client.stats["reconnects"])

    async def _cancel(self, worker_id: WorkerId, request_id: str) -> None:
        # A worker that does not hear it ends the sequence by the request's budget.
        with contextlib.suppress(OctavoError):
            await self._bus.publish(subjects.worker(worker_id, "cancel"), Cancel(request_id))


def _finished_already(progress: Progress) -> Finished | None:
    """Return the end that was lost with the worker when the delivered tokens show that it was reached."""
    plan, tokens = progress.plan, progress.delivered
    if plan.sampling.is_scored:
        # What was asked for comes with the end, and was lost with it.
        return None
    if tokens and tokens[-1] in plan.sampling.stop_token_ids:
        reason = FinishReason.STOP
    elif len(tokens) >= plan.sampling.max_tokens:
        reason = FinishReason.LENGTH
    else:
        return None
    return Finished(plan.request_id, 0, reason, len(plan.prompt), len(tokens))


def _verdict(history: _History) -> OctavoError:
    if history.error is not None:
        return history.error
    if history.num_lost:
        return WorkerLost(history.num_lost)
    return Overloaded(retry_after_s=_BUSY_RETRY_AFTER_S) if history.num_busy else NoWorker()
