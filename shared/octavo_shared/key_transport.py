"""A data key on its way: readable for who asked for it, and for nobody who reads along.

All workers share one nkey on NATS, so each could subscribe to what another is answered. So whoever asks sends a public
key (X25519) that is used once, and the answer is sealed for it.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from octavo_shared.seal import KEY_BYTES

_PUBLIC_BYTES = 32
_NONCE = bytes(12)
"""Every cipher here seals once."""


class KeyNotReadable(Exception):
    """What came is no data key for this question."""


class Question:
    """One question for a data key: ``public_key`` goes out with it, ``open`` reads what comes back."""

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self.public_key = self._private.public_key().public_bytes_raw()

    def open(self, answer: bytes) -> bytes:
        """Return the data key in ``answer``; raises ``KeyNotReadable``."""
        theirs = answer[:_PUBLIC_BYTES]
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(theirs))
            return _cipher(shared, theirs, self.public_key).decrypt(_NONCE, answer[_PUBLIC_BYTES:], None)
        except (InvalidTag, ValueError) as error:
            raise KeyNotReadable from error


def answer_to(public_key: bytes, data_key: bytes) -> bytes:
    """Return ``data_key`` for whoever asked with ``public_key``; raises ``KeyNotReadable`` when that is none."""
    own = X25519PrivateKey.generate()
    own_public = own.public_key().public_bytes_raw()
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as error:
        raise KeyNotReadable from error
    return own_public + _cipher(shared, own_public, public_key).encrypt(_NONCE, data_key, None)


def _cipher(shared: bytes, answerer: bytes, asker: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), KEY_BYTES, None, b"octavo data key 1\0" + answerer + asker).derive(shared))
