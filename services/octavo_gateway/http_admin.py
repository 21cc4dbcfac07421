"""Tenants and commands to the fleet over HTTP."""

from typing import Any

from litestar import get, post
from litestar.params import FromPath

from octavo_gateway.http_request import AnyRequest, adapter_name, body_of, caller_of, idempotency_key_of
from octavo_gateway.identity_client import IdentityClient
from octavo_gateway.registry_bodies import EvictBody, TenantBody
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.errors import InvalidRequest, NotPermitted
from octavo_shared.messages.fleet import EvictCommand, EvictReport, View, ViewCommand
from octavo_shared.messages.generation import Tier
from octavo_shared.messages.keys import KeyInfo, Role, Scope, Whoami
from octavo_shared.messages.resolving import Locate, Resolution
from octavo_shared.messages.tenants import CreateTenant, TenantCreated
from octavo_shared.references import check_name

_RESIDENCY_TIMEOUT_S = 10.0
_TIERS_BELOW_DEVICE = (Tier.WARM, Tier.LOCAL, Tier.COLD)


class AdminRoutes:
    """Routes for those who run a tenant or the deployment; ``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient, bus: Bus) -> None:
        self._identity = identity
        self._bus = bus

    def handlers(self) -> list[Any]:
        return [*self._tenants(), *self._fleet()]

    def _tenants(self) -> list[Any]:
        @post("/v1/tenants", status_code=200)
        async def create_tenant(request: AnyRequest) -> TenantCreated:
            """Create a tenant."""
            credential = caller_of(request)
            tenant = check_name((await body_of(request, TenantBody)).tenant, "tenant")
            order = CreateTenant(credential=credential, idempotency_key=idempotency_key_of(request), tenant=tenant)
            return await self._identity.call(order, TenantCreated)

        return [create_tenant]

    def _fleet(self) -> list[Any]:
        @post("/v1/adapters/{tenant:str}/{name:str}/evict", status_code=200)
        async def evict(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> EvictReport:
            """Drop an adapter's copies above a tier on every worker; its revisions stay."""
            body = await body_of(request, EvictBody)
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
            key = await self._identity.call(Whoami(credential=caller_of(request)), KeyInfo)
            if key.role is not Role.ADMIN or Scope.MANAGE not in key.scopes or key.adapters:
                raise NotPermitted("see the fleet")
            return await self._bus.request(
                subjects.residency("view"), ViewCommand(), View, _RESIDENCY_TIMEOUT_S, "the residency manager"
            )

        return [evict, fleet]
