"""Tenants, keys and commands to the fleet over HTTP."""

import uuid
from typing import Any

from litestar import delete, get, post
from litestar.params import FromPath

from octavo_gateway.bodies import decode_body
from octavo_gateway.credentials import new_key
from octavo_gateway.http_errors import AnyRequest
from octavo_gateway.http_generation import read_body
from octavo_gateway.http_registry import adapter_name, caller_of, idempotency_key_of
from octavo_gateway.identity_client import IdentityClient
from octavo_gateway.registry_bodies import EvictBody, KeyBody, KeyReply, TenantBody
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.errors import InvalidRequest, NotPermitted
from octavo_shared.messages.fleet import EvictCommand, EvictReport, View, ViewCommand
from octavo_shared.messages.generation import Tier
from octavo_shared.messages.identity import (
    CreateTenant,
    IssueKey,
    KeyIssued,
    Locate,
    Resolution,
    RevokeKey,
    Role,
    TenantCreated,
)
from octavo_shared.references import check_name

_RESIDENCY_TIMEOUT_S = 10.0
_TIERS_BELOW_DEVICE = (Tier.WARM, Tier.LOCAL, Tier.COLD)


class AdminRoutes:
    """Routes for those who run a tenant or the deployment; ``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient, bus: Bus) -> None:
        self._identity = identity
        self._bus = bus

    def handlers(self) -> list[Any]:
        return [*self._keys(), *self._fleet()]

    def _keys(self) -> list[Any]:
        @post("/v1/tenants", status_code=200)
        async def create_tenant(request: AnyRequest) -> TenantCreated:
            """Create a tenant."""
            credential = caller_of(request)
            tenant = check_name(decode_body(await read_body(request), TenantBody).tenant, "tenant")
            order = CreateTenant(credential=credential, idempotency_key=idempotency_key_of(request), tenant=tenant)
            return await self._identity.call(order, TenantCreated)

        @post("/v1/tenants/{tenant:str}/keys", status_code=200)
        async def issue_key(request: AnyRequest, tenant: FromPath[str]) -> KeyReply:
            """Issue a key. Its text is in this answer and nowhere else, so a repeated request makes another one."""
            credential = caller_of(request)
            body = decode_body(await read_body(request), KeyBody)
            text, fresh = new_key()
            order = IssueKey(
                credential=credential,
                idempotency_key=uuid.uuid4().hex,
                tenant=check_name(tenant, "tenant"),
                user=check_name(body.user, "user"),
                role=body.role,
                key_id=fresh.key_id,
                secret_sha256=fresh.secret_sha256,
            )
            issued = await self._identity.call(order, KeyIssued)
            return KeyReply(text, issued.key_id, issued.principal, issued.role)

        @delete("/v1/keys/{key_id:str}", status_code=200)
        async def revoke_key(request: AnyRequest, key_id: FromPath[str]) -> KeyIssued:
            """Revoke a key."""
            order = RevokeKey(credential=caller_of(request), idempotency_key=idempotency_key_of(request), key_id=key_id)
            return await self._identity.call(order, KeyIssued)

        return [create_tenant, issue_key, revoke_key]

    def _fleet(self) -> list[Any]:
        @post("/v1/adapters/{tenant:str}/{name:str}/evict", status_code=200)
        async def evict(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> EvictReport:
            """Drop an adapter's copies above a tier on every worker; its revisions stay."""
            body = decode_body(await read_body(request), EvictBody)
            if body.tier not in _TIERS_BELOW_DEVICE:
                raise InvalidRequest("tier", f"must be one of {', '.join(_TIERS_BELOW_DEVICE)}")
            locate = Locate(credential=caller_of(request), reference=adapter_name(tenant, name))
            resolution = await self._identity.call(locate, Resolution)
            assert resolution.adapter is not None, "a reference was asked for"
            order = EvictCommand(resolution.adapter, body.tier)
            return await self._bus.request(
                subjects.residency("evict"), order, EvictReport, _RESIDENCY_TIMEOUT_S, "the residency manager"
            )

        @get("/v1/fleet")
        async def fleet(request: AnyRequest) -> View:
            """Show what is where."""
            resolution = await self._identity.resolve(caller_of(request), None)
            if resolution.role is not Role.ADMIN:
                raise NotPermitted("see the fleet")
            return await self._bus.request(
                subjects.residency("view"), ViewCommand(), View, _RESIDENCY_TIMEOUT_S, "the residency manager"
            )

        return [evict, fleet]
