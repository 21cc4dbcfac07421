"""Adapters, revisions, uploads and packs over HTTP: thin clients of identity and the residency manager."""

import contextlib
import uuid
from typing import Annotated, Any

import msgspec
from litestar import Response, delete, get, post, put
from litestar.params import FromPath, FromQuery, QueryParameter

from octavo_gateway.bodies import decode_body
from octavo_gateway.credentials import credential_of
from octavo_gateway.fleet import FleetView
from octavo_gateway.http_errors import AnyRequest
from octavo_gateway.http_generation import read_body
from octavo_gateway.http_queries import Count
from octavo_gateway.identity_client import IdentityClient
from octavo_gateway.registry_bodies import GrantBody, RevisionBody, RollbackBody, UploadBody, UploadReply
from octavo_gateway.uploads import PackResponse, Transfers
from octavo_shared.bases import find_base, labels_of
from octavo_shared.errors import BaseUnknown, InvalidRequest, NoWorker
from octavo_shared.messages.adapters import AdapterInfo, AdapterList, ListAdapters, RevisionState
from octavo_shared.messages.grants import Grant, Revoke
from octavo_shared.messages.history import History, HistoryList
from octavo_shared.messages.lifecycle import Rollback
from octavo_shared.messages.pushing import BeginUpload, Commit, UploadBegun
from octavo_shared.messages.requests import Credential
from octavo_shared.references import DIGEST_PATTERN, Fingerprint, parse_reference

_PAGE_MAX = 1_000
_IDEMPOTENCY_CHARS_MAX = 128


def caller_of(request: AnyRequest) -> Credential:
    return credential_of(request.headers.get("authorization"))


def idempotency_key_of(request: AnyRequest) -> str:
    """Return the header ``Idempotency-Key``, or a fresh one: then a repeated request is a new one."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return uuid.uuid4().hex
    if not (0 < len(key) <= _IDEMPOTENCY_CHARS_MAX and key.isprintable()):
        raise InvalidRequest("Idempotency-Key", f"must hold 1 to {_IDEMPOTENCY_CHARS_MAX} printable characters")
    return key


def adapter_name(tenant: str, name: str) -> str:
    """Return ``tenant/name``; raises ``InvalidRequest`` when that is no adapter's name."""
    return parse_reference(f"{tenant}/{name}", "adapter").name


def revision_reference(tenant: str, name: str, revision: str | None) -> str:
    """Return the reference to a number, digest or alias (None: to none); raises ``InvalidRequest``."""
    if revision is None:
        return adapter_name(tenant, name)
    mark = "@" if revision.isdecimal() or revision.startswith("sha256:") else ":"
    return str(parse_reference(f"{tenant}/{name}{mark}{revision}", "revision"))


def _state(text: str) -> RevisionState | None:
    try:
        return RevisionState(text) if text else None
    except ValueError:
        raise InvalidRequest("state", f"must be one of {', '.join(RevisionState)}") from None


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


