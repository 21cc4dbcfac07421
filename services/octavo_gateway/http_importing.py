"""Many adapters at once, over HTTP: a thin client of identity."""

from typing import Any

import msgspec
from litestar import post

from octavo_gateway.fleet import FleetView
from octavo_gateway.http_pushing import declared_base, served_base
from octavo_gateway.http_request import AnyRequest, body_of, caller_of
from octavo_gateway.http_schema import operation_with
from octavo_gateway.identity_client import IdentityClient
from octavo_shared.envelopes import Envelope
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.importing import IMPORT_ITEMS_MAX, ImportItem, ImportReport, Register
from octavo_shared.references import SERVING

_KEY_CHARS_MAX = 128


class ImportItemBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One adapter. ``key`` is its idempotency key; without an ``upload_id`` it is only asked whether it is there.

    ``statement`` as in ``RevisionBody``.
    """

    adapter: str
    key: str
    upload_id: str = ""
    base: str | None = None
    dtype: str | None = None
    note: str = ""
    alias: str | None = SERVING
    tags: tuple[str, ...] = ()
    statement: Envelope | None = None


class ImportBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    items: tuple[ImportItemBody, ...]


class ImportRoutes:
    """One route; ``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient, fleet: FleetView) -> None:
        self._identity = identity
        self._fleet = fleet

    def handlers(self) -> list[Any]:
        @post("/v1/import", status_code=200, operation_class=operation_with(ImportBody))
        async def register(request: AnyRequest) -> ImportReport:
            """Make staged uploads the next revisions of their adapters, each answered for itself."""
            credential = caller_of(request)
            body = await body_of(request, ImportBody)
            if not 1 <= len(body.items) <= IMPORT_ITEMS_MAX:
                raise InvalidRequest("items", f"must be 1 to {IMPORT_ITEMS_MAX}")
            items = tuple(self._item(item) for item in body.items)
            return await self._identity.call(Register(credential=credential, items=items), ImportReport)

        return [register]

    def _item(self, body: ImportItemBody) -> ImportItem:
        if not (1 <= len(body.key) <= _KEY_CHARS_MAX and body.key.isprintable()):
            raise InvalidRequest("items.key", f"must hold 1 to {_KEY_CHARS_MAX} printable characters")
        declared = declared_base(self._fleet, body.base)
        return ImportItem(
            body.adapter, body.key, served_base(self._fleet, declared), body.upload_id, declared, body.dtype,
            body.note, body.alias, body.tags, body.statement,
        )  # fmt: skip
