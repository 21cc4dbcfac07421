"""Signed checkpoints of a Merkle log: C2SP's tlog-checkpoint inside its signed-note form, with Ed25519."""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from octavo_shared.merkle import HASH_BYTES

ORIGIN = "octavo/registry"
_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_KEY_BYTES = 32
_SIGNATURE = re.compile(r"— ([^ +\n]+) ([A-Za-z0-9+/=]+)\Z")
_SIZE = re.compile(r"(0|[1-9][0-9]{0,18})\Z")
_NOTE_CHARS_MAX = 16_384


class CheckpointRefused(Exception):
    """A note or a key has another form, or no good signature of the key that is trusted. The message says which."""


@dataclass(frozen=True)
class Checkpoint:
    """How many leaves the log of ``origin`` had, and what their root was."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """What is signed: three lines."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True)
class Verifier:
    """A log's public key under its name."""

    name: str
    public_key: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key of a line ``name+key id+base64``; raises ``CheckpointRefused``."""
        name, _, rest = text.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        key = _decoded(encoded)
        if not name or key[:1] != _ED25519 or len(key) != 1 + _KEY_BYTES:
            raise CheckpointRefused("the public key is not of the form name+key id+base64 of an Ed25519 key")
        made = cls(name, key[1:])
        if made.key_id.hex() != key_id:
            raise CheckpointRefused("the public key does not have the key id that it names")
        return made

    @property
    def key_id(self) -> bytes:
        data = self.name.encode() + b"\n" + _ED25519 + self.public_key
        return hashlib.sha256(data).digest()[:_KEY_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self.public_key).decode()}"

    def open(self, note: str) -> Checkpoint:
        """Return the checkpoint that ``note`` holds, signed by this key; raises ``CheckpointRefused``.

        Signatures of other keys are passed over, as witnesses may add theirs.
        """
        text, separator, signatures = note.partition("\n\n")
        if not separator or not signatures.endswith("\n") or len(note) > _NOTE_CHARS_MAX:
            raise CheckpointRefused("the checkpoint is not a signed note")
        text += "\n"
        is_signed = False
        for line in signatures[:-1].split("\n"):
            found = _SIGNATURE.match(line)
            if found is None:
                raise CheckpointRefused("a signature line of the checkpoint has another form")
            signature = _decoded(found[2])
            if found[1] == self.name and signature[:_KEY_ID_BYTES] == self.key_id:
                self._check(text, signature[_KEY_ID_BYTES:])
                is_signed = True
        if not is_signed:
            raise CheckpointRefused(f"the checkpoint is not signed by {self.name}+{self.key_id.hex()}")
        return _parsed(text, self.name)

    def _check(self, text: str, signature: bytes) -> None:
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            raise CheckpointRefused("the signature of the checkpoint is wrong") from None


class Signer:
    """Signs checkpoints with the private key that a seed of 32 bytes is."""

    def __init__(self, seed: bytes, name: str = ORIGIN) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.verifier = Verifier(name, self._key.public_key().public_bytes_raw())

    def sign(self, size: int, root: bytes) -> str:
        """Return the signed note. It is the same each time: two replicas that agree write the same bytes."""
        text = Checkpoint(self.verifier.name, size, root).text
        signature = self.verifier.key_id + self._key.sign(text.encode())
        return f"{text}\n— {self.verifier.name} {base64.b64encode(signature).decode()}\n"


def _parsed(text: str, origin: str) -> Checkpoint:
    lines = text.split("\n")
    # Lines behind the third are extensions, which the form allows and which are covered by the signature.
    if len(lines) < 4 or lines[0] != origin or _SIZE.match(lines[1]) is None:
        raise CheckpointRefused(f"the checkpoint is not one of {origin}")
    root = _decoded(lines[2])
    if len(root) != HASH_BYTES:
        raise CheckpointRefused("the root in the checkpoint is not a hash")
    return Checkpoint(origin, int(lines[1]), root)


def _decoded(text: str) -> bytes:
    """Return what is in base64; other spellings of the same bytes are refused too."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise CheckpointRefused("the base64 is damaged") from None
    if base64.b64encode(data).decode() != text:
        raise CheckpointRefused("the base64 is damaged")
    return data