class RegistryRoutes:
    """Routes under ``/v1/adapters`` and ``/v1/uploads``; ``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient, fleet: FleetView, transfers: Transfers) -> None:
        self._identity = identity
        self._fleet = fleet
        self._transfers = transfers

    def handlers(self) -> list[Any]:
        return [*self._uploads(), *self._adapters(), *self._history()]

    def _uploads(self) -> list[Any]:
        @post("/v1/uploads", status_code=200)
        async def begin_upload(request: AnyRequest) -> UploadBegun:
            """Get a staging place for a push."""
            credential = caller_of(request)
            body = decode_body(await read_body(request), UploadBody)
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
            body = decode_body(await read_body(request), RevisionBody)
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

    def _adapters(self) -> list[Any]:
        @get("/v1/adapters")
        async def list_adapters(
            request: AnyRequest,
            after: FromQuery[str] = "",
            limit: Count = 100,
            tenant: FromQuery[str] = "",
            owner: FromQuery[str] = "",
            base: FromQuery[str] = "",
            wanted_state: Annotated[str, QueryParameter(name="state")] = "",
            tag: FromQuery[str] = "",
            prefix: FromQuery[str] = "",
        ) -> AdapterList:
            """List the adapters that this key may use and that match, by name; read on after `next_after`."""
            if not 1 <= limit <= _PAGE_MAX:
                raise InvalidRequest("limit", f"must be between 1 and {_PAGE_MAX}")
            order = ListAdapters(
                credential=caller_of(request), after=after, num_max=limit, tenant=tenant, owner=owner, base=base,
                state=_state(wanted_state), tag=tag, prefix=prefix,
            )  # fmt: skip
            return await self._identity.call(order, AdapterList)

        @get("/v1/adapters/{tenant:str}/{name:str}/pack")
        async def pack(
            request: AnyRequest, tenant: FromPath[str], name: FromPath[str], revision: FromQuery[str | None] = None
        ) -> Response[bytes]:
            """Download a revision's pack."""
            resolution = await self._identity.resolve(caller_of(request), revision_reference(tenant, name, revision))
            adapter = resolution.adapter
            assert adapter is not None, "a reference was asked for"
            headers = {
                "octavo-revision": str(adapter.revision),
                "octavo-digest": adapter.digest,
                "octavo-base": adapter.base,
                "octavo-base-name": self._fleet.bases().get(adapter.base, ""),
            }
            data_key = await self._identity.data_key(adapter)
            holding = contextlib.AsyncExitStack()
            data = await holding.enter_async_context(self._transfers.pack(adapter, data_key))
            return PackResponse(data, headers, holding)

        @post("/v1/adapters/{tenant:str}/{name:str}/grants", status_code=200)
        async def grant(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> AdapterInfo:
            """Let somebody have a role on the adapter."""
            credential = caller_of(request)
            body = decode_body(await read_body(request), GrantBody)
            order = Grant(
                credential=credential,
                idempotency_key=idempotency_key_of(request),
                adapter=adapter_name(tenant, name),
                principal=body.principal,
                role=body.role,
            )
            return await self._identity.call(order, AdapterInfo)

        @delete("/v1/adapters/{tenant:str}/{name:str}/grants/{principal:str}", status_code=200)
        async def revoke(
            request: AnyRequest, tenant: FromPath[str], name: FromPath[str], principal: FromPath[str]
        ) -> AdapterInfo:
            """Take somebody's role back."""
            order = Revoke(
                credential=caller_of(request),
                idempotency_key=idempotency_key_of(request),
                adapter=adapter_name(tenant, name),
                principal=principal,
            )
            return await self._identity.call(order, AdapterInfo)

        return [list_adapters, pack, grant, revoke]

    def _history(self) -> list[Any]:
        @get("/v1/adapters/{tenant:str}/{name:str}/history")
        async def history(
            request: AnyRequest, tenant: FromPath[str], name: FromPath[str], limit: Count = 100
        ) -> HistoryList:
            """Tell what happened to the adapter, newest first."""
            if not 1 <= limit <= _PAGE_MAX:
                raise InvalidRequest("limit", f"must be between 1 and {_PAGE_MAX}")
            order = History(credential=caller_of(request), adapter=adapter_name(tenant, name), num_max=limit)
            return await self._identity.call(order, HistoryList)

        @post("/v1/adapters/{tenant:str}/{name:str}/rollback", status_code=200)
        async def rollback(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> AdapterInfo:
            """Move an alias back."""
            credential = caller_of(request)
            body = decode_body(await read_body(request), RollbackBody)
            order = Rollback(
                credential=credential,
                idempotency_key=idempotency_key_of(request),
                adapter=adapter_name(tenant, name),
                number=body.revision,
                alias=body.alias,
            )
            return await self._identity.call(order, AdapterInfo)

        return [history, rollback]
