"""Signed envelopes (DSSE v1) with Ed25519: the form that in-toto's tools read and verify.

What is signed is the type and the bytes of the payload, so nothing depends on how JSON is written; ``encode_json`` only
makes equal values equal bytes. An envelope itself has exactly one encoding here: a flipped bit is always noticed.
"""

import base64
import hashlib
from collections.abc import Iterable
from typing import Any, Self, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from octavo_shared import decoding
from octavo_shared.envelopes import FIELD as _FIELD
from octavo_shared.envelopes import Envelope as Envelope
from octavo_shared.envelopes import Signature as Signature
from octavo_shared.envelopes import decoded
from octavo_shared.errors import InvalidRequest
from octavo_shared.json_faults import fault_of

STATEMENT_TYPE = "application/vnd.in-toto+json"
"""The ``payloadType`` of in-toto statements."""

ENVELOPE_BYTES_MAX = 32 * 1024
_SIGNATURES_MAX = 4
_SIGNATURE_BYTES = 64
_ECHOED_CHARS_MAX = 160

T = TypeVar("T")


class PublicKey(msgspec.Struct, frozen=True):
    """An Ed25519 public key of 32 bytes."""

    raw: bytes

    @property
    def key_id(self) -> str:
        """SHA-256, in hexadecimal, of the key's DER form, as ``openssl pkey -pubin -outform DER | sha256sum`` says."""
        return hashlib.sha256(self._spki(serialization.Encoding.DER)).hexdigest()

    @property
    def pem(self) -> str:
        """The form in which other tools take public keys."""
        return self._spki(serialization.Encoding.PEM).decode()

    @classmethod
    def parse(cls, pem: str, field: str = "public_key") -> Self:
        """Return the key of a PEM text; raises ``InvalidRequest``, which calls it ``field``."""
        try:
            key = serialization.load_pem_public_key(pem.encode())
        except ValueError:
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise InvalidRequest(field, "must be an Ed25519 public key in PEM form")
        return cls(key.public_bytes_raw())

    def is_signed(self, data: bytes, signature: bytes) -> bool:
        """Tell whether this key signed ``data``."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True

    def _spki(self, encoding: serialization.Encoding) -> bytes:
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        return key.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)


class Signer:
    """Signs with the private key that a seed of 32 bytes is."""

    def __init__(self, seed: bytes) -> None:
        # libsodium signs in two thirds of the time that OpenSSL takes, and an import waits for little else so long.
        public, self._secret = crypto_sign_seed_keypair(seed)
        self.public_key = PublicKey(public)
        self.key_id = self.public_key.key_id

    def sign(self, data: bytes) -> bytes:
        """Return the signature of 64 bytes; it is the same each time."""
        return crypto_sign(data, self._secret)[:_SIGNATURE_BYTES]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return what is signed: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, signer: Signer) -> Envelope:
    """Return ``payload`` in an envelope with one signature."""
    return Envelope(base64.b64encode(payload).decode(), payload_type, (_signature(payload_type, payload, signer),))


def countersign(envelope: Envelope, signer: Signer) -> Envelope:
    """Return the envelope with one more signature, of the same bytes. One that it has already changes nothing."""
    added = _signature(envelope.payload_type, envelope.data, signer)
    if added in envelope.signatures:
        return envelope
    return msgspec.structs.replace(envelope, signatures=(*envelope.signatures, added))


def _signature(payload_type: str, payload: bytes, signer: Signer) -> Signature:
    return Signature(signer.key_id, base64.b64encode(signer.sign(pae(payload_type, payload))).decode())


def verify(envelope: Envelope, public_keys: Iterable[PublicKey]) -> tuple[str, ...]:
    """Return the ids of the keys that signed, in order: every signature is of one of ``public_keys``, and good.

    Stricter than DSSE, which passes over what it does not know: raises ``InvalidRequest`` that names the signature by
    its place, and when there is none.
    """
    by_id = {key.key_id: key for key in public_keys}
    data = pae(envelope.payload_type, envelope.data)
    if not 1 <= len(envelope.signatures) <= _SIGNATURES_MAX:
        raise InvalidRequest(f"{_FIELD}.signatures", f"must be 1 to {_SIGNATURES_MAX}")
    if len(set(envelope.key_ids)) < len(envelope.signatures):
        raise InvalidRequest(f"{_FIELD}.signatures", "must be of different keys")
    for place, signature in enumerate(envelope.signatures):
        key = by_id.get(signature.keyid)
        if key is None:
            raise InvalidRequest(f"{_FIELD}.signatures[{place}].keyid", "is of no key that is trusted here")
        sig = decoded(signature.sig, f"signatures[{place}].sig")
        if len(sig) != _SIGNATURE_BYTES or not key.is_signed(data, sig):
            raise InvalidRequest(f"{_FIELD}.signatures[{place}].sig", "is not a signature of this payload by its key")
    return envelope.key_ids


def encode_json(value: Any) -> bytes:
    """Return canonical JSON: UTF-8, members sorted by name, nothing between them."""
    return msgspec.json.encode(value, order="deterministic")


def encode(envelope: Envelope) -> bytes:
    """Return the envelope's one encoding; raises ``InvalidRequest`` when it is too large."""
    data = encode_json(envelope)
    if len(data) > ENVELOPE_BYTES_MAX:
        raise InvalidRequest(_FIELD, f"exceeds the limit of {ENVELOPE_BYTES_MAX} bytes")
    return data


def decode(data: bytes) -> Envelope:
    """Return what ``encode`` made ``data`` of; raises ``InvalidRequest`` for anything else."""
    if len(data) > ENVELOPE_BYTES_MAX:
        raise InvalidRequest(_FIELD, f"exceeds the limit of {ENVELOPE_BYTES_MAX} bytes")
    envelope = parse_json(data, Envelope, _FIELD)
    if encode(envelope) != data:
        raise InvalidRequest(_FIELD, "is not in canonical form")
    return envelope


def parse_json(data: bytes, kind: type[T], field: str) -> T:
    """Return ``data`` as ``kind``; raises ``InvalidRequest`` that names the part of ``field`` that is wrong."""
    try:
        return decoding.from_json(data, kind)
    except msgspec.ValidationError as error:
        fault = fault_of(error)
        # What is echoed comes from the caller, and never at any length.
        where = (field + fault.path)[:_ECHOED_CHARS_MAX]
        raise InvalidRequest(where, f"is not as it must be: {fault.problem[:_ECHOED_CHARS_MAX]}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(field, "is not JSON") from None
