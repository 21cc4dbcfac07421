"""Bodies of the registry's HTTP routes."""

from typing import Annotated

import msgspec

from octavo_shared.messages.generation import Tier
from octavo_shared.messages.grants import GrantRole
from octavo_shared.references import SERVING, Fingerprint

Number = Annotated[int, msgspec.Meta(ge=1, le=999_999_999)]


class TenantBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenant: str


class UploadBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    adapter: str


class RevisionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``base``: the fingerprint that the adapter was trained on, when the pusher knows it. ``alias`` null: a draft."""

    upload_id: str
    base: Fingerprint | None = None
    dtype: str | None = None
    note: str = ""
    alias: str | None = SERVING


class RollbackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``revision`` None: what the alias named before."""

    revision: Number | None = None
    alias: str = SERVING


class PromoteBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``revision``: a number, a digest or an alias. ``share``: percent of principals that get the canary.

    ``expect``: the number that the alias must name now, 0 for none.
    """

    revision: Number | str
    alias: str = SERVING
    share: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None
    expect: Annotated[int, msgspec.Meta(ge=0, le=999_999_999)] | None = None


class RetireBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    revision: Number


class BranchBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``source``: a reference; without a revision what it serves. ``alias`` null: a draft."""

    source: str
    alias: str | None = SERVING


class TagBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


class GrantBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    principal: str
    role: GrantRole = GrantRole.USER


class EvictBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tier: Tier = Tier.COLD


class UploadReply(msgspec.Struct, frozen=True):
    size_bytes: int
