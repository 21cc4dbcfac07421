"""Ids derived from names: no name index exists that could get out of step, and no name shows up in a subject."""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from functools import lru_cache
from pathlib import Path

from octavo_shared.config import ConfigError
from octavo_shared.references import AdapterId, TenantId

_SHARD = "s0"
_SECRET = re.compile(r"[0-9a-f]{64}\Z")
_TAG_LENGTH = 16
_REMEMBERED_MAX = 4_096


def load_secret(folder: Path) -> bytes:
    """Return the deployment secret of 32 bytes, made on the first start; every identity replica must have the same one.

    Raises ``ConfigError`` when the file holds anything else: ids made from half a secret would be other ids.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "secret"
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return read_secret(path, "a deployment secret")


def read_secret(path: Path, what: str) -> bytes:
    """Return the 32 bytes in the file ``path``; raises ``ConfigError``, which calls them ``what``, otherwise."""
    try:
        text = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        text = ""
    if _SECRET.match(text) is None:
        raise ConfigError(f"{path} does not hold {what} of 64 hexadecimal digits; restore it")
    return bytes.fromhex(text)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, in one visible step; one that is there already stays as it is.

    It is on the disk before anything is derived from it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename, a link never replaces the file of another replica that was a moment faster.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def upload_begun_at_ms(upload_id: str) -> int:
    """Return when an upload was begun, in milliseconds since 1970; its id must be one that ``Ids.upload`` gave."""
    return int(upload_id[:12], 16)


class Ids:
    """Derives ids from the deployment secret."""

    def __init__(self, secret: bytes) -> None:
        self._keyed = hmac.new(secret, digestmod=hashlib.sha256)
        # A push asks for the same ids a dozen times. Bounded: anybody may name what does not exist.
        self._tenant_of = lru_cache(_REMEMBERED_MAX)(self._derive_tenant)
        self._keyed_of = lru_cache(_REMEMBERED_MAX)(self._key_tenant)
        # Keyed BLAKE2b: a fifth of what HMAC takes for so little, and a push needs four. Each is a copy of this one,
        # which is keyed already.
        key = bytes.fromhex(self._mac("upload tags"))
        self._upload_tags = hashlib.blake2b(digest_size=_TAG_LENGTH // 2, key=key)

    def _mac(self, *parts: str) -> str:
        mac = self._keyed.copy()
        mac.update("\0".join(parts).encode())
        return mac.hexdigest()

    def _key_tenant(self, tenant: str) -> hmac.HMAC:
        return hmac.new(bytes.fromhex(self._mac("tenant secret", tenant)), digestmod=hashlib.sha256)

    def tenant(self, tenant: str) -> TenantId:
        return self._tenant_of(tenant)

    def _derive_tenant(self, tenant: str) -> TenantId:
        return TenantId(self._mac("tenant", tenant)[:24])

    def adapter(self, tenant: str, adapter: str, incarnation: int = 0) -> AdapterId:
        """``incarnation`` counts erasures of the name."""
        mac = self._keyed_of(tenant).copy()
        mac.update(f"{adapter}\0{incarnation}".encode())
        return AdapterId(mac.hexdigest()[:32])

    def principal(self, principal: str) -> str:
        """Return what stands for a principal in a subject."""
        return self._mac("principal", principal)[:24]

    def owner_mark(self, adapter_id: AdapterId, owner: str) -> str:
        """Return what tells the owner of an erased adapter, to who has the secret and is given the name."""
        return self._mac("owner", adapter_id, owner)

    def shard(self, tenant_id: TenantId) -> str:
        """Return the tenant's shard. There is one so far."""
        del tenant_id
        return _SHARD

    def deployment(self) -> bytes:
        """Return what tells secrets apart without telling any."""
        return bytes.fromhex(self._mac("octavo deployment"))

    def ledger_seed(self) -> bytes:
        """Return the seed of the key that signs checkpoints, where no other is configured."""
        return bytes.fromhex(self._mac("ledger key"))

    def provenance_seed(self) -> bytes:
        """Return the seed of the key that countersigns statements, where no other is configured."""
        return bytes.fromhex(self._mac("provenance key"))

    def ticket_key(self) -> bytes:
        """Return the key of the tickets that data keys are handed out for."""
        return bytes.fromhex(self._mac("ticket key"))

    def receipt_seed(self) -> bytes:
        """Return the seed of the key that signs receipts of erasures."""
        return bytes.fromhex(self._mac("receipt key"))

    def tenant_key_root(self) -> bytes:
        """Return what tenant keys are derived from, where no other is configured."""
        return bytes.fromhex(self._mac("tenant key root"))

    def upload(self, principal: str, adapter: str, at_ms: int) -> str:
        """Return a fresh upload id that only ``principal`` can stage, and commit to ``adapter``; it is not stored.

        It is time, nonce and two tags: over principal and adapter, then over all that and the principal alone, because
        whoever stages bytes does not name the adapter.
        """
        nonce = f"{at_ms:012x}{os.urandom(16).hex()}"
        named = nonce + self._tag(nonce, principal, adapter)
        return named + self._tag(named, principal)

    def upload_age_ms(self, upload_id: str, principal: str, adapter: str | None, at_ms: int) -> int | None:
        """Return how long ago ``upload`` gave this id to ``principal`` for ``adapter``, or None if it never did.

        Without ``adapter`` it may have been for any.
        """
        named = upload_id[:-_TAG_LENGTH]
        if adapter is not None:
            nonce = named[:-_TAG_LENGTH]
            named = nonce + self._tag(nonce, principal, adapter)
        right = named + self._tag(named, principal)
        if not hmac.compare_digest(upload_id.encode(), right.encode()):
            return None
        return at_ms - upload_begun_at_ms(upload_id)

    def _tag(self, *parts: str) -> str:
        tag = self._upload_tags.copy()
        tag.update("\0".join(parts).encode())
        return tag.hexdigest()
