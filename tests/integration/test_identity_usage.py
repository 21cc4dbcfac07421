"""What was used, as identity counts it: once, whatever is sent again or killed, and the same at every replica."""

import asyncio
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from octavo_cli.processes import Process
from octavo_identity.ids import Ids, load_secret
from octavo_identity.metering import Metering
from octavo_identity.service import serve
from octavo_identity.settings import IdentitySettings
from octavo_identity.usage_stream import UsageStream
from octavo_identity.usage_tables import tenant_usage
from octavo_shared import subjects
from octavo_shared.bus import Bus, encode
from octavo_shared.clock import wall_ms
from octavo_shared.config import StoreSettings
from octavo_shared.errors import AdapterNotFound, DependencyUnavailable, InvalidRequest
from octavo_shared.messages.usage import DAY_MS, KEPT_DAYS, Usage, UsageRecord, UsageRow, day_of
from octavo_shared.references import AdapterId, TenantId
from octavo_shared.tasks import end
from support.access_gateways import on_nats_of
from support.days import begin_in_one_day
from support.identity_rig import Client, own_identity, own_nats, parts


@pytest.fixture(autouse=True)
def one_day() -> None:
    begin_in_one_day()


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as client:
        yield client


@pytest.fixture
def ids(admin: Client, tmp_path: Path) -> Ids:
    return Ids(load_secret(tmp_path / "identity"))


async def publish(admin: Client, record: UsageRecord) -> None:
    """Store a record as a gateway does whose id the server has forgotten."""
    await admin.bus.jetstream.publish(subjects.usage(record.gateway_id), encode(record), stream=subjects.USAGE_STREAM)


def row(tenant_id: TenantId, adapter_id: str = "", days_ago: int = 0, requests: int = 1) -> UsageRow:
    day = day_of(wall_ms()) - days_ago
    return UsageRow(tenant_id, AdapterId(adapter_id), day, requests, 10 * requests, 100 * requests)


async def usage(who: Client, target: str = "", num_days: int = 30) -> Usage:
    told = await who.ask("usage", target=target, num_days=num_days)
    assert isinstance(told, Usage)
    return told


def numbers(told: Usage) -> list[tuple[int, int, int, int]]:
    return [(day.num_requests, day.num_prompt_tokens, day.num_completion_tokens, day.num_pushes) for day in told.days]


@asynccontextmanager
async def second_identity(settings: StoreSettings, folder: Path, secret: Path) -> AsyncIterator[None]:
    """Run another replica, which has to count everything for itself."""
    folder.mkdir()
    (folder / "secret").write_text(secret.read_text())
    stop = asyncio.Event()
    with capture_logs() as logs:
        own = IdentitySettings(**msgspec.structs.asdict(settings), identity_dir=folder)
        running = asyncio.create_task(serve(own, stop))
        async with asyncio.timeout(20):
            while not any(one["event"] == "identity_started" for one in logs):
                await asyncio.sleep(0.01)
    try:
        yield
    finally:
        stop.set()
        await running


async def test_tokens_pushes_and_packs_are_told_by_day_of_tenant_and_adapter(admin: Client, ids: Ids) -> None:
    alice = await admin.new_key("home", "alice")
    assert await usage(alice) == Usage("home", (), 0, 0)
    first = await alice.push("home/diary", 1)
    second = await alice.push("home/diary", 2)
    poems = await alice.push("home/poems", 3)
    home, away = ids.tenant("home"), ids.tenant("away")
    rows = (row(home, first.adapter_id), row(home, days_ago=2, requests=3), row(away, first.adapter_id, requests=5))
    await publish(admin, UsageRecord("gw-1", 1, rows))
    whole = await usage(alice)
    pack_bytes = first.latest.pack_bytes + second.latest.pack_bytes
    assert (whole.num_adapters, whole.pack_bytes) == (2, pack_bytes + poems.latest.pack_bytes)
    # What away asked of home's adapter is away's, and the adapter's.
    assert numbers(whole) == [(1, 10, 100, 3), (3, 30, 300, 0)]
    assert [day.day for day in whole.days] == sorted((day.day for day in whole.days), reverse=True)
    diary = await usage(alice, "home/diary")
    assert (numbers(diary), diary.num_adapters, diary.pack_bytes) == ([(6, 60, 600, 2)], 1, pack_bytes)
    assert numbers(await usage(alice, "home/poems")) == [(0, 0, 0, 1)]
    assert numbers(await usage(admin, "away")) == [(5, 50, 500, 0)]
    assert numbers(await usage(alice, num_days=2)) == [(1, 10, 100, 3)]
    for num_days in (0, KEPT_DAYS + 1):
        with pytest.raises(InvalidRequest, match="days"):
            await usage(alice, num_days=num_days)


