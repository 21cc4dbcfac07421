"""Bodies of the registry's HTTP routes."""

from typing import Annotated

import msgspec

from octavo_shared.envelopes import Envelope
from octavo_shared.messages.generation import Tier
from octavo_shared.messages.grants import GrantRole
from octavo_shared.references import SERVING

Number = Annotated[int, msgspec.Meta(ge=1, le=999_999_999)]


class TenantBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenant: str


class UploadBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``base`` as in ``RevisionBody``: with it the answer says what a statement has to say."""

    adapter: str
    base: str | None = None


class RevisionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``base``: what the adapter was trained on, a fingerprint, label or name, when the pusher knows it.

    ``alias`` null: a draft.

    ``statement``: the provenance in a DSSE envelope that the pusher signed.
    """

    upload_id: str
    base: str | None = None
    dtype: str | None = None
    note: str = ""
    alias: str | None = SERVING
    statement: Envelope | None = None


class SupersedeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``by``: the base to train for instead, a label, a name or a fingerprint."""

    by: str


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
    """``source``: a reference; without a revision what it serves. ``alias`` null: a draft.

    ``statement`` as in ``RevisionBody``.
    """

    source: str
    alias: str | None = SERVING
    statement: Envelope | None = None


class TagBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


class SignerBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``public_key`` in PEM form."""

    public_key: str


class GrantBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    principal: str
    role: GrantRole = GrantRole.USER


class TransferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``owner``: the new one, ``user@tenant``."""

    owner: str


class EvictBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tier: Tier = Tier.COLD


class UploadReply(msgspec.Struct, frozen=True):
    size_bytes: int
