"""The gateway's client for what was used, and how much may be."""

from octavo_cli.answers import ClientError
from octavo_cli.connection import Connection, adapter_path
from octavo_shared.messages.usage import TenantQuotas, Usage
from octavo_shared.references import check_name, parse_reference


class UsageClient(Connection):
    """Shows what was used, and sets what may be."""

    def usage(self, target: str, num_days: int) -> Usage:
        """Return what ``tenant/adapter`` or ``tenant`` used; empty: the tenant of the key."""
        return self._call("GET", _path(target), Usage, query={"days": num_days})

    def set_quotas(self, tenant: str, limits: dict[str, object]) -> TenantQuotas:
        """Set the limits that are named; None removes one."""
        return self._call("PATCH", f"/v1/tenants/{check_name(tenant, 'tenant')}/quotas", TenantQuotas, limits)


def _path(target: str) -> str:
    if not target:
        return "/v1/usage"
    if "/" not in target:
        return f"/v1/tenants/{check_name(target, 'tenant')}/usage"
    parsed = parse_reference(target, "adapter")
    if parsed.names_revision:
        raise ClientError("usage", "usage is an adapter's or a tenant's, not a revision's", 0)
    return f"{adapter_path(parsed.name)}/usage"
