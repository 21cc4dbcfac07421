"""The form of signed envelopes (DSSE v1), without the cryptography: for those who only pass them on."""

import base64
import binascii

import msgspec

from octavo_shared.errors import InvalidRequest

FIELD = "envelope"


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``sig`` is in base64. ``keyid`` says which key to try; it is not signed itself."""

    keyid: str
    sig: str


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A payload in base64, what kind of payload it is, and who signed both."""

    payload: str
    payload_type: str
    signatures: tuple[Signature, ...]

    @property
    def data(self) -> bytes:
        """The payload's bytes; raises ``InvalidRequest``."""
        return decoded(self.payload, "payload")

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Whom the signatures say they are of; nothing is verified."""
        return tuple(signature.keyid for signature in self.signatures)


def decoded(text: str, part: str) -> bytes:
    """Return what ``text`` encodes; a text that is not the one encoding of its bytes is refused."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = None
    if data is None or base64.b64encode(data).decode() != text:
        raise InvalidRequest(f"{FIELD}.{part}", "is not base64")
    return data
