"""What is done to a deployment while it is written to: one fault at a time or two, all healed before the next."""

import asyncio
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

import msgspec
from nats.errors import Error as NatsError

from chaos.deployment import Deployment
from chaos.store_floor import until_it_stores
from octavo_cli.local_servers import NatsServer
from octavo_cli.processes import Process
from octavo_shared.bus import Bus
from octavo_shared.subjects import REGISTRY_STREAM

_REQUEST_S = 2.0
_HEALTH_POLL_S = 0.2
_HEALTHY_S = 60.0
_S3_GRACE_S = 2.0


class FaultKind(StrEnum):
    NATS_KILLED = "nats_killed"
    """SIGKILL of any nats-server, started again some seconds later."""
    LEADER_KILLED = "leader_killed"
    """The same, of the one that leads the registry stream."""
    NATS_SUSPENDED = "nats_suspended"
    """SIGSTOP of any nats-server, SIGCONT some seconds later: it then goes on as if nothing had happened."""
    LEADER_SUSPENDED = "leader_suspended"
    LEADER_CHANGED = "leader_changed"
    """The registry stream's leader is told to step down."""
    IDENTITY_KILLED = "identity_killed"
    """SIGKILL of one of the identity replicas, started again some seconds later."""
    STORE_STOPPED = "store_stopped"
    """The object store is stopped and started again."""
    NATS_PARTITIONED = "nats_partitioned"
    """Nothing passes between any nats-server and the others, and its clients notice nothing."""
    LEADER_PARTITIONED = "leader_partitioned"
    """The same, of the one that leads the registry stream: it goes on answering reads until it notices."""
    MAJORITY_SUSPENDED = "majority_suspended"
    """SIGSTOP of all nats-servers but one: nothing can be written until they go on."""


Together = tuple[FaultKind, ...]
"""Faults of one moment: of different parts, so that each still does what it says."""

DECK: Sequence[Together] = (
    (FaultKind.NATS_KILLED,),
    (FaultKind.LEADER_KILLED,),
    (FaultKind.NATS_SUSPENDED,),
    (FaultKind.LEADER_CHANGED,),
    (FaultKind.IDENTITY_KILLED,),
    (FaultKind.LEADER_PARTITIONED,),
    (FaultKind.MAJORITY_SUSPENDED,),
    (FaultKind.NATS_PARTITIONED, FaultKind.IDENTITY_KILLED),
    (FaultKind.LEADER_SUSPENDED, FaultKind.STORE_STOPPED),
    (FaultKind.LEADER_CHANGED, FaultKind.IDENTITY_KILLED, FaultKind.STORE_STOPPED),
)
"""One round of faults, which is shuffled."""


@dataclass(frozen=True)
class Fault:
    """One fault that was, from its begin to when what it hit was there again; ``others`` were under way meanwhile.

    ``stores_s`` is when a stopped store first stored again for whoever asked it directly.
    """

    kind: FaultKind
    target: str
    begun_s: float
    healed_s: float
    others: Together = ()
    stores_s: float | None = None

    @property
    def recoverable_s(self) -> float:
        """When it could first be recovered from: at once, unless it left no majority that could have."""
        return self.healed_s if self.kind is FaultKind.MAJORITY_SUSPENDED else self.begun_s


@dataclass(frozen=True)
class _Hit:
    target: str
    begun_s: float
    stores_s: float | None = None


@dataclass(frozen=True)
class Pace:
    """For how long a fault lasts, and how long all is well before the next one: shortest and longest, in seconds."""

    held_s: tuple[float, float] = (1.0, 9.0)
    store_held_s: tuple[float, float] = (0.5, 2.0)
    calm_s: tuple[float, float] = (2.0, 5.0)


STEADY = Pace()


