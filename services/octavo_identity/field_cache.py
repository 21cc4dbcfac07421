"""The keys that adapters' events are opened with, as far as this process has needed them lately. Memory only."""

from collections import OrderedDict

from octavo_shared.references import AdapterId
from octavo_shared.sealed_event import field_key

FIELD_KEYS_MAX = 250_000
"""Some 350 bytes each. What is not here costs a read of the leader, beside the one of the head."""
_ABSENT = b""


class FieldCache:
    """The latest used. They decide nothing: what may be read is told by a head, which the leader is asked for.

    That there is no key is kept, too: whoever asks for an adapter that is not there waits for as much as who asks for
    another's. Both may be out of date; then an event does not open, and its key is read again.
    """

    def __init__(self, num_max: int = FIELD_KEYS_MAX) -> None:
        self._keys: OrderedDict[AdapterId, bytes] = OrderedDict()
        self._num_max = num_max

    def __len__(self) -> int:
        return len(self._keys)

    def knows(self, adapter_id: AdapterId) -> bool:
        """Tell whether it is known here which key there is, or that there is none."""
        return adapter_id in self._keys

    def get(self, adapter_id: AdapterId) -> bytes | None:
        key = self._keys.get(adapter_id)
        if key is not None:
            self._keys.move_to_end(adapter_id)
        return key or None

    def keep(self, adapter_id: AdapterId, data_key: bytes) -> bytes:
        """Return the field key that comes from an adapter's ``data_key``, and keep it for a while."""
        return self._put(adapter_id, field_key(data_key))

    def keep_absent(self, adapter_id: AdapterId) -> None:
        """Note that the adapter has no key, or none any more."""
        self._put(adapter_id, _ABSENT)

    def _put(self, adapter_id: AdapterId, key: bytes) -> bytes:
        self._keys[adapter_id] = key
        self._keys.move_to_end(adapter_id)
        if len(self._keys) > self._num_max:
            self._keys.popitem(last=False)
        return key

    def forget(self, adapter_id: AdapterId) -> None:
        self._keys.pop(adapter_id, None)

    def forget_all(self) -> None:
        self._keys.clear()
