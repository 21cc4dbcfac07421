"""The warm tier: opened packs in host memory, keyed by (adapter id, digest), within a byte budget."""

from collections.abc import Iterable

from octavo_shared.policy import EvictionPolicy
from octavo_shared.references import PackKey
from octavo_shared.seal import wipe


class HostCache:
    """Packs in host memory. Not thread-safe: it belongs to the event loop.

    A pack that is evicted while somebody still copies from it stays alive until that copy ends: packs are not
    changed and counted by Python, so no pin is needed here.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._packs: dict[PackKey, bytes | bytearray] = {}
        self._policy = EvictionPolicy[PackKey]()
        self._used_bytes = 0
        self._cost_ms: dict[PackKey, float] = {}

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def __contains__(self, key: PackKey) -> bool:
        return key in self._packs

    def sizes(self) -> Iterable[tuple[PackKey, int]]:
        """Return every key with its size in bytes."""
        return [(key, len(pack)) for key, pack in self._packs.items()]

    def get(self, key: PackKey) -> bytes | bytearray | None:
        """Return the pack and count a use, or None."""
        pack = self._packs.get(key)
        if pack is not None:
            self._policy.used(key, len(pack), self._cost_ms[key])
        return pack

    def put(self, key: PackKey, pack: bytes | bytearray, cost_ms: float) -> bool:
        """Keep ``pack``, evicting others by policy; ``cost_ms`` is what fetching it from below took.

        Returns False, changing nothing, when it does not fit.
        """
        if key not in self._packs:
            if len(pack) > self.budget_bytes:
                return False
            for victim in self._policy.choose(self._used_bytes + len(pack) - self.budget_bytes):
                self._policy.evicted(victim)
                self._forget(victim)
            self._packs[key] = pack
            self._used_bytes += len(pack)
        self._cost_ms[key] = cost_ms
        # What is kept counts, should two packs ever claim one key.
        self._policy.used(key, len(self._packs[key]), cost_ms)
        return True

    def drop(self, key: PackKey) -> bool:
        """Let go of one pack by order; tell whether it was here."""
        if key not in self._packs:
            return False
        self._policy.dropped(key)
        self._forget(key)
        return True

    def erase(self, key: PackKey) -> None:
        """Drop one pack and overwrite its memory; nobody may be copying from it."""
        pack = self._packs.get(key)
        self.drop(key)
        if isinstance(pack, bytearray):
            wipe(pack)

    def _forget(self, key: PackKey) -> None:
        self._used_bytes -= len(self._packs.pop(key))
        del self._cost_ms[key]