async def test_a_record_that_is_published_again_counts_once_however_late(admin: Client, ids: Ids) -> None:
    home = ids.tenant("home")
    for number in (1, 1, 2, 1, 2, 2, 3):
        await publish(admin, UsageRecord("gw-1", number, (row(home),)))
    await publish(admin, UsageRecord("gw-2", 1, (row(home),)))
    # What nobody can read counts nothing, and holds up nothing.
    await admin.bus.jetstream.publish(subjects.usage("gw-3"), b"\xc1", stream=subjects.USAGE_STREAM)
    await publish(admin, UsageRecord("gw-2", 2, (row(home),)))
    assert numbers(await usage(admin, "home")) == [(5, 50, 500, 0)]


async def test_every_replica_tells_the_same_and_one_that_begins_anew_as_well(
    admin: Client, ids: Ids, store_settings: StoreSettings, tmp_path: Path
) -> None:
    alice = await admin.new_key("home", "alice")
    adapter_id = (await alice.push("home/diary", 1)).adapter_id
    gone = (await alice.push("home/gone", 2)).adapter_id
    home = ids.tenant("home")
    await publish(admin, UsageRecord("gw-1", 1, (row(home, adapter_id), row(home, gone))))
    await alice.ask("erase", adapter="home/gone")
    settings = on_nats_of(store_settings, admin)
    async with second_identity(settings, tmp_path / "second", tmp_path / "identity" / "secret"):
        for number in range(2, 6):
            await publish(admin, UsageRecord("gw-1", number, (row(home, adapter_id),)))
            # Enough for both replicas to have their part.
            told = await asyncio.gather(*(usage(alice) for _ in range(16)), *(usage(admin, "home") for _ in range(16)))
            assert {tuple(numbers(one)) for one in told} == {((number + 1, 10 * number + 10, 100 * number + 100, 2),)}
            assert {(one.num_adapters, one.pack_bytes) for one in told} == {(1, told[0].pack_bytes)}


async def test_erasing_takes_the_adapters_rows_and_leaves_the_tenants_totals(
    admin: Client, ids: Ids, tmp_path: Path
) -> None:
    alice = await admin.new_key("home", "alice")
    diary = await alice.push("home/diary", 1)
    poems = await alice.push("home/poems", 2)
    home = ids.tenant("home")
    await publish(admin, UsageRecord("gw-1", 1, (row(home, diary.adapter_id), row(home, poems.adapter_id))))
    before = await usage(alice)
    assert (before.num_adapters, numbers(before)) == (2, [(2, 20, 200, 2)])
    await alice.ask("erase", adapter="home/diary")
    # A request that the erasure ended is counted a moment later.
    await publish(admin, UsageRecord("gw-1", 2, (row(home, diary.adapter_id),)))
    after = await usage(alice)
    assert (after.num_adapters, after.pack_bytes, numbers(after)) == (1, poems.latest.pack_bytes, [(3, 30, 300, 2)])
    with pytest.raises(AdapterNotFound):
        await usage(alice, "home/diary")
    again = await alice.push("home/diary", 3)
    assert again.adapter_id != diary.adapter_id
    assert numbers(await usage(alice, "home/diary")) == [(0, 0, 0, 1)]
    with sqlite3.connect(tmp_path / "identity" / "projection.sqlite") as file:
        counted = {adapter_id for (adapter_id,) in file.execute("SELECT adapter_id FROM adapter_days")}
    file.close()
    assert counted == {poems.adapter_id}


async def test_what_is_too_old_to_be_asked_for_is_forgotten(admin: Client, ids: Ids, tmp_path: Path) -> None:
    home = ids.tenant("home")
    old = UsageRecord("gw-1", 1, (row(home, days_ago=KEPT_DAYS - 1), row(home, days_ago=KEPT_DAYS + 1)))
    await publish(admin, old)
    assert numbers(await usage(admin, "home", KEPT_DAYS)) == [(1, 10, 100, 0)]
    config = (await admin.bus.jetstream.stream_info(subjects.USAGE_STREAM)).config
    assert config.max_age is not None
    assert config.max_age * 1000 >= KEPT_DAYS * DAY_MS


