"""Many adapters for one request: what is staged is registered together, and each is answered for itself."""

from enum import StrEnum

import msgspec

from octavo_shared.envelopes import Envelope
from octavo_shared.errors import Refusal
from octavo_shared.messages.requests import Request
from octavo_shared.references import SERVING, Digest, Fingerprint

IMPORT_ITEMS_MAX = 32
"""Of one request: their packs are in memory at the same time."""


class ImportItem(msgspec.Struct, frozen=True):
    """One adapter. ``idempotency_key`` is derived from what is imported, so that a repeated import is known again.

    Without an ``upload_id`` it is only asked whether it is there already. Other fields as in ``Commit``.
    """

    adapter: str
    idempotency_key: str
    served_base: Fingerprint
    upload_id: str = ""
    declared_base: Fingerprint | None = None
    dtype: str | None = None
    note: str = ""
    alias: str | None = SERVING
    tags: tuple[str, ...] = ()
    statement: Envelope | None = None


class Register(Request, frozen=True, kw_only=True):
    """Register 1 to ``IMPORT_ITEMS_MAX`` adapters, each once."""

    items: tuple[ImportItem, ...]


class ImportState(StrEnum):
    ADDED = "added"
    """It became a revision now."""
    PRESENT = "present"
    """It is there already: by its idempotency key, or because the adapter has a revision of the same digest."""
    WANTED = "wanted"
    """It was only asked for, is not there, and may be pushed."""
    REFUSED = "refused"
    """``refusal`` says why. Others are not affected."""


class ImportOutcome(msgspec.Struct, frozen=True):
    """What became of one item; ``revision`` and ``digest`` are those that it is there as."""

    adapter: str
    state: ImportState
    revision: int | None = None
    digest: Digest | None = None
    refusal: Refusal | None = None
    warnings: tuple[str, ...] = ()
    """As in ``AdapterInfo``."""


class ImportReport(msgspec.Struct, frozen=True):
    """Outcomes, in the order of the items."""

    outcomes: tuple[ImportOutcome, ...]
