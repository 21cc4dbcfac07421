"""What is served of an adapter, and whose it is, over HTTP: promote, retire, branch, tag… Thin clients of identity."""

from typing import Any

from litestar import delete, post
from litestar.params import FromPath

from octavo_gateway.http_request import (
    AnyRequest,
    adapter_name,
    body_of,
    caller_of,
    idempotency_key_of,
    revision_reference,
)
from octavo_gateway.http_schema import operation_with
from octavo_gateway.identity_client import IdentityClient
from octavo_gateway.registry_bodies import BranchBody, PromoteBody, RetireBody, RollbackBody, TagBody, TransferBody
from octavo_shared.messages.adapters import AdapterInfo
from octavo_shared.messages.grants import Transfer
from octavo_shared.messages.lifecycle import Branch, Promote, Retire, Rollback, Tag, Unalias
from octavo_shared.references import parse_reference


class LifecycleRoutes:
    """Routes under one adapter; ``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient) -> None:
        self._identity = identity

    def handlers(self) -> list[Any]:
        return [*self._aliases(), *self._others()]

    def _aliases(self) -> list[Any]:
        @post("/v1/adapters/{tenant:str}/{name:str}/promote", status_code=200,
              operation_class=operation_with(PromoteBody))  # fmt: skip
        async def promote(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> AdapterInfo:
            """Let an alias name a revision, if it still names the expected one."""
            credential = caller_of(request)
            body = await body_of(request, PromoteBody)
            order = Promote(
                credential=credential,
                idempotency_key=idempotency_key_of(request),
                reference=revision_reference(tenant, name, str(body.revision)),
                alias=body.alias,
                share_percent=body.share,
                expected=body.expect,
            )
            return await self._identity.call(order, AdapterInfo)

        @post("/v1/adapters/{tenant:str}/{name:str}/rollback", status_code=200)
        async def rollback(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> AdapterInfo:
            """Move an alias back."""
            credential = caller_of(request)
            body = await body_of(request, RollbackBody)
            order = Rollback(
                credential=credential,
                idempotency_key=idempotency_key_of(request),
                adapter=adapter_name(tenant, name),
                number=body.revision,
                alias=body.alias,
            )
            return await self._identity.call(order, AdapterInfo)

        @delete("/v1/adapters/{tenant:str}/{name:str}/aliases/{alias:str}", status_code=200)
        async def unalias(
            request: AnyRequest, tenant: FromPath[str], name: FromPath[str], alias: FromPath[str]
        ) -> AdapterInfo:
            """Remove an alias, but for `serving`."""
            order = Unalias(
                credential=caller_of(request),
                idempotency_key=idempotency_key_of(request),
                adapter=adapter_name(tenant, name),
                alias=alias,
            )
            return await self._identity.call(order, AdapterInfo)

        return [promote, rollback, unalias]

    def _others(self) -> list[Any]:
        @post("/v1/adapters/{tenant:str}/{name:str}/retire", status_code=200,
              operation_class=operation_with(RetireBody))  # fmt: skip
        async def retire(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> AdapterInfo:
            """Never serve a revision again; there is no way back."""
            credential = caller_of(request)
            body = await body_of(request, RetireBody)
            order = Retire(
                credential=credential,
                idempotency_key=idempotency_key_of(request),
                adapter=adapter_name(tenant, name),
                number=body.revision,
            )
            return await self._identity.call(order, AdapterInfo)

        @post("/v1/adapters/{tenant:str}/{name:str}/branch", status_code=200,
              operation_class=operation_with(BranchBody))  # fmt: skip
        async def branch(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> AdapterInfo:
            """Make this new adapter from a revision of one that this key may use."""
            credential = caller_of(request)
            body = await body_of(request, BranchBody)
            order = Branch(
                credential=credential,
                idempotency_key=idempotency_key_of(request),
                source=str(parse_reference(body.source, "source")),
                adapter=adapter_name(tenant, name),
                alias=body.alias,
                statement=body.statement,
            )
            return await self._identity.call(order, AdapterInfo)

        @post("/v1/adapters/{tenant:str}/{name:str}/tags", status_code=200,
              operation_class=operation_with(TagBody))  # fmt: skip
        async def tag(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> AdapterInfo:
            """Add and remove tags."""
            credential = caller_of(request)
            body = await body_of(request, TagBody)
            order = Tag(
                credential=credential,
                idempotency_key=idempotency_key_of(request),
                adapter=adapter_name(tenant, name),
                add=body.add,
                remove=body.remove,
            )
            return await self._identity.call(order, AdapterInfo)

        @post("/v1/adapters/{tenant:str}/{name:str}/transfer", status_code=200,
              operation_class=operation_with(TransferBody))  # fmt: skip
        async def transfer(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> AdapterInfo:
            """Make somebody else of the tenant the adapter's owner."""
            credential = caller_of(request)
            body = await body_of(request, TransferBody)
            order = Transfer(
                credential=credential,
                idempotency_key=idempotency_key_of(request),
                adapter=adapter_name(tenant, name),
                owner=body.owner,
            )
            return await self._identity.call(order, AdapterInfo)

        return [retire, branch, tag, transfer]
