"""A process that registers adapters in bulk with identity's own code, as one of its replicas would in an import.

    python -m bench.million.registrar ORDER

``ORDER`` is JSON (``Order``). Each line on standard input is a range of numbers (``Range``); while it is worked on,
lines on standard output say how many of it are acknowledged (``Registered``).

Every adapter goes through ``Pushing.commit_once``: access and gates are checked, a statement is made and signed, the
head and its event are made, and 500 events become one atomic batch by compare-and-set, in the ``Group`` that an import
uses; before it, 500 data keys become another one. What is left out of a real import: uploads, their validation and
packing (all share one pack, which is made once and not stored), and the leader reads before each event: keys, tenants
and bases are read once, and every name is taken for new. The server's compare-and-set would refuse one that is not.
"""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec

from bench.million.population import Population
from chaos.adapters import BASE, tiny_adapter
from octavo_identity.admission import Admission
from octavo_identity.bases import Bases
from octavo_identity.batching import BATCH_MAX
from octavo_identity.building import Built, build, read_back
from octavo_identity.claims import Claims
from octavo_identity.data_keys import DataKeys
from octavo_identity.desk import Desk
from octavo_identity.fleet import Fleet
from octavo_identity.grouping import Group
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids, load_secret
from octavo_identity.key_provider import FileKeyProvider
from octavo_identity.metering import Metering
from octavo_identity.projection import Projection
from octavo_identity.pushing import Pushing
from octavo_identity.quota_keeper import QuotaKeeper
from octavo_identity.records import RegistryEvent
from octavo_identity.signers import Signers
from octavo_identity.staging import PackPlace, Staging
from octavo_identity.statements import Statements
from octavo_identity.usage_stream import UsageStream
from octavo_shared import dsse, subjects
from octavo_shared.bus import Bus
from octavo_shared.clock import wall_ms
from octavo_shared.config import StoreSettings
from octavo_shared.credentials import read_credentials
from octavo_shared.messages.pushing import Commit
from octavo_shared.objects import ObjectStore
from octavo_shared.permissions import BusRole
from octavo_shared.service import spare_collections
from octavo_shared.telemetry import start_telemetry

_BATCHES_AT_ONCE = 2
"""While the server takes one, the next is made."""
_SHARED_SEED = 1


class Order(msgspec.Struct, frozen=True):
    """What a registrar works with: the population, and the files of the identity that it is a replica of."""

    seed: int
    num_tenants: int
    nats_url: str
    seed_file: str
    identity_dir: str
    own_dir: str


class Range(msgspec.Struct, frozen=True):
    """Register the adapters with these numbers, ``first`` to ``last - 1``."""

    first: int
    last: int


class Registered(msgspec.Struct, frozen=True):
    """So many of the range are acknowledged; ``ready`` alone: the process waits for its first range."""

    number: int


def shared_pack() -> Built:
    """Return the pack that all adapters share."""
    files = tiny_adapter(_SHARED_SEED)
    return read_back(build(files.config, files.weights, BASE, None))


class _SharedPack(Staging):
    """Has one pack for every upload, and stores none."""

    def __init__(self) -> None:
        self._built = shared_pack()

    async def build(self, commit: Commit) -> Built:
        return self._built

    async def store_pack(self, place: PackPlace, pack: bytes) -> None:
        return None

    async def discard(self, upload_id: str) -> None:
        return None


class _LearntHeads(HeadStore):
    """Reads what it was told to once, and takes everything else for new."""

    def __init__(self, bus: Bus, num_replicas: int, keys: DataKeys) -> None:
        super().__init__(bus, num_replicas, keys)
        self._learnt: dict[str, tuple[RegistryEvent, int] | None] = {}

    async def learn(self, subject: str) -> None:
        self._learnt[subject] = await super().read(subject)
        assert self._learnt[subject] is not None, "it was made before"

    async def read(self, subject: str) -> tuple[RegistryEvent, int] | None:
        return self._learnt.get(subject)


