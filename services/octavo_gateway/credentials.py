"""API keys as text: ``oct_<key id: 16 hex>_<secret: 64 hex>``. A secret ends here; only its hash goes on."""

import hashlib
import re
import secrets

from octavo_shared.errors import Unauthenticated
from octavo_shared.messages.requests import Credential

_BEARER = re.compile(r"[Bb]earer +oct_(?P<key_id>[0-9a-f]{16})_(?P<secret>[0-9a-f]{64})\s*\Z")


def credential_of(authorization: str | None) -> Credential:
    """Return the key in an ``Authorization`` header; raises ``Unauthenticated`` when there is none of our form."""
    match = _BEARER.match(authorization or "")
    if match is None:
        raise Unauthenticated
    return Credential(match["key_id"], hashlib.sha256(bytes.fromhex(match["secret"])).digest())


def new_key() -> tuple[str, Credential]:
    """Return a fresh key: its text, for its owner's eyes only, and what identity may know of it."""
    key_id, secret = secrets.token_hex(8), secrets.token_bytes(32)
    return f"oct_{key_id}_{secret.hex()}", Credential(key_id, hashlib.sha256(secret).digest())
