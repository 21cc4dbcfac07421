"""Bases over HTTP: which there are, what became of them, what must be trained again. Thin clients of identity."""

from typing import Any

from litestar import get, post
from litestar.params import FromPath, FromQuery

from octavo_gateway.http_queries import Count
from octavo_gateway.http_request import AnyRequest, body_of, caller_of, idempotency_key_of
from octavo_gateway.http_schema import operation_with
from octavo_gateway.identity_client import IdentityClient
from octavo_gateway.registry_bodies import SupersedeBody
from octavo_shared.messages.bases import (
    BaseInfo,
    BaseList,
    ListBases,
    ListOutdated,
    OutdatedList,
    RestoreBase,
    RetireBase,
    SupersedeBase,
)


class BaseRoutes:
    """Routes under ``/v1/bases``; ``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient) -> None:
        self._identity = identity

    def handlers(self) -> list[Any]:
        return [*self._lists(), *self._changes()]

    def _lists(self) -> list[Any]:
        @get("/v1/bases")
        async def bases(request: AnyRequest, tenant: FromQuery[str] = "") -> BaseList:
            """List the bases with what sits on them, in the caller's tenant or, to an admin, everywhere."""
            return await self._identity.call(ListBases(credential=caller_of(request), tenant=tenant), BaseList)

        @get("/v1/bases/outdated")
        async def outdated(
            request: AnyRequest,
            base: FromQuery[str] = "",
            tenant: FromQuery[str] = "",
            after: FromQuery[str] = "",
            limit: Count = 100,
        ) -> OutdatedList:
            """List served revisions on bases that are superseded or retired; read on after `next_after`."""
            order = ListOutdated(
                credential=caller_of(request), base=base, tenant=tenant, after=after, num_max=limit
            )  # fmt: skip
            return await self._identity.call(order, OutdatedList)

        return [bases, outdated]

    def _changes(self) -> list[Any]:
        @post("/v1/bases/{base:str}/supersede", status_code=200, operation_class=operation_with(SupersedeBody))
        async def supersede(request: AnyRequest, base: FromPath[str]) -> BaseInfo:
            """Say that adapters on a base are to be trained for another one from now on (admin)."""
            credential = caller_of(request)
            body = await body_of(request, SupersedeBody)
            order = SupersedeBase(
                credential=credential, idempotency_key=idempotency_key_of(request), base=base, by=body.by
            )  # fmt: skip
            return await self._identity.call(order, BaseInfo)

        @post("/v1/bases/{base:str}/retire", status_code=200)
        async def retire(request: AnyRequest, base: FromPath[str]) -> BaseInfo:
            """Let nothing new be put on a base (admin)."""
            order = RetireBase(
                credential=caller_of(request), idempotency_key=idempotency_key_of(request), base=base
            )  # fmt: skip
            return await self._identity.call(order, BaseInfo)

        @post("/v1/bases/{base:str}/restore", status_code=200)
        async def restore(request: AnyRequest, base: FromPath[str]) -> BaseInfo:
            """Make a base current again (admin)."""
            order = RestoreBase(
                credential=caller_of(request), idempotency_key=idempotency_key_of(request), base=base
            )  # fmt: skip
            return await self._identity.call(order, BaseInfo)

        return [supersede, retire, restore]
