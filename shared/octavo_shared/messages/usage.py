"""What tenants and adapters used, tokens as gateways count them, pushes and packs as the registry knows them, and how
much of it a tenant may use.
"""

from enum import StrEnum

import msgspec

from octavo_shared.messages.requests import Request, Write
from octavo_shared.references import AdapterId, TenantId

KEPT_DAYS = 92
"""How long what was used on a day can be asked for, and how long the records of it are kept."""
DAY_MS = 86_400_000
LIMIT_MAX = 2**53
"""What every JSON parser can tell from its neighbours."""
ROWS_MAX = 4_096
"""Of one record: some 400 kB."""


def day_of(at_ms: int) -> int:
    """Return the day, in UTC, counted from 1 January 1970."""
    return at_ms // DAY_MS


def left_of_day_s(at_ms: int) -> int:
    """Return the seconds until the next day begins, 1 or more."""
    return -(-(DAY_MS - at_ms % DAY_MS) // 1_000)


class UsageRow(msgspec.Struct, frozen=True, array_like=True):
    """What requests that ended on ``day`` used: a tenant's keys asked for them, of one adapter (empty: the base)."""

    tenant_id: TenantId
    adapter_id: AdapterId
    day: int
    num_requests: int
    num_prompt_tokens: int
    num_completion_tokens: int


class UsageRecord(msgspec.Struct, frozen=True):
    """What a gateway counted since its last record.

    ``number`` counts its records from 1. It sends the next one only when the last one is stored, so whoever has
    taken one in needs none of the same or a smaller number any more: however often it was sent, it counts once.
    """

    gateway_id: str
    number: int
    rows: tuple[UsageRow, ...]


class Quota(StrEnum):
    """What a tenant may be limited in. Tokens are those that its keys ask for, prompts and answers together."""

    TOKENS_PER_DAY = "tokens_per_day"
    PUSHES_PER_DAY = "pushes_per_day"
    STORAGE_BYTES = "storage_bytes"
    ADAPTERS = "adapters"


class Quotas(msgspec.Struct, frozen=True):
    """Limits by the name of their ``Quota``; None: as much as there is. Days are those of UTC."""

    tokens_per_day: int | None = None
    pushes_per_day: int | None = None
    storage_bytes: int | None = None
    adapters: int | None = None


class SetQuota(Write, frozen=True, kw_only=True):
    """Set some of the limits of ``tenant``; None removes one."""

    tenant: str
    limits: dict[Quota, int | None]


class TenantQuotas(msgspec.Struct, frozen=True):
    tenant: str
    quotas: Quotas


class QuotaUse(msgspec.Struct, frozen=True):
    """``used`` of the ``limit`` of ``quota``."""

    quota: Quota
    limit: int
    used: int


class GetUsage(Request, frozen=True, kw_only=True):
    """``target`` is ``tenant/adapter``, or ``tenant``; empty: the tenant of the key. The last ``num_days`` days."""

    target: str = ""
    num_days: int = 30


class DayUsage(msgspec.Struct, frozen=True):
    """One day in UTC, as in ``2026-11-28``."""

    day: str
    num_requests: int
    num_prompt_tokens: int
    num_completion_tokens: int
    num_pushes: int


class Usage(msgspec.Struct, frozen=True):
    """Of ``target``: each day on which something was used, newest first, and what is stored now.

    A tenant's tokens are those that its keys asked for, of whosever adapters; an adapter's are those that were asked
    of it, by whomever. What was erased stays in its tenant's days.
    """

    target: str
    days: tuple[DayUsage, ...]
    num_adapters: int
    pack_bytes: int
    quotas: Quotas | None = None
    """Of a tenant."""
