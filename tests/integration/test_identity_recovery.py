"""Identity when something beside it stops, is lost or lies about: NATS, S3, its own files, a half-done push."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from octavo_cli.local_servers import NatsServer, S3Server
from octavo_cli.processes import Process, answers_http, free_port
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.adapters import AdapterInfo, AdapterList
from octavo_shared.objects import ObjectStore
from octavo_shared.pack import digest_of
from support.adapters import TINY_FINGERPRINT
from support.identity_rig import Client, credential, identity, own_nats


async def until_it_answers(client: Client, verb: str, **fields: object) -> object:
    """Ask again while NATS, JetStream or S3 is away; at most 30 s."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await client.ask(verb, **fields)
            except DependencyUnavailable:
                await asyncio.sleep(0.05)


async def until_listed(client: Client) -> tuple[AdapterInfo, ...]:
    """Return what is listed once the view of the registry is whole."""
    listed = await until_it_answers(client, "list")
    assert isinstance(listed, AdapterList)
    return listed.adapters


async def test_nats_may_stop_and_come_back_under_a_running_identity(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with own_nats(tmp_path / "nats") as nats:
        settings = msgspec.structs.replace(store_settings, nats_url=nats.url)
        async with identity(settings, tmp_path / "identity") as admin:
            await admin.ask("create_tenant", tenant="home")
            alice = await admin.new_key("home", "alice")
            first = await alice.push("home/diary")
            await nats.stop()
            with pytest.raises(DependencyUnavailable):
                await alice.ask("resolve", reference="home/diary")
            await nats.start()
            await until_it_answers(alice, "resolve", reference="home/diary")
            second = await alice.push("home/diary", 2)
            assert second.latest.parent == first.latest.digest
            # The view may still wait for an answer of the server that went away; it gives up on that after 4 s.
            async with asyncio.timeout(15):
                while (await until_listed(alice))[0].num_revisions != 2:
                    await asyncio.sleep(0.05)


async def test_a_view_of_another_stream_is_rebuilt_and_the_admin_key_of_the_file_goes_on_working(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "identity"

    def at(nats: NatsServer) -> StoreSettings:
        return msgspec.structs.replace(store_settings, nats_url=nats.url)

    async with own_nats(tmp_path / "nats") as nats, identity(at(nats), folder) as admin:
        await admin.ask("create_tenant", tenant="home")
        alice = await admin.new_key("home", "alice")
        for seed in range(3):
            await alice.push("home/diary", seed)
    key = (folder / "admin_key").read_text()
    assert (folder / "admin_key").stat().st_mode & 0o777 == (folder / "secret").stat().st_mode & 0o777 == 0o600
    async with own_nats(tmp_path / "empty-nats") as nats, identity(at(nats), folder) as admin:
        assert admin.credential == credential(key)
        await admin.ask("create_tenant", tenant="home")
        alice = await admin.new_key("home", "alice")
        assert await until_listed(alice) == ()
        await alice.push("home/other")
        assert [info.name for info in await until_listed(alice)] == ["home/other"]


async def test_the_process_becomes_ready_and_stops_on_sigterm(store_settings: StoreSettings, tmp_path: Path) -> None:
    port = free_port()
    async with own_nats(tmp_path / "nats") as nats:
        settings = msgspec.structs.asdict(msgspec.structs.replace(store_settings, nats_url=nats.url, http_port=port))
        environ = {f"OCTAVO_{name.upper()}": str(value) for name, value in settings.items()}
        environ |= {"OCTAVO_IDENTITY_DIR": str(tmp_path / "dir"), "OCTAVO_ADMIN_KEY_FILE": str(tmp_path / "key")}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
        process = Process(
            "identity", [sys.executable, "-m", "octavo_identity.service"], tmp_path / "log", clean | environ
        )
        await process.start()
        try:
            await process.wait_ready(lambda: answers_http("127.0.0.1", port, "/readyz"), 30)
            async with Bus(nats.url, "test") as bus:
                store = ObjectStore(store_settings)
                admin = Client(bus, store, credential((tmp_path / "key").read_text()))
                assert (await admin.ask("resolve")).principal == "admin@octavo"
                store.close()
            process.kill(signal.SIGTERM)
            assert await process.wait(15) == 0, process.log_tail()
        finally:
            await process.stop()
        secret = (tmp_path / "key").read_text().split("_")[2]
        assert secret not in (tmp_path / "log").read_text()


async def test_object_storage_may_stop_and_come_back(tmp_path: Path) -> None:
    s3 = S3Server(tmp_path / "s3")
    await s3.start()
    try:
        async with own_nats(tmp_path / "nats") as nats:
            settings = StoreSettings(
                nats_url=nats.url, s3_endpoint=s3.endpoint, s3_access_key=s3.access_key, s3_secret_key=s3.secret_key
            )
            async with identity(settings, tmp_path / "identity") as admin:
                await admin.ask("create_tenant", tenant="home")
                alice = await admin.new_key("home", "alice")
                await alice.push("home/diary")
                upload_id = await alice.stage("home/diary", seed=2)
                fields = {"adapter": "home/diary", "upload_id": upload_id, "served_base": TINY_FINGERPRINT}
                await s3.stop()
                with pytest.raises(DependencyUnavailable):
                    await alice.ask("commit", **fields)
                assert (await alice.resolve("home/diary")).adapter is not None
                assert len((await alice.ask("history", adapter="home/diary")).entries) == 1
                await s3.start()
                # The server says that it is healthy a little before it finds its old data again.
                info = await until_it_answers(alice, "commit", **fields, idempotency_key="again")
                assert isinstance(info, AdapterInfo)
                assert info.num_revisions == 2
    finally:
        await s3.stop()


async def test_a_restart_keeps_everything_and_rebuilds_a_lost_projection(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "identity"
    async with own_nats(tmp_path / "nats") as nats:
        settings = msgspec.structs.replace(store_settings, nats_url=nats.url)
        async with identity(settings, folder) as admin:
            await admin.ask("create_tenant", tenant="home")
            alice = await admin.new_key("home", "alice")
            digest = (await alice.push("home/diary")).latest.digest
        for file in folder.glob("projection.sqlite*"):
            file.unlink()
        await nats.stop()
        await nats.start()
        async with identity(settings, folder) as admin:
            alice = Client(admin.bus, admin.store, alice.credential)
            adapter = (await alice.resolve("home/diary")).adapter
            assert adapter is not None
            assert adapter.digest == digest == digest_of(await alice.pack_of(adapter))
            assert [info.name for info in await until_listed(alice)] == ["home/diary"]
