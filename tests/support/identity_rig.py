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
from octavo_identity.admission import Admission
from octavo_identity.aliases import with_revision
from octavo_identity.bases import Bases
from octavo_identity.claims import Claims
from octavo_identity.data_keys import DataKeys
from octavo_identity.desk import Desk
from octavo_identity.fleet import Fleet
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids, load_secret
from octavo_identity.key_source import KeySource
from octavo_identity.metering import Metering
from octavo_identity.projection import Projection
from octavo_identity.quota_keeper import QuotaKeeper
from octavo_identity.records import AdapterHead, RegistryEvent, StoredRevision, object_key
from octavo_identity.registry import Change
from octavo_identity.service import serve
from octavo_identity.settings import IdentitySettings
from octavo_identity.signers import Signers
from octavo_identity.statements import Statements
from octavo_identity.usage_stream import UsageStream
from octavo_shared import dsse, subjects
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.key_transport import Question
from octavo_shared.manifest import publish_base
from octavo_shared.messages.adapters import AdapterInfo, Revision
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.identity import VERBS
from octavo_shared.messages.keys import Role
from octavo_shared.messages.privacy import DataKey, Erasures, ErasuresSince, Unwrap
from octavo_shared.messages.requests import Credential
from octavo_shared.messages.resolving import Resolution
from octavo_shared.objects import ObjectStore
from octavo_shared.references import Digest, parse_reference
from octavo_shared.seal import open_sealed, pack_context, seal, staging_context
from octavo_shared.tasks import end
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


def credential(text: str) -> Credential:
    _, key_id, secret = text.split("_")
    return Credential(key_id, hashlib.sha256(bytes.fromhex(secret)).digest())


@dataclass
class Client:
    """A gateway's side of identity, for one key."""

    bus: Bus
    store: ObjectStore
    credential: Credential

    async def ask(self, verb: str, **fields: Any) -> Any:
        kind, reply = VERBS[verb]
        if "idempotency_key" in kind.__struct_fields__:
            fields.setdefault("idempotency_key", secrets.token_hex(8))
        request = kind(credential=self.credential, **fields)
        return await self.bus.request(subjects.identity(verb), request, reply, timeout_s=15, who="identity")

    async def new_key(self, tenant: str, user: str, role: Role = Role.OWNER, **narrowing: Any) -> "Client":
        secret, key_id = secrets.token_bytes(32), secrets.token_hex(8)
        digest = hashlib.sha256(secret).digest()
        who = {"tenant": tenant, "user": user, "role": role, "key_id": key_id, "secret_sha256": digest}
        await self.ask("issue_key", **who, **narrowing)
        return Client(self.bus, self.store, Credential(key_id, digest))

    async def stage(self, adapter: str, seed: int = 0, config: bytes | None = None) -> str:
        begun = await self.ask("begin_upload", adapter=adapter)
        folder = f"staging/{begun.upload_id}"
        key = await self.upload_key(begun.upload_id)
        files = {"adapter_config.json": config or config_json(), "adapter_model.safetensors": tiny_weights(seed)}
        for name, content in files.items():
            await self.store.write(f"{folder}/{name}", seal(content, key, staging_context(begun.upload_id, name)))
        return str(begun.upload_id)

    async def upload_key(self, upload_id: str) -> bytes:
        """Return the key that a gateway would seal an upload's files under."""
        question = Question()
        return question.open(
            (await self.ask("check_upload", upload_id=upload_id, public_key=question.public_key)).sealed
        )

    async def pack_of(self, adapter: AdapterHandle) -> bytes:
        """Return a pack from object storage, opened as a worker opens it."""
        context = pack_context(adapter.tenant_id, adapter.adapter_id, adapter.revision, adapter.base)
        return bytes(
            open_sealed(await self.store.read(adapter.object_key, 1 << 24), await self.unwrap(adapter), context)
        )

    async def unwrap(self, adapter: AdapterHandle) -> bytes:
        """Return the data key that a worker would get for the handle."""
        question = Question()
        order = Unwrap(adapter, question.public_key)
        answer = await self.bus.request(subjects.identity("unwrap"), order, DataKey, timeout_s=15)
        return question.open(answer.sealed)

    async def push(self, adapter: str, seed: int = 0, **fields: Any) -> AdapterInfo:
        upload_id = await self.stage(adapter, seed)
        fields.setdefault("served_base", TINY_FINGERPRINT)
        info = await self.ask("commit", adapter=adapter, upload_id=upload_id, **fields)
        assert isinstance(info, AdapterInfo)
        return info

    async def resolve(self, reference: str) -> Resolution:
        resolution = await self.ask("resolve", reference=reference)
        assert isinstance(resolution, Resolution)
        return resolution


