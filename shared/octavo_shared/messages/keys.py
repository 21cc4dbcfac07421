"""API keys: what they may do, and the requests that make, renew, show and end them.

A key is narrowed by its role, its scopes and its adapters, and never does more than its principal.
"""

from enum import StrEnum

import msgspec

from octavo_shared.messages.requests import Request, Write

KEYS_PAGE_MAX = 200
LIFETIME_S_MAX = 10 * 365 * 86_400
OVERLAP_S_MAX = 7 * 86_400
OVERLAP_S = 86_400
"""How long a rotated key still lives, unless told otherwise: a day, in which its holders take up the new one."""


class Role(StrEnum):
    ADMIN = "admin"
    """Deployment-wide: creates tenants and keys, sees and commands the fleet. Uses no adapter of others."""
    OWNER = "owner"
    """Creates adapters in its own tenant and owns those it created."""
    USER = "user"
    """Creates none; does what its principal may do with those that are there."""
    AUDITOR = "auditor"
    """Sees histories and proofs of all adapters of its tenant, and its part of the ledger. Uses and changes none."""


class Scope(StrEnum):
    """What a key may be narrowed to. A key without scopes has all of them."""

    USE = "use"
    """Generate, pull."""
    PUSH = "push"
    """Push revisions and say which are served."""
    MANAGE = "manage"
    """Say who may do what, retire, erase, evict, and all about keys, tenants and the fleet."""
    AUDIT = "audit"
    """See proofs, and who may do what."""


class IssueKey(Write, frozen=True, kw_only=True):
    """A new key for ``user`` of ``tenant``. The gateway makes the secret; identity only sees its hash.

    Who is no admin gets keys for themselves only. No key does more or lives longer than the one that issues it.
    ``adapters`` is ``tenant/name``, or ``tenant/na*`` for all whose names begin so; empty: all. ``lifetime_s`` None: as
    long as the issuing key. ``label`` is for people.
    """

    tenant: str
    user: str
    role: Role
    key_id: str
    secret_sha256: bytes
    scopes: tuple[Scope, ...] = ()
    adapters: str = ""
    lifetime_s: int | None = None
    label: str = ""


class KeyIssued(msgspec.Struct, frozen=True):
    """A key that was issued, rotated or revoked. ``expires_at_ms`` 0: never."""

    key_id: str
    principal: str
    role: Role
    scopes: tuple[Scope, ...] = ()
    adapters: str = ""
    expires_at_ms: int = 0
    label: str = ""


class RevokeKey(Write, frozen=True, kw_only=True):
    key_id: str


class RotateKey(Write, frozen=True, kw_only=True):
    """Issue ``new_key_id`` in place of ``key_id``, with the same role, scopes and adapters, for the same principal.

    The old key lives ``overlap_s`` longer and then has expired. ``lifetime_s`` None: the new key expires when the old
    one would have.
    """

    key_id: str
    new_key_id: str
    secret_sha256: bytes
    overlap_s: int = OVERLAP_S
    lifetime_s: int | None = None


class ListKeys(Request, frozen=True, kw_only=True):
    """Keys of the caller, or of ``principal`` (admin; ``*@tenant`` for a whole tenant, which its auditors see too).

    Ordered by id, after ``after``.
    """

    principal: str = ""
    after: str = ""
    num_max: int = 100


class KeyInfo(msgspec.Struct, frozen=True):
    """A key without its secret. ``issuer`` and ``successor`` are ids of the keys that made it and that replaced it."""

    key_id: str
    principal: str
    role: Role
    scopes: tuple[Scope, ...]
    """All of them, where the key was not narrowed."""
    adapters: str
    label: str
    is_revoked: bool
    is_expired: bool
    issued_at_ms: int
    """0: not known, issued before this was written down."""
    expires_at_ms: int
    issuer: str
    successor: str


class KeyList(msgspec.Struct, frozen=True):
    """A page, which may be short. ``next_after`` is what the next one comes after; empty: there is no more."""

    keys: tuple[KeyInfo, ...]
    next_after: str = ""


class Whoami(Request, frozen=True, kw_only=True):
    """Ask what the credential's own key is."""
