"""The verb that tells what was used."""

from datetime import UTC, datetime, timedelta
from functools import partial

from octavo_identity import access
from octavo_identity.desk import Desk, adapter_reference
from octavo_identity.metering import Metering
from octavo_identity.usage_tables import Counted, adapter_usage, tenant_usage
from octavo_shared.clock import wall_ms
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.usage import KEPT_DAYS, DayUsage, GetUsage, Quotas, Usage, day_of
from octavo_shared.references import check_name

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC).date()


class UsageVerbs:
    """One method, of the verb's name."""

    def __init__(self, desk: Desk, metering: Metering) -> None:
        self._desk = desk
        self._metering = metering

    async def usage(self, request: GetUsage) -> Usage:
        """Return what an adapter was used for to its owner and auditors, or a tenant to its owners and auditors.

        Holds all that gateways and this registry had acknowledged when it was asked. Reads only; raises
        ``DependencyUnavailable`` while that is not counted.
        """
        key = await self._desk.authenticate(request.credential)
        if not 1 <= request.num_days <= KEPT_DAYS:
            raise InvalidRequest("days", f"must be 1 to {KEPT_DAYS}")
        first_day = day_of(wall_ms()) - request.num_days + 1
        if "/" in request.target:
            reference = adapter_reference(request.target)
            head = access.check_usage(key, await self._desk.registry.head(reference))
            read = partial(adapter_usage, adapter_id=head.adapter_id, first_day=first_day)
            return _told(head.name, await self._metering.read(read), None)
        tenant = check_name(request.target or key.tenant, "tenant")
        access.check_tenant_usage(key, tenant)
        read = partial(tenant_usage, tenant_id=self._desk.ids.tenant(tenant), first_day=first_day)
        counted = await self._metering.read(read)
        return _told(tenant, counted, await self._desk.quotas_of(tenant))


def _told(target: str, counted: Counted, quotas: Quotas | None) -> Usage:
    days = tuple(DayUsage((_EPOCH + timedelta(day)).isoformat(), *numbers) for day, *numbers in counted.days)
    return Usage(target, days, counted.num_adapters, counted.pack_bytes, quotas)