async def test_each_request_counts_once_while_identity_is_killed(
    admin: Client, ids: Ids, store_settings: StoreSettings, tmp_path: Path
) -> None:
    """A replica of its own counts what comes; it is killed in between, and its file is held against the truth."""
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "secret").write_text((tmp_path / "identity" / "secret").read_text())
    settings = msgspec.structs.asdict(on_nats_of(store_settings, admin))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
    environ |= {f"OCTAVO_{name.upper()}": str(value) for name, value in settings.items()}
    environ |= {"OCTAVO_IDENTITY_DIR": str(folder)}
    alice = await admin.new_key("home", "alice")
    home, num_records, num_pushes = ids.tenant("home"), 0, 0

    def counted() -> tuple[int, int, int]:
        file = sqlite3.connect(folder / "projection.sqlite", timeout=5)
        try:
            found = file.execute("SELECT SUM(requests), SUM(pushes) FROM tenant_days").fetchone()
            (held,) = file.execute("SELECT TOTAL(adapters) FROM holdings").fetchone()
        except sqlite3.OperationalError:
            return 0, 0, 0
        finally:
            file.close()
        return found[0] or 0, found[1] or 0, int(held)

    async def reached(wanted: int) -> None:
        async with asyncio.timeout(30):
            while counted()[0] < wanted:
                await asyncio.sleep(0.02)

    for life in range(4):
        process = Process(
            "identity", [sys.executable, "-m", "octavo_identity.service"], tmp_path / f"log{life}", environ
        )
        await process.start()
        try:
            if life:
                await reached(num_records - 150)
            for _ in range(200):
                num_records += 1
                record = UsageRecord("gw-1", num_records, (row(home),))
                # Some of them arrive twice.
                for _ in range(1 + (num_records % 7 == 0)):
                    await publish(admin, record)
            await alice.push(f"home/a{life}", life)
            num_pushes += 1
            if life == 3:
                await reached(num_records)
                async with asyncio.timeout(20):
                    while counted()[1] < num_pushes:
                        await asyncio.sleep(0.02)
        finally:
            process.kill()
            await process.stop()
    assert counted() == (num_records, num_pushes, num_pushes)
    assert numbers(await usage(admin, "home"))[0][0] == num_records


async def test_no_answer_is_given_that_lacks_what_is_stored(admin: Client, ids: Ids) -> None:
    await publish(admin, UsageRecord("gw-1", 1, (row(ids.tenant("home")),)))
    assert numbers(await usage(admin, "home")) == [(1, 10, 100, 0)]
    await admin.bus.jetstream.delete_stream(subjects.USAGE_STREAM)
    with pytest.raises(DependencyUnavailable):
        await usage(admin, "home")


async def test_a_file_that_another_process_writes_to_is_waited_for_and_not_made_anew(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path) as one, Bus(nats.url, "test") as bus:
        stream = UsageStream(bus, 1)
        await stream.ensure_stream()
        metering = Metering(one.heads, stream, one.projection)
        following = [asyncio.create_task(metering.follow()), asyncio.create_task(one.projection.follow(one.heads))]
        try:
            home = one.ids.tenant("home")
            await bus.jetstream.publish(subjects.usage("gw-1"), encode(UsageRecord("gw-1", 1, (row(home),))))
            read = partial(tenant_usage, tenant_id=home, first_day=0)
            assert (await metering.read(read)).days[0][1] == 1
            await one.projection.change(lambda file: file.execute("PRAGMA busy_timeout = 50"))
            (path,) = tmp_path.glob("*.sqlite")
            other = sqlite3.connect(path, isolation_level=None)
            with closing(other), capture_logs() as logs:
                other.execute("BEGIN IMMEDIATE")
                await bus.jetstream.publish(subjects.usage("gw-1"), encode(UsageRecord("gw-1", 2, (row(home),))))
                with pytest.raises(DependencyUnavailable):
                    await metering.read(read)
                other.execute("COMMIT")
                assert (await metering.read(read)).days[0][1] == 2
            assert not [entry for entry in logs if entry["event"].startswith("projection_")]
        finally:
            await end(*following)
