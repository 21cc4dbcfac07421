"""How much processor time the parts of a run have used, with all processes that they started."""

from collections.abc import Mapping

import psutil

Seconds = Mapping[str, float]
"""Part → seconds since it began, of all cores together."""


def used_s(parts: Mapping[str, list[int]]) -> Seconds:
    """Return what each part, which is some processes by their ids, has used so far."""
    return {name: sum(_used_s(pid) for pid in pids) for name, pids in parts.items()}


def each_us(before: Seconds, after: Seconds, num: int) -> Mapping[str, float]:
    """Return the microseconds that each part used between for one of ``num``."""
    return {name: (after[name] - before[name]) / num * 1e6 for name in after}


def _used_s(pid: int) -> float:
    process = psutil.Process(pid)
    # Of those that ended, their parent has the sum.
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times) + times[0].children_user + times[0].children_system
