"""The background audit against real streams: what happens to the server's files, and to what it shows, is found."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from octavo_cli.local_servers import NatsServer
from octavo_cli.processes import free_port
from octavo_identity.auditor import Auditor
from octavo_identity.checkpoints import Checkpoints
from octavo_identity.heads import HeadStore
from octavo_identity.ledger import Ledger
from octavo_identity.projection import Projection
from octavo_identity.service import serve
from octavo_identity.settings import IdentitySettings
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.errors import NotPermitted
from octavo_shared.messages.auditing import AuditReport
from octavo_shared.messages.ledger import LedgerEvent
from support.command_world import alice_of, gateway, octavo
from support.identity_rig import Client, Parts, own_identity, own_nats, parts
from support.ledgers import SIGNER

FAST = 1_000


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_CONFIRM_S": 0.05, "_VIEW_WAIT_S": 0.5, "_ROUND_EVERY_S": 0.2, "_RETRY_S": 0.05}.items():
        monkeypatch.setattr(f"octavo_identity.auditor.{name}", value)


@dataclass
class Audited:
    """A registry of one adapter, signed at several sizes, and the audit of it; nothing runs by itself."""

    server: NatsServer
    folder: Path
    one: Parts
    checkpoints: Checkpoints
    auditor: Auditor

    @property
    def bus(self) -> Bus:
        return self.one.heads._stream._bus

    def files_of(self, stream: str) -> Path:
        (found,) = self.folder.rglob(stream)
        return found

    async def add(self, num_revisions: int) -> None:
        """Add revisions, of which each is one event, and sign."""
        await self.one.add_revisions("home/diary", num_revisions)
        await self.one.catch_up()
        await Ledger(self.one.heads, self.one.projection, self.checkpoints, SIGNER).sign_behind()

    def other(self, heads: HeadStore | None = None, projection: Projection | None = None) -> Auditor:
        heads, projection = heads or self.one.heads, projection or self.one.projection
        return Auditor(heads, projection, self.checkpoints, SIGNER.verifier, self.one.signers, FAST)

    async def found(self, auditor: Auditor | None = None) -> list[tuple[str, int, int]]:
        """Finish a round and return what it found."""
        auditor = auditor or self.auditor
        async with asyncio.timeout(20):
            assert await auditor.finish_round()
        return [(one.kind, one.first, one.last) for one in auditor._record.earlier]

    @contextlib.asynccontextmanager
    async def stopped(self) -> AsyncIterator[None]:
        """Stop the server, do what the block does to its files, and start it again."""
        await self.server.stop()
        yield
        await self.server.start()
        async with asyncio.timeout(10):
            while not self.bus.is_connected:
                await asyncio.sleep(0.05)


@pytest.fixture
async def audited(tmp_path: Path) -> AsyncIterator[Audited]:
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as one:
        checkpoints = Checkpoints(one.heads._stream._bus, 1)
        await checkpoints.ensure_stream()
        made = Audited(nats, tmp_path / "nats", one, checkpoints, None)  # type: ignore[arg-type]
        made.auditor = made.other()
        for num_revisions in (3, 1, 6, 10):
            await made.add(num_revisions)
        yield made


def flip_in(folder: Path, text: bytes) -> None:
    """Flip a bit where the stream's messages hold ``text``."""
    (path,) = folder.rglob("*.blk")
    raw = bytearray(path.read_bytes())
    at = raw.index(text)
    raw[at] ^= 1
    path.write_bytes(raw)


async def test_a_sound_ledger_is_gone_over_round_after_round(audited: Audited) -> None:
    with capture_logs() as logs:
        assert await audited.found() == []
        await audited.add(5)
        assert await audited.found() == []
    state = audited.auditor.state
    assert (state.num_rounds, state.finished_size, state.findings, state.num_findings) == (2, 25, (), 0)
    assert [one["event"] for one in logs if one["log_level"] != "info"] == []


