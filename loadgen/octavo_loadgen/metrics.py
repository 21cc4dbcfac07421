"""From timelines to numbers. Only complete requests have latencies; every arrival counts in shares and errors."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from octavo_loadgen.scenario import Objectives
from octavo_loadgen.timeline import Timeline


class Quantiles(msgspec.Struct, frozen=True):
    """Nearest-rank quantiles in milliseconds: each is a value that was measured. ``num`` 0: nothing was."""

    num: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


class Summary(msgspec.Struct, frozen=True):
    """All that one run showed. Latencies count from the scheduled arrival.

    ``ttft_ms`` is over all complete requests; ``cold_start_ttft_ms`` over those whose adapter was cold on arrival,
    ``ttft_without_cold_ms`` over the others. Rates are over ``measured_s``. ``goodput_per_s`` counts the requests
    that met every objective, ``goodput_share`` is their part of all arrivals.
    """

    measured_s: float
    num_requests: int
    num_complete: int
    num_tokens: int
    requests_per_s: float
    tokens_per_s: float
    goodput_per_s: float
    goodput_share: float
    errors_share: float
    errors: dict[str, int]
    tiers: dict[str, int]
    ttft_ms: Quantiles
    ttft_without_cold_ms: Quantiles
    cold_start_ttft_ms: Quantiles
    tpot_ms: Quantiles
    itl_ms: Quantiles
    end_to_end_ms: Quantiles
    send_lag_ms: Quantiles
    """How late the client itself sent; where it is not small, the client is what was measured."""


def quantiles_of(values: Iterable[float | None]) -> Quantiles:
    """Return the quantiles of those ``values`` that are not None, rounded to a microsecond."""
    found = sorted(value for value in values if value is not None)
    if not found:
        return Quantiles()

    def at(share: float) -> float:
        return round(found[max(0, math.ceil(share * len(found)) - 1)], 3)

    return Quantiles(len(found), at(0.5), at(0.95), at(0.99), at(1.0))


def is_good(timeline: Timeline, objectives: Objectives) -> bool:
    """Say whether the request completed and met every objective; a duration that it has not meets its limit."""
    ttft_limit_ms = objectives.ttft_ms
    if timeline.is_cold and objectives.cold_start_ttft_ms is not None:
        ttft_limit_ms = objectives.cold_start_ttft_ms
    limits = (
        (timeline.ttft_ms, ttft_limit_ms),
        (timeline.tpot_ms, objectives.tpot_ms),
        (max(timeline.itl_ms, default=None), objectives.itl_ms),
        (timeline.end_to_end_ms, objectives.end_to_end_ms),
    )
    return timeline.is_complete and all(value is None or limit is None or value <= limit for value, limit in limits)


def summary_of(timelines: Sequence[Timeline], measured_ms: float, objectives: Objectives) -> Summary:
    """Return the numbers of a run whose arrivals, all of them ended, are ``timelines``."""
    complete = [timeline for timeline in timelines if timeline.is_complete]
    num_good = sum(is_good(timeline, objectives) for timeline in timelines)
    num_tokens = sum(timeline.num_tokens for timeline in complete)
    num_all, measured_s = len(timelines), measured_ms / 1e3

    def per_s(num: int) -> float:
        return round(num / measured_s, 4) if measured_s > 0 else 0.0

    def share(num: int) -> float:
        return round(num / num_all, 6) if num_all else 0.0

    return Summary(
        measured_s=round(measured_s, 3),
        num_requests=num_all,
        num_complete=len(complete),
        num_tokens=num_tokens,
        requests_per_s=per_s(len(complete)),
        tokens_per_s=per_s(num_tokens),
        goodput_per_s=per_s(num_good),
        goodput_share=share(num_good),
        errors_share=share(num_all - len(complete)),
        errors=_counts(timeline.error for timeline in timelines),
        tiers=_counts(timeline.tier for timeline in timelines),
        ttft_ms=quantiles_of(timeline.ttft_ms for timeline in complete),
        ttft_without_cold_ms=quantiles_of(timeline.ttft_ms for timeline in complete if not timeline.is_cold),
        cold_start_ttft_ms=quantiles_of(timeline.ttft_ms for timeline in complete if timeline.is_cold),
        tpot_ms=quantiles_of(timeline.tpot_ms for timeline in complete),
        itl_ms=quantiles_of(gap for timeline in complete for gap in timeline.itl_ms),
        end_to_end_ms=quantiles_of(timeline.end_to_end_ms for timeline in complete),
        send_lag_ms=quantiles_of(timeline.send_lag_ms for timeline in timelines),
    )


def _counts(values: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(value for value in values if value is not None).items()))
