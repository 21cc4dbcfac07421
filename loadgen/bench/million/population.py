"""Who owns which adapter: names and keys that every process of the benchmark derives from the seed alone."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from octavo_shared.messages.requests import Credential


@dataclass(frozen=True)
class Population:
    """Adapters by number, dealt out to tenants in turn; one principal owns all of a tenant's."""

    seed: int
    num_tenants: int

    def tenant(self, number: int) -> str:
        """Return the name of a tenant by its number."""
        return f"t{number:04d}"

    def adapter(self, number: int) -> str:
        """Return the name of an adapter by its number, ``tenant/name``, as long as any other one's."""
        return f"{self.tenant(number % self.num_tenants)}/a{number:08d}"

    def number(self, adapter: str) -> int:
        """Return the number of the adapter of that name."""
        return int(adapter.rpartition("/a")[2])

    def credential_of(self, number: int) -> Credential:
        """Return the key of the owner of an adapter."""
        return self.credential(number % self.num_tenants)

    def credential(self, tenant: int) -> Credential:
        """Return the key of the owner in a tenant."""
        return _credential(self.seed, tenant)


@lru_cache
def _credential(seed: int, tenant: int) -> Credential:
    drawn = hashlib.sha256(f"{seed} key {tenant}".encode()).digest()
    return Credential(drawn[:8].hex(), hashlib.sha256(drawn).digest())
