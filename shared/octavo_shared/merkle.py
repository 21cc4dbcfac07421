"""Merkle trees as RFC 6962 and RFC 9162 define them: an append-only tree, its proofs, and what a verifier does.

Everything is SHA-256. A leaf is hashed behind a zero byte and a node behind a one byte, so that neither can pass for
the other.
"""

import functools
import hashlib
from collections.abc import Sequence

HASH_BYTES = 32
_STORED_EVERY = 4
"""Each fourth level is kept, which takes half the memory of all: a node between two costs at most seven hashes."""
_PAIR_BYTES = 2 * HASH_BYTES
_GROUP_BYTES = HASH_BYTES << _STORED_EVERY
"""What lies below one node of the next level that is kept."""


def hash_leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def hash_children(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """Grows by leaf hashes and answers for every size that it ever had: 34 MB of memory for a million leaves."""

    def __init__(self) -> None:
        self._levels = [bytearray()]

    @property
    def size(self) -> int:
        return len(self._levels[0]) // HASH_BYTES

    def append(self, leaf_hash: bytes) -> None:
        """Add one leaf behind the last."""
        self.extend((leaf_hash,))

    def extend(self, leaf_hashes: Sequence[bytes]) -> None:
        """Add leaves behind the last."""
        assert all(len(leaf) == HASH_BYTES for leaf in leaf_hashes)
        leaves = self._levels[0]
        groups = len(leaves) // _GROUP_BYTES
        leaves += b"".join(leaf_hashes)
        level = 0
        while groups < (complete := len(self._levels[level]) // _GROUP_BYTES):
            added = _tops(bytes(self._levels[level][groups * _GROUP_BYTES : complete * _GROUP_BYTES]))
            level += 1
            if level == len(self._levels):
                self._levels.append(bytearray())
            groups = len(self._levels[level]) // _GROUP_BYTES
            self._levels[level] += added

    def leaf(self, index: int) -> bytes:
        """Return the hash of leaf ``index``."""
        return self._node(0, index)

    def find(self, leaf_hash: bytes, first: int, last: int) -> int | None:
        """Return the index of a leaf from ``first`` to ``last``, both included, that has this hash."""
        leaves, at = self._levels[0], first * HASH_BYTES
        while (at := leaves.find(leaf_hash, at, (last + 1) * HASH_BYTES)) >= 0 and at % HASH_BYTES:
            at += 1
        return at // HASH_BYTES if at >= 0 else None

    def root(self, size: int) -> bytes:
        """Return the root that the tree had, or has, with ``size`` leaves."""
        assert 0 <= size <= self.size
        return self._subtree(0, size) if size else hashlib.sha256().digest()

    def inclusion_proof(self, index: int, size: int) -> tuple[bytes, ...]:
        """Return the hashes that lead from leaf ``index`` to the root of ``size`` leaves, the lowest first."""
        assert 0 <= index < size <= self.size
        path = []
        first = 0
        while size > 1:
            split = _split(size)
            if index < first + split:
                path.append(self._subtree(first + split, size - split))
                size = split
            else:
                path.append(self._subtree(first, split))
                first, size = first + split, size - split
        return tuple(reversed(path))

    def consistency_proof(self, old_size: int, size: int) -> tuple[bytes, ...]:
        """Return the hashes that show that the first ``old_size`` of ``size`` leaves are what they were."""
        assert 0 <= old_size <= size <= self.size
        if old_size in (0, size):
            return ()
        path = []
        first, is_known = 0, True
        while first + size != old_size:
            split = _split(size)
            if old_size <= first + split:
                path.append(self._subtree(first + split, size - split))
                size = split
            else:
                path.append(self._subtree(first, split))
                first, size, is_known = first + split, size - split, False
        if not is_known:
            path.append(self._subtree(first, size))
        return tuple(reversed(path))

    def _subtree(self, first: int, size: int) -> bytes:
        if size & (size - 1) == 0:
            level = size.bit_length() - 1
            return self._node(level, first >> level)
        split = _split(size)
        return hash_children(self._subtree(first, split), self._subtree(first + split, size - split))

    def _node(self, level: int, index: int) -> bytes:
        if level % _STORED_EVERY:
            return self._computed(level, index)
        stored = self._levels[level // _STORED_EVERY]
        return bytes(stored[index * HASH_BYTES : (index + 1) * HASH_BYTES])

    def _computed(self, level: int, index: int) -> bytes:
        return hash_children(self._node(level - 1, 2 * index), self._node(level - 1, 2 * index + 1))


class Frontier:
    """Grows by leaf hashes and keeps no more of them than its next root needs: 640 bytes for a million leaves.

    ``hashes`` are the roots of the complete subtrees that it consists of, the largest first.
    """

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        assert len(hashes) == size.bit_count()
        self.size = size
        self._hashes = list(hashes)

    @property
    def hashes(self) -> tuple[bytes, ...]:
        return tuple(self._hashes)

    def append(self, leaf_hash: bytes) -> None:
        """Add one leaf behind the last."""
        merged, found = self.size, leaf_hash
        while merged & 1:
            found, merged = hash_children(self._hashes.pop(), found), merged >> 1
        self._hashes.append(found)
        self.size += 1

    def root(self) -> bytes:
        """Return the root of all leaves so far."""
        if not self._hashes:
            return hashlib.sha256().digest()
        return functools.reduce(lambda right, left: hash_children(left, right), reversed(self._hashes))


def is_included(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Tell whether ``proof`` leads from the leaf at ``index`` to the ``root`` of ``size`` leaves (RFC 9162, 2.1.3.2).

    Size and root belong together: trust both from one signed checkpoint, or neither.
    """
    if not 0 <= index < size:
        return False
    here, last, found = index, size - 1, leaf_hash
    for hash_ in proof:
        if last == 0 or len(hash_) != HASH_BYTES:
            return False
        if here & 1 or here == last:
            found = hash_children(hash_, found)
            while here and not here & 1:
                here, last = here >> 1, last >> 1
        else:
            found = hash_children(found, hash_)
        here, last = here >> 1, last >> 1
    return last == 0 and found == root


def is_consistent(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Tell whether the tree of ``size`` leaves begins with that of ``old_size`` (RFC 9162, 2.1.4.2)."""
    if old_size == 0:
        return not proof and old_root == hashlib.sha256().digest()
    if old_size == size:
        return not proof and old_root == root
    if not 0 < old_size < size or not proof or any(len(hash_) != HASH_BYTES for hash_ in proof):
        return False
    here, last = old_size - 1, size - 1
    while here & 1:
        here, last = here >> 1, last >> 1
    # An old tree that is one complete subtree is where its own proof begins.
    first, *rest = (old_root, *proof) if old_size & (old_size - 1) == 0 else proof
    old_found = found = first
    for hash_ in rest:
        if last == 0:
            return False
        if here & 1 or here == last:
            old_found, found = hash_children(hash_, old_found), hash_children(hash_, found)
            while here and not here & 1:
                here, last = here >> 1, last >> 1
        else:
            found = hash_children(found, hash_)
        here, last = here >> 1, last >> 1
    return last == 0 and old_found == old_root and found == root


def _tops(nodes: bytes) -> bytes:
    """Return the nodes of the next level that is kept, of those of one: many at once take half the time of each."""
    sha256 = hashlib.sha256
    for _ in range(_STORED_EVERY):
        pairs = range(0, len(nodes), _PAIR_BYTES)
        nodes = b"".join([sha256(b"\x01" + nodes[at : at + _PAIR_BYTES]).digest() for at in pairs])
    return nodes


def _split(size: int) -> int:
    """Return the largest power of two below ``size``."""
    return 1 << ((size - 1).bit_length() - 1)
