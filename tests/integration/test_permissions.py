"""Who may do what on NATS, against a real server with the configuration that is deployed."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError
from structlog.testing import capture_logs

from octavo_cli.local_servers import NatsServer
from octavo_cli.nats_users import Seeds, authorization, deployed_workers, nkey_variable
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.credentials import BusCredentials, new_seed, read_seed
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.permissions import BusRole, inbox_prefix

ROOT = Path(__file__).parents[2]
GATEWAY, IDENTITY, RESIDENCY, WORKER, CLIENT = BusRole
NOBODY: set[BusRole] = set()
(W,) = deployed_workers(1)
STREAM = subjects.REGISTRY_STREAM

PUBLISHERS: dict[str, set[BusRole]] = {
    subjects.GENERATE: {CLIENT},
    subjects.identity("resolve"): {GATEWAY},
    subjects.identity("commit"): {GATEWAY},
    subjects.residency("view"): {GATEWAY},
    subjects.residency("evict"): {GATEWAY},
    subjects.worker(W, "generate"): {GATEWAY},
    subjects.worker("w1", "cancel"): {GATEWAY},
    subjects.worker("w1", "prefetch"): {RESIDENCY},
    subjects.worker("w1", "evict"): {RESIDENCY},
    subjects.HEARTBEAT: {WORKER},
    subjects.DEMAND: {GATEWAY},
    subjects.LEASE: {GATEWAY},
    subjects.DEPLOYMENT: {IDENTITY},
    subjects.tenant_head("s", "t"): {IDENTITY},
    subjects.adapter_head("s", "t", "a"): {IDENTITY},
    subjects.key_head("k"): {IDENTITY},
    subjects.data_key("a"): {IDENTITY},
    subjects.upload_key("a", "u"): {IDENTITY},
    subjects.ERASED: {IDENTITY},
    subjects.claims("t"): {IDENTITY},
    subjects.identity("unwrap"): {GATEWAY, WORKER},
    subjects.identity("erasures"): {GATEWAY, WORKER},
    subjects.worker("w1", "erase"): {IDENTITY},
    subjects.AUDITED: {IDENTITY},
    subjects.usage("gw-1"): {GATEWAY},
    f"$JS.API.STREAM.INFO.{subjects.USAGE_STREAM}": {IDENTITY},
    f"$JS.API.DIRECT.GET.{subjects.USAGE_STREAM}": {IDENTITY},
    f"$JS.API.STREAM.PURGE.{subjects.USAGE_STREAM}": NOBODY,
    f"$JS.API.STREAM.MSG.DELETE.{subjects.USAGE_STREAM}": NOBODY,
    f"$JS.API.STREAM.MSG.DELETE.{subjects.KEY_STREAM}": {IDENTITY},
    f"$JS.API.STREAM.MSG.DELETE.{subjects.CHECKPOINT_STREAM}": NOBODY,
    f"$JS.API.STREAM.PURGE.{subjects.KEY_STREAM}": NOBODY,
    f"$JS.API.DIRECT.GET.{subjects.KEY_STREAM}": {IDENTITY},
    f"$JS.API.DIRECT.GET.{subjects.KEY_STREAM}.{subjects.data_key('a')}": NOBODY,
    f"$JS.API.STREAM.CREATE.{STREAM}": {IDENTITY},
    f"$JS.API.STREAM.INFO.{STREAM}": {IDENTITY},
    f"$JS.API.STREAM.MSG.GET.{STREAM}": {IDENTITY},
    f"$JS.API.STREAM.UPDATE.{STREAM}": NOBODY,
    f"$JS.API.STREAM.DELETE.{STREAM}": NOBODY,
    f"$JS.API.STREAM.PURGE.{STREAM}": NOBODY,
    f"$JS.API.STREAM.MSG.DELETE.{STREAM}": NOBODY,
    f"$JS.API.STREAM.SNAPSHOT.{STREAM}": NOBODY,
    f"$JS.API.DIRECT.GET.{STREAM}": {IDENTITY},
    f"$JS.API.DIRECT.GET.{STREAM}.{subjects.DEPLOYMENT}": NOBODY,
    f"$JS.API.CONSUMER.CREATE.{STREAM}": NOBODY,
    f"$JS.API.CONSUMER.CREATE.{STREAM}.c": NOBODY,
    "$JS.API.STREAM.CREATE.OTHER": NOBODY,
    "$JS.API.STREAM.NAMES": NOBODY,
    "$JS.API.INFO": NOBODY,
    "$SYS.REQ.SERVER.PING": NOBODY,
    "_INBOX_gateway.x": {IDENTITY, RESIDENCY, WORKER},
    "_INBOX_residency.x": {WORKER},
    "_INBOX_client.x": {GATEWAY},
    "_INBOX_identity.x": {WORKER},
    "_INBOX_worker.x": {IDENTITY},
    f"_INBOX_worker.{W}.x": {IDENTITY},
    "_INBOX.x": NOBODY,
    "anything.else": NOBODY,
}

SUBSCRIBERS: dict[tuple[str, str], set[BusRole]] = {
    ("_INBOX_gateway.x", ""): {GATEWAY},
    ("_INBOX_identity.x", ""): {IDENTITY},
    ("_INBOX_residency.x", ""): {RESIDENCY},
    ("_INBOX_client.x", ""): {CLIENT},
    (f"_INBOX_worker.{W}.x", ""): {WORKER},
    ("_INBOX_worker.other.x", ""): NOBODY,
    ("_INBOX_worker.>", ""): NOBODY,
    (subjects.KEY_SUBJECTS[0], ""): NOBODY,
    ("_INBOX.>", ""): NOBODY,
    (subjects.HEARTBEAT, ""): {GATEWAY, IDENTITY, RESIDENCY},
    (subjects.LEASE, ""): {WORKER},
    (subjects.AUDITED, ""): {IDENTITY},
    (subjects.worker(W, "generate"), ""): {WORKER},
    (subjects.worker(W, "evict"), ""): {WORKER},
    (subjects.worker("other", "generate"), ""): NOBODY,
    (subjects.worker("*", "generate"), ""): NOBODY,
    # Served by one member of a group: whoever is none of it could read everybody's requests along.
    (subjects.GENERATE, subjects.GATEWAY_QUEUE): {GATEWAY},
    (subjects.GENERATE, "other"): NOBODY,
    (subjects.GENERATE, ""): NOBODY,
    (subjects.identity("resolve"), subjects.IDENTITY_QUEUE): {IDENTITY},
    (subjects.identity("resolve"), ""): NOBODY,
    (subjects.residency("evict"), subjects.RESIDENCY_QUEUE): {RESIDENCY},
    (subjects.residency("evict"), ""): NOBODY,
    (subjects.DEMAND, subjects.RESIDENCY_QUEUE): {RESIDENCY},
    (subjects.DEMAND, ""): NOBODY,
    (subjects.USAGE_SUBJECTS[0], ""): NOBODY,
    (subjects.REGISTRY_SUBJECTS[0], ""): NOBODY,
    (subjects.REGISTRY_SUBJECTS[1], ""): NOBODY,
    ("$JS.API.>", ""): NOBODY,
    ("$JS.EVENT.>", ""): NOBODY,
    ("$SYS.>", ""): NOBODY,
    (f"{subjects.PREFIX}.>", ""): NOBODY,
    (">", ""): NOBODY,
}

_DENIED = re.compile(r'permissions violation for (publish|subscription)[^"]*"([^"]+)"(?: using queue "([^"]+)")?')


class Note(msgspec.Struct, frozen=True):
    text: str


async def echo(note: Note) -> Note:
    return note


@dataclass(frozen=True)
class Guarded:
    """A server that knows every role's nkey, and the seeds."""

    server: NatsServer
    seeds: Seeds

    def seed_file(self, role: BusRole) -> Path:
        return self.seeds.path(W if role is WORKER else role)

    def bus(self, role: BusRole) -> Bus:
        member = W if role is WORKER else ""
        return Bus(self.server.url, role, 1.0, 5.0, BusCredentials(role, read_seed(self.seed_file(role)), member))

    @asynccontextmanager
    async def client(self, role: BusRole, denied: set[tuple[str, ...]]) -> AsyncIterator[Client]:
        """Yield a plain connection of ``role``; what it is denied comes into ``denied``."""

        async def on_error(error: Exception) -> None:
            match = _DENIED.search(str(error).lower())
            assert match, error
            operation, subject, queue = match.groups()
            denied.add((subject,) if operation == "publish" else (subject, queue or ""))

        seed_file, prefix = str(self.seed_file(role)), inbox_prefix(role, W if role is WORKER else "")
        client = await nats.connect(self.server.url, error_cb=on_error, nkeys_seed=seed_file, inbox_prefix=prefix)
        try:
            yield client
        finally:
            await client.close()


