"""Signing keys: which public keys are whose, and the requests that register, end and show them.

A key is registered under a principal. It is revoked, never removed: what it signed before stays verifiable.
"""

import msgspec

from octavo_shared.messages.requests import Request, Write

SIGNERS_MAX = 64
"""Of one principal, the revoked ones included."""
REGISTRY_PRINCIPAL = "registry"
"""Whose key countersigns. Nobody else can have the name: it is not of the form user@tenant."""


class SignerInfo(msgspec.Struct, frozen=True):
    """A registered key. ``key_id`` is the SHA-256 of its DER form; ``public_key`` is PEM; times are of the registry."""

    key_id: str
    principal: str
    public_key: str
    registered_at_ms: int
    revoked_at_ms: int | None = None


class RegisterSigner(Write, frozen=True, kw_only=True):
    """Register the Ed25519 key ``public_key`` (PEM) under the caller. One that is there already is no event."""

    public_key: str


class RevokeSigner(Write, frozen=True, kw_only=True):
    """End a key of ``principal`` (empty: of the caller). One that is revoked already is no event."""

    key_id: str
    principal: str = ""


class ListSigners(Request, frozen=True, kw_only=True):
    """Ask for the keys of ``principal`` (empty: of the caller)."""

    principal: str = ""


class SignerList(msgspec.Struct, frozen=True):
    """All of them, the oldest first."""

    signers: tuple[SignerInfo, ...]
