"""The registry stream: what its answers mean, and that one deployment secret made all that is in it."""

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest
from nats.aio.msg import Msg

from octavo_cli.processes import Process
from octavo_identity.data_keys import DataKeys
from octavo_identity.deployment import check_secret
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids
from octavo_identity.records import DeploymentHead, RegistryEvent, TenantHead
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.config import ConfigError, StoreSettings
from octavo_shared.errors import DependencyUnavailable, RevisionConflict
from support.identity_rig import key_source, own_identity, own_nats, parts

IDS = Ids(bytes(32))


def tenant_created(ids: Ids = IDS) -> RegistryEvent:
    return RegistryEvent("tenant_created", "admin@octavo", 1, 0, TenantHead(ids.tenant("home"), "home"))


async def test_a_lost_race_is_a_conflict_under_both_of_its_codes(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, Bus(nats.url, "test") as bus, Bus(nats.url, "replica") as other:
        heads = HeadStore(bus, 1)
        for code, expected in [(10071, RevisionConflict), (10164, RevisionConflict), (10047, DependencyUnavailable)]:
            subject = subjects.key_head(f"{code:016x}")

            async def refuse(message: Msg, code: int = code) -> None:
                # A stream with replicas says 10164 while the other write is still on its way to them.
                error = {"code": 400, "err_code": code, "description": "wrong last sequence"}
                await message.respond(msgspec.json.encode({"error": error, "stream": subjects.REGISTRY_STREAM}))

            await other.subscribe(subject, refuse)
            with pytest.raises(expected):
                await heads.append(subject, tenant_created())


async def test_an_absent_stream_is_not_an_absent_record(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, Bus(nats.url, "test") as bus:
        heads = HeadStore(bus, 1)
        for read in (heads.read(subjects.DEPLOYMENT), heads.read_at(1), heads.state()):
            with pytest.raises(DependencyUnavailable):
                await read
        await heads.ensure_stream()
        assert await heads.read(subjects.DEPLOYMENT) is None
        assert await heads.read_at(1) is None


async def test_what_the_server_reads_for_one_cold_message_is_small(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, Bus(nats.url, "test") as bus:
        registry, keys = HeadStore(bus, 1), DataKeys(bus, 1, key_source(IDS).provider())
        for store, subject in ((registry, subjects.key_head("{:016x}")), (keys, f"{subjects.PREFIX}.datakeys.{{}}")):
            await store.ensure_stream()
            for number in range(10):
                await store._stream.append(subject.format(number), bytes(1024 * 1024), 0)
    for name in (subjects.REGISTRY_STREAM, subjects.KEY_STREAM):
        blocks = list((tmp_path / "nats").rglob(f"{name}/msgs/*.blk"))
        assert len(blocks) == 4
        assert max(file.stat().st_size for file in blocks) < 4 * 1024 * 1024


async def test_the_first_record_of_a_stream_tells_which_secret_made_it(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        first = await HeadStore(admin.bus, 1).read_at(1)
        assert first is not None
        assert isinstance(first.head, DeploymentHead)
        secret = (tmp_path / "identity" / "secret").read_text()
        assert bytes.fromhex(secret) not in msgspec.msgpack.encode(first)


async def test_another_secret_than_the_streams_is_refused(tmp_path: Path) -> None:
    other = Ids(bytes([1]) * 32)
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path) as one:
        await check_secret(one.heads, IDS, tmp_path)
        await check_secret(one.heads, IDS, tmp_path)
        assert (await one.heads.state()).last_sequence == 1
        with pytest.raises(ConfigError, match="secret"):
            await check_secret(one.heads, other, tmp_path)


async def test_of_two_first_starts_with_different_secrets_one_is_refused(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path) as one:
        starts = [check_secret(one.heads, Ids(bytes([number]) * 32), tmp_path) for number in range(2)]
        results = await asyncio.gather(*starts, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["ConfigError", "NoneType"]


async def test_a_stream_from_before_that_record_is_told_by_its_tenants(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, parts(nats.url, tmp_path) as one:
        tenant_id = IDS.tenant("home")
        await one.heads.append(subjects.tenant_head(IDS.shard(tenant_id), tenant_id), tenant_created())
        with pytest.raises(ConfigError, match="secret"):
            await check_secret(one.heads, Ids(bytes([1]) * 32), tmp_path)
        await check_secret(one.heads, IDS, tmp_path)


@pytest.mark.parametrize("text", ["", "ab" * 32], ids=["emptied", "replaced"])
async def test_identity_does_not_start_with_a_wrong_secret_and_says_so_in_one_sentence(
    text: str, store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with own_identity(store_settings, tmp_path) as admin:
        url = admin.bus.client.connected_url
        assert url is not None
        folder = tmp_path / "second"
        folder.mkdir()
        (folder / "secret").write_text(text)
        settings = msgspec.structs.asdict(msgspec.structs.replace(store_settings, nats_url=url.geturl()))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
        environ |= {f"OCTAVO_{name.upper()}": str(value) for name, value in settings.items()}
        environ |= {"OCTAVO_IDENTITY_DIR": str(folder)}
        command = [sys.executable, "-m", "octavo_identity.service"]
        process = Process("identity", command, tmp_path / "log", environ)
        await process.start()
        try:
            assert await process.wait(30) != 0
        finally:
            await process.stop()
        said = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("identity: ")]
        assert len(said) == 1
        assert "secret" in said[0]
        assert "Traceback" not in (tmp_path / "log").read_text()