async def test_before_anything_is_signed_there_is_nothing_to_audit(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path / "identity") as one:
        checkpoints = Checkpoints(one.heads._stream._bus, 1)
        await checkpoints.ensure_stream()
        auditor = Auditor(one.heads, one.projection, checkpoints, SIGNER.verifier, one.signers, FAST)
        assert not await auditor.finish_round()
        assert auditor.state.num_rounds == 0


async def test_a_bit_that_flips_in_the_files_of_the_registry_is_found(audited: Audited) -> None:
    assert await audited.found() == []
    (event,) = await audited.one.heads.read_range(7, 7)
    async with audited.stopped():
        flip_in(audited.files_of(subjects.REGISTRY_STREAM), event.data[-32:])
    with capture_logs() as logs:
        found = await audited.found()
    assert any(first <= 7 <= last for _, first, last in found), found
    (line, *_) = [one for one in logs if one["event"] == "ledger_contradicted"]
    assert (line["log_level"], line["sequence"]) == ("error", found[0][1])


class Showing(HeadStore):
    """A stream that shows ``changed`` in the place of what it has, None for what it says is not there."""

    changed: dict[int, LedgerEvent | None]
    num_reads = 0
    honest_after = 10_000

    @classmethod
    def of(cls, audited: Audited, changed: dict[int, LedgerEvent | None]) -> "Showing":
        made = cls(audited.bus, 1, audited.one.keys)
        made.changed = changed
        return made

    async def read_what_is_left(self, first: int, last: int) -> list[LedgerEvent]:
        self.num_reads += last - first + 1
        found = {event.sequence: event for event in await super().read_what_is_left(first, last)}
        shown = found | (self.changed if self.num_reads <= self.honest_after else {})
        return [event for sequence in range(first, last + 1) if (event := shown.get(sequence)) is not None]

    async def next_sequence(self, first: int) -> int | None:
        lost = {sequence for sequence, event in self.changed.items() if event is None}
        return next(sequence for sequence in range(first, 1_000) if sequence not in lost)


async def event_at(audited: Audited, sequence: int) -> LedgerEvent:
    (event,) = await audited.one.heads.read_range(sequence, sequence)
    return event


async def test_a_store_that_lies_is_told_from_what_is_remembered(audited: Audited) -> None:
    five, nine = await event_at(audited, 5), await event_at(audited, 9)
    flipped = msgspec.structs.replace(five, data=five.data[:-1] + bytes([five.data[-1] ^ 1]))
    assert await audited.found(audited.other(Showing.of(audited, {5: flipped}))) == [("event_changed", 5, 5)]
    swapped = {5: msgspec.structs.replace(nine, sequence=5), 9: msgspec.structs.replace(five, sequence=9)}
    moved = [("event_moved", 5, 5), ("event_moved", 9, 9)]
    assert await audited.found(audited.other(Showing.of(audited, dict(swapped)))) == moved
    lost = dict.fromkeys(range(6, 19))
    assert await audited.found(audited.other(Showing.of(audited, lost | {2: None}))) == [
        ("event_lost", 2, 2), ("event_lost", 6, 18),
    ]  # fmt: skip


async def test_what_a_leader_shows_that_was_deposed_is_asked_again_before_it_is_believed(audited: Audited) -> None:
    behind = Showing.of(audited, dict.fromkeys(range(1, 21)))
    behind.honest_after = 10  # the first group
    assert await audited.found(audited.other(behind)) == []
    assert behind.num_reads > 20


async def test_each_step_of_an_audit_waits_for_a_moment_without_requests(audited: Audited) -> None:
    steps, is_quiet = list[int](), asyncio.Event()

    async def pause() -> None:
        steps.append(auditor.state.position)
        await is_quiet.wait()

    one = audited.one
    auditor = Auditor(one.heads, one.projection, audited.checkpoints, SIGNER.verifier, one.signers, 100, pause)
    going = asyncio.create_task(auditor.finish_round())
    await asyncio.sleep(0.3)
    assert steps == [0], "nothing is read while there are requests"
    is_quiet.set()
    async with asyncio.timeout(20):
        assert await going
    # One event after the other: it is read, and then its key. These have no statements.
    assert steps == [position for position in range(auditor.state.finished_size) for _ in range(2)]


