"""A worker around the fake engine, on real NATS and real S3, and what a test needs to talk to it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from nats.aio.subscription import Subscription
from nats.errors import TimeoutError as NatsTimeout

from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.lora_config import LoraConfig
from octavo_shared.manifest import BaseManifest
from octavo_shared.messages.fleet import Heartbeat
from octavo_shared.messages.generation import (
    AdapterHandle,
    Failed,
    Finished,
    Generate,
    GenerationEvent,
    Sampling,
    Started,
    TokenChunk,
)
from octavo_shared.objects import ObjectStore
from octavo_shared.pack import build_pack, digest_of
from octavo_shared.references import AdapterId, Fingerprint, TenantId
from octavo_worker.settings import Cadence, WorkerSettings
from octavo_worker.worker import Worker
from support.adapters import TINY_BASE, TINY_FINGERPRINT, q_proj_modules, tiny_tensors
from support.fake_engine import FakeEngine
from support.keys import KeyDesk, sealed_for

_ANSWER_S = 20.0
_decoder = msgspec.msgpack.Decoder(GenerationEvent)


def tiny_pack(seed: int = 0, base: Fingerprint = TINY_FINGERPRINT, rank: int = 4) -> bytes:
    """Return the bytes of a small pack for ``base``."""
    config = LoraConfig(r=rank, lora_alpha=8, target_modules=("q_proj",))
    return build_pack(config, tiny_tensors(q_proj_modules(rank), seed), base, None)


def handle_of(pack: bytes, name: str = "a", base: Fingerprint = TINY_FINGERPRINT) -> AdapterHandle:
    """Return the handle that identity would give for ``pack``."""
    return AdapterHandle(
        adapter_id=AdapterId(name * 8),
        tenant_id=TenantId("t1"),
        revision=1,
        digest=digest_of(pack),
        base=base,
        object_key=f"packs/{name * 8}/1.u1",
        pack_bytes=len(pack),
    )


@dataclass
class Answer:
    """All events of one attempt, in order."""

    events: list[GenerationEvent] = field(default_factory=list)

    @property
    def started(self) -> Started:
        return next(event for event in self.events if isinstance(event, Started))

    @property
    def tokens(self) -> list[int]:
        return [token for event in self.events if isinstance(event, TokenChunk) for token in event.tokens]

    @property
    def last(self) -> GenerationEvent:
        return self.events[-1]

    @property
    def finished(self) -> Finished:
        assert isinstance(self.last, Finished), self.last
        return self.last

    @property
    def error_code(self) -> str:
        assert isinstance(self.last, Failed), self.last
        return self.last.refusal.code


class Conversation:
    """One attempt that a test has sent."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self.answer = Answer()

    async def next(self, timeout_s: float = _ANSWER_S) -> GenerationEvent:
        """Return the next event; raises ``TimeoutError`` when none comes."""
        event: GenerationEvent = _decoder.decode((await self._subscription.next_msg(timeout=timeout_s)).data)
        self.answer.events.append(event)
        return event

    async def until_end(self) -> Answer:
        """Read to the event that ends the attempt."""
        while isinstance(await self.next(), Started | TokenChunk):
            pass
        return self.answer

    async def is_silent(self, for_s: float) -> bool:
        """Tell whether nothing comes for a while."""
        try:
            await self.next(for_s)
        except NatsTimeout:
            return True
        return False


class Caller:
    """A gateway's side of the conversation."""

    def __init__(self, bus: Bus, worker_id: str) -> None:
        self.bus = bus
        self._worker_id = worker_id
        self._num_asked = 0

    async def send(
        self, adapter: AdapterHandle | None = None, *, max_tokens: int = 3, gateway_id: str = "g1", **fields: object
    ) -> Conversation:
        """Send one attempt; ``fields`` replace those of ``Generate``."""
        self._num_asked += 1
        generate = Generate(
            request_id=f"r{self._num_asked}",
            attempt=0,
            gateway_id=gateway_id,
            tenant_id=TenantId("t1"),
            base=TINY_FINGERPRINT,
            prompt=(5, 6, 7),
            sampling=Sampling(max_tokens=max_tokens, seed=0, temperature=0.0),
            budget_ms=20_000,
            adapter=adapter,
        )
        generate = msgspec.structs.replace(generate, **fields)
        inbox = self.bus.client.new_inbox()
        subscription = await self.bus.client.subscribe(inbox)
        await self.bus.publish(subjects.worker(self._worker_id, "generate"), generate, reply=inbox)
        return Conversation(subscription)

    async def ask(self, adapter: AdapterHandle | None = None, **fields: object) -> Answer:
        """Send one attempt and read it to its end."""
        return await (await self.send(adapter, **fields)).until_end()  # type: ignore[arg-type]


@dataclass
class Rig:
    """A running worker and everything around it."""

    worker: Worker
    engine: FakeEngine
    store: ObjectStore
    caller: Caller
    bus: Bus
    settings: WorkerSettings
    keys: KeyDesk

    async def put(self, pack: bytes, handle: AdapterHandle) -> AdapterHandle:
        """Store ``pack``, sealed, where ``handle`` says."""
        await self.store.write(handle.object_key, sealed_for(handle, pack))
        return handle

    async def put_tiny(self, name: str = "a", seed: int = 0) -> AdapterHandle:
        """Store a small pack and return its handle."""
        pack = tiny_pack(seed)
        return await self.put(pack, handle_of(pack, name))


def worker_settings(store: StoreSettings, folder: Path, **fields: int | float | str) -> WorkerSettings:
    given = msgspec.structs.asdict(store) | {"base_dir": "", "cache_dir": str(folder / "cache"), "worker_id": "w1"}
    return WorkerSettings(**(given | fields))


QUICK = Cadence(heartbeat_ms=100, lease_timeout_ms=5_000, order_grace_ms=50, drain_ms=2_000)


@contextlib.asynccontextmanager
async def running_worker(
    settings: WorkerSettings,
    engine: FakeEngine | None = None,
    cadence: Cadence = QUICK,
    has_key_desk: bool = True,
    base: BaseManifest = TINY_BASE,
) -> AsyncIterator[Rig]:
    """Run a worker around ``engine`` while the block runs."""
    engine = engine or FakeEngine()
    store = ObjectStore(settings)
    try:
        async with (
            Bus(settings.nats_url, "worker", drain_timeout_s=2.0) as bus,
            Bus(settings.nats_url, "caller", drain_timeout_s=2.0) as other,
        ):
            with contextlib.suppress(Exception):
                await store.ensure_bucket()
            keys = KeyDesk(other)
            if has_key_desk:
                await keys.start()
            worker = Worker(settings, bus, store, engine, base, cadence)
            async with worker.running():
                yield Rig(worker, engine, store, Caller(other, settings.worker_id), bus, settings, keys)
    finally:
        store.close()


class HeartbeatLog:
    """Collects heartbeats of one worker."""

    def __init__(self) -> None:
        self.heard: list[Heartbeat] = []
        self._news = asyncio.Event()

    async def hear(self, heartbeat: Heartbeat) -> None:
        self.heard.append(heartbeat)
        self._news.set()

    async def until(self, count: int) -> list[Heartbeat]:
        """Wait until ``count`` heartbeats were heard."""
        async with asyncio.timeout(_ANSWER_S):
            while len(self.heard) < count:
                self._news.clear()
                await self._news.wait()
        return self.heard