async def settled(client: Client) -> None:
    """Return once the server has answered all that was sent: of nats-py's flushes, only the second is behind it."""
    await client.flush()
    await client.flush()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    seeds = Seeds(folder / "seeds")
    server = NatsServer(folder / "nats", authorization=(ROOT / "deploy" / "nats" / "authorization.conf").read_text())
    with pytest.MonkeyPatch.context() as environ, asyncio.Runner() as runner:
        for user, nkey in seeds.nkeys([W]).items():
            environ.setenv(nkey_variable(user), nkey)
        runner.run(server.start())
        yield Guarded(server, seeds)
        runner.run(server.stop())


@pytest.mark.parametrize("role", BusRole)
async def test_role_publishes_what_it_must_and_nothing_else(guarded: Guarded, role: BusRole) -> None:
    denied: set[tuple[str, ...]] = set()
    async with guarded.client(role, denied) as client:
        for subject in PUBLISHERS:
            await client.publish(subject, b"")
        await settled(client)
    assert {subject for subject in PUBLISHERS if (subject.lower(),) not in denied} == {
        subject for subject, roles in PUBLISHERS.items() if role in roles
    }


@pytest.mark.parametrize("role", BusRole)
async def test_role_hears_what_it_must_and_nothing_else(guarded: Guarded, role: BusRole) -> None:
    denied: set[tuple[str, ...]] = set()
    async with guarded.client(role, denied) as client:
        for subject, queue in SUBSCRIBERS:
            await client.subscribe(subject, queue)
        await settled(client)
    assert {(subject, queue) for subject, queue in SUBSCRIBERS if (subject.lower(), queue) not in denied} == {
        one for one, roles in SUBSCRIBERS.items() if role in roles
    }


