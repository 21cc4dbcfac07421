"""One attempt at a request on one worker: its events, checked; how it was lost, if it was."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout

from octavo_gateway.fleet import FleetView
from octavo_shared import decoding
from octavo_shared.clock import now_ms
from octavo_shared.errors import DeadlineExceeded, InternalError, OctavoError, WorkerLost, from_refusal
from octavo_shared.messages.generation import (
    AdapterHandle,
    Busy,
    Failed,
    Finished,
    FinishReason,
    GenerationEvent,
    Sampling,
    Started,
    TokenChunk,
)
from octavo_shared.references import Fingerprint, PackKey, TenantId, WorkerId
from octavo_shared.telemetry import log

_decoder = decoding.msgpack_decoder(GenerationEvent)


class Loss(StrEnum):
    """Why an attempt ended without an answer."""

    BUSY = "busy"
    GONE = "gone"
    DRAINING = "draining"
    GAP = "gap"
    STALL = "stall"
    FAILED = "failed"
    WRONG = "wrong"
    """It began with another revision or base than it was asked for."""


class AttemptLost(Exception):
    """Another worker may go on. ``error`` is what the caller hears if none does."""

    def __init__(self, loss: Loss, error: OctavoError | None = None) -> None:
        super().__init__(loss)
        self.loss = loss
        self.error = error


@dataclass(frozen=True)
class Plan:
    """A request that was checked and tokenised; every attempt at it is made from this."""

    request_id: str
    tenant_id: TenantId
    base: Fingerprint
    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: AdapterHandle | None

    @property
    def adapter_key(self) -> PackKey | None:
        return self.adapter.pack_key if self.adapter else None


@dataclass(frozen=True)
class Waits:
    """How long the gateway waits for what; all in milliseconds."""

    budget_ms: int = 120_000
    poll_ms: int = 250
    """How often a silent worker is looked at while its events are awaited."""
    stall_ms: int = 30_000
    """No event for this long, though the worker lives: its messages were lost."""
    worker_ms: int = 2_000
    """How long a request whose worker died waits for another one to appear."""
    room_ms: int = 10_000
    """How long it waits while there are others, but all of them are busy."""


@dataclass
class Progress:
    """What all attempts at one request share."""

    plan: Plan
    waits: Waits
    begun_ms: float = field(default_factory=now_ms)
    started: Started | None = None
    delivered: list[int] = field(default_factory=list)

    def left_ms(self) -> float:
        """Return what is left of the budget; raises ``DeadlineExceeded`` when nothing is."""
        left = self.begun_ms + self.waits.budget_ms - now_ms()
        if left <= 0:
            raise DeadlineExceeded(self.waits.budget_ms)
        return left


class Attempt:
    """Reads one attempt's events from the request's inbox and drops those of earlier attempts."""

    def __init__(
        self,
        progress: Progress,
        fleet: FleetView,
        inbox: Subscription,
        worker_id: WorkerId,
        number: int,
        num_reconnects: Callable[[], int],
    ) -> None:
        self._progress = progress
        self._fleet = fleet
        self._inbox = inbox
        self.worker_id = worker_id
        self.number = number
        self._epoch = fleet.epoch_of(worker_id)
        self._num_reconnects = num_reconnects
        self._link = num_reconnects()
        self._heard_ms = now_ms()
        self._is_started = False

    async def events(self) -> AsyncGenerator[Started | TokenChunk | Finished, None]:
        """Yield what is new to the caller, ``Finished`` last; raises ``AttemptLost`` or the request's error."""
        while True:
            event = self._accept(await self._next())
            if event is not None:
                yield event
            if isinstance(event, Finished):
                return

    async def _next(self) -> GenerationEvent:
        while True:
            left_ms = self._progress.left_ms()
            # What a worker sent before it died or drained still counts: heartbeats overtake events that wait here.
            if self._inbox.pending_msgs == 0:
                self._check_worker()
            try:
                message = await self._inbox.next_msg(timeout=min(self._progress.waits.poll_ms, left_ms) / 1000)
            except (NatsTimeout, TimeoutError):
                continue
            except NatsError as error:
                raise AttemptLost(Loss.GONE) from error
            if message.headers and message.headers.get("Status") == "503":
                raise AttemptLost(Loss.GONE)
            try:
                event: GenerationEvent = _decoder.decode(message.data)
            except msgspec.MsgspecError:
                log.error("event_undecodable", worker_id=self.worker_id)
                raise AttemptLost(Loss.GAP) from None
            if event.request_id == self._progress.plan.request_id and event.attempt == self.number:
                self._heard_ms = now_ms()
                return event

    def _check_worker(self) -> None:
        if self._epoch is None or self._fleet.epoch_of(self.worker_id) != self._epoch:
            raise AttemptLost(Loss.GONE)
        if self._num_reconnects() != self._link:
            # Whatever was sent while the bus was away is lost, perhaps the last event too.
            raise AttemptLost(Loss.GAP)
        is_stalled = now_ms() - self._heard_ms > self._progress.waits.stall_ms
        if is_stalled and self._is_started:
            raise AttemptLost(Loss.STALL)
        if (is_stalled or self._fleet.is_draining(self.worker_id)) and self._has_place():
            raise AttemptLost(Loss.STALL if is_stalled else Loss.DRAINING)

    def _has_place(self) -> bool:
        # A queue may be long, and a worker that drains finishes what it can: leaving it for one that would only
        # answer Busy breaks a stream that nothing was wrong with.
        return self._fleet.has_room(self._progress.plan.base, excluded=(self.worker_id,))

    def _accept(self, event: GenerationEvent) -> Started | TokenChunk | Finished | None:
        match event:
            case Busy():
                raise AttemptLost(Loss.BUSY)
            case Failed():
                error = from_refusal(event.refusal)
                if isinstance(error, WorkerLost):
                    # The worker stops, or lost its sequence: nothing is wrong with the request.
                    raise AttemptLost(Loss.GONE)
                if error.is_retryable:
                    raise AttemptLost(Loss.FAILED, error)
                raise error
            case Started():
                return self._accept_started(event)
            case TokenChunk():
                return self._accept_tokens(event)
            case Finished():
                return self._accept_finished(event)

    def _accept_started(self, event: Started) -> Started | None:
        plan = self._progress.plan
        digest = plan.adapter.digest if plan.adapter else None
        if event.digest != digest or event.base != plan.base:
            # Serving on would break the promise that every token comes from the digest in the headers.
            log.error("worker_started_wrong_revision", worker_id=self.worker_id, digest=event.digest, asked=digest)
            raise AttemptLost(Loss.WRONG, InternalError())
        self._is_started = True
        if self._progress.started is not None:
            return None
        self._progress.started = event
        return event

    def _accept_tokens(self, event: TokenChunk) -> TokenChunk | None:
        if not self._is_started:
            raise AttemptLost(Loss.GAP)
        num_known = len(self._progress.delivered) - event.first_index
        if num_known < 0:
            raise AttemptLost(Loss.GAP)
        fresh = event.tokens[num_known:]
        if not fresh:
            return None
        self._progress.delivered.extend(fresh)
        return msgspec.structs.replace(
            event,
            first_index=event.first_index + num_known,
            tokens=fresh,
            logprobs=event.logprobs[num_known:],
        )

    def _accept_finished(self, event: Finished) -> Finished:
        if not self._is_started or event.num_completion_tokens > len(self._progress.delivered):
            raise AttemptLost(Loss.GAP)
        if event.reason is FinishReason.CANCELLED:
            # Nobody here asked for it: the worker gave the sequence up, so another one goes on.
            raise AttemptLost(Loss.GONE)
        return event
