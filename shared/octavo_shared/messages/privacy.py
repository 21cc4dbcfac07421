"""Data keys: who asks for one, and how those that hold one hear that its adapter was erased.

These requests carry no credential. ``Unwrap`` shows the ticket in the handle, which identity made after its checks;
NATS lets only gateways and workers ask.
"""

import msgspec

from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.references import AdapterId

LEASE_MS = 600_000
"""How long a worker may hold data keys, and packs in memory, without having heard from identity what was erased."""
ERASURES_MAX = 256

KEYLESS_VERBS = frozenset({"unwrap", "erasures"})
"""Those that no user asks: their requests carry no credential."""


class Unwrap(msgspec.Struct, frozen=True):
    """Ask for the key of ``adapter``'s packs.

    Refused with ``NotPermitted`` without a ticket for exactly this handle, and with ``AdapterErased``.
    """

    adapter: AdapterHandle


class DataKey(msgspec.Struct, frozen=True):
    key: bytes


class ErasuresSince(msgspec.Struct, frozen=True):
    """Ask which adapters were erased behind ``after``; None asks only for where the list ends now."""

    after: int | None = None


class Erasures(msgspec.Struct, frozen=True):
    """``ERASURES_MAX`` or fewer, up to ``until``; fewer mean that there are no more."""

    adapter_ids: tuple[AdapterId, ...]
    until: int
