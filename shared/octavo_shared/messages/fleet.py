"""What workers, gateways and the residency manager tell each other about where adapters are."""

from enum import StrEnum

import msgspec

from octavo_shared.messages.generation import AdapterHandle, Tier
from octavo_shared.references import AdapterId, Digest, Fingerprint, PackKey, WorkerId

HEARTBEAT_INTERVAL_MS = 500
HEARTBEAT_TIMEOUT_MS = 2_500
"""A worker that has been silent for this long counts as lost."""


class WorkerState(StrEnum):
    READY = "ready"
    DRAINING = "draining"


class Placed(msgspec.Struct, frozen=True):
    """One adapter revision at one worker. ``tier`` COLD in a delta means: no longer here."""

    adapter_id: AdapterId
    digest: Digest
    tier: Tier
    size_bytes: int
    num_pins: int = 0

    @property
    def pack_key(self) -> PackKey:
        """What caches know its pack by."""
        return (self.adapter_id, self.digest)


class TierUse(msgspec.Struct, frozen=True):
    """Bytes of one cache tier at one worker."""

    used_bytes: int
    budget_bytes: int


class Heartbeat(msgspec.Struct, frozen=True):
    """Sent every ``HEARTBEAT_INTERVAL_MS`` and on change.

    ``epoch`` grows with every start of the worker, ``sequence`` with every heartbeat. ``placed`` is the whole
    residency when ``is_snapshot``, else the changes since the last heartbeat; a receiver that misses a
    sequence waits for the next snapshot (sent at least every ten heartbeats).
    """

    worker_id: WorkerId
    epoch: int
    sequence: int
    state: WorkerState
    base: Fingerprint
    base_name: str
    num_running: int
    num_waiting: int
    num_running_max: int
    num_pages_free: int
    num_pages: int
    page_bytes: int
    resident: TierUse
    warm: TierUse
    local: TierUse
    placed: tuple[Placed, ...] = ()
    is_snapshot: bool = False
    context_tokens: int = 0
    """The longest sequence, prompt and answer together, that this worker's memory can hold; 0: not said."""


class Demand(msgspec.Struct, frozen=True):
    """A gateway is about to send a request for ``adapter`` to ``worker_id``."""

    adapter: AdapterHandle
    worker_id: WorkerId
    request_id: str


class Prefetch(msgspec.Struct, frozen=True):
    """Order to a worker: bring ``adapter`` up to ``tier``. Idempotent; single flight per pack."""

    adapter: AdapterHandle
    tier: Tier = Tier.RESIDENT


class Evict(msgspec.Struct, frozen=True):
    """Order to a worker: drop the copies above ``tier``. Refused (not queued) while pinned."""

    adapter_id: AdapterId
    digest: Digest
    tier: Tier

    @property
    def pack_key(self) -> PackKey:
        """What caches know its pack by."""
        return (self.adapter_id, self.digest)


class OrderDone(msgspec.Struct, frozen=True):
    """Answer to an ``Evict``: where the adapter is now. ``is_done`` is False while it is pinned."""

    is_done: bool
    tier: Tier


class EvictCommand(msgspec.Struct, frozen=True):
    """To the residency manager: drop this adapter's copies above ``tier`` on every worker."""

    adapter: AdapterHandle
    tier: Tier = Tier.COLD


class EvictReport(msgspec.Struct, frozen=True):
    """Workers that do not hold the adapter above the tier any more (or never did), and those where it was in use."""

    evicted: tuple[WorkerId, ...]
    pinned: tuple[WorkerId, ...]


class ViewCommand(msgspec.Struct, frozen=True):
    """To the residency manager: what is where?"""


class View(msgspec.Struct, frozen=True):
    """The manager's soft state, rebuilt from heartbeats."""

    workers: tuple[Heartbeat, ...]
    num_prefetches_ordered: int = 0
    num_evicts_ordered: int = 0
