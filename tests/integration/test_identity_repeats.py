"""A repeated write changes nothing, however many others came between, and leaders that know less are not believed."""

import asyncio
import secrets
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import PubAck, StreamInfo

from octavo_cli.processes import Process, free_port, script
from octavo_identity import stream
from octavo_identity.building import Built
from octavo_identity.heads import HeadStore
from octavo_identity.records import WRITES_IN_HEAD_MAX, AdapterHead
from octavo_identity.registry import Change
from octavo_identity.staging import Staging
from octavo_identity.stream import Stream
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.errors import AliasMoved, DependencyUnavailable
from octavo_shared.messages.pushing import Commit
from octavo_shared.references import parse_reference
from octavo_shared.subjects import REGISTRY_STREAM
from support.adapters import TINY_FINGERPRINT
from support.identity_rig import Client, own_identity, own_nats, parts

NAME = "home/diary"
ANSWER = b'{"message": {"subject": "a", "seq": 7, "data": "aGk=", "time": "2026-01-01T00:00:00Z"}}'
MANY = WRITES_IN_HEAD_MAX + 3


async def write_many(client: Client, num_writes: int = MANY) -> None:
    for number in range(num_writes):
        await client.ask("tag", adapter=NAME, add=(f"t{number % 3}",))


async def test_a_key_that_the_head_forgot_still_gets_its_first_answer(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice = await admin.new_key("home", "alice")
        await alice.push(NAME)
        await alice.push(NAME, 2, alias=None)
        swap = {"reference": f"{NAME}@2", "expected": 1, "idempotency_key": "swap"}
        first = await alice.ask("promote", **swap)
        await write_many(alice)
        num_events = len((await alice.ask("history", adapter=NAME)).entries)
        assert await alice.ask("promote", **swap) == first
        with pytest.raises(AliasMoved):
            await alice.ask("promote", **swap | {"idempotency_key": "another"})
        assert len((await alice.ask("history", adapter=NAME)).entries) == num_events


async def test_a_push_that_is_sent_again_late_is_the_revision_that_it_made(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice = await admin.new_key("home", "alice")
        upload_id = await alice.stage(NAME)
        commit = {
            "adapter": NAME, "upload_id": upload_id, "served_base": TINY_FINGERPRINT, "idempotency_key": "push",
        }  # fmt: skip
        first = await alice.ask("commit", **commit)
        await write_many(alice)
        assert await alice.ask("commit", **commit) == first
        assert (await alice.ask("history", adapter=NAME)).entries[0].kind == "tagged"


async def test_a_push_that_two_replicas_were_given_gets_one_answer(
    store_settings: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, is_late, may_go_on = Staging.build, asyncio.Event(), asyncio.Event()

    async def late_build(self: Staging, commit: Commit) -> Built:
        if not is_late.is_set():
            is_late.set()
            await may_go_on.wait()
        return await build(self, commit)

    monkeypatch.setattr(Staging, "build", late_build)
    async with own_identity(store_settings, tmp_path) as admin, asyncio.TaskGroup() as group:
        alice = await admin.new_key("home", "alice")
        commit = {
            "adapter": NAME, "upload_id": await alice.stage(NAME), "served_base": TINY_FINGERPRINT,
            "idempotency_key": "push",
        }  # fmt: skip
        late = group.create_task(alice.ask("commit", **commit))
        await is_late.wait()
        first = await alice.ask("commit", **commit)
        # What was staged is gone now, and the slower one still has to read it.
        may_go_on.set()
        assert await late == first
        assert len((await alice.ask("history", adapter=NAME)).entries) == 1


async def test_while_the_view_is_away_the_server_still_knows_a_key_of_the_last_minutes(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path) as one:
        await one.add_revisions(NAME, 1)

        async def tag(key: str) -> tuple[AdapterHead, int]:
            async def add(now: AdapterHead | None) -> Change:
                assert now is not None
                return Change("tagged", msgspec.structs.replace(now, tags=(key,)))

            return await one.desk.registry.change(parse_reference(NAME), "alice@home", key, add)

        first = await tag("first")
        for _ in range(MANY):
            await tag(secrets.token_hex(4))
        last = (await one.heads.state()).last_sequence
        assert one.projection.sequence == 0
        assert await tag("first") == first
        assert (await one.heads.state()).last_sequence == last


async def test_one_key_on_two_adapters_is_two_writes(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        alice = await admin.new_key("home", "alice")
        for name in ("home/one", "home/two"):
            await alice.push(name)
            tagged = await alice.ask("tag", adapter=name, add=("t",), idempotency_key="same")
            assert (tagged.name, tagged.tags) == (name, ("t",))


async def test_a_leader_that_shows_less_than_was_there_is_not_believed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path) as one:
        await one.add_revisions(NAME, 5)
        await one.catch_up()
        jetstream = one.heads._stream._asking
        asked = jetstream.stream_info

        async def behind(name: str) -> StreamInfo:
            info = await asked(name)
            info.state.last_seq = 3
            return info

        monkeypatch.setattr(jetstream, "stream_info", behind)
        with pytest.raises(DependencyUnavailable):
            await one.projection._catch_up(one.heads)
        assert (one.projection.sequence, one.projection.begun_s) == (5, 0)
        # If it stays so, the stream is another one, as after the restoration of a backup.
        monkeypatch.setattr(stream, "SHORTER_S", 0.0)
        await one.projection._catch_up(one.heads)
        assert one.projection.sequence == 3
        assert one.projection.begun_s > 0


async def test_a_read_that_nobody_answers_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the stream has no leader: the first request is lost, and there is nobody who would answer it later."""
    monkeypatch.setattr(stream, "_ASK_S", 0.2)
    port = free_port()
    server = Process("nats", [script("nats-server"), "-a", "127.0.0.1", "-p", str(port)], tmp_path / "log", {})
    await server.start()
    try:
        async with Bus(f"nats://127.0.0.1:{port}", "test") as bus, Bus(f"nats://127.0.0.1:{port}", "leader") as other:
            num_asked = 0

            async def lead(message: Msg) -> None:
                nonlocal num_asked
                num_asked += 1
                if num_asked == 2:
                    await message.respond(ANSWER)

            asking = asyncio.create_task(Stream(bus, REGISTRY_STREAM).get(subject="a"))
            # No server of the stream is known yet, which is answered at once.
            await asyncio.sleep(0.05)
            await other.subscribe(f"$JS.API.STREAM.MSG.GET.{REGISTRY_STREAM}", lead)
            found = await asking
            assert found is not None
            assert (found.sequence, found.data, num_asked) == (7, b"hi", 2)
            monkeypatch.setattr(stream, "_TIMEOUT_S", 0.5)
            with pytest.raises(DependencyUnavailable):
                await HeadStore(bus, 1).read("a")
    finally:
        await server.stop()


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_write_that_nobody_answers_is_sent_again_and_happens_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stored: bool
) -> None:
    """As while the stream's leader changes: the write is stored and its answer is lost, or it is lost itself."""
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path) as one:
        await one.add_revisions(NAME, 1)
        last = (await one.heads.state()).last_sequence

        async def tag(now: AdapterHead | None) -> Change:
            assert now is not None
            return Change("tagged", msgspec.structs.replace(now, tags=("t",)))

        jetstream = one.heads._stream._asking
        publish = jetstream.publish
        num_sent = 0

        async def lose_one(*args: Any, **options: Any) -> PubAck:
            nonlocal num_sent
            num_sent += 1
            if num_sent == 1:
                if is_stored:
                    await publish(*args, **options)
                raise NatsTimeout
            return await publish(*args, **options)

        monkeypatch.setattr(jetstream, "publish", lose_one)
        head, sequence = await one.desk.registry.change(parse_reference(NAME), "alice@home", "tag", tag)
        assert (head.tags, sequence, num_sent) == (("t",), last + 1, 2)
        assert (await one.heads.state()).last_sequence == sequence
