"""Tenants: those whose adapters are kept apart from those of all others."""

import msgspec

from octavo_shared.messages.requests import Write


class CreateTenant(Write, frozen=True, kw_only=True):
    tenant: str


class TenantCreated(msgspec.Struct, frozen=True):
    tenant: str