async def test_what_is_found_is_shown_until_a_whole_round_does_not_find_it(audited: Audited) -> None:
    showing = Showing.of(audited, {5: None})
    auditor = audited.other(showing)
    assert await audited.found(auditor) == [("event_lost", 5, 5)]
    showing.changed = {}
    assert [one.detail for one in auditor.state.findings] == ["event 5 is missing in the stream"]
    assert await audited.found(auditor) == []
    assert (auditor.state.findings, auditor.state.num_findings) == ((), 0)


class Stopping(Showing):
    """Shows nothing behind event 12, for ever."""

    async def read_what_is_left(self, first: int, last: int) -> list[LedgerEvent]:
        if first > 12:
            await asyncio.Event().wait()
        return await super().read_what_is_left(first, last)


async def stop_at_12(audited: Audited, changed: dict[int, LedgerEvent | None]) -> Auditor:
    """Return an audit in the middle of its round."""
    heads = Stopping.of(audited, changed)
    auditor = Auditor(heads, audited.one.projection, audited.checkpoints, SIGNER.verifier, audited.one.signers, 60)
    running = asyncio.create_task(auditor.run())
    async with asyncio.timeout(10):
        while auditor.state.position < 12:
            await asyncio.sleep(0.01)
    running.cancel()
    await auditor._keep(is_due=True)
    return auditor


@pytest.mark.parametrize("is_begun", [False, True])
async def test_a_stream_that_was_made_again_with_another_event_contradicts_its_roots(
    is_begun: bool, audited: Audited
) -> None:
    events = [await event_at(audited, sequence) for sequence in range(1, 21)]
    events[6] = events[5]
    if is_begun:
        audited.auditor = await stop_at_12(audited, {})
        audited.auditor._heads = audited.one.heads
    await audited.bus.jetstream.delete_stream(subjects.REGISTRY_STREAM)
    await audited.one.heads.ensure_stream()
    for event in events:
        await audited.bus.jetstream.publish(event.subject, event.data)
    await audited.one.catch_up()
    assert await audited.found() == [("root_contradicted", 5, 10)]


async def test_flipped_and_lost_checkpoints_are_found(audited: Audited) -> None:
    assert await audited.found() == []
    (note,) = await audited.checkpoints.read_range(2, 2)
    assert note is not None
    async with audited.stopped():
        flip_in(audited.files_of(subjects.CHECKPOINT_STREAM), note.encode()[-40:-4])
    found = await audited.found()
    assert found
    assert all(kind.startswith("checkpoint_") for kind, _, _ in found)


async def test_checkpoints_that_were_begun_again_are_found_until_the_view_is_made_anew(audited: Audited) -> None:
    assert await audited.found() == []
    await audited.bus.jetstream.delete_stream(subjects.CHECKPOINT_STREAM)
    await audited.checkpoints.ensure_stream()
    assert await audited.found() == [("checkpoint_lost", 4, 4)]
    await audited.add(1)
    assert await audited.found() == [("checkpoint_lost", 4, 4)]
    assert audited.auditor.state.finished_size == 21


async def test_a_checkpoint_that_was_signed_again_in_place_of_another_is_found(audited: Audited) -> None:
    assert await audited.found() == []
    tree = audited.one.projection.tree
    await audited.bus.jetstream.delete_stream(subjects.CHECKPOINT_STREAM)
    await audited.checkpoints.ensure_stream()
    for sequence, size in enumerate((3, 4, 10, 19)):
        root = bytes(32) if size == 10 else tree.root(size)
        await audited.checkpoints.append(SIGNER.sign(size, root), sequence)
    assert await audited.found() == [("checkpoint_lost", 4, 4), ("root_contradicted", 5, 10)]


