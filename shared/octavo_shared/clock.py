"""The two clocks: one to measure with, one to date with."""

import time


def now_ms() -> float:
    """Monotonic milliseconds; comparable only inside this process, so it never travels."""
    return time.monotonic_ns() / 1e6


def wall_ms() -> int:
    """Milliseconds since 1970, for records and people; never for durations."""
    return time.time_ns() // 1_000_000
