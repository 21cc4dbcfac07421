"""Tenant keys in the transit engine of HashiCorp Vault (or OpenBao), which never gives them away."""

import asyncio
import base64
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import hvac
import requests
from hvac.exceptions import InvalidPath, InvalidRequest, VaultError

from octavo_identity.key_provider import KeyUnusable, VaultPlace
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.references import TenantId
from octavo_shared.telemetry import log

_PREFIX = "vault/"
_KEY_TYPE = "aes256-gcm96"
"""It takes associated data, which binds a data key to its place."""
_CALLS_MAX = 8
"""At the same time: the client blocks, so each has a thread, and a connection that it keeps."""
_TIMEOUT_S = 3.0

T = TypeVar("T")


class VaultKeyProvider:
    """A ``KeyProvider`` with one key per tenant; Vault keeps its versions, and what is wrapped names its own."""

    def __init__(self, place: VaultPlace) -> None:
        self._place = place
        self._threads = ThreadPoolExecutor(_CALLS_MAX, thread_name_prefix="vault")
        self._local = threading.local()
        self._clients: list[hvac.Client] = []
        self._made: set[str] = set()

    def key_id(self, tenant_id: TenantId) -> str:
        return f"{_PREFIX}octavo-{tenant_id}"

    async def wrap(self, key_id: str, data_key: bytes, context: bytes) -> bytes:
        name = _name_in(key_id)

        def encrypt(transit: Any) -> str:
            if name not in self._made:
                # Where there is one already, this changes nothing.
                transit.create_key(name, key_type=_KEY_TYPE, mount_point=self._place.mount)
                self._made.add(name)
            answer = transit.encrypt_data(
                name, plaintext=_base64(data_key), associated_data=_base64(context), mount_point=self._place.mount
            )
            return str(answer["data"]["ciphertext"])

        return (await self._call(encrypt)).encode()

    async def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        name, ciphertext = _name_in(key_id), wrapped.decode(errors="replace")

        def decrypt(transit: Any) -> bytes:
            answer = transit.decrypt_data(
                name, ciphertext=ciphertext, associated_data=_base64(context), mount_point=self._place.mount
            )
            return base64.b64decode(answer["data"]["plaintext"], validate=True)

        return await self._call(decrypt)

    async def _call(self, work: Callable[[Any], T]) -> T:
        """Do ``work`` with Vault's transit engine on a thread; raises what ``KeyProvider`` does."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._with_transit, work)
        except (InvalidRequest, InvalidPath) as error:
            raise KeyUnusable(f"Vault refused it: {error}") from error
        except (VaultError, requests.RequestException, OSError, LookupError, TypeError, ValueError) as error:
            log.warning("vault_unavailable", detail=f"{type(error).__name__}: {error}")
            raise DependencyUnavailable("the key provider") from error

    def _with_transit(self, work: Callable[[Any], T]) -> T:
        client: hvac.Client | None = getattr(self._local, "client", None)
        try:
            if client is None:
                client = self._local.client = self._connect()
            return work(client.secrets.transit)
        except VaultError as error:
            if isinstance(error, InvalidRequest | InvalidPath) or client is None:
                raise
            # The token may have been renewed since; and it is a new connection if it was not.
            client.token = self._token()
            return work(client.secrets.transit)

    def _connect(self) -> hvac.Client:
        client = hvac.Client(
            self._place.url, self._token(), timeout=_TIMEOUT_S, verify=self._place.ca_file or True,
            allow_redirects=False,
        )  # fmt: skip
        self._clients.append(client)
        return client

    def _token(self) -> str:
        return Path(self._place.token_file).read_text().strip()

    def close(self) -> None:
        """Wait for calls under way, some seconds at most, and close the connections."""
        self._threads.shutdown(cancel_futures=True)
        for client in self._clients:
            client.adapter.close()


def _name_in(key_id: str) -> str:
    if not key_id.startswith(_PREFIX):
        raise KeyUnusable(f"'{key_id}' is not a key of Vault's")
    return key_id.removeprefix(_PREFIX)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
