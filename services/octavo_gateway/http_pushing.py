"""Pushes over HTTP: a staging place, the files in it, the revision that they become."""

from typing import Any

import msgspec
from litestar import post, put
from litestar.params import FromPath

from octavo_gateway.fleet import FleetView
from octavo_gateway.http_request import AnyRequest, adapter_name, body_of, caller_of, idempotency_key_of
from octavo_gateway.identity_client import IdentityClient
from octavo_gateway.registry_bodies import RevisionBody, UploadBody, UploadReply
from octavo_gateway.uploads import Transfers
from octavo_shared.bases import find_base, labels_of
from octavo_shared.errors import BaseUnknown, InvalidRequest, NoWorker
from octavo_shared.messages.adapters import AdapterInfo
from octavo_shared.messages.pushing import BeginUpload, Commit, UploadBegun
from octavo_shared.references import DIGEST_PATTERN, Fingerprint, parse_reference


class PushRoutes:
    """Routes under ``/v1/uploads``, and the one that commits; ``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient, fleet: FleetView, transfers: Transfers) -> None:
        self._identity = identity
        self._fleet = fleet
        self._transfers = transfers

    def handlers(self) -> list[Any]:
        @post("/v1/uploads", status_code=200)
        async def begin_upload(request: AnyRequest) -> UploadBegun:
            """Get a staging place for a push."""
            credential = caller_of(request)
            body = await body_of(request, UploadBody)
            adapter = parse_reference(body.adapter, "adapter").name
            begun = await self._identity.call(BeginUpload(credential=credential, adapter=adapter), UploadBegun)
            size_bytes_max = min(begun.size_bytes_max, self._transfers.limit_bytes("adapter_model.safetensors"))
            return msgspec.structs.replace(begun, size_bytes_max=size_bytes_max, base=self._base(body.base))

        # The framework's bound is off here: the transfer counts the bytes itself while it streams them.
        @put("/v1/uploads/{upload_id:str}/{file_name:str}", status_code=200, request_max_body_size=None)
        async def upload(request: AnyRequest, upload_id: FromPath[str], file_name: FromPath[str]) -> UploadReply:
            """Stage one file of a push; the raw body is streamed."""
            key = await self._identity.upload_key(caller_of(request), upload_id)
            declared = request.headers.get("content-length", "0")
            declared_bytes = int(declared) if declared.isdecimal() else 0
            size_bytes = await self._transfers.upload(upload_id, file_name, request.stream(), declared_bytes, key)
            return UploadReply(size_bytes)

        @post("/v1/adapters/{tenant:str}/{name:str}/revisions", status_code=200)
        async def commit(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> AdapterInfo:
            """Make what was staged the adapter's next revision, which an alias names."""
            credential = caller_of(request)
            body = await body_of(request, RevisionBody)
            declared = declared_base(self._fleet, body.base)
            order = Commit(
                credential=credential,
                idempotency_key=idempotency_key_of(request),
                adapter=adapter_name(tenant, name),
                upload_id=body.upload_id,
                served_base=served_base(self._fleet, declared),
                declared_base=declared,
                dtype=body.dtype,
                note=body.note,
                alias=body.alias,
                statement=body.statement,
            )
            return await self._identity.call(order, AdapterInfo)

        return [begin_upload, upload, commit]

    def _base(self, declared: str | None) -> Fingerprint | None:
        """Return the base that a push now would be for; whether there is one at all is for the commit to say."""
        try:
            return served_base(self._fleet, declared_base(self._fleet, declared))
        except (NoWorker, InvalidRequest):
            return None


def declared_base(fleet: FleetView, text: str | None) -> Fingerprint | None:
    """Return the base that a pusher means: a fingerprint as it is, or by label or name one that is served here.

    Raises ``InvalidRequest``.
    """
    if text is None or DIGEST_PATTERN.match(text) is not None:
        return Fingerprint(text) if text else None
    bases = fleet.bases()
    try:
        return find_base(text, bases)
    except BaseUnknown:
        problem = f"names none of the bases served here: {labels_of(bases)}; or give a whole fingerprint"
        raise InvalidRequest("base", problem) from None


def served_base(fleet: FleetView, declared: Fingerprint | None) -> Fingerprint:
    """Return the base that a push is for: the declared one if it is served, else the only one that is."""
    bases = fleet.bases()
    if not bases:
        raise NoWorker("no worker is up, so it is not known which base is served here; try again")
    if declared is not None and declared in bases:
        return declared
    if len(bases) > 1:
        raise InvalidRequest("base", f"must name one of the bases served here: {labels_of(bases)}")
    return next(iter(bases))
