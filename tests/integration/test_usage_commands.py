"""``octavo usage`` against a real gateway and a real identity."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest

from octavo_shared.config import StoreSettings
from octavo_shared.messages.usage import Quota
from support.access_gateways import Front, front_of
from support.access_world import AccessWorld, Who, access_world
from support.command_world import octavo
from support.days import begin_in_one_day
from support.fakes import Exchange


async def answering(exchange: Exchange) -> None:
    await exchange.answer([65, 66])


@pytest.fixture(autouse=True)
def one_day() -> None:
    begin_in_one_day()


@pytest.fixture
async def world(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[AccessWorld]:
    async with access_world(store_settings, tmp_path) as made:
        yield made


@pytest.fixture
async def front(world: AccessWorld, store_settings: StoreSettings) -> AsyncIterator[Front]:
    async with front_of(world, store_settings, answering, 1) as made:
        yield made


async def test_usage_shows_what_was_asked_pushed_and_stored(world: AccessWorld, front: Front, tmp_path: Path) -> None:
    owner, user = world.people[Who.OWNER], world.people[Who.USER]
    url, adapter = str(front.http[0].base_url), owner.adapter

    async def said(key: str, *words: str, code: int = 0) -> str:
        ended, text = await octavo(url, key, tmp_path, *words)
        assert ended == code, text
        return text

    await said(owner.key.text, "ask", adapter, "hi", "--max-tokens", "2")
    await said(user.key.text, "ask", user.adapter, "hi", "--max-tokens", "1")
    async with asyncio.timeout(20):
        while (told := json.loads(await said(owner.key.text, "usage", user.adapter, "--json")))["days"][0][
            "num_requests"
        ] == 0:
            await asyncio.sleep(0.1)
    (day,) = told["days"]
    assert (day["num_requests"], day["num_completion_tokens"], day["num_pushes"]) == (1, 1, 2)
    assert told["pack_bytes"] > 0
    prompt = str(day["num_prompt_tokens"])
    # Of home's adapters one was asked by its owner, and another one by somebody of another tenant.
    for key, words, counts in (
        (owner, (adapter,), ["1", prompt, "2", "2"]),
        (owner, (), ["1", prompt, "2", str(2 * len(Who))]),
        (user, (), ["1", prompt, "1", "0"]),
        (world.people[Who.ADMIN], ("--tenant", "home"), ["1", prompt, "2", str(2 * len(Who))]),
    ):
        shown = await said(key.key.text, "usage", *words)
        row = next(line for line in shown.splitlines() if line.strip().startswith("20"))
        assert row.split()[1:] == counts, shown
    assert f"home: {len(Who)} adapters, " in await said(owner.key.text, "usage", "--days", "1")
    refused = await said(user.key.text, "usage", "--tenant", "home", code=1)
    assert "may not see what this tenant used (not_permitted)" in refused
    assert "name an adapter or a tenant" in await said(owner.key.text, "usage", adapter, "--tenant", "home", code=1)


async def test_quotas_are_set_shown_and_refuse_by_name(world: AccessWorld, front: Front, tmp_path: Path) -> None:
    owner, url = world.people[Who.OWNER], str(front.http[0].base_url)
    admin = world.people[Who.ADMIN].key.text

    async def said(key: str, *words: str, code: int = 0) -> str:
        ended, text = await octavo(url, key, tmp_path, *words)
        assert ended == code, text
        return text

    told = await said(admin, "quota", "home", "--tokens-per-day", "1", "--adapters", "1000")
    assert "tokens_per_day: 0 of 1\n" in told
    assert f"adapters: {len(Who)} of 1,000\n" in told
    assert "storage_bytes: " in told
    assert "of any number" in told
    await said(owner.key.text, "ask", owner.adapter, "hi", "--max-tokens", "2")
    async with asyncio.timeout(20):
        while True:
            ended, refused = await octavo(url, owner.key.text, tmp_path, "ask", owner.adapter, "hi")
            if ended:
                break
    assert "tokens_per_day" in refused
    assert "(daily_quota_exceeded)" in refused
    assert "tokens_per_day: " in await said(admin, "quota", "home", "--tokens-per-day", "none")
    assert "of any number" in (await said(owner.key.text, "quota", "home")).splitlines()[0]
    assert "set the quotas" in await said(owner.key.text, "quota", "home", "--adapters", "5", code=1)
    assert "--storage-bytes must be a number" in await said(admin, "quota", "home", "--storage-bytes", "1k", code=1)


async def test_a_limit_on_tokens_is_passed_for_so_long_and_no_longer(world: AccessWorld, front: Front) -> None:
    """From the answer that used up the limit until all are refused: a second to gather, a poll, and little else."""
    owner = world.people[Who.OWNER]
    await world.admin.ask("set_quota", tenant="home", limits={Quota.TOKENS_PER_DAY: 1})
    body = {"model": owner.adapter, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    headers = {"Authorization": f"Bearer {owner.key.text}"}

    async def status() -> int:
        return (await front.http[0].post("/v1/chat/completions", json=body, headers=headers)).status_code

    assert await status() == 200
    began, num_passed = monotonic(), 1
    while await status() == 200:
        num_passed += 1
        assert monotonic() - began < 5
    took_s = monotonic() - began
    # pytest -rP shows it.
    print(f"refused after {took_s:.2f} s and {num_passed} requests")
    assert took_s < 3
    assert {await status() for _ in range(20)} == {429}
    async with asyncio.timeout(20):
        while (await owner.client.ask("usage")).days[0].num_requests < num_passed:
            await asyncio.sleep(0.1)
    (day,) = (await owner.client.ask("usage", num_days=1)).days
    assert (day.num_requests, day.num_completion_tokens) == (num_passed, num_passed)
