"""Which worker gets a request: resident there, else its rendezvous home, both under a load guard. Pure."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from octavo_shared.messages.fleet import WorkerState
from octavo_shared.messages.generation import Tier
from octavo_shared.references import Fingerprint, PackKey, WorkerId

_GUARD_EXTRA = 8
_GUARD_FACTOR = 1.5


@dataclass(frozen=True)
class Candidate:
    """One live worker as routing sees it. ``load`` counts requests running and waiting there."""

    worker_id: WorkerId
    state: WorkerState
    base: Fingerprint
    load: int
    tiers: dict[PackKey, Tier]


def pick(
    workers: Sequence[Candidate],
    base: Fingerprint,
    adapter: PackKey | None,
    request_id: str,
    excluded: Collection[WorkerId] = (),
) -> WorkerId | None:
    """Return the worker for a request, or None when no ready worker of this base is left.

    With an adapter: the first, in rendezvous order, that holds it resident and is under the load guard
    ``max(min + 8, 1.5 * mean)``; else the first in that order under the guard. Without one: the least loaded.
    """
    able = [
        worker
        for worker in workers
        if worker.state is WorkerState.READY and worker.base == base and worker.worker_id not in excluded
    ]
    if not able:
        return None
    if adapter is None:
        return min(able, key=lambda worker: (worker.load, -_weight(request_id, worker.worker_id))).worker_id
    loads = [worker.load for worker in able]
    guard = max(min(loads) + _GUARD_EXTRA, _GUARD_FACTOR * sum(loads) / len(loads))
    # The least loaded worker is always under the guard, so there is a first one.
    order = sorted(
        (worker for worker in able if worker.load <= guard), key=lambda worker: -_weight(adapter[0], worker.worker_id)
    )
    resident = [worker for worker in order if worker.tiers.get(adapter) is Tier.RESIDENT]
    return (resident or order)[0].worker_id


def _weight(key: str, worker_id: WorkerId) -> int:
    # Highest random weight: a worker that joins or leaves moves only its own share of the adapters.
    return int.from_bytes(hashlib.blake2b(f"{key}/{worker_id}".encode(), digest_size=8).digest(), "big")
