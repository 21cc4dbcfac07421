"""How long a fault kept writes from being acknowledged. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chaos.faults import Fault, FaultKind
from chaos.writer import Acknowledged


@dataclass(frozen=True)
class Recovery:
    """``any_write_s`` is until the next write that was sent after the fault was acknowledged, ``push_s`` the same of
    pushes, which also need the object store; infinite where there was none."""

    fault: Fault
    any_write_s: float
    push_s: float

    @property
    def recovery_s(self) -> float:
        """What counts: of a fault of the object store it is the pushes' that tells anything."""
        return self.push_s if self.fault.kind is FaultKind.STORE_STOPPED else self.any_write_s

    @property
    def store_s(self) -> float | None:
        """How much of that a stopped store was away for, whoever wanted it; of what is left, we are the cause."""
        return None if self.fault.stores_s is None else self.fault.stores_s - self.fault.begun_s


def recoveries(faults: Sequence[Fault], acknowledged: Sequence[Acknowledged]) -> list[Recovery]:
    """Return the recovery from each fault, since it could be recovered from.

    Attempts that were on their way then do not count.
    """
    return [
        Recovery(fault, _next_s(fault, acknowledged), _next_s(fault, [one for one in acknowledged if one.is_push]))
        for fault in faults
    ]


def _next_s(fault: Fault, acknowledged: Sequence[Acknowledged]) -> float:
    since_s = fault.recoverable_s
    after = [one.acknowledged_s for one in acknowledged if one.sent_s >= since_s]
    return min(after, default=float("inf")) - since_s


def quantile_s(values: Sequence[float], share: float) -> float:
    """Return the smallest value that ``share`` of ``values`` do not exceed; infinite when there are none."""
    return float(np.quantile(values, share, method="inverted_cdf")) if values else float("inf")
