"""Adapters over HTTP: lists, packs, grants, histories. Thin clients of identity."""

import contextlib
from typing import Annotated, Any

from litestar import Response, delete, get, post
from litestar.params import FromPath, FromQuery, QueryParameter

from octavo_gateway.fleet import FleetView
from octavo_gateway.http_queries import Count
from octavo_gateway.http_request import (
    AnyRequest,
    adapter_name,
    body_of,
    caller_of,
    idempotency_key_of,
    revision_reference,
)
from octavo_gateway.identity_client import IdentityClient
from octavo_gateway.registry_bodies import GrantBody
from octavo_gateway.uploads import PackResponse, Transfers
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.adapters import AdapterInfo, AdapterList, ListAdapters, RevisionState
from octavo_shared.messages.grants import Grant, Revoke
from octavo_shared.messages.history import History, HistoryList

_PAGE_MAX = 1_000


def _state(text: str) -> RevisionState | None:
    try:
        return RevisionState(text) if text else None
    except ValueError:
        raise InvalidRequest("state", f"must be one of {', '.join(RevisionState)}") from None


class RegistryRoutes:
    """Routes under ``/v1/adapters`` that show, and those that grant; ``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient, fleet: FleetView, transfers: Transfers) -> None:
        self._identity = identity
        self._fleet = fleet
        self._transfers = transfers

    def handlers(self) -> list[Any]:
        return [*self._showing(), *self._granting()]

    def _showing(self) -> list[Any]:
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

        @get("/v1/adapters/{tenant:str}/{name:str}/history")
        async def history(
            request: AnyRequest, tenant: FromPath[str], name: FromPath[str], limit: FromQuery[int] = 100
        ) -> HistoryList:
            """Tell what happened to the adapter, newest first."""
            if not 1 <= limit <= _PAGE_MAX:
                raise InvalidRequest("limit", f"must be between 1 and {_PAGE_MAX}")
            order = History(credential=caller_of(request), adapter=adapter_name(tenant, name), num_max=limit)
            return await self._identity.call(order, HistoryList)

        return [list_adapters, pack, history]

    def _granting(self) -> list[Any]:
        @post("/v1/adapters/{tenant:str}/{name:str}/grants", status_code=200)
        async def grant(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> AdapterInfo:
            """Let somebody have a role on the adapter."""
            credential = caller_of(request)
            body = await body_of(request, GrantBody)
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

        return [grant, revoke]
