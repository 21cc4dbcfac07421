"""Every route for those without a good key or of another tenant; and how soon a right that is taken back is gone."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import msgspec
import pytest
from structlog.testing import capture_logs

from octavo_identity.service import serve
from octavo_identity.settings import IdentitySettings
from octavo_shared import subjects
from octavo_shared.config import StoreSettings
from octavo_shared.messages.fleet import Placed
from octavo_shared.messages.generation import Tier
from support.access_gateways import Front, front_of, on_nats_of
from support.access_routes import BODIES, MESSAGES, NAMES_AN_ADAPTER, asked, presented
from support.access_world import NO_KEYS, AccessWorld, KeyText, Who, access_world
from support.fakes import Exchange


async def answering(exchange: Exchange) -> None:
    await exchange.answer([65, 66])


@pytest.fixture
async def world(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[AccessWorld]:
    async with access_world(store_settings, tmp_path) as made:
        yield made


@pytest.fixture
async def front(world: AccessWorld, store_settings: StoreSettings) -> AsyncIterator[Front]:
    async with front_of(world, store_settings, answering, 1) as made:
        yield made


async def test_every_route_has_a_line_here(front: Front) -> None:
    paths = (await front.http[0].get("/schema/openapi.json")).json()["paths"]
    assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} == set(BODIES)


async def test_no_route_answers_whoever_has_no_good_key(world: AccessWorld, front: Front) -> None:
    one = await asked(front.http[0], "GET /v1/key", "home/nothing", None)
    assert one[0] == 401
    keys = [*(presented(world.people[who]) for who in NO_KEYS), "oct_", "oct_0123456789abcdef_00", "Basic x"]
    wrong = {
        (route, key): told
        for route in BODIES
        for key in keys
        for adapter in (world.people[Who.OWNER].adapter, "home/nothing")
        if (told := await asked(front.http[0], route, adapter, key)) != one
    }
    assert wrong == {}
    assert front.worker.received == []


async def test_to_another_tenant_an_adapter_looks_as_if_it_were_not_there(world: AccessWorld, front: Front) -> None:
    key = presented(world.people[Who.OTHER])
    for route in NAMES_AN_ADAPTER:
        names = (world.people[Who.OWNER].adapter, "home/nothing", "nowhere/nothing")
        answers = {await asked(front.http[0], route, name, key) for name in names}
        assert len(answers) == 1, route
        status, body = answers.pop()
        assert (status, json.loads(body)["error"]["code"]) == (404, "adapter_not_found"), route
    assert front.worker.received == []


async def test_nats_answers_as_http_does(world: AccessWorld, front: Front) -> None:
    async def told(key: str | None, model: str) -> Any:
        body = json.dumps({"model": model, "messages": MESSAGES, "stream": False}).encode()
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return json.loads((await world.admin.bus.client.request(subjects.GENERATE, body, 5, headers=headers)).data)

    adapter = world.people[Who.USER].adapter
    for who in NO_KEYS:
        assert (await told(presented(world.people[who]), adapter))["error"]["code"] == "unauthenticated", who
    other = presented(world.people[Who.OTHER])
    assert await told(other, adapter) == await told(other, "home/nothing")
    assert (await told(other, adapter))["error"]["code"] == "adapter_not_found"
    assert front.worker.received == []


@asynccontextmanager
async def second_identity(settings: StoreSettings, folder: Path, secret: Path) -> AsyncIterator[None]:
    """Run another identity with the same secret, and with a view of its own."""
    folder.mkdir()
    (folder / "secret").write_text(secret.read_text())
    stop = asyncio.Event()
    with capture_logs() as logs:
        own = IdentitySettings(**msgspec.structs.asdict(settings), identity_dir=folder)
        running = asyncio.create_task(serve(own, stop))
        await until(lambda: any(one["event"] == "identity_started" for one in logs))
    try:
        yield
    finally:
        stop.set()
        await running


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


async def test_what_is_taken_back_is_gone_everywhere_within_a_second_and_what_runs_ends(
    world: AccessWorld, store_settings: StoreSettings, tmp_path: Path
) -> None:
    """Two gateways, two identities, and a worker that says that it holds the adapter already."""
    adapter, user = world.people[Who.USER].adapter, world.people[Who.USER]
    is_revoked = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if exchange.generate.sampling.max_tokens == 3:
            await exchange.started()
            await exchange.tokens(0, [65])
            await is_revoked.wait()
            await exchange.tokens(1, [66, 67])
            await exchange.finished(3)
        else:
            await exchange.answer([65])

    own = on_nats_of(store_settings, world.admin)
    async with (
        second_identity(own, tmp_path / "second", tmp_path / "identity" / "secret"),
        front_of(world, store_settings, script, 2) as front,
    ):
        handle = (await user.client.resolve(adapter)).adapter
        assert handle is not None
        front.worker.placed = (Placed(handle.adapter_id, handle.digest, Tier.RESIDENT, 1),)

        async def status(http: httpx.AsyncClient, key: KeyText, max_tokens: int = 1) -> int:
            body = {"model": adapter, "messages": MESSAGES, "max_tokens": max_tokens}
            return (await http.post("/v1/chat/completions", json=body, headers=bearer(key))).status_code

        async def statuses(key: KeyText) -> set[int]:
            return set(await asyncio.gather(*(status(http, key) for http in front.http for _ in range(24))))

        taken: dict[str, float] = {}
        running = asyncio.create_task(status(front.http[0], user.key, 3))
        await until(lambda: front.worker.received)
        assert await statuses(user.key) == {200}
        owner = world.people[Who.OWNER]
        path = f"/v1/adapters/{adapter}/grants/{user.principal}"
        for what, method, url, by, loser, refusal in (
            ("grant", "DELETE", path, owner.key, user.key, 404),
            ("key", "DELETE", f"/v1/keys/{owner.key.key_id}", world.people[Who.ADMIN].key, owner.key, 401),
        ):
            began = monotonic()
            assert (await front.http[0].request(method, url, headers=bearer(by))).status_code == 200
            assert [await status(http, loser) for http in front.http] == [refusal] * 2, what
            taken[what] = monotonic() - began
            assert taken[what] < 1.0, taken
            # Enough requests for both identities to have their part.
            assert await statuses(loser) == {refusal}, what
        is_revoked.set()
        assert await running == 200
    # pytest -rP shows it.
    print(f"refused everywhere after {taken} s")


def bearer(key: KeyText) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.text}"}