@pytest.mark.parametrize("seed", [None, new_seed()], ids=["no key", "unknown key"])
async def test_nobody_comes_in_without_a_known_key(guarded: Guarded, seed: str | None) -> None:
    async def ignore(_: Exception) -> None: ...

    client = Client()
    with pytest.raises(NatsError, match=r"(?i)authorization"):
        await client.connect(guarded.server.url, nkeys_seed_str=seed, allow_reconnect=False, error_cb=ignore)
    await client.close()
    credentials = BusCredentials(GATEWAY, seed) if seed else None
    with pytest.raises(DependencyUnavailable):
        async with Bus(guarded.server.url, "stranger", 1.0, 1.0, credentials):
            pass


async def test_registry_is_neither_written_nor_deleted_by_others(guarded: Guarded) -> None:
    async with guarded.bus(IDENTITY) as identity:
        await identity.jetstream.add_stream(name=STREAM, subjects=list(subjects.REGISTRY_SUBJECTS))
        ack = await identity.jetstream.publish(subjects.key_head("k"), b"true", stream=STREAM)
        for role in set(BusRole) - {IDENTITY}:
            async with guarded.client(role, set()) as client:
                await client.publish(subjects.key_head("k"), b"forged")
                await client.publish(f"$JS.API.STREAM.DELETE.{STREAM}", b"")
                await client.publish(f"$JS.API.STREAM.PURGE.{STREAM}", b"")
                await settled(client)
        kept = await identity.jetstream.get_msg(STREAM, subject=subjects.key_head("k"))
        assert (kept.seq, kept.data) == (ack.seq, b"true")


