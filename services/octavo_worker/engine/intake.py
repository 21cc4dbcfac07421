"""The engine's door: what other threads ask for, until the stepping thread takes it in."""

import threading
from dataclasses import dataclass

from octavo_shared.errors import InvalidRequest, Overloaded
from octavo_worker.engine.guides import Guide
from octavo_worker.engine.sequence import Sequence, SequenceRequest

_DURATION_WEIGHT = 0.1
"""Of the newest sequence in the moving mean of durations that ``Retry-After`` is estimated from."""


@dataclass(frozen=True)
class News:
    """What was asked for since the last step; ``cancelled`` holds orders of sequences."""

    arrived: list[Sequence]
    cancelled: set[int]


class Intake:
    """Any thread. Its lock is held for moments only; nobody waits for a step.

    ``num_waiting_max`` bounds what waits, ``num_running_max`` tells how many leave together.
    """

    def __init__(self, num_waiting_max: int, num_running_max: int) -> None:
        self._num_waiting_max = num_waiting_max
        self._num_running_max = num_running_max
        self._changed = threading.Condition(threading.Lock())
        self._has_news = False
        self._is_runnable = False
        self._arrived: list[Sequence] = []
        self._cancelled: set[int] = set()
        self._live: dict[str, Sequence] = {}
        self._num_submitted = 0
        self._num_running = 0
        self._num_waiting = 0
        self._mean_duration_s = 1.0

    def submit(self, request: SequenceRequest, guide: Guide | None) -> Sequence:
        """Queue a request, whose id nothing that is still here may have; raises ``Overloaded``, ``InvalidRequest``."""
        with self._changed:
            num_waiting = self._num_waiting + len(self._arrived)
            if num_waiting >= self._num_waiting_max:
                rounds = num_waiting / self._num_running_max
                raise Overloaded(retry_after_s=max(1, round(rounds * self._mean_duration_s)))
            if request.request_id in self._live:
                # A cancelled one too, until a step has ended it: events are told apart by their id alone.
                raise InvalidRequest("attempt", "is being served already")
            self._num_submitted += 1
            sequence = Sequence(request, order=self._num_submitted, guide=guide)
            self._live[request.request_id] = sequence
            self._arrived.append(sequence)
            self._notify()
            return sequence

    def cancel(self, request_id: str) -> None:
        """End a sequence within one step; an unknown id is ignored."""
        with self._changed:
            if sequence := self._live.get(request_id):
                self._cancelled.add(sequence.order)
                self._notify()

    def nudge(self) -> None:
        """Something else changed that may let a step run."""
        with self._changed:
            self._notify()

    def counts(self) -> tuple[int, int]:
        """Return how many sequences run and how many wait, as of the last step."""
        with self._changed:
            return self._num_running, self._num_waiting + len(self._arrived)

    def wait(self, timeout_s: float) -> bool:
        """Block until a step would do something, at most ``timeout_s``; returns whether it would."""
        with self._changed:
            return self._changed.wait_for(lambda: self._has_news or self._is_runnable, timeout_s)

    def take(self) -> News:
        """Return the news, once."""
        with self._changed:
            news = News(self._arrived, self._cancelled)
            self._arrived, self._cancelled = [], set()
            self._has_news = False
            self._num_waiting += len(news.arrived)
            return news

    def ended(self, sequence: Sequence, duration_s: float | None) -> None:
        """A sequence is gone; ``duration_s`` None: it never ran."""
        with self._changed:
            del self._live[sequence.request.request_id]
            if duration_s is not None:
                self._mean_duration_s += _DURATION_WEIGHT * (duration_s - self._mean_duration_s)

    def settle(self, num_running: int, num_waiting: int, *, is_runnable: bool) -> None:
        """Note how a step left things, and whether another one would do something."""
        with self._changed:
            self._num_running, self._num_waiting, self._is_runnable = num_running, num_waiting, is_runnable

    def _notify(self) -> None:
        self._has_news = True
        self._changed.notify_all()
