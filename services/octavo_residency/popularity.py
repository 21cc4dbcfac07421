"""How often each adapter is asked for, fleet-wide: counts that halve with time, in bounded memory. Pure."""

from collections import OrderedDict

from octavo_shared.references import AdapterId

_HALF_LIFE_MS = 10 * 60 * 1000.0
_NUM_ADAPTERS_MAX = 100_000


class Popularity:
    """A decayed demand count per adapter. It outlives residency: who comes back is remembered."""

    def __init__(self, half_life_ms: float = _HALF_LIFE_MS, num_adapters_max: int = _NUM_ADAPTERS_MAX) -> None:
        self._half_life_ms = half_life_ms
        self._num_adapters_max = num_adapters_max
        self._counts: OrderedDict[AdapterId, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def asked(self, adapter_id: AdapterId, now_ms: float) -> None:
        """Count one demand; beyond the bound the adapter that was not asked for longest is forgotten."""
        self._counts[adapter_id] = (self.frequency(adapter_id, now_ms) + 1.0, now_ms)
        self._counts.move_to_end(adapter_id)
        if len(self._counts) > self._num_adapters_max:
            self._counts.popitem(last=False)

    def frequency(self, adapter_id: AdapterId, now_ms: float) -> float:
        """Return the decayed number of demands; 0 for one that was never asked for."""
        count, at_ms = self._counts.get(adapter_id, (0.0, now_ms))
        return float(count * 0.5 ** (max(now_ms - at_ms, 0.0) / self._half_life_ms))
