"""What tenants and adapters used, and how much a tenant may use, over HTTP: a thin client of identity."""

from typing import Any

from litestar import get, patch
from litestar.params import FromPath

from octavo_gateway.http_queries import Count
from octavo_gateway.http_request import AnyRequest, adapter_name, body_of, caller_of, idempotency_key_of
from octavo_gateway.http_schema import operation_with
from octavo_gateway.identity_client import IdentityClient
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.usage import LIMIT_MAX, GetUsage, Quota, Quotas, SetQuota, TenantQuotas, Usage
from octavo_shared.references import check_name


class UsageRoutes:
    """``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient) -> None:
        self._identity = identity

    def handlers(self) -> list[Any]:
        @get("/v1/usage")
        async def own_usage(request: AnyRequest, days: Count = 30) -> Usage:
            """Show what the key's tenant used on each of the last days, in UTC, and what it stores."""
            return await self._get(request, "", days)

        @get("/v1/tenants/{tenant:str}/usage")
        async def tenant_usage(request: AnyRequest, tenant: FromPath[str], days: Count = 30) -> Usage:
            """Show what a tenant used, and what it stores."""
            return await self._get(request, check_name(tenant, "tenant"), days)

        @get("/v1/adapters/{tenant:str}/{name:str}/usage")
        async def adapter_usage(
            request: AnyRequest, tenant: FromPath[str], name: FromPath[str], days: Count = 30
        ) -> Usage:
            """Show what an adapter was used for, by whomever, and what it stores."""
            return await self._get(request, adapter_name(tenant, name), days)

        @patch("/v1/tenants/{tenant:str}/quotas", status_code=200, operation_class=operation_with(Quotas))
        async def set_quotas(request: AnyRequest, tenant: FromPath[str]) -> TenantQuotas:
            """Set a tenant's limits that the body names, null removing one; the others stay (admin)."""
            credential = caller_of(request)
            limits = await body_of(request, dict[Quota, int | None])
            for quota, limit in limits.items():
                if limit is not None and not 0 <= limit <= LIMIT_MAX:
                    raise InvalidRequest(quota, f"must be 0 to {LIMIT_MAX}")
            order = SetQuota(
                credential=credential,
                idempotency_key=idempotency_key_of(request),
                tenant=check_name(tenant, "tenant"),
                limits=await body_of(request, dict[Quota, int | None]),
            )
            return await self._identity.call(order, TenantQuotas)

        return [own_usage, tenant_usage, adapter_usage, set_quotas]

    async def _get(self, request: AnyRequest, target: str, num_days: int) -> Usage:
        order = GetUsage(credential=caller_of(request), target=target, num_days=num_days)
        return await self._identity.call(order, Usage)