@asynccontextmanager
async def identity(settings: StoreSettings, folder: Path, **fields: Any) -> AsyncIterator[Client]:
    """Run identity, with further settings, in this process and yield its admin."""
    stop = asyncio.Event()
    fields = msgspec.structs.asdict(settings) | fields
    own = IdentitySettings(**fields, identity_dir=folder, admin_key_file=folder / "admin_key")
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
                        # Verbs are served one after the other, and this is the last.
                        await bus.request(subjects.identity("erasures"), ErasuresSince(), Erasures, 15)
                        break
                    except (FileNotFoundError, DependencyUnavailable):
                        assert not task.done(), task.exception()
                        await asyncio.sleep(0.02)
            yield admin
    finally:
        stop.set()
        await task
        store.close()


@asynccontextmanager
async def own_identity(settings: StoreSettings, folder: Path) -> AsyncIterator[Client]:
    """Run identity, with its own files in ``identity``, on a NATS of its own, and make the tenants home and away."""
    async with own_nats(folder / "own-nats") as nats:
        settings = msgspec.structs.replace(settings, nats_url=nats.url)
        async with identity(settings, folder / "identity") as admin:
            for tenant in ("home", "away"):
                await admin.ask("create_tenant", tenant=tenant)
            yield admin


class CountingHeads(HeadStore):
    """Counts the reads of single events."""

    num_reads = 0

    async def read_at(self, sequence: int) -> RegistryEvent | None:
        self.num_reads += 1
        return await super().read_at(sequence)


def data_keys(bus: Bus, ids: Ids) -> DataKeys:
    """Return data keys as identity itself wraps them."""
    return DataKeys(bus, 1, key_source(ids).provider())


def key_source(ids: Ids) -> KeySource:
    return KeySource(ids.tenant_key_root())


@dataclass
class Parts:
    """Identity's parts without its process: the test says when the view of the registry follows."""

    heads: CountingHeads
    ids: Ids
    projection: Projection
    desk: Desk
    keys: DataKeys

    @property
    def signers(self) -> Signers:
        """Signing keys, with the registry's own."""
        return Signers(self.heads, self.ids, dsse.Signer(self.ids.provenance_seed()))

    async def catch_up(self) -> None:
        """Let the view follow until it has all that is in the stream now, and no further."""
        last = (await self.heads.state()).last_sequence
        self.projection.is_caught_up = False
        following = asyncio.create_task(self.projection.follow(self.heads))
        async with asyncio.timeout(10):
            while not (self.projection.is_caught_up and self.projection.sequence >= last):
                await asyncio.sleep(0.01)
        await end(following)

    async def add_revisions(self, name: str, num_revisions: int) -> AdapterHead:
        """Add revisions that have no pack, as alice@home; their digests hold their numbers."""
        reference = parse_reference(name)
        adapter_id = self.ids.adapter(reference.tenant, reference.adapter)

        async def add(now: AdapterHead | None) -> Change:
            head = now or AdapterHead(adapter_id, self.ids.tenant(reference.tenant), name, "alice@home", 0, (), {})
            number = head.num_revisions + 1
            digest = digest_of_number(number)
            revision = Revision(number, digest, TINY_FINGERPRINT, 1, 4, 2, "F32", "alice@home", 1)
            stored = StoredRevision(revision, object_key(adapter_id, number, "a" * 8, "b" * 8))
            return Change("revision_added", with_revision(head, stored), "", stored)

        for _ in range(num_revisions):
            head, _ = await self.desk.registry.change(reference, "alice@home", secrets.token_hex(8), add)
        return head


def quota_keeper(desk: Desk, bus: Bus) -> QuotaKeeper:
    """Return what holds pushes against quotas."""
    return QuotaKeeper(desk, Metering(desk.heads, UsageStream(bus, 1), desk.projection), Claims(bus, 1))


def statements(heads: HeadStore, ids: Ids) -> Statements:
    """Return what makes statements, with the registry's own key."""
    return Statements(Signers(heads, ids, dsse.Signer(ids.provenance_seed())))


def admission(store: ObjectStore, heads: HeadStore) -> Admission:
    """Return what admits things to bases, with a fleet in which no worker was heard."""
    return Admission(Bases(heads), store, Fleet())


def digest_of_number(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


@asynccontextmanager
async def parts(nats_url: str, folder: Path) -> AsyncIterator[Parts]:
    """Make identity's parts, with the secret in ``folder`` and a new view of the registry."""
    async with Bus(nats_url, "parts") as bus:
        ids = Ids(load_secret(folder))
        keys = data_keys(bus, ids)
        await keys.ensure_stream()
        heads = CountingHeads(bus, 1, keys)
        await heads.ensure_stream()
        projection = Projection(folder / f"{secrets.token_hex(4)}.sqlite")
        try:
            yield Parts(heads, ids, projection, Desk(heads, ids, projection), keys)
        finally:
            projection.close()
