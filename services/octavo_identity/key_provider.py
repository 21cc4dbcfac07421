"""Where tenant keys are. They wrap data keys; whoever wraps and unwraps need not be this process."""

import hashlib
import hmac
import os
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from octavo_shared.references import TenantId

_NONCE_BYTES = 12


class KeyUnusable(Exception):
    """A wrapped key does not open with the tenant key that it names: it was changed, or the provider is another one."""


class KeyProvider(Protocol):
    """Wraps and unwraps data keys by the id of a tenant key, which a KMS never gives away.

    ``context`` is bound to what is wrapped: the encryption context of a KMS, the associated data of Vault's transit.
    Raises ``DependencyUnavailable`` where a provider does not answer, and ``KeyUnusable``.
    """

    def key_id(self, tenant_id: TenantId) -> str:
        """Return the id of the key that wraps for the tenant now; what is wrapped keeps it, so keys can be rotated."""
        ...

    async def wrap(self, key_id: str, data_key: bytes, context: bytes) -> bytes: ...

    async def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes: ...


class KeySource(msgspec.Struct, frozen=True):
    """What a provider is made of, for another process of identity's own: ``root`` as in ``FileKeyProvider``."""

    root: bytes

    def provider(self) -> KeyProvider:
        return FileKeyProvider(self.root)


class FileKeyProvider:
    """Tenant keys derived from one root of 32 bytes, which all replicas of identity have in a file."""

    def __init__(self, root: bytes) -> None:
        self._root = root

    def key_id(self, tenant_id: TenantId) -> str:
        return f"file/{tenant_id}"

    async def wrap(self, key_id: str, data_key: bytes, context: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher(key_id).encrypt(nonce, data_key, context)

    async def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        try:
            return self._cipher(key_id).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as error:
            raise KeyUnusable(f"what '{key_id}' wrapped does not open") from error

    def _cipher(self, key_id: str) -> AESGCM:
        return AESGCM(hmac.new(self._root, f"tenant key\0{key_id}".encode(), hashlib.sha256).digest())
