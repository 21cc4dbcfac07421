"""Identity, a worker and all their files in folders of one test, to erase in and to search afterwards."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from octavo_cli.local_servers import S3Server
from octavo_shared import dsse
from octavo_shared.config import StoreSettings
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.keys import Role
from octavo_shared.messages.privacy import RECEIPT_TYPE, Erased, Receipt
from support.fake_engine import FakeEngine
from support.identity_rig import Client, identity, own_nats
from support.worker_rig import QUICK, Rig, running_worker, worker_settings


@dataclass
class ErasureWorld:
    """``settings`` lead to the servers; ``admin`` and ``alice``, who owns things in home, are identity's callers."""

    folder: Path
    settings: StoreSettings
    admin: Client
    alice: Client

    async def handle(self, reference: str) -> AdapterHandle:
        adapter = (await self.alice.resolve(reference)).adapter
        assert adapter is not None
        return adapter

    @asynccontextmanager
    async def worker(self, name: str = "w1", step_s: float = 0.0) -> AsyncIterator[Rig]:
        """Run a worker that asks the real identity."""
        settings = worker_settings(self.settings, self.folder / name, worker_id=name)
        async with running_worker(settings, FakeEngine(step_s=step_s), QUICK, has_key_desk=False) as rig:
            yield rig

    def holding(self, needle: bytes) -> list[str]:
        """Return the files of all services and servers that hold ``needle``, or whose names do."""
        return sorted(self.counts(needle))

    def num_in(self, folder: str, needle: bytes) -> int:
        """Return how often files of ``folder`` hold ``needle``."""
        return sum(num for name, num in self.counts(needle).items() if name.split("/")[0] == folder)

    def counts(self, needle: bytes) -> dict[str, int]:
        """Return how often each file holds ``needle``, its name included; those that do not are left out."""
        found = {}
        for path in self.folder.rglob("*"):
            name = str(path.relative_to(self.folder))
            if num_found := name.encode().count(needle) + (path.read_bytes().count(needle) if path.is_file() else 0):
                found[name] = num_found
        return found


@asynccontextmanager
async def erasure_world(settings: StoreSettings, folder: Path, **own: Any) -> AsyncIterator[ErasureWorld]:
    """Run a NATS of one's own and identity, with settings of its ``own``; the S3 of ``settings`` may be shared."""
    async with own_nats(folder / "nats") as nats:
        settings = msgspec.structs.replace(settings, nats_url=nats.url)
        async with identity(settings, folder / "identity", **own) as admin:
            for tenant in ("home", "away"):
                await admin.ask("create_tenant", tenant=tenant)
            alice = await admin.new_key("home", "alice", Role.OWNER)
            yield ErasureWorld(folder, settings, admin, alice)


@asynccontextmanager
async def own_s3(folder: Path) -> AsyncIterator[StoreSettings]:
    """Run an S3 server whose files nobody else writes to."""
    server = S3Server(folder)
    await server.start()
    try:
        yield StoreSettings(
            s3_endpoint=server.endpoint, s3_access_key=server.access_key, s3_secret_key=server.secret_key
        )
    finally:
        await server.stop()


def said(erased: Erased) -> Receipt:
    """Return what a receipt says, verified."""
    envelope = dsse.decode(erased.receipt)
    dsse.verify(envelope, [dsse.PublicKey.parse(erased.public_key)])
    assert envelope.payload_type == RECEIPT_TYPE
    receipt = dsse.parse_json(envelope.data, Receipt, "receipt")
    assert receipt.adapter_id == erased.adapter_id
    return receipt
