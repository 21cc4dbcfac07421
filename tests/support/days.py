"""Tests that count by the day in UTC, kept from beginning in one and ending in the next."""

import time

from octavo_shared.clock import wall_ms
from octavo_shared.messages.usage import left_of_day_s

_NEEDED_S = 60


def begin_in_one_day() -> None:
    """Wait for the next day where this one has less than a minute left: once a day, for less than a minute."""
    left_s = left_of_day_s(wall_ms())
    if left_s < _NEEDED_S:
        time.sleep(left_s)
