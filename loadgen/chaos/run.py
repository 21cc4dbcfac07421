"""One run: a deployment, its writers, the faults, and what is left of it all."""

import asyncio
import functools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

from chaos.adapters import tiny_adapter
from chaos.aftermath import Aftermath, look
from chaos.calls import IdentityCaller, key_credential
from chaos.deployment import Deployment
from chaos.faults import STEADY, Chaos, Fault, Pace, Together, until_healthy
from chaos.history import History
from chaos.kept_keys import KeptKeys
from chaos.store_floor import restart_s
from chaos.workload import READERS, Adapters
from chaos.writer import Record, Writer
from octavo_identity.ids import Ids, load_secret
from octavo_identity.key_provider import FileKeyProvider
from octavo_shared import dsse
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.keys import Role
from octavo_shared.messages.requests import Credential
from octavo_shared.objects import ObjectStore
from octavo_shared.tasks import end

_OWNER = "owner@home"
_NUM_FILES = 64
_NUM_HOT = 4
_REPORT_EVERY_S = 15.0
_POLL_S = 0.1
_SET_UP_TRIES_MAX = 20

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """``limit_s`` ends a run that does not come to its numbers."""

    seed: int
    num_operations: int
    rounds: Sequence[Together]
    num_writers: int = 8
    num_adapters: int = 400
    pace: Pace = STEADY
    limit_s: float = 1_800.0


@dataclass(frozen=True)
class Result:
    """What was done, seen and left. Times are of the run's own clock."""

    record: Record
    faults: Sequence[Fault]
    aftermath: Aftermath
    history: History
    duration_s: float
    store_restart_s: float = 0.0
    """Of a killed store that nobody uses, until it stores again."""


async def run(plan: Plan, folder: Path, report: Callable[[str], None]) -> Result:
    """Carry out ``plan`` with all data in ``folder``; nothing runs any more when this returns."""
    async with Deployment(folder) as deployment, AsyncExitStack() as stack:
        store_restart_s = await restart_s(deployment)
        report("the deployment is ready")
        operator = await stack.enter_async_context(deployment.operator())
        ids = Ids(load_secret(deployment.identity_dir(0)))
        keys = KeptKeys(operator, len(deployment.nats.servers), FileKeyProvider(ids.tenant_key_root()))
        keeping = asyncio.create_task(keys.follow(), name="keep keys")
        stack.push_async_callback(end, keeping)
        record, signer = Record(), dsse.Signer(secrets.token_bytes(32))
        writers = await stack.enter_async_context(_writers(plan, deployment, record, signer, keys))
        chaos = Chaos(deployment, operator, plan.pace, Random(f"{plan.seed} faults"), report)
        duration_s = await _write_under_faults(plan, writers, chaos, record, report)
        await until_healthy(deployment)
        report("reading what is left")
        aftermath = await look(deployment, operator, keys, signer.public_key)
    history = History(record.operations, aftermath.ledger)
    return Result(record, chaos.faults, aftermath, history, duration_s, store_restart_s)


async def _write_under_faults(
    plan: Plan, writers: Sequence[Writer], chaos: Chaos, record: Record, report: Callable[[str], None]
) -> float:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    next_report_s = begun_s + _REPORT_EVERY_S
    async with asyncio.TaskGroup() as group:
        for writer in writers:
            group.create_task(writer.run(stop), name=writer.name)
        faults = group.create_task(chaos.run(plan.rounds), name="faults")
        while not (faults.done() and record.num_acknowledged >= plan.num_operations):
            if loop.time() - begun_s > plan.limit_s:
                report(f"the limit of {plan.limit_s:.0f} s is over")
                await end(faults)
                break
            if loop.time() >= next_report_s:
                next_report_s += _REPORT_EVERY_S
                report(f"{record.num_acknowledged:,} operations acknowledged after {loop.time() - begun_s:.0f} s")
            await asyncio.sleep(_POLL_S)
        stop.set()
    return loop.time() - begun_s


@asynccontextmanager
async def _writers(
    plan: Plan, deployment: Deployment, record: Record, signer: dsse.Signer, keys: KeptKeys
) -> AsyncIterator[list[Writer]]:
    """Yield writers with a connection and a key each; one principal owns all adapters, and signs with ``signer``."""
    store = ObjectStore(deployment.settings)
    files = [tiny_adapter(plan.seed * _NUM_FILES + number) for number in range(_NUM_FILES)]
    own = [f"home/own{number}" for number in range(plan.num_writers)]
    adapters = Adapters([f"home/a{number}" for number in range(plan.num_adapters)], _NUM_HOT, own)
    async with AsyncExitStack() as stack:
        stack.callback(store.close)
        buses = [
            await stack.enter_async_context(deployment.gateway_bus(f"writer-{number}"))
            for number in range(plan.num_writers)
        ]
        admin = IdentityCaller(buses[0], store, key_credential(deployment.admin_key_file.read_text()))
        for tenant in ("home", "away"):
            await _until_done(functools.partial(admin.create_tenant, tenant))
        readers = {reader: await _key(admin, reader, Role.USER) for reader in READERS}
        owners = [IdentityCaller(bus, store, await _key(admin, _OWNER, Role.OWNER), _OWNER, signer) for bus in buses]
        await _until_done(owners[0].register_signer)
        yield [
            Writer(
                f"writer-{number}",
                owner,
                own[number],
                {reader: IdentityCaller(bus, store, credential) for reader, credential in readers.items()},
                adapters,
                files,
                record,
                Random(f"{plan.seed} writer {number}"),
                keys.has_all,
            )
            for number, (bus, owner) in enumerate(zip(buses, owners, strict=True))
        ]


async def _key(admin: IdentityCaller, principal: str, role: Role) -> Credential:
    user, _, tenant = principal.partition("@")
    return await _until_done(lambda: admin.issue_key(tenant, user, role))


async def _until_done(work: Callable[[], Awaitable[T]]) -> T:
    """Do ``work``, which is idempotent, again while the new cluster is still finding its leaders."""
    for _ in range(_SET_UP_TRIES_MAX):
        try:
            return await work()
        except DependencyUnavailable:
            await asyncio.sleep(_POLL_S)
    return await work()
