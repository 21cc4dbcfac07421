"""The keys that adapters' events are opened with, as far as this process has seen them lately. Memory only."""

import hashlib
import mmap

from octavo_shared.references import AdapterId
from octavo_shared.sealed_event import field_key

FIELD_KEYS_MAX = 2**21
"""48 bytes each, taken as they are needed. What is not here costs a read of the leader, beside the one of the head."""
_WAYS = 16
_NAME_BYTES, _KEY_BYTES = 16, 32
_ENTRY_BYTES = _NAME_BYTES + _KEY_BYTES
_ABSENT = bytes(_KEY_BYTES)


class FieldCache:
    """The latest used, or nearly so: each adapter has its place in one of many small sets, the latest used in front.

    They decide nothing: what may be read is told by a head, which the leader is asked for. That there is no key is
    kept, too: whoever asks for an adapter that is not there waits for as much as who asks for another's. Both may be
    out of date; then an event does not open, and its key is read again.
    """

    def __init__(self, num_max: int = FIELD_KEYS_MAX) -> None:
        self._set_bytes = min(_WAYS, num_max) * _ENTRY_BYTES
        self._num_sets = num_max * _ENTRY_BYTES // self._set_bytes
        self.forget_all()

    def __len__(self) -> int:
        return self._num_kept

    def knows(self, adapter_id: AdapterId) -> bool:
        """Tell whether it is known here which key there is, or that there is none."""
        return self._find(_name(adapter_id))[1] is not None

    def get(self, adapter_id: AdapterId) -> bytes | None:
        begin, at = self._find(_name(adapter_id))
        if at is None:
            return None
        entry = self._table[at : at + _ENTRY_BYTES]
        self._table[begin : at + _ENTRY_BYTES] = entry + self._table[begin:at]
        key = entry[_NAME_BYTES:]
        return key if key != _ABSENT else None

    def keep(self, adapter_id: AdapterId, data_key: bytes) -> bytes:
        """Return the field key that comes from an adapter's ``data_key``, and keep it for a while."""
        return self.put(adapter_id, field_key(data_key))

    def keep_absent(self, adapter_id: AdapterId) -> None:
        """Note that the adapter has no key, or none any more."""
        self.put(adapter_id, _ABSENT)

    def put(self, adapter_id: AdapterId, key: bytes) -> bytes:
        """Keep an adapter's field key for a while, and return it."""
        name = _name(adapter_id)
        begin, at = self._find(name)
        if at is None:
            # The last one of the set goes, if there is one.
            at = begin + self._set_bytes - _ENTRY_BYTES
            self._num_kept += self._table[at : at + _NAME_BYTES] == bytes(_NAME_BYTES)
        self._table[begin : at + _ENTRY_BYTES] = name + key + self._table[begin:at]
        return key

    def forget(self, adapter_id: AdapterId) -> None:
        begin, at = self._find(_name(adapter_id))
        if at is not None:
            end = begin + self._set_bytes
            self._table[at:end] = self._table[at + _ENTRY_BYTES : end] + bytes(_ENTRY_BYTES)
            self._num_kept -= 1

    def forget_all(self) -> None:
        self._table = mmap.mmap(-1, self._num_sets * self._set_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._num_kept = 0

    def _find(self, name: bytes) -> tuple[int, int | None]:
        """Return where the set for ``name`` begins, and where in it the name is."""
        begin = int.from_bytes(name[:8], "big") % self._num_sets * self._set_bytes
        at = begin - 1
        while (at := self._table.find(name, at + 1, begin + self._set_bytes)) >= 0:
            if (at - begin) % _ENTRY_BYTES == 0:
                return begin, at
        return begin, None


def _name(adapter_id: AdapterId) -> bytes:
    return hashlib.blake2b(adapter_id.encode(), digest_size=_NAME_BYTES).digest()