class Registrar:
    """Registers ranges of a population."""

    def __init__(self, population: Population, heads: _LearntHeads, ids: Ids, desk: Desk, pushing: Pushing) -> None:
        self._population = population
        self._heads = heads
        self._ids = ids
        self._desk = desk
        self._pushing = pushing
        self._num_done = 0

    @classmethod
    async def of(cls, order: Order, bus: Bus, projection: Projection) -> Self:
        """Return a registrar that knows the population's keys and tenants."""
        ids = Ids(load_secret(Path(order.identity_dir)))
        keys = DataKeys(bus, 1, FileKeyProvider(ids.tenant_key_root()))
        heads = _LearntHeads(bus, 1, keys)
        population = Population(order.seed, order.num_tenants)
        for number in range(order.num_tenants):
            tenant_id = ids.tenant(population.tenant(number))
            await heads.learn(subjects.key_head(population.credential(number).key_id))
            await heads.learn(subjects.tenant_head(ids.shard(tenant_id), tenant_id))
        await Bases(HeadStore(bus, 1)).register(BASE.fingerprint, BASE.name)
        await heads.learn(subjects.BASES)
        desk = Desk(heads, ids, projection)
        statements = Statements(Signers(heads, ids, dsse.Signer(ids.provenance_seed())))
        # The base is known, so nothing here comes to object storage.
        admission = Admission(desk.bases, ObjectStore(StoreSettings()), Fleet())
        quotas = QuotaKeeper(desk, Metering(heads, UsageStream(bus, 1), projection), Claims(bus, 1))
        pushing = Pushing(desk, _SharedPack(), keys, statements, admission, quotas, 1)
        return cls(population, heads, ids, desk, pushing)

    async def register(self, wanted: Range) -> None:
        """Register a range, and say how far it is after each batch."""
        self._num_done = 0
        batches = iter(range(wanted.first, wanted.last, BATCH_MAX))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_BATCHES_AT_ONCE):
                tasks.create_task(self._work(batches, wanted.last), name="batches")

    async def _work(self, batches: Iterator[int], last: int) -> None:
        for first in batches:
            numbers = range(first, min(first + BATCH_MAX, last))
            await self._register_batch(numbers)
            self._num_done += len(numbers)
            say(Registered(self._num_done))

    async def _register_batch(self, numbers: range) -> None:
        group = Group(self._heads, len(numbers))
        pushing = self._pushing.through(self._desk.appending_with(group.append))

        async def one(number: int) -> None:
            with group.writer():
                committed = await pushing.commit_once(self._commit(number))
                assert committed.is_new, f"{self._population.adapter(number)} was there before"

        async with asyncio.TaskGroup() as tasks:
            for number in numbers:
                tasks.create_task(one(number), name="import")

    def _commit(self, number: int) -> Commit:
        name = self._population.adapter(number)
        principal = f"owner@{self._population.tenant(number % self._population.num_tenants)}"
        return Commit(
            credential=self._population.credential_of(number), idempotency_key=f"import {number}", adapter=name,
            upload_id=self._ids.upload(principal, name, wall_ms()), served_base=BASE.fingerprint,
            declared_base=BASE.fingerprint, is_import=True,
        )  # fmt: skip


def say(message: Registered) -> None:
    """Write one line to whoever started this."""
    os.write(1, msgspec.json.encode(message) + b"\n")


async def _run(order: Order) -> None:
    credentials = read_credentials(BusRole.IDENTITY, order.seed_file)
    projection = Projection(Path(order.own_dir) / "projection.sqlite")
    try:
        async with Bus(order.nats_url, "registrar", credentials=credentials) as bus:
            registrar = await Registrar.of(order, bus, projection)
            say(Registered(0))
            while line := await asyncio.to_thread(sys.stdin.buffer.readline):
                await registrar.register(msgspec.json.decode(line, type=Range))
    finally:
        projection.close()


def main() -> None:
    start_telemetry("registrar", "error")
    spare_collections()
    asyncio.run(_run(msgspec.json.decode(sys.argv[1], type=Order)))


if __name__ == "__main__":
    main()
