"""Fair shares of the device: who was served least comes next, counted in tokens. Pure.

Source: virtual token counters (Sheng et al., "Fairness in serving large language models", arXiv:2401.00588).
"""

from collections import Counter

from octavo_shared.references import TenantId

PROMPT_WEIGHT = 1.0
ANSWER_WEIGHT = 2.0
"""A decoded token costs a row in a step of its own; a prompt's tokens share theirs."""
_TENANTS_MAX = 10_000


class TenantShares:
    """What each tenant was served. A tenant that was idle does not get later what it did not ask for meanwhile."""

    def __init__(self, num_tenants_max: int = _TENANTS_MAX) -> None:
        self._num_tenants_max = num_tenants_max
        self._served: dict[TenantId, float] = {}
        self._num_sequences: Counter[TenantId] = Counter()

    def arrived(self, tenant_id: TenantId) -> None:
        """A sequence of this tenant is here. Its first one lifts the tenant to whoever with work here had least."""
        if not self._num_sequences[tenant_id]:
            least = min(
                (self._served[other] for other in self._num_sequences if self._num_sequences[other]), default=0.0
            )
            self._served[tenant_id] = max(self._served.pop(tenant_id, 0.0), least)
            self._forget_idle()
        self._num_sequences[tenant_id] += 1

    def left(self, tenant_id: TenantId) -> None:
        """A sequence of this tenant has ended; what the tenant was served is remembered for when it comes back."""
        self._num_sequences[tenant_id] -= 1
        if not self._num_sequences[tenant_id]:
            del self._num_sequences[tenant_id]

    def charge(self, tenant_id: TenantId, num_prompt_tokens: int, num_answer_tokens: int) -> None:
        """Count what was computed for a tenant that has a sequence here."""
        self._served[tenant_id] += PROMPT_WEIGHT * num_prompt_tokens + ANSWER_WEIGHT * num_answer_tokens

    def served(self, tenant_id: TenantId) -> float:
        """Return what a tenant was served, in weighted tokens; comparable between tenants only."""
        return self._served[tenant_id]

    def _forget_idle(self) -> None:
        if len(self._served) > self._num_tenants_max:
            for tenant_id in [one for one in self._served if not self._num_sequences[one]]:
                if len(self._served) <= self._num_tenants_max:
                    return
                del self._served[tenant_id]
