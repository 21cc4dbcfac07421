"""Ids derived from names: no name index exists that could get out of step, and no name shows up in a subject."""

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from octavo_shared.references import AdapterId, TenantId

_SHARD = "s0"


def load_secret(folder: Path) -> bytes:
    """Return the deployment secret, made on the first start; every identity replica must have the same one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "secret"
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return bytes.fromhex(path.read_text().strip())


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, in one visible step; one that is there already stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        # Unlike a rename, a link never replaces the file of another replica that was a moment faster.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink()


class Ids:
    """Derives ids from the deployment secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _mac(self, *parts: str) -> str:
        return hmac.new(self._secret, "\0".join(parts).encode(), hashlib.sha256).hexdigest()

    def tenant(self, tenant: str) -> TenantId:
        return TenantId(self._mac("tenant", tenant)[:24])

    def adapter(self, tenant: str, adapter: str, incarnation: int = 0) -> AdapterId:
        """``incarnation`` counts erasures of the name."""
        tenant_secret = bytes.fromhex(self._mac("tenant secret", tenant))
        mac = hmac.new(tenant_secret, f"{adapter}\0{incarnation}".encode(), hashlib.sha256)
        return AdapterId(mac.hexdigest()[:32])

    def shard(self, tenant_id: TenantId) -> str:
        """Return the tenant's shard. There is one so far."""
        del tenant_id
        return _SHARD

    def upload(self, principal: str, adapter: str, at_ms: int) -> str:
        """Return a fresh upload id that only ``principal`` can commit, to ``adapter``; nothing is stored for it."""
        nonce = f"{at_ms:012x}{secrets.token_hex(16)}"
        return nonce + self._mac("upload", nonce, principal, adapter)[:16]

    def upload_age_ms(self, upload_id: str, principal: str, adapter: str, at_ms: int) -> int | None:
        """Return how long ago ``upload`` gave this id to ``principal`` for ``adapter``, or None if it never did."""
        nonce, tag = upload_id[:-16], upload_id[-16:]
        if not hmac.compare_digest(tag.encode(), self._mac("upload", nonce, principal, adapter)[:16].encode()):
            return None
        return at_ms - int(nonce[:12], 16)
