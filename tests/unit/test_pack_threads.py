"""Threads for packs give way to the engine's, and nobody else does."""

import os
import sys

import pytest

from octavo_worker.adapters.pack_threads import pack_threads


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_only_the_pools_own_threads_give_way() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with pack_threads(1) as threads:
        theirs = threads.submit(os.getpriority, os.PRIO_PROCESS, 0).result(10)
    assert theirs == max(before, 10)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
