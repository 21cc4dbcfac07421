"""The verb on quotas: what all of a tenant may use is for whoever runs the deployment to say."""

import msgspec

from octavo_identity import access
from octavo_identity.desk import Desk
from octavo_identity.records import TenantHead
from octavo_identity.tenancy import TenantChange, change_tenant
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.usage import LIMIT_MAX, Quotas, SetQuota, TenantQuotas
from octavo_shared.references import check_name


class QuotaVerbs:
    """One method, of the verb's name."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def set_quota(self, request: SetQuota) -> TenantQuotas:
        """Set or remove some of a tenant's limits; the others stay. Admins only.

        What is there already stays, however much it is. Idempotent by key, and what is so already is no event.
        """
        key = await self._desk.authenticate(request.credential)
        access.check_admin(key, "set the quotas of a tenant")
        tenant = check_name(request.tenant, "tenant")
        if not request.limits:
            raise InvalidRequest("limits", "must name a quota")
        for quota, limit in request.limits.items():
            if limit is not None and not 0 <= limit <= LIMIT_MAX:
                raise InvalidRequest(quota, f"must be 0 to {LIMIT_MAX}")
        changes = {quota.value: limit for quota, limit in request.limits.items()}

        def limit_it(head: TenantHead) -> TenantChange | None:
            new = msgspec.structs.replace(head.quotas or Quotas(), **changes)
            if new == (head.quotas or Quotas()):
                return None
            told = ", ".join(f"{name} {'none' if limit is None else limit}" for name, limit in changes.items())
            return TenantChange("quota_set", msgspec.structs.replace(head, quotas=new), told)

        head = await change_tenant(self._desk, key, tenant, request.idempotency_key, limit_it)
        return TenantQuotas(tenant, head.quotas or Quotas())
