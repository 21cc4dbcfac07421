"""Where a decode step's time goes: whole layers in one call, products and kernels, and what Python spends between."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from bench.rig import is_full_decode
from octavo_kernels.native import NativeKernels
from octavo_worker.engine.engine import Engine
from octavo_worker.engine.sequence import StepEvent
from octavo_worker.model.linear import PackedWeight

_PARTS: dict[str, tuple[tuple[type, str], ...]] = {
    # Where layers are computed in one call, all but the head's product and the choice of tokens is in them.
    "layers": ((NativeKernels, "decoder_layers"),),
    "products": ((PackedWeight, "project"),),
    "adapters": ((NativeKernels, "adapt"),),
    "attention": ((NativeKernels, "paged_attention"), (NativeKernels, "write_kv")),
    "pointwise": tuple((NativeKernels, name) for name in ("rms_norm", "gate", "rotate", "largest")),
}


class Breakdown:
    """Milliseconds of full decode steps by part; ``between`` is what is in none of them.

    Timing a call costs it half a microsecond, some 0.2 ms in a step of 350 calls.
    """

    def __init__(self, num_requests: int) -> None:
        self._num_requests = num_requests
        self._now: dict[str, float] = defaultdict(float)
        self._steps: list[dict[str, float]] = []

    def median_ms(self) -> dict[str, float]:
        """Return the median of each part over the steps that were watched."""
        parts = {part: float(np.median([step[part] for step in self._steps])) * 1e3 for part in _PARTS}
        between = [step["step"] - sum(step[part] for part in _PARTS) for step in self._steps]
        return {**parts, "between": float(np.median(between)) * 1e3}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the parts of every step that is made in this block."""
        with ExitStack() as stack:
            for part, methods in _PARTS.items():
                for owner, name in methods:
                    stack.enter_context(patch.object(owner, name, self._timed(part, getattr(owner, name))))
            stack.enter_context(patch.object(Engine, "step", self._counted(Engine.step)))
            yield

    def _timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                self._now[part] += time.perf_counter() - started

        return timed

    def _counted(self, step: Callable[[Engine], list[StepEvent]]) -> Callable[[Engine], list[StepEvent]]:
        def counted(engine: Engine) -> list[StepEvent]:
            self._now = defaultdict(float)
            started = time.perf_counter()
            events = step(engine)
            self._now["step"] = time.perf_counter() - started
            if is_full_decode(events, self._num_requests):
                self._steps.append(self._now)
            return events

        return counted
