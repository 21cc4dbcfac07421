"""Identity in this process with a real NATS and S3, and its callers."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from octavo_cli.local_servers import NatsServer
from octavo_identity.service import serve
from octavo_identity.settings import IdentitySettings
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.manifest import publish_base
from octavo_shared.messages import identity as m
from octavo_shared.objects import ObjectStore
from support.adapters import TINY_BASE, TINY_FINGERPRINT, config_json, tiny_weights


@asynccontextmanager
async def own_nats(folder: Path) -> AsyncIterator[NatsServer]:
    """A server of one test's own: the registry is one stream, and tests must not see each other's tenants."""
    server = NatsServer(folder)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def credential(text: str) -> m.Credential:
    _, key_id, secret = text.split("_")
    return m.Credential(key_id, hashlib.sha256(bytes.fromhex(secret)).digest())


@dataclass
class Client:
    """A gateway's side of identity, for one key."""

    bus: Bus
    store: ObjectStore
    credential: m.Credential

    async def ask(self, verb: str, **fields: Any) -> Any:
        kind, reply = m.VERBS[verb]
        if "idempotency_key" in kind.__struct_fields__:
            fields.setdefault("idempotency_key", secrets.token_hex(8))
        request = kind(credential=self.credential, **fields)
        return await self.bus.request(subjects.identity(verb), request, reply, timeout_s=15, who="identity")

    async def new_key(self, tenant: str, user: str, role: m.Role = m.Role.OWNER) -> "Client":
        secret, key_id = secrets.token_bytes(32), secrets.token_hex(8)
        digest = hashlib.sha256(secret).digest()
        await self.ask("issue_key", tenant=tenant, user=user, role=role, key_id=key_id, secret_sha256=digest)
        return Client(self.bus, self.store, m.Credential(key_id, digest))

    async def stage(self, adapter: str, seed: int = 0, config: bytes | None = None) -> str:
        begun = await self.ask("begin_upload", adapter=adapter)
        folder = f"staging/{begun.upload_id}"
        await self.store.write(f"{folder}/adapter_config.json", config or config_json())
        await self.store.write(f"{folder}/adapter_model.safetensors", tiny_weights(seed))
        return str(begun.upload_id)

    async def push(self, adapter: str, seed: int = 0, **fields: Any) -> m.AdapterInfo:
        upload_id = await self.stage(adapter, seed)
        info = await self.ask("commit", adapter=adapter, upload_id=upload_id, served_base=TINY_FINGERPRINT, **fields)
        assert isinstance(info, m.AdapterInfo)
        return info

    async def resolve(self, reference: str) -> m.Resolution:
        resolution = await self.ask("resolve", reference=reference)
        assert isinstance(resolution, m.Resolution)
        return resolution


@asynccontextmanager
async def identity(settings: StoreSettings, folder: Path) -> AsyncIterator[Client]:
    """Run identity in this process and yield its admin."""
    stop = asyncio.Event()
    own = IdentitySettings(**msgspec.structs.asdict(settings), identity_dir=folder, admin_key_file=folder / "admin_key")
    store = ObjectStore(settings)
    task = asyncio.create_task(serve(own, stop))
    try:
        async with Bus(settings.nats_url, "test") as bus:
            await store.ensure_bucket()
            await publish_base(store, TINY_BASE, b"{}")
            async with asyncio.timeout(20):
                while True:
                    try:
                        text = (folder / "admin_key").read_text()
                        admin = Client(bus, store, credential(text))
                        await admin.ask("resolve")
                        break
                    except (FileNotFoundError, DependencyUnavailable):
                        assert not task.done(), task.exception()
                        await asyncio.sleep(0.02)
            yield admin
    finally:
        stop.set()
        await task
        store.close()
