"""Sealed bytes: AES-256-GCM in chunks, so that large files stream and nothing is believed that was changed on its way.

    magic, 8 bytes | salt, 32 bytes | nonce prefix, 7 bytes | chunks, each with its tag of 16 bytes

Every sealing has a key of its own, derived (HKDF-SHA256) from the data key, the fresh salt and the context; in it a
chunk's nonce is the prefix, the chunk's number and whether it is the last one. So no nonce repeats under a key, and
chunks that were reordered, repeated, dropped, cut off or taken from elsewhere do not open. All chunks but the last are
full. The context, which says what the bytes are, is associated data of every chunk.
(The construction is Tink's AES-GCM-HKDF streaming, itself after Hoang, Reyhanitabar, Rogaway and Vizár's STREAM.)
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from octavo_shared.references import AdapterId, Fingerprint, TenantId

KEY_BYTES = 32
CHUNK_BYTES = 256 * 1024
"""The cipher holds the interpreter while it works on one: some tens of microseconds, which no step notices."""
TAG_BYTES = 16

_MAGIC = b"OCTSEAL1"
_SALT_BYTES, _PREFIX_BYTES = 32, 7
HEADER_BYTES = len(_MAGIC) + _SALT_BYTES + _PREFIX_BYTES
_NUM_CHUNKS_MAX = 2**32

Context = bytes


class SealBroken(Exception):
    """The bytes were not sealed with this key for this context, or were changed since. Nothing of them is used."""


def pack_context(tenant_id: TenantId, adapter_id: AdapterId, revision: int, base: Fingerprint) -> Context:
    """Return what a sealed pack is: it opens as nothing else."""
    return _context("pack", tenant_id, adapter_id, str(revision), base)


def staging_context(upload_id: str, file_name: str) -> Context:
    """Return what a staged file is."""
    return _context("staging", upload_id, file_name)


def new_key() -> bytes:
    """Return a fresh data key."""
    return os.urandom(KEY_BYTES)


def sealed_size(num_bytes: int) -> int:
    """Return how many bytes sealing makes of ``num_bytes``."""
    return HEADER_BYTES + num_bytes + _num_chunks(num_bytes) * TAG_BYTES


def seal(plain: bytes | bytearray | memoryview, key: bytes, context: Context) -> bytes:
    """Return ``plain`` sealed; twice the same is sealed differently."""
    sealing, view = Sealing(key, context), memoryview(plain)
    pieces = [sealing.update(view[at : at + CHUNK_BYTES]) for at in range(0, len(view), CHUNK_BYTES)]
    return b"".join([*pieces, sealing.finish()])


def open_sealed(sealed: bytes | bytearray | memoryview, key: bytes, context: Context) -> bytearray:
    """Return what was sealed, in memory that its owner can wipe; raises ``SealBroken``."""
    view = memoryview(sealed)
    if len(view) < HEADER_BYTES + TAG_BYTES or view[: len(_MAGIC)] != _MAGIC:
        raise SealBroken("these bytes are not sealed")
    body = view[HEADER_BYTES:]
    full = CHUNK_BYTES + TAG_BYTES
    num_chunks = -(-len(body) // full)
    num_bytes = len(body) - num_chunks * TAG_BYTES
    if num_chunks > _NUM_CHUNKS_MAX or _num_chunks(num_bytes) != num_chunks:
        raise SealBroken("the sealed bytes were cut")
    salt_end = len(_MAGIC) + _SALT_BYTES
    cipher = _cipher(key, bytes(view[len(_MAGIC) : salt_end]), context)
    prefix = bytes(view[salt_end:HEADER_BYTES])
    plain = bytearray(num_bytes)
    target = memoryview(plain)
    try:
        for index in range(num_chunks):
            nonce = _nonce(prefix, index, is_last=index == num_chunks - 1)
            place = target[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            cipher.decrypt_into(nonce, body[index * full : (index + 1) * full], context, place)
    except InvalidTag:
        wipe(plain)
        raise SealBroken("the sealed bytes were changed, or are another's") from None
    return plain


def wipe(memory: bytearray) -> None:
    """Overwrite what ``memory`` held."""
    memory[:] = bytes(len(memory))


class Sealing:
    """Seals what arrives piece by piece, for files too large to be held in memory."""

    def __init__(self, key: bytes, context: Context) -> None:
        salt, self._prefix = os.urandom(_SALT_BYTES), os.urandom(_PREFIX_BYTES)
        self._cipher = _cipher(key, salt, context)
        self._context = context
        self._num_chunks = 0
        self._header = _MAGIC + salt + self._prefix
        self._waiting = bytearray()

    def update(self, plain: bytes | bytearray | memoryview) -> bytes:
        """Return what can be sealed now; the last chunk waits for ``finish``, because it is marked as such."""
        self._waiting += plain
        sealed = [self._take_header()]
        while len(self._waiting) > CHUNK_BYTES:
            sealed.append(self._chunk(CHUNK_BYTES, is_last=False))
        return b"".join(sealed)

    def finish(self) -> bytes:
        """Return the end; nothing may follow."""
        return self._take_header() + self._chunk(len(self._waiting), is_last=True)

    def _take_header(self) -> bytes:
        header, self._header = self._header, b""
        return header

    def _chunk(self, num_bytes: int, *, is_last: bool) -> bytes:
        plain, self._waiting = bytes(self._waiting[:num_bytes]), self._waiting[num_bytes:]
        nonce = _nonce(self._prefix, self._num_chunks, is_last=is_last)
        self._num_chunks += 1
        return self._cipher.encrypt(nonce, plain, self._context)


def _num_chunks(num_bytes: int) -> int:
    return max(1, -(-num_bytes // CHUNK_BYTES))


def _nonce(prefix: bytes, index: int, *, is_last: bool) -> bytes:
    return prefix + index.to_bytes(4, "big") + bytes([is_last])


def _cipher(key: bytes, salt: bytes, context: Context) -> AESGCM:
    assert len(key) == KEY_BYTES, "data keys have 256 bits"
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, b"octavo seal 1\0" + context).derive(key))


def _context(*parts: str) -> Context:
    assert all("\0" not in part for part in parts), "ids and digests hold no zero bytes"
    return "\0".join(parts).encode()