async def test_the_oldest_checkpoints_may_go_when_there_are_too_many_and_only_then(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    jetstream = audited.bus.jetstream
    await jetstream.delete_stream(subjects.CHECKPOINT_STREAM)
    await jetstream.add_stream(name=subjects.CHECKPOINT_STREAM, subjects=[subjects.CHECKPOINTS], max_msgs=2)
    for sequence, size in enumerate((3, 4, 10, 20)):
        await audited.checkpoints.append(SIGNER.sign(size, audited.one.projection.tree.root(size)), sequence)
    assert await audited.found(audited.other()) == [("checkpoint_lost", 1, 2)]
    monkeypatch.setattr("octavo_identity.auditor.KEPT_MAX", 2)
    assert await audited.found(audited.other()) == []


async def test_an_audit_goes_on_after_a_restart_where_it_was(audited: Audited, tmp_path: Path) -> None:
    (path,) = (tmp_path / "identity").glob("*.sqlite")
    await stop_at_12(audited, {3: None})
    audited.one.projection.close()
    audited.one.projection = Projection(path)
    audited.one.desk.projection = audited.one.projection
    await audited.one.catch_up()
    sound = Showing.of(audited, {})
    again = Auditor(sound, audited.one.projection, audited.checkpoints, SIGNER.verifier, audited.one.signers, FAST)
    await again._resume()
    assert again.state.position == 12
    assert await audited.found(again) == [("event_lost", 3, 3)]
    assert sound.num_reads == 20 - 12
    third = audited.other()
    await third._resume()
    assert (third.state.num_rounds, third.state.num_findings) == (1, 1)


async def test_no_more_events_are_read_per_second_than_are_allowed(audited: Audited) -> None:
    loop = asyncio.get_running_loop()
    auditor = Auditor(
        audited.one.heads, audited.one.projection, audited.checkpoints, SIGNER.verifier, audited.one.signers, 50
    )
    began_s = loop.time()
    assert await audited.found(auditor) == []
    # 20 events and 4 checkpoints.
    assert loop.time() - began_s > 24 / 50


async def test_every_replica_tells_of_its_own_audit_and_the_command_line_of_all(
    store_settings: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_identity.auditing._SAY_EVERY_S", 0.05)
    async with own_identity(store_settings, tmp_path) as admin:
        alice, key = await alice_of(admin)
        await alice.push("home/diary", 1)
        nats = admin.bus.client.connected_url
        assert nats is not None
        folder = tmp_path / "second"
        shutil.copytree(tmp_path / "identity", folder, ignore=shutil.ignore_patterns("*.sqlite*"))
        fields = msgspec.structs.asdict(store_settings) | {"nats_url": nats.geturl(), "identity_dir": folder}
        stop = asyncio.Event()
        second = asyncio.create_task(serve(IdentitySettings(**fields), stop))

        async def report() -> AuditReport:
            return await asked(admin)

        async with asyncio.timeout(20):
            while len((said := await report()).replicas) < 2 or not all(one.num_rounds for one in said.replicas):
                await asyncio.sleep(0.05)
        assert {one.num_findings for one in said.replicas} == {0}
        assert len({one.replica for one in said.replicas}) == 2
        with pytest.raises(NotPermitted, match="audit the ledger"):
            await asked(alice)
        admin_key = (tmp_path / "identity" / "admin_key").read_text()
        async with gateway(admin, store_settings, free_port()) as url:
            code, text = await octavo(url, admin_key, tmp_path, "audit")
            assert code == 0, text
            assert text.count("nothing is changed, missing or out of place") == 2
            assert all(one.replica in text for one in said.replicas)
            code, text = await octavo(url, key, tmp_path, "audit")
            assert (code, "not_permitted" in text) == (1, True)
            # What one replica finds, whichever is asked tells.
            await admin.bus.jetstream.delete_stream(subjects.CHECKPOINT_STREAM)
            async with asyncio.timeout(20):
                while not any(one.findings for one in (await report()).replicas):
                    await asyncio.sleep(0.05)
            code, text = await octavo(url, admin_key, tmp_path, "audit")
            assert code == 1, text
            assert "checkpoint_lost: checkpoint" in text
        stop.set()
        await second


async def asked(client: Client) -> AuditReport:
    answer = await client.ask("audit_state")
    assert isinstance(answer, AuditReport)
    return answer
