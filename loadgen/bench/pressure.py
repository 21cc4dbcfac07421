"""Decode steps while adapters load in the background."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.profile import Case
from bench.rig import Rig, WarmPack
from octavo_shared.pack import digest_of, read_header
from octavo_worker.adapters.pack_threads import lower_priority
from octavo_worker.engine.engine import Engine


@dataclass
class Pressure:
    """Steps of a long answer with and without loads; steps of all rounds together, because p99 needs many."""

    rig: Rig
    case: Case
    spare: Sequence[WarmPack]
    num_new_tokens: int
    loads_per_s: float
    quiet_ms: list[float] = field(default_factory=list)
    loading_ms: list[float] = field(default_factory=list)
    load_ms: list[float] = field(default_factory=list)
    loading_s: float = 0.0

    def measure(self, round_number: int) -> None:
        """Run once without and once with loads, the other way round in every other round."""
        for is_loading in (False, True) if round_number % 2 else (True, False):
            self.rig.make_resident(self.case.residents)
            if is_loading:
                self._run_loading()
            else:
                self.quiet_ms += self._run()

    def _run(self) -> tuple[float, ...]:
        return self.rig.run(self.case.prompts, self.case.keys, self.num_new_tokens).decode_ms

    def _run_loading(self) -> None:
        loads = _Loads(self.rig.engine, self.spare, 1.0 / self.loads_per_s)
        started = time.perf_counter()
        loads.start()
        try:
            self.loading_ms += self._run()
        finally:
            self.loading_s += time.perf_counter() - started
            loads.stop()
        self.load_ms += loads.load_ms


class _Loads(threading.Thread):
    """Loads one warm pack after the other as the loader does, on a thread of the same priority: verified on the bytes
    that are used, then installed.

    The adapter before it is evicted first. Loads begin at fixed times, however long they take.
    """

    def __init__(self, engine: Engine, packs: Sequence[WarmPack], interval_s: float) -> None:
        super().__init__(name="background loads", daemon=True)
        self._engine = engine
        self._packs = packs
        self._interval_s = interval_s
        self._is_stopping = threading.Event()
        self._problem: BaseException | None = None
        self.load_ms: list[float] = []

    def run(self) -> None:
        """Load until told to stop."""
        lower_priority()
        try:
            self._load_all()
        except BaseException as problem:
            self._problem = problem

    def stop(self) -> None:
        """End it; raises what a load raised."""
        self._is_stopping.set()
        self.join()
        if self._problem is not None:
            raise self._problem

    def _load_all(self) -> None:
        began, number = time.perf_counter(), 0
        while not self._is_stopping.wait(max(0.0, began + number * self._interval_s - time.perf_counter())):
            pack = self._packs[number % len(self._packs)]
            self._engine.evict(self._packs[number % len(self._packs) - 1].key)
            started = time.perf_counter()
            if digest_of(pack.data) != pack.key[1]:
                raise ValueError("a pack in host memory does not match its digest")
            self._engine.install(pack.key, memoryview(pack.data), read_header(pack.data))
            self.load_ms.append((time.perf_counter() - started) * 1e3)
            number += 1
