"""Threads that read, hash and copy packs beside the thread that steps the engine."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

_NICENESS = 10
"""Where cores are free this changes nothing. Where they are not, a load waits for the gaps between parallel regions
instead of stopping a step's threads half way: everybody's next token matters more than one request's first."""


def pack_threads(num_max: int) -> ThreadPoolExecutor:
    """Return a pool of at most ``num_max`` threads of lower priority than all others of this process."""
    return ThreadPoolExecutor(num_max, thread_name_prefix="packs", initializer=lower_priority)


def lower_priority() -> None:
    """Let the calling thread give way to others; does nothing where only whole processes have priorities."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), _NICENESS))