async def test_answer_never_goes_where_only_the_answerer_may_write(guarded: Guarded) -> None:
    async with guarded.bus(IDENTITY) as identity, guarded.bus(GATEWAY) as gateway:
        await identity.jetstream.add_stream(name=STREAM, subjects=list(subjects.REGISTRY_SUBJECTS))
        before = (await identity.jetstream.stream_info(STREAM)).state.last_seq
        await identity.serve(subjects.identity("resolve"), Note, echo, subjects.IDENTITY_QUEUE)
        await gateway.publish(subjects.identity("resolve"), Note("a forged head"), reply=subjects.key_head("forged"))
        # The second one is handled after the first, so the answer to the first would be there by now.
        assert await gateway.request(subjects.identity("resolve"), Note("?"), Note, 5.0) == Note("?")
        await identity.settled()
        assert (await identity.jetstream.stream_info(STREAM)).state.last_seq == before


async def test_a_worker_is_asked_and_answered_alone(guarded: Guarded) -> None:
    async with guarded.bus(IDENTITY) as identity, guarded.bus(GATEWAY) as gateway, guarded.bus(WORKER) as worker:
        heard: list[str] = []

        async def hear(note: Note) -> None:
            heard.append(note.text)

        await worker.serve(subjects.worker(W, "cancel"), Note, hear)
        await identity.serve(subjects.identity("unwrap"), Note, echo, subjects.IDENTITY_QUEUE)
        await gateway.publish(subjects.worker("other", "cancel"), Note("another's"))
        await gateway.publish(subjects.worker(W, "cancel"), Note("its own"))
        assert await worker.request(subjects.identity("unwrap"), Note("?"), Note, 5.0) == Note("?")
        async with asyncio.timeout(5):
            while not heard:
                await asyncio.sleep(0.01)
    assert heard == ["its own"]


async def test_a_worker_is_added_while_the_server_runs_and_nobody_is_cut_off(tmp_path: Path) -> None:
    seeds = Seeds(tmp_path / "seeds")
    server = NatsServer(tmp_path / "nats", authorization=authorization(seeds.nkeys(["w1"])))
    await server.start()

    def bus(worker_id: str, timeout_s: float = 5.0) -> Bus:
        return Bus(
            server.url, worker_id, 1.0, timeout_s, BusCredentials(WORKER, read_seed(seeds.path(worker_id)), worker_id)
        )

    try:
        async with bus("w1") as first:
            seeds.nkeys(["w1", "w2"])
            with pytest.raises(DependencyUnavailable):
                async with bus("w2", 1.0):
                    pass
            await server.reload(authorization(seeds.nkeys(["w1", "w2"])))
            async with bus("w2") as second:
                assert second.is_connected
                assert first.client.stats["reconnects"] == 0
    finally:
        await server.stop()


async def test_denied_permission_is_logged_by_name_and_once(guarded: Guarded) -> None:
    with capture_logs() as logs:
        async with guarded.bus(CLIENT) as bus:
            for _ in range(3):
                await bus.publish(subjects.HEARTBEAT, Note("forged"))
                await bus.client.publish(bus.client.new_inbox(), b"")
            await bus.client.subscribe(subjects.HEARTBEAT)
            await bus.settled()
    denied = [(entry["operation"], entry["subject"]) for entry in logs if entry["event"] == "permission_denied"]
    assert sorted(denied) == [
        ("publish", "_inbox_client.>"),
        ("publish", subjects.HEARTBEAT),
        ("subscription", subjects.HEARTBEAT),
    ]
