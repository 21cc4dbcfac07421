"""The Merkle tree against RFC 6962's own recursive definitions, written down naively, and against known roots."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_shared.merkle import Frontier, Tree, hash_children, hash_leaf, is_consistent, is_included

KNOWN_LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
KNOWN_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""Of certificate-transparency's reference tests: the roots of the first 0 to 8 of these leaves."""

SIZE_MAX = 300


def leaf(index: int) -> bytes:
    return b"leaf %d" % index


def split(size: int) -> int:
    """The largest power of two below ``size``, by looking for it."""
    power = 1
    while power * 2 < size:
        power *= 2
    return power


def naive_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, 2.1.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*naive_path(index, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(index - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(old_size: int, leaves: list[bytes], is_known: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962, 2.1.2."""
    if old_size == len(leaves):
        return [] if is_known else [naive_root(leaves)]
    k = split(len(leaves))
    if old_size <= k:
        return [*naive_subproof(old_size, leaves[:k], is_known), naive_root(leaves[k:])]
    return [*naive_subproof(old_size - k, leaves[k:], False), naive_root(leaves[:k])]


def grown(size: int) -> Tree:
    tree = Tree()
    for index in range(size):
        tree.append(hash_leaf(leaf(index)))
    return tree


TREE = grown(SIZE_MAX)
LEAVES = [leaf(index) for index in range(SIZE_MAX)]
sizes = st.integers(1, SIZE_MAX)


def changed(data: bytes, bit: int) -> bytes:
    return bytes(byte ^ (1 << bit % 8 if index == bit // 8 else 0) for index, byte in enumerate(data))


def test_known_roots_come_out() -> None:
    tree = Tree()
    assert tree.root(0).hex() == KNOWN_ROOTS[0]
    for number, text in enumerate(KNOWN_LEAVES, 1):
        tree.append(hash_leaf(bytes.fromhex(text)))
        assert [tree.root(size).hex() for size in range(number + 1)] == KNOWN_ROOTS[: number + 1]


def test_roots_of_all_sizes_are_those_of_the_definition() -> None:
    for size in range(SIZE_MAX + 1):
        assert TREE.root(size) == naive_root(LEAVES[:size])


def test_a_node_is_never_a_leaf() -> None:
    left, right = hash_leaf(b"a"), hash_leaf(b"b")
    assert hash_children(left, right) != hash_leaf(left + right)


@given(st.data())
def test_inclusion_proofs_are_those_of_the_definition_and_verify(data: st.DataObject) -> None:
    size = data.draw(sizes)
    index = data.draw(st.integers(0, size - 1))
    proof = TREE.inclusion_proof(index, size)
    assert list(proof) == naive_path(index, LEAVES[:size])
    assert is_included(hash_leaf(leaf(index)), index, size, proof, TREE.root(size))


@given(st.data())
def test_consistency_proofs_are_those_of_the_definition_and_verify(data: st.DataObject) -> None:
    size = data.draw(sizes)
    old_size = data.draw(st.integers(1, size))
    proof = TREE.consistency_proof(old_size, size)
    assert list(proof) == naive_subproof(old_size, LEAVES[:size], True)
    assert is_consistent(old_size, TREE.root(old_size), size, TREE.root(size), proof)


@given(st.data())
def test_whatever_is_changed_in_an_inclusion_proof_fails(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, SIZE_MAX))
    index = data.draw(st.integers(0, size - 1))
    here, root, proof = hash_leaf(leaf(index)), TREE.root(size), TREE.inclusion_proof(index, size)
    position, bit = data.draw(st.integers(0, len(proof) - 1)), data.draw(st.integers(0, 255))
    flipped = (*proof[:position], changed(proof[position], bit), *proof[position + 1 :])
    assert not is_included(here, index, size, flipped, root)
    assert not is_included(changed(here, bit), index, size, proof, root)
    assert not is_included(here, index, size, proof, changed(root, bit))
    assert not is_included(here, index, size, proof[:position] + proof[position + 1 :], root)
    # A node, the root itself at the last, does not pass for the leaf below it.
    assert not is_included(root, index, size, (), root)
    assert not is_included(here, index, size, (*proof[:position], root, *proof[position:]), root)
    assert not is_included(here, index, size, (*proof[:position], proof[position][:-1], *proof[position + 1 :]), root)
    other = data.draw(st.integers(-1, SIZE_MAX).filter(lambda number: number != index))
    assert not is_included(here, other, size, proof, root)
    # A size means nothing without its root: both come from one signed checkpoint.
    other_size = data.draw(st.integers(0, SIZE_MAX).filter(lambda number: number != size))
    assert not is_included(here, index, other_size, proof, TREE.root(other_size))


@given(st.data())
def test_whatever_is_changed_in_a_consistency_proof_fails(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, SIZE_MAX))
    old_size = data.draw(st.integers(1, size - 1))
    old_root, root, proof = TREE.root(old_size), TREE.root(size), TREE.consistency_proof(old_size, size)
    position, bit = data.draw(st.integers(0, len(proof) - 1)), data.draw(st.integers(0, 255))
    flipped = (*proof[:position], changed(proof[position], bit), *proof[position + 1 :])
    assert not is_consistent(old_size, old_root, size, root, flipped)
    assert not is_consistent(old_size, changed(old_root, bit), size, root, proof)
    assert not is_consistent(old_size, old_root, size, changed(root, bit), proof)
    assert not is_consistent(old_size, old_root, size, root, proof[:position] + proof[position + 1 :])
    assert not is_consistent(old_size, old_root, size, root, (*proof, root))
    assert not is_consistent(old_size, old_root, size, root, ())
    for other in {old_size - 1, old_size + 1, data.draw(sizes)} - {old_size}:
        assert not is_consistent(other, TREE.root(other), size, root, proof)
    for other in {size - 1, min(size + 1, SIZE_MAX), data.draw(sizes)} - {size}:
        assert not is_consistent(old_size, old_root, other, TREE.root(other), proof)


@pytest.mark.parametrize("size", [2, 7, 64, 299])
def test_a_lost_a_repeated_and_a_moved_leaf_change_every_later_root(size: int) -> None:
    for index in range(0, size - 1, max(1, size // 8)):
        lost = LEAVES[:index] + LEAVES[index + 1 : size + 1]
        repeated = LEAVES[: index + 1] + LEAVES[index : size - 1]
        moved = [*LEAVES[:index], LEAVES[index + 1], LEAVES[index], *LEAVES[index + 2 : size]]
        for leaves in (lost, repeated, moved):
            tree = Tree()
            for data in leaves:
                tree.append(hash_leaf(data))
            assert tree.size == size
            assert tree.root(size) != TREE.root(size)
            assert tree.root(index) == TREE.root(index)
            assert not is_consistent(size, tree.root(size), SIZE_MAX, TREE.root(SIZE_MAX),
                                     TREE.consistency_proof(size, SIZE_MAX))  # fmt: skip


def test_the_empty_log_goes_on_to_any() -> None:
    assert TREE.consistency_proof(0, 5) == ()
    assert is_consistent(0, TREE.root(0), 5, TREE.root(5), ())
    assert not is_consistent(0, TREE.root(1), 5, TREE.root(5), ())
    assert not is_consistent(5, TREE.root(5), 5, TREE.root(6), ())


def test_a_frontier_has_the_root_of_every_size_and_goes_on_from_its_hashes() -> None:
    frontier, tree = Frontier(), Tree()
    for index in range(SIZE_MAX):
        assert frontier.root() == tree.root(index)
        for made in (frontier, tree):
            made.append(hash_leaf(leaf(index)))
        frontier = Frontier(frontier.size, frontier.hashes)
    assert frontier.root() == tree.root(SIZE_MAX)
    assert len(frontier.hashes) == SIZE_MAX.bit_count()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40))
def test_leaves_that_come_many_at_once_make_the_same_tree(steps: list[int]) -> None:
    tree, hashes = Tree(), [hash_leaf(one) for one in LEAVES]
    for step in steps:
        tree.extend(hashes[tree.size : tree.size + step])
        assert tree.root(tree.size) == TREE.root(tree.size)
    for index in range(0, tree.size, 7):
        assert tree.inclusion_proof(index, tree.size) == TREE.inclusion_proof(index, tree.size)


def test_a_leaf_is_found_where_it_is_and_nowhere_else() -> None:
    tree = Tree()
    # Hashes that hold each other when they are read from the middle of one to the middle of the next.
    hashes = [bytes([number % 3]) * 32 for number in range(30)]
    hashes[20] = bytes([0]) * 31 + bytes([9])
    for one in hashes:
        tree.append(one)
    assert tree.find(hashes[20], 0, 29) == 20
    assert tree.find(hashes[20], 0, 19) is None
    assert tree.find(hashes[20], 21, 29) is None
    assert tree.find(bytes([1]) * 32, 5, 29) == 7
    assert tree.find(bytes([0]) * 16 + bytes([1]) * 16, 0, 29) is None
