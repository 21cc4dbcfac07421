"""How a revision came to be, as it was signed, and how revisions descend from one another."""

import msgspec

from octavo_shared.envelopes import Envelope
from octavo_shared.messages.requests import Request
from octavo_shared.references import Digest

LINEAGE_MAX = 500
"""Events that one drawing is made from."""


class GetProvenance(Request, frozen=True, kw_only=True):
    """Ask for the statement of the revision that ``reference`` names, retired or not."""

    reference: str


class StatementSigner(msgspec.Struct, frozen=True):
    """A key that signed a statement, and whose it was when the statement came into the ledger.

    ``sequence`` is the event that says so; with ``is_valid`` False the ledger says that the key was nobody's, or
    revoked, by then. ``revoked_at_ms`` is of now: what was signed before stays good.
    """

    key_id: str
    principal: str
    public_key: str
    is_valid: bool
    sequence: int
    revoked_at_ms: int | None = None


class Provenance(msgspec.Struct, frozen=True):
    """The envelope as it lies in the ledger, and what its verification needs. ``envelope`` None: there never was one.

    ``is_signed_by_pusher`` False: the registry alone says how the revision came to be, from what it knows itself.
    """

    name: str
    number: int
    digest: Digest
    actor: str
    at_ms: int
    sequence: int
    state: str
    envelope: Envelope | None
    signers: tuple[StatementSigner, ...]
    is_signed_by_pusher: bool


class GetLineage(Request, frozen=True, kw_only=True):
    """Ask from which revisions those of ``adapter`` descend, its own and those of others that the caller may see."""

    adapter: str
    num_max: int = LINEAGE_MAX


class LineageNode(msgspec.Struct, frozen=True):
    """A revision. ``parent`` is another one, as ``tenant/adapter@12``; empty where there is none to be seen.

    ``is_branch``: it is its parent, under another name, whether the parent is to be seen or not.
    """

    name: str
    number: int
    digest: Digest
    actor: str
    at_ms: int
    state: str
    aliases: tuple[str, ...]
    parent: str
    is_branch: bool
    is_signed_by_pusher: bool


class Lineage(msgspec.Struct, frozen=True):
    """Revisions, an adapter's newest first; older ones are left out where ``is_whole`` is False."""

    nodes: tuple[LineageNode, ...]
    is_whole: bool
