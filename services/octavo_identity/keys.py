"""API keys: 256 random bits, looked up by id, stored as SHA-256."""

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from octavo_identity.heads import HeadStore
from octavo_identity.ids import write_private
from octavo_identity.records import KeyHead, RegistryEvent
from octavo_shared import subjects
from octavo_shared.clock import wall_ms
from octavo_shared.config import ConfigError
from octavo_shared.errors import RevisionConflict, Unauthenticated
from octavo_shared.messages.keys import Role
from octavo_shared.messages.requests import Credential
from octavo_shared.telemetry import log

ADMIN_PRINCIPAL = "admin@octavo"
_NO_SECRET = bytes(32)
_NO_KEY_ID = "none"
"""Of the form of no key's id, so nothing is ever found there."""
_KEY_TEXT = re.compile(r"oct_([0-9a-f]{16})_([0-9a-f]{64})\Z")
_KEY_ID = re.compile(r"[0-9a-f]{16}\Z")


def is_key_id(text: str) -> bool:
    """Tell whether ``text`` may be part of a subject as a key's id."""
    return _KEY_ID.match(text) is not None


def has_expired(head: KeyHead, now_ms: int) -> bool:
    """Tell whether the key's time is over by this machine's clock."""
    return 0 < head.expires_at_ms <= now_ms


async def authenticate(heads: HeadStore, credential: Credential) -> KeyHead:
    """Return the key's record; an unknown, a wrong, an expired and a revoked key are one answer.

    Each costs one leader read and one comparison, whichever it is. Nothing is remembered: what the leader has now is
    what counts, and expiry is by this machine's clock.
    """
    key_id = credential.key_id if is_key_id(credential.key_id) else _NO_KEY_ID
    found = await heads.read(subjects.key_head(key_id))
    head = found[0].head if found else None
    stored = head.secret_sha256 if isinstance(head, KeyHead) else _NO_SECRET
    is_right = hmac.compare_digest(stored, credential.secret_sha256)
    is_ended = not isinstance(head, KeyHead) or head.is_revoked or has_expired(head, wall_ms())
    if not is_right or is_ended or not isinstance(head, KeyHead):
        raise Unauthenticated
    return head


async def ensure_admin_key(heads: HeadStore, path: Path) -> None:
    """Make sure that the admin key in the file ``path`` is known; without a file, make a key and write it there.

    A key that was revoked stays revoked. Raises ``ConfigError`` when the file holds no key.
    """
    if not path.exists():
        write_private(path, f"oct_{secrets.token_hex(8)}_{secrets.token_hex(32)}")
    found = _KEY_TEXT.match(path.read_text().strip())
    if found is None:
        raise ConfigError(f"{path} does not hold a key of the form oct_<16 hex digits>_<64 hex digits>")
    key_id, secret = found.groups()
    subject = subjects.key_head(key_id)
    if await heads.read(subject) is not None:
        return
    head = KeyHead(key_id, hashlib.sha256(bytes.fromhex(secret)).digest(), ADMIN_PRINCIPAL, "octavo", Role.ADMIN,
                   issued_at_ms=wall_ms())  # fmt: skip
    try:
        await heads.append(subject, RegistryEvent("key_issued", "identity", wall_ms(), 0, head))
    except RevisionConflict:
        # Another replica was a moment faster with the same key.
        return
    log.info("admin_key_created")