class Chaos:
    """Does faults to ``deployment``; what it has done is in ``faults``."""

    def __init__(
        self, deployment: Deployment, operator: Bus, pace: Pace, random: Random, report: Callable[[str], None]
    ) -> None:
        self._deployment = deployment
        self._operator = operator
        self._pace = pace
        self._random = random
        self._report = report
        self.faults: list[Fault] = []

    async def run(self, rounds: Sequence[Together]) -> None:
        """Do the faults of one moment after those of the other; all is well again when this returns."""
        num_faults = sum(map(len, rounds))
        for kinds in rounds:
            await asyncio.sleep(self._random.uniform(*self._pace.calm_s))
            async with asyncio.TaskGroup() as together:
                for kind in kinds:
                    others = tuple(other for other in kinds if other is not kind)
                    together.create_task(self._do_one(kind, others, num_faults), name=kind)
            await until_healthy(self._deployment)

    async def _do_one(self, kind: FaultKind, others: Together, num_faults: int) -> None:
        hit = await self._do(kind)
        self.faults.append(Fault(kind, hit.target, hit.begun_s, _now_s(), others, hit.stores_s))
        self._report(f"fault {len(self.faults)} of {num_faults}: {' beside '.join((kind, *others))}, {hit.target}")

    async def _do(self, kind: FaultKind) -> _Hit:
        match kind:
            case FaultKind.LEADER_CHANGED:
                return await self._change_leader()
            case FaultKind.IDENTITY_KILLED:
                return await self._kill_identity()
            case FaultKind.STORE_STOPPED:
                return await self._stop_store()
            case FaultKind.NATS_KILLED | FaultKind.LEADER_KILLED:
                return await self._kill_nats(await self._server(is_leader=kind is FaultKind.LEADER_KILLED))
            case FaultKind.NATS_SUSPENDED | FaultKind.LEADER_SUSPENDED:
                return await self._suspend_nats([await self._server(is_leader=kind is FaultKind.LEADER_SUSPENDED)])
            case FaultKind.MAJORITY_SUSPENDED:
                servers = self._deployment.nats.servers
                return await self._suspend_nats(self._random.sample(servers, len(servers) - 1))
            case FaultKind.NATS_PARTITIONED | FaultKind.LEADER_PARTITIONED:
                return await self._cut_off(await self._server(is_leader=kind is FaultKind.LEADER_PARTITIONED))

    async def _kill_nats(self, server: NatsServer) -> _Hit:
        begun_s = _now_s()
        process = _process_of(server)
        process.kill()
        await process.wait(_REQUEST_S)
        await self._hold()
        await server.start()
        return _Hit(process.name, begun_s)

    async def _suspend_nats(self, servers: Sequence[NatsServer]) -> _Hit:
        begun_s = _now_s()
        processes = [_process_of(server) for server in servers]
        for process in processes:
            process.kill(signal.SIGSTOP)
        try:
            await self._hold()
        finally:
            for process in processes:
                process.kill(signal.SIGCONT)
        return _Hit(" and ".join(process.name for process in processes), begun_s)

    async def _cut_off(self, server: NatsServer) -> _Hit:
        begun_s = _now_s()
        links, number = self._deployment.links, self._deployment.nats.servers.index(server) + 1
        links.cut(number)
        try:
            await self._hold()
        finally:
            links.join(number)
        return _Hit(server.name, begun_s)

    async def _change_leader(self) -> _Hit:
        leader = await leader_of(self._operator)
        begun_s = _now_s()
        await step_down(self._operator)
        return _Hit(leader, begun_s)

    async def _kill_identity(self) -> _Hit:
        number = self._random.randrange(len(self._deployment.identities))
        process = self._deployment.identities[number]
        begun_s = _now_s()
        process.kill()
        await process.wait(_REQUEST_S)
        await self._hold()
        await self._deployment.start_identity(number)
        return _Hit(process.name, begun_s)

    async def _stop_store(self) -> _Hit:
        begun_s = _now_s()
        store = self._deployment.s3
        assert store.process is not None, "the deployment runs"
        await store.process.stop(_S3_GRACE_S)
        await asyncio.sleep(self._random.uniform(*self._pace.store_held_s))
        _, stores_s = await asyncio.gather(store.start(), until_it_stores(self._deployment))
        return _Hit("s3", begun_s, stores_s)

    async def _hold(self) -> None:
        await asyncio.sleep(self._random.uniform(*self._pace.held_s))

    async def _server(self, *, is_leader: bool) -> NatsServer:
        servers = self._deployment.nats.servers
        if not is_leader:
            return self._random.choice(servers)
        leader = await leader_of(self._operator)
        return next(server for server in servers if server.name == leader)


def _process_of(server: NatsServer) -> Process:
    assert server.process is not None, "the deployment runs"
    return server.process


async def leader_of(operator: Bus) -> str:
    """Return the name of the server that leads the registry stream, once there is one."""
    async with asyncio.timeout(_HEALTHY_S):
        while True:
            try:
                cluster = (await operator.client.jetstream(timeout=_REQUEST_S).stream_info(REGISTRY_STREAM)).cluster
            except (NatsError, OSError):
                cluster = None
            if cluster is not None and cluster.leader:
                return cluster.leader
            await asyncio.sleep(_HEALTH_POLL_S)


async def step_down(operator: Bus, preferred: str = "") -> None:
    """Ask the leader of the registry stream to make way, for ``preferred`` if one is named. It may not be answered."""
    request = {"placement": {"preferred": preferred}} if preferred else {}
    subject = f"$JS.API.STREAM.LEADER.STEPDOWN.{REGISTRY_STREAM}"
    try:
        await operator.client.request(subject, msgspec.json.encode(request), timeout=_REQUEST_S)
    except (NatsError, OSError):
        # Whoever asks again finds out who leads.
        return


async def until_healthy(deployment: Deployment) -> None:
    """Return once every process answers and every nats-server is up to date; raises ``TimeoutError``."""
    async with asyncio.timeout(_HEALTHY_S):
        while not await _is_healthy(deployment):  # noqa: ASYNC110 - processes have no event to wait for
            await asyncio.sleep(_HEALTH_POLL_S)


async def _is_healthy(deployment: Deployment) -> bool:
    answers = await asyncio.gather(
        *(server.is_healthy() for server in deployment.nats.servers),
        *(deployment.identity_is_ready(number) for number in range(len(deployment.identities))),
        deployment.s3.is_healthy(),
    )
    return all(answers)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
