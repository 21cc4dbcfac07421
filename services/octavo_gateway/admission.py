"""Shedding: a token bucket per API key and a bound on requests in flight, both checked before any work."""

import math
from collections import OrderedDict
from dataclasses import dataclass

from octavo_gateway import metrics
from octavo_shared.clock import now_ms
from octavo_shared.errors import NoWorker, Overloaded
from octavo_shared.messages.requests import Credential

_BUCKETS_MAX = 65_536
_EWMA = 0.1
_FIRST_GUESS_MS = 1_000.0


@dataclass
class _Bucket:
    tokens: float
    at_ms: float


class RateLimit:
    """One token bucket per key, the least recently used forgotten: a forgotten bucket is a full one.

    The bucket belongs to key id and secret together, so that nobody who saw a key's id can drain its bucket.
    """

    def __init__(self, per_s: float, burst: int, num_buckets_max: int = _BUCKETS_MAX) -> None:
        self._per_ms = per_s / 1000.0
        self._burst = float(burst)
        self._num_buckets_max = num_buckets_max
        self._buckets: OrderedDict[Credential, _Bucket] = OrderedDict()

    def take(self, credential: Credential, at_ms: float) -> float:
        """Take a token; returns 0, or the milliseconds until there will be one."""
        bucket = self._buckets.pop(credential, None) or _Bucket(self._burst, at_ms)
        self._buckets[credential] = bucket
        while len(self._buckets) > self._num_buckets_max:
            self._buckets.popitem(last=False)
        bucket.tokens = min(self._burst, bucket.tokens + (at_ms - bucket.at_ms) * self._per_ms)
        bucket.at_ms = at_ms
        if bucket.tokens >= 1.0:
            bucket.tokens -= 1.0
            return 0.0
        return (1.0 - bucket.tokens) / self._per_ms

    @property
    def num_buckets(self) -> int:
        return len(self._buckets)


class Ticket:
    """One place among the requests in flight; given back once, by ``leave``."""

    def __init__(self, admission: "Admission", at_ms: float) -> None:
        self._admission: Admission | None = admission
        self.at_ms = at_ms

    def leave(self) -> None:
        """Give the place back; a second call does nothing."""
        if self._admission is not None:
            self._admission.left(now_ms() - self.at_ms)
            self._admission = None


class Admission:
    """The bound shared by all entries of this process."""

    def __init__(self, rate: RateLimit, num_in_flight_max: int) -> None:
        self._rate = rate
        self.num_in_flight_max = num_in_flight_max
        self._mean_ms = _FIRST_GUESS_MS
        self._is_closed = False
        self.num_in_flight = 0

    def knock(self, credential: Credential) -> None:
        """Shed before a body is read: as ``enter``, but no place is taken yet.

        Whoever only sends headers must not hold one: at this point anybody can have made the key up.
        """
        self._check_open()
        wait_ms = self._rate.take(credential, now_ms())
        if wait_ms > 0:
            metrics.SHED.labels("rate").inc()
            raise Overloaded(retry_after_s=_whole_seconds(wait_ms))

    def enter(self, at_ms: float) -> Ticket:
        """Return a ticket for a request that came ``at_ms`` and has knocked.

        Raises ``Overloaded`` with a truthful delay, or ``NoWorker`` while the process stops.
        """
        self._check_open()
        self.num_in_flight += 1
        metrics.IN_FLIGHT.inc()
        return Ticket(self, at_ms)

    def _check_open(self) -> None:
        if self._is_closed:
            raise NoWorker("this gateway is stopping; try again")
        if self.num_in_flight >= self.num_in_flight_max:
            metrics.SHED.labels("in_flight").inc()
            # By Little's law a place becomes free every mean duration / places.
            raise Overloaded(retry_after_s=_whole_seconds(self._mean_ms / self.num_in_flight_max))

    def left(self, duration_ms: float) -> None:
        """Called by a ticket that was given back."""
        self.num_in_flight -= 1
        metrics.IN_FLIGHT.dec()
        self._mean_ms += _EWMA * (duration_ms - self._mean_ms)

    def close(self) -> None:
        """Let nobody in any more."""
        self._is_closed = True


def _whole_seconds(wait_ms: float) -> int:
    return max(1, math.ceil(wait_ms / 1000.0))
