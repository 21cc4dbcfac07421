"""What opens is what was sealed, for this key and this context, and nothing that is one bit beside it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_shared.references import AdapterId, Fingerprint, TenantId
from octavo_shared.seal import (
    CHUNK_BYTES,
    HEADER_BYTES,
    TAG_BYTES,
    SealBroken,
    Sealing,
    new_key,
    open_sealed,
    pack_context,
    seal,
    sealed_size,
)

KEY = bytes(range(32))
CONTEXT = pack_context(TenantId("t1"), AdapterId("a1"), 3, Fingerprint("sha256:" + "0" * 64))
SIZES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 77)
SEED = 20_260_707
NUM_FLIPS = 400


def some(num_bytes: int) -> bytes:
    return random.Random(num_bytes).randbytes(num_bytes)


@pytest.mark.parametrize("num_bytes", SIZES)
def test_what_was_sealed_opens_whole_or_streamed(num_bytes: int) -> None:
    plain = some(num_bytes)
    sealed = seal(plain, KEY, CONTEXT)
    sealing = Sealing(KEY, CONTEXT)
    streamed = sealing.update(plain) + sealing.finish()
    assert len(sealed) == len(streamed) == sealed_size(num_bytes)
    assert open_sealed(sealed, KEY, CONTEXT) == open_sealed(streamed, KEY, CONTEXT) == plain


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, CHUNK_BYTES + 9), max_size=6))
def test_a_stream_opens_however_it_came(sizes: list[int]) -> None:
    pieces, sealing = [some(size) for size in sizes], Sealing(KEY, CONTEXT)
    sealed = b"".join([*(sealing.update(piece) for piece in pieces), sealing.finish()])
    assert len(sealed) == sealed_size(sum(sizes))
    assert open_sealed(sealed, KEY, CONTEXT) == b"".join(pieces)


def test_any_flipped_bit_is_refused() -> None:
    sealed = seal(some(2 * CHUNK_BYTES + 1000), KEY, CONTEXT)
    draw = random.Random(SEED)
    # All of the header, and anywhere else.
    bits = [*range(0, HEADER_BYTES * 8, 3), *(draw.randrange(len(sealed) * 8) for _ in range(NUM_FLIPS))]
    assert len(bits) >= 500
    for bit in bits:
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken):
            open_sealed(changed, KEY, CONTEXT)


def test_chunks_that_are_missing_repeated_or_elsewhere_are_refused() -> None:
    sealed = seal(some(3 * CHUNK_BYTES), KEY, CONTEXT)
    header, full = sealed[:HEADER_BYTES], CHUNK_BYTES + TAG_BYTES
    first, second, third = (sealed[HEADER_BYTES + at * full :][:full] for at in range(3))
    assert open_sealed(header + first + second + third, KEY, CONTEXT)
    for chunks in (
        (second, first, third), (first, second), (first, third), (second, third), (first, second, third, third),
        (first, second, second), (first, second, third[:-1]), (first, second, third + b"\0"), (first, b""), (),
    ):  # fmt: skip
        with pytest.raises(SealBroken):
            open_sealed(header + b"".join(chunks), KEY, CONTEXT)
    other = seal(some(3 * CHUNK_BYTES), KEY, CONTEXT)
    with pytest.raises(SealBroken):
        open_sealed(other[:HEADER_BYTES] + first + second + third, KEY, CONTEXT)


@pytest.mark.parametrize("num_kept", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + TAG_BYTES - 1])
def test_a_torso_is_refused(num_kept: int) -> None:
    with pytest.raises(SealBroken):
        open_sealed(seal(b"pages", KEY, CONTEXT)[:num_kept], KEY, CONTEXT)


def test_plain_bytes_are_refused() -> None:
    with pytest.raises(SealBroken, match="not sealed"):
        open_sealed(some(1000), KEY, CONTEXT)


def test_another_key_tenant_adapter_revision_or_base_does_not_open() -> None:
    sealed = seal(b"pages", KEY, CONTEXT)
    base = Fingerprint("sha256:" + "0" * 64)
    others = [
        pack_context(TenantId("t2"), AdapterId("a1"), 3, base), pack_context(TenantId("t1"), AdapterId("a2"), 3, base),
        pack_context(TenantId("t1"), AdapterId("a1"), 4, base),
        pack_context(TenantId("t1"), AdapterId("a1"), 3, Fingerprint("sha256:" + "1" * 64)),
    ]  # fmt: skip
    for context in others:
        with pytest.raises(SealBroken):
            open_sealed(sealed, KEY, context)
    with pytest.raises(SealBroken):
        open_sealed(sealed, new_key(), CONTEXT)


def test_the_same_bytes_are_never_sealed_the_same() -> None:
    sealed = [seal(bytes(100), KEY, CONTEXT) for _ in range(50)]
    assert len({one[HEADER_BYTES:] for one in sealed}) == len({one[:HEADER_BYTES] for one in sealed}) == 50
