"""Data keys: who asks for one, and how those that hold one hear that its adapter was erased.

These requests carry no credential. ``Unwrap`` shows the ticket in the handle, which identity made after its checks;
NATS lets only gateways and workers ask.
"""

import msgspec

from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.requests import Write
from octavo_shared.references import AdapterId, TenantId, WorkerId

LEASE_MS = 600_000
"""How long a worker may hold data keys, and packs in memory, without having heard from identity what was erased."""
ERASURES_MAX = 256
RECEIPT_TYPE = "application/vnd.octavo.erasure-receipt+json"

KEYLESS_VERBS = frozenset({"unwrap", "erasures"})
"""Those that no user asks: their requests carry no credential."""


class Unwrap(msgspec.Struct, frozen=True):
    """Ask for the key of ``adapter``'s packs; ``public_key`` (X25519) is what the answer is sealed for.

    Refused with ``NotPermitted`` without a ticket for exactly this handle, and with ``AdapterErased``.
    """

    adapter: AdapterHandle
    public_key: bytes


class DataKey(msgspec.Struct, frozen=True):
    """``sealed`` is read by ``key_transport.Question``, and by nobody else."""

    sealed: bytes


class ErasuresSince(msgspec.Struct, frozen=True):
    """Ask which adapters were erased behind ``after``; None asks only for where the list ends now."""

    after: int | None = None


class Erasures(msgspec.Struct, frozen=True):
    """``ERASURES_MAX`` or fewer, up to ``until``; fewer mean that there are no more."""

    adapter_ids: tuple[AdapterId, ...]
    until: int


class Erase(Write, frozen=True, kw_only=True):
    """Destroy an adapter, for ever: its data key, its packs, what workers hold of it. Its name can be used again.

    For its owner, and for admins.
    """

    adapter: str


class Erased(msgspec.Struct, frozen=True):
    """``receipt`` is a DSSE envelope around a ``Receipt``; ``public_key`` is the PEM of the key that signed it."""

    adapter_id: AdapterId
    receipt: bytes
    public_key: str


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What was destroyed, and where. It names no user and no adapter by name.

    Workers that ``acknowledged`` hold nothing of it any more. Those that did not answer are ``fenced``: they get no key
    of it, and after ``fenced_until_ms`` hold nothing either, nor does any worker that is named nowhere.
    """

    adapter_id: AdapterId
    tenant_id: TenantId
    begun_at_ms: int
    erased_at_ms: int
    num_packs: int
    num_uploads: int
    acknowledged: tuple[WorkerId, ...]
    fenced: tuple[WorkerId, ...]
    fenced_until_ms: int


class EraseOrder(msgspec.Struct, frozen=True):
    """Order to a worker: destroy all that it has of the adapter, and take it in never again. Idempotent."""

    adapter_id: AdapterId


class EraseDone(msgspec.Struct, frozen=True):
    """Sent when nothing is left: no request, no page, no key or value computed with it, no file and no data key."""

    worker_id: WorkerId
