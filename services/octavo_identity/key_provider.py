"""Where tenant keys are. They wrap data keys; whoever wraps and unwraps need not be this process."""

import hashlib
import hmac
import os
from functools import lru_cache
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from octavo_shared.references import TenantId

_NONCE_BYTES = 12
_CIPHERS_MAX = 4_096
"""One per tenant. To make one takes longer than to use it."""


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

    def close(self) -> None: ...


class VaultPlace(msgspec.Struct, frozen=True):
    """Where Vault is; the token is read from its file again for each connection, and when Vault refuses it.

    Its policy needs ``update`` on ``<mount>/encrypt/octavo-*`` and ``<mount>/decrypt/octavo-*``, and ``create`` and
    ``update`` on ``<mount>/keys/octavo-*``. Without a ``ca_file`` the system's authorities are trusted.
    """

    url: str
    token_file: str
    mount: str = "transit"
    ca_file: str = ""


class FileKeyProvider:
    """Tenant keys derived from one root of 32 bytes, which all replicas of identity have in a file."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._cipher = lru_cache(_CIPHERS_MAX)(self._make_cipher)

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

    def close(self) -> None:
        """There is nothing to close."""

    def _make_cipher(self, key_id: str) -> AESGCM:
        return AESGCM(hmac.new(self._root, f"tenant key\0{key_id}".encode(), hashlib.sha256).digest())
