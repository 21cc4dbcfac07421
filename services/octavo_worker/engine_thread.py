"""The engine's own thread: it steps while there is work and hands events to the event loop in order."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from octavo_shared.telemetry import log
from octavo_worker.engine.sequence import StepEvent

_IDLE_WAIT_S = 0.05
_STEPS_AHEAD_MAX = 64
_STOP_TIMEOUT_S = 10.0


class Steps(Protocol):
    """What the thread asks of the engine."""

    def wait_for_work(self, timeout_s: float) -> bool: ...

    def step(self) -> Sequence[StepEvent]: ...


class EngineThread:
    """Runs an engine. ``running()`` starts the thread; ``events()`` yields what each step brought.

    The event loop never waits for the device, and the engine waits for the loop only when it is
    ``_STEPS_AHEAD_MAX`` steps behind, which bounds the memory that unsent events take.
    """

    def __init__(self, engine: Steps) -> None:
        self._engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batches: asyncio.Queue[Sequence[StepEvent]] = asyncio.Queue()
        self._ahead = threading.Semaphore(_STEPS_AHEAD_MAX)
        self._stop = threading.Event()
        self.has_failed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Step while the block runs; leaving waits for the step that runs."""
        self._loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._run, name="engine", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            await self._loop.run_in_executor(None, thread.join, _STOP_TIMEOUT_S)

    async def events(self) -> AsyncIterator[Sequence[StepEvent]]:
        """Yield the events of one step after the other, for as long as somebody listens."""
        while True:
            batch = await self._batches.get()
            self._ahead.release()
            yield batch

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._engine.wait_for_work(_IDLE_WAIT_S)
                if self._stop.is_set():
                    return
                events = self._engine.step()
                if events:
                    self._hand_over(events)
        except Exception:
            # A step that raises leaves the batch in an unknown state: nothing may be served from it any more.
            log.exception("engine_failed")
            self._call(self.has_failed.set)

    def _hand_over(self, events: Sequence[StepEvent]) -> None:
        while not self._ahead.acquire(timeout=_IDLE_WAIT_S):
            if self._stop.is_set():
                return
        self._call(lambda: self._batches.put_nowait(events))

    def _call(self, work: Callable[[], None]) -> None:
        assert self._loop is not None, "running() comes first"
        # A loop that is closed already has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work)
