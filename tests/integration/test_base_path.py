"""From the client to the worker: an adapter is served on its own base, or refused by name; never on another one."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from octavo_cli.processes import free_port
from octavo_shared import subjects
from octavo_shared.config import StoreSettings
from octavo_shared.errors import BaseNotServed
from octavo_shared.manifest import BaseManifest, publish_base
from octavo_shared.references import Fingerprint
from support.adapters import TINY_BASE
from support.command_world import alice_of, gateway, octavo
from support.fake_engine import FakeEngine
from support.fakes import tiny_manifest, tiny_tokenizer
from support.identity_rig import Client, identity, own_nats
from support.worker_rig import QUICK, Rig, running_worker, worker_settings

OLD, NEW = (Fingerprint(f"sha256:{mark * 64}") for mark in "ab")
OLD_LABEL, NEW_LABEL = "old@aaaaaaaaaaaa", "new@bbbbbbbbbbbb"
NOT_SERVED = f"the revision is for base {OLD_LABEL}, which no worker has; served here: {NEW_LABEL}"
CHAT = "/v1/chat/completions"


def manifest(fingerprint: Fingerprint, name: str) -> BaseManifest:
    """Two bases of the same shapes: nothing but the fingerprint keeps an adapter off the other one."""
    with_text = tiny_manifest(tiny_tokenizer(), fingerprint, name)
    return msgspec.structs.replace(with_text, modules=TINY_BASE.modules, num_layers=TINY_BASE.num_layers)


@dataclass
class World:
    """Identity, a gateway, and whoever of the workers the test starts."""

    settings: StoreSettings
    folder: Path
    url: str
    admin: Client
    alice: Client
    key: str
    admin_key: str
    http: httpx.AsyncClient

    @contextlib.asynccontextmanager
    async def worker(self, base: BaseManifest) -> AsyncIterator[Rig]:
        """Run a worker of ``base`` until everybody has heard of it and, afterwards, until the gateway has not."""
        settings = worker_settings(self.settings, self.folder / base.name, worker_id=f"w-{base.name}")
        async with running_worker(settings, FakeEngine(), QUICK, has_key_desk=False, base=base) as rig:

            async def is_known() -> bool:
                served = {info.fingerprint for info in (await self.admin.ask("bases")).bases if info.is_served}
                return base.fingerprint in served and base.name in await self.models()

            await until(is_known)
            yield rig

        async def is_gone() -> bool:
            return base.name not in await self.models()

        await until(is_gone)

    async def models(self) -> list[str]:
        answer = await self.http.get("/v1/models", headers=self.bearer())
        assert answer.status_code == 200, answer.text
        return [model["id"] for model in answer.json()["data"]]

    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    async def ask(self, model: str) -> tuple[int, str, str]:
        """Return status, base and revision of what answered, or status, code and message of the refusal."""
        answer = await self.http.post(CHAT, json=body_of(model), headers=self.bearer())
        if answer.status_code == 200:
            return 200, answer.headers["octavo-base"], answer.headers["octavo-revision"]
        error = answer.json()["error"]
        return answer.status_code, error["code"], error["message"]


def body_of(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await holds():
            await asyncio.sleep(0.05)


@pytest.fixture
async def world(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[World]:
    async with own_nats(tmp_path / "nats") as nats:
        settings = msgspec.structs.replace(store_settings, nats_url=nats.url)
        async with identity(settings, tmp_path / "identity") as admin:
            tokenizer = tiny_tokenizer().to_str().encode()
            for fingerprint, name in ((OLD, "old"), (NEW, "new")):
                await publish_base(admin.store, manifest(fingerprint, name), tokenizer)
            await admin.ask("create_tenant", tenant="home")
            alice, key = await alice_of(admin)
            async with (
                gateway(admin, settings, free_port()) as url,
                httpx.AsyncClient(base_url=url, timeout=20) as http,
            ):
                admin_key = (tmp_path / "identity" / "admin_key").read_text()
                yield World(settings, tmp_path, url, admin, alice, key, admin_key, http)


async def test_an_adapter_is_refused_by_name_where_only_another_base_is_served(world: World) -> None:
    old = (await world.alice.push("home/diary", 1, served_base=OLD)).latest
    await world.alice.push("home/poems", 1, served_base=NEW)
    async with world.worker(manifest(NEW, "new")) as rig:
        assert await world.ask("home/poems") == (200, NEW, "1")
        installs = rig.engine.num_installs
        for model in ("home/diary", "home/diary@1", "home/diary:serving", f"home/diary@{old.digest}"):
            # Though this gateway never had a worker of it, it knows what the base is called.
            assert await world.ask(model) == (503, "base_not_served", NOT_SERVED), model
        body = json.dumps(body_of("home/diary") | {"stream": False})
        answer = await world.admin.bus.client.request(subjects.GENERATE, body.encode(), 5, headers=world.bearer())
        assert json.loads(answer.data)["error"]["code"] == "base_not_served"
        for model in ("new", NEW_LABEL):
            answered = await world.http.post(CHAT, json=body_of(model), headers=world.bearer())
            assert (answered.status_code, answered.headers["octavo-base"]) == (200, NEW), model
        # Not even a gateway that sends it all the same, or that lies about the base, has it served.
        handle = (await world.alice.resolve("home/diary")).adapter
        assert handle is not None
        assert (await rig.caller.ask(handle, base=NEW)).error_code == "base_mismatch"
        assert (await rig.caller.ask(handle, base=OLD)).error_code == "base_mismatch"
        lie = msgspec.structs.replace(handle, base=NEW)
        assert (await rig.caller.ask(lie, base=NEW)).error_code == "adapter_unavailable"
        assert rig.engine.num_installs == installs, "nothing of it came near the engine"
    assert await world.ask("home/diary") == (503, "no_worker", "no worker can serve this request now")


async def test_no_alias_moves_to_a_base_that_no_worker_has_and_a_canary_stays_on_its_own(world: World) -> None:
    await world.alice.push("home/diary", 1, served_base=NEW)
    await world.alice.push("home/diary", 2, served_base=OLD, alias=None)
    async with world.worker(manifest(NEW, "new")):
        for verb, fields in (
            ("promote", {"reference": "home/diary@2"}),
            ("promote", {"reference": "home/diary@2", "alias": "canary", "share_percent": 100}),
            ("promote", {"reference": "home/diary@2", "alias": "mine"}),
            ("rollback", {"adapter": "home/diary", "number": 2}),
            ("branch", {"source": "home/diary@2", "adapter": "home/poems"}),
        ):
            with pytest.raises(BaseNotServed) as refused:
                await world.alice.ask(verb, **fields)
            assert refused.value.message == NOT_SERVED
            assert refused.value.fields == {"adapter_base": OLD_LABEL, "served_bases": NEW_LABEL}
        assert (await world.alice.ask("list")).adapters[0].aliases == {"serving": 1}
        assert await world.ask("home/diary") == (200, NEW, "1")
        await world.alice.ask("branch", source="home/diary@2", adapter="home/poems", alias=None)

        async with world.worker(manifest(OLD, "old")) as old:
            await world.alice.ask("promote", reference="home/diary@2", alias="canary", share_percent=100)
            assert await world.ask("home/diary") == (200, OLD, "2")
            assert await world.ask("home/diary:serving") == (200, NEW, "1")
            assert old.engine.num_installs == 1
        # Its workers are gone. Nobody gets the other base's revision instead, and nobody gets this one there.
        assert await world.ask("home/diary") == (503, "base_not_served", NOT_SERVED)
        assert await world.ask("home/diary:serving") == (200, NEW, "1")
        await world.alice.ask("unalias", adapter="home/diary", alias="canary")
        assert await world.ask("home/diary") == (200, NEW, "1")


async def test_moving_within_a_base_is_never_held_up_by_who_was_heard(world: World) -> None:
    for seed in (1, 2):
        await world.alice.push("home/diary", seed, served_base=OLD)
    async with world.worker(manifest(NEW, "new")):
        assert (await world.alice.ask("rollback", adapter="home/diary")).aliases == {"serving": 1}
        with pytest.raises(BaseNotServed):
            await world.alice.ask("promote", reference="home/diary@1", alias="stable")


async def test_the_command_line_shows_bases_and_says_what_sits_on_them(world: World, tmp_path: Path) -> None:
    async def said(key: str, *words: str) -> str:
        code, text = await octavo(world.url, key, tmp_path / "config", *words)
        assert code == 0, text
        return text

    def row(text: str, start: str) -> list[str]:
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [start]]
        return line.split()

    await world.alice.push("home/diary", 1, served_base=OLD)
    async with world.worker(manifest(NEW, "new")), world.worker(manifest(OLD, "old")):
        assert row(await said(world.key, "bases"), OLD_LABEL)[1:6] == ["current", "1", "1", "0", "yes"]
        told = await said(world.admin_key, "bases", "supersede", "old", NEW_LABEL)
        assert told == f"{OLD_LABEL} is superseded by {NEW_LABEL}\n"
        listed = await said(world.key, "bases")
        assert row(listed, OLD_LABEL)[1:7] == ["superseded", "by", NEW_LABEL, "1", "1", "1"]
        (line,) = [one for one in (await said(world.key, "bases", "outdated")).splitlines() if "home/diary" in one]
        assert line.split() == ["home/diary@1", "alice@home", "serving", OLD_LABEL, "superseded", NEW_LABEL, "1"]
        assert "home/diary" not in await said(world.key, "bases", "outdated", "new")

        folder = tmp_path / "pulled"
        await said(world.key, "pull", "home/diary", str(folder))
        (folder / "octavo.json").unlink()
        code, text = await octavo(world.url, world.key, tmp_path / "config", "push", "home/diary", str(folder))
        assert code == 1, "with two bases a push has to say for which it is"
        assert f"must name one of the bases served here: {NEW_LABEL}, {OLD_LABEL}" in text
        pushed = await said(world.key, "push", "home/diary", str(folder), "--base", "old", "--no-serve")
        assert f"warning: base {OLD_LABEL} is superseded by {NEW_LABEL}: train the next revision for that" in pushed
        pushed = await said(world.key, "push", "home/diary", str(folder), "--base", NEW_LABEL, "--no-serve")
        assert "warning" not in pushed
        (line,) = [one for one in (await said(world.key, "bases", "outdated")).splitlines() if "home/diary" in one]
        assert line.rstrip().endswith(f"3 on {NEW_LABEL}: promote it")

        assert NEW_LABEL in row(await said(world.key, "ls", "--base", "new"), "home/diary")
        assert "home/diary" not in await said(world.key, "ls", "--base", OLD_LABEL)
        history = await said(world.key, "history", "home/diary")
        assert [NEW_LABEL in one for one in history.splitlines() if "revision_added" in one] == [True, False, False]

        assert await said(world.admin_key, "bases", "retire", "old") == f"{OLD_LABEL} is retired\n"
        code, text = await octavo(world.url, world.key, tmp_path / "config", "push", "home/diary", str(folder),
                                  "--base", OLD_LABEL)  # fmt: skip
        assert code == 1
        assert f"base {OLD_LABEL} is retired and takes nothing new; train for {NEW_LABEL} (base_retired)" in text
        assert await said(world.admin_key, "bases", "restore", OLD) == f"{OLD_LABEL} is current\n"
        code, text = await octavo(world.url, world.key, tmp_path / "config", "bases", "retire", "old")
        assert (code, "this key may not say what becomes of bases" in text) == (1, True)


async def test_a_push_names_a_base_that_is_served_or_a_whole_fingerprint(world: World) -> None:
    await world.alice.push("home/diary", 1, served_base=NEW)
    async with world.worker(manifest(NEW, "new")):

        async def refusal(base: str) -> tuple[int, Any]:
            answer = await world.http.post(
                "/v1/adapters/home/diary/revisions", json={"upload_id": "u" * 16, "base": base}, headers=world.bearer()
            )
            return answer.status_code, answer.json()["error"]["message"]

        status, message = await refusal("older")
        assert (status, message) == (
            400, f"'base' names none of the bases served here: {NEW_LABEL}; or give a whole fingerprint"
        )  # fmt: skip
