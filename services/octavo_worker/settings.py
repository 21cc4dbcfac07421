"""What a worker is told at start."""

import re
from typing import Literal

import msgspec

from octavo_shared.config import StoreSettings

_WORKER_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_MIB = 1024 * 1024


class WorkerSettings(StoreSettings, frozen=True, kw_only=True):
    """``base_dir`` is a Hugging Face model directory, ``cache_dir`` the local tier's; ``dtype`` None: as stored.

    ``resident_share`` of the arena may hold adapters; the rest is always left to KV.
    """

    base_dir: str
    cache_dir: str
    worker_id: str = "worker-1"
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    arena_bytes: int = 1024 * _MIB
    resident_share: float = 0.5
    warm_bytes: int = 512 * _MIB
    local_bytes: int = 4096 * _MIB
    num_running_max: int = 32
    num_waiting_max: int = 128

    def __post_init__(self) -> None:
        if _WORKER_ID.match(self.worker_id) is None:
            raise ValueError("worker_id must match [A-Za-z0-9_-]{1,64}: it is part of NATS subjects")
        if not 0.0 < self.resident_share < 1.0:
            raise ValueError("resident_share must lie between 0 and 1")


class Cadence(msgspec.Struct, frozen=True):
    """Times that tests shorten; in milliseconds."""

    heartbeat_ms: float = 500.0
    lease_timeout_ms: float = 5_000.0
    order_grace_ms: float = 50.0
    """How long the residency manager is given to order a load before the worker begins it by itself."""
    drain_ms: float = 10_000.0
