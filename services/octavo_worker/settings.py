"""What a worker is told at start."""

import re
from typing import Annotated, Literal

import msgspec

from octavo_shared.config import ConfigError, StoreSettings
from octavo_shared.messages.privacy import LEASE_MS
from octavo_worker.engine.scheduler import NUM_STEP_TOKENS_MAX

_WORKER_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_MIB = 1024 * 1024

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class WorkerSettings(StoreSettings, frozen=True, kw_only=True):
    """``base_dir`` is a Hugging Face model directory, ``cache_dir`` the local tier's; ``dtype`` None: as stored.

    ``resident_share`` of the arena may hold adapters; the rest is always left to KV. Raises ``ConfigError``.
    """

    base_dir: str
    cache_dir: str
    worker_id: str = "worker-1"
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    arena_bytes: _Positive = 1024 * _MIB
    resident_share: float = 0.5
    warm_bytes: _Positive = 512 * _MIB
    local_bytes: _Positive = 4096 * _MIB
    num_running_max: _Positive = 32
    num_waiting_max: _Positive = 128

    def __post_init__(self) -> None:
        # Found out here, before a base is loaded for minutes in vain.
        if _WORKER_ID.match(self.worker_id) is None:
            raise ConfigError("OCTAVO_WORKER_ID must match [A-Za-z0-9_-]{1,64}: it is part of NATS subjects")
        if not 0.0 < self.resident_share < 1.0:
            raise ConfigError("OCTAVO_RESIDENT_SHARE must lie between 0 and 1")
        if self.num_running_max > NUM_STEP_TOKENS_MAX:
            raise ConfigError(
                f"OCTAVO_NUM_RUNNING_MAX={self.num_running_max} exceeds the {NUM_STEP_TOKENS_MAX} tokens of a step, "
                "in which every running sequence has one"
            )


class Cadence(msgspec.Struct, frozen=True):
    """Times that tests shorten; in milliseconds."""

    heartbeat_ms: float = 500.0
    lease_timeout_ms: float = 5_000.0
    order_grace_ms: float = 50.0
    """How long the residency manager is given to order a load before the worker begins it by itself."""
    drain_ms: float = 10_000.0
    erasures_ms: float = 10_000.0
    """Between two questions to identity what was erased."""
    key_lease_ms: float = LEASE_MS - 30_000.0
    """A little less than others count on: what was opened must be gone by then, not begin to go."""
