"""Bodies of the registry's HTTP routes."""

from typing import Annotated

import msgspec

from octavo_shared.messages.generation import Tier
from octavo_shared.messages.identity import Role
from octavo_shared.references import SERVING, Fingerprint


class TenantBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenant: str


class KeyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user: str
    role: Role = Role.USER


class UploadBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    adapter: str


class RevisionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``base``: the fingerprint that the adapter was trained on, when the pusher knows it."""

    upload_id: str
    base: Fingerprint | None = None
    dtype: str | None = None
    note: str = ""


class RollbackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``revision`` None: the parent of the one that the alias names now."""

    revision: Annotated[int, msgspec.Meta(ge=1, le=999_999_999)] | None = None
    alias: str = SERVING


class GrantBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    principal: str


class EvictBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tier: Tier = Tier.COLD


class KeyReply(msgspec.Struct, frozen=True):
    """A fresh key. ``key`` is shown once and kept nowhere."""

    key: str
    key_id: str
    principal: str
    role: Role


class UploadReply(msgspec.Struct, frozen=True):
    size_bytes: int
