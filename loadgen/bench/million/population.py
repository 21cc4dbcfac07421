"""Who owns which adapter: names and keys that every process of the benchmark derives from the seed alone."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from octavo_shared.messages.requests import Credential

_RUN = 250
"""So many adapters, one behind the other, are of one tenant, as where a tenant imports many."""


@dataclass(frozen=True)
class Population:
    """Adapters by number, dealt out to tenants in runs; one principal owns all of a tenant's."""

    seed: int
    num_tenants: int

    def tenant(self, number: int) -> str:
        """Return the name of a tenant by its number."""
        return f"t{number:04d}"

    def adapter(self, number: int) -> str:
        """Return the name of an adapter by its number, ``tenant/name``, as long as any other one's."""
        return f"{self.tenant(self.tenant_of(number))}/a{number:08d}"

    def tenant_of(self, number: int) -> int:
        """Return the number of the tenant whose adapter that is."""
        return number // _RUN % self.num_tenants

    def number(self, adapter: str) -> int:
        """Return the number of the adapter of that name."""
        return int(adapter.rpartition("/a")[2])

    def credential_of(self, number: int) -> Credential:
        """Return the key of the owner of an adapter."""
        return self.credential(self.tenant_of(number))

    def credential(self, tenant: int) -> Credential:
        """Return the key of the owner in a tenant."""
        return _credential(self.seed, tenant)


@lru_cache
def _credential(seed: int, tenant: int) -> Credential:
    drawn = hashlib.sha256(f"{seed} key {tenant}".encode()).digest()
    return Credential(drawn[:8].hex(), hashlib.sha256(drawn).digest())
