"""A process that registers adapters in bulk with identity's own code, as one of its replicas would in an import.

    python -m bench.million.registrar ORDER

``ORDER`` is JSON (``Order``). Each line on standard input is a range of numbers (``Range``); while it is worked on,
lines on standard output say how many of it are acknowledged (``Registered``).

Every adapter goes through ``Beginning.commit_all``, as in an import: its owner's key, its tenant and its base are read
from the leader, access, gates and quotas are checked, a statement is made and signed, the head and its event are made,
and 500 events become one atomic batch by compare-and-set; before it, 500 data keys become another one. What is left out
of a real import: uploads, their validation and packing. All share one pack, which is made once and not stored.
"""

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec

from bench.million.population import Population
from chaos.adapters import BASE, tiny_adapter
from octavo_identity.admission import Admission
from octavo_identity.batching import BATCH_MAX
from octavo_identity.beginning import Beginning
from octavo_identity.building import Built, build, read_back
from octavo_identity.committing import Committed
from octavo_identity.data_keys import DataKeys
from octavo_identity.desk import Desk
from octavo_identity.fleet import Fleet
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids, load_secret
from octavo_identity.key_provider import FileKeyProvider
from octavo_identity.projection import Projection
from octavo_identity.signers import Signers
from octavo_identity.staging import PackPlace, Staging
from octavo_identity.statements import Statements
from octavo_shared import decoding, dsse
from octavo_shared.bus import Bus
from octavo_shared.clock import wall_ms
from octavo_shared.config import StoreSettings
from octavo_shared.credentials import read_credentials
from octavo_shared.errors import OctavoError
from octavo_shared.messages.pushing import Commit
from octavo_shared.objects import ObjectStore
from octavo_shared.permissions import BusRole
from octavo_shared.service import spare_collections
from octavo_shared.telemetry import start_telemetry

_BATCHES_AT_ONCE = 5
"""While the server takes some, the next is made: with two, a process waits a third of its time."""
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

    async def build_all(self, commits: Sequence[Commit]) -> list[Built | OctavoError]:
        return [self._built] * len(commits)

    async def store_packs(self, packs: Sequence[tuple[PackPlace, bytes]]) -> list[OctavoError | None]:
        return [None] * len(packs)

    async def discard_all(self, upload_ids: Sequence[str]) -> None:
        return None


class Registrar:
    """Registers ranges of a population."""

    def __init__(self, population: Population, ids: Ids, beginning: Beginning) -> None:
        self._population = population
        self._ids = ids
        self._beginning = beginning
        self._num_done = 0

    @classmethod
    async def of(cls, order: Order, bus: Bus, projection: Projection) -> Self:
        """Return a registrar of the population, whose tenants and keys are there."""
        ids = Ids(load_secret(Path(order.identity_dir)))
        heads = HeadStore(bus, 1, DataKeys(bus, 1, FileKeyProvider(ids.tenant_key_root())))
        desk = Desk(heads, ids, projection)
        await desk.bases.register(BASE.fingerprint, BASE.name)
        statements = Statements(Signers(heads, ids, dsse.Signer(ids.provenance_seed())))
        # The base is known, so nothing here comes to object storage.
        admission = Admission(desk.bases, ObjectStore(StoreSettings()), Fleet())
        beginning = Beginning(desk, _SharedPack(), statements, admission)
        return cls(Population(order.seed, order.num_tenants), ids, beginning)

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
        answers = await self._beginning.commit_all([self._commit(number) for number in numbers])
        for number, answer in zip(numbers, answers, strict=True):
            assert isinstance(answer, Committed), f"{self._population.adapter(number)}: {answer}"

    def _commit(self, number: int) -> Commit:
        name = self._population.adapter(number)
        principal = f"owner@{name.partition('/')[0]}"
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
                await registrar.register(decoding.from_json(line, Range))
    finally:
        projection.close()


def main() -> None:
    start_telemetry("registrar", "error")
    spare_collections()
    asyncio.run(_run(decoding.from_json(sys.argv[1], Order)))


if __name__ == "__main__":
    main()
