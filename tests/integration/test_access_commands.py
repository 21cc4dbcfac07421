"""``octavo keys`` and ``octavo grant`` against a real gateway and a real identity."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from octavo_cli.key_commands import seconds
from octavo_cli.main import app
from octavo_shared.config import StoreSettings
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.keys import Role
from support.access_gateways import Front, front_of
from support.access_world import AccessWorld, Who, access_world
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


async def octavo(front: Front, key: str, *words: str) -> Result:
    where = {"OCTAVO_GATEWAY_URL": str(front.http[0].base_url), "OCTAVO_KEY": key}
    return await asyncio.to_thread(CliRunner().invoke, app, list(words), None, where)


async def said(front: Front, key: str, *words: str) -> str:
    result = await octavo(front, key, *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


async def test_a_key_is_issued_narrowed_listed_rotated_and_revoked(world: AccessWorld, front: Front) -> None:
    owner = world.people[Who.OWNER]
    alice, adapter = owner.key.text, owner.adapter
    made = await octavo(front, alice, "keys", "issue", "--scope", "use", "--adapter", "home/for*", "--expires", "90d",
                        "--label", "phone")  # fmt: skip
    phone = made.stdout.strip()
    assert "role owner, for use, on home/for*, expires 20" in made.stderr
    assert await said(front, phone, "ask", adapter, "hi", "--max-tokens", "2")
    refused = await octavo(front, phone, "promote", f"{adapter}@1")
    assert "may not change this adapter" in str(refused.exception)
    phone_id = phone.split("_")[1]
    listed = await said(front, alice, "keys", "ls")
    (row,) = [line for line in listed.splitlines() if phone_id in line.split()[:1]]
    assert all(word in row for word in ("alice@home", "home/for*", "phone", "good", owner.key.key_id))
    assert phone.split("_")[2] not in listed
    renewed = (await said(front, phone, "keys", "rotate", "--overlap", "1h")).strip()
    (row,) = [line for line in (await said(front, alice, "keys", "ls")).splitlines() if phone_id in line.split()[:1]]
    assert f"rotated to {renewed.split('_')[1]}" in row
    for good in (phone, renewed):
        assert await said(front, good, "ask", adapter, "hi", "--max-tokens", "2")
    await said(front, alice, "keys", "revoke", renewed.split("_")[1])
    refused = await octavo(front, renewed, "ask", adapter, "hi")
    assert "a valid API key is required" in str(refused.exception)
    # The key that was rotated is another one, and ends at its own time.
    assert await said(front, phone, "ask", adapter, "hi", "--max-tokens", "2")


async def test_admins_issue_keys_to_others_and_the_older_form_still_works(world: AccessWorld, front: Front) -> None:
    admin = world.people[Who.ADMIN].key.text
    for words in (("keys", "issue", "zoe@home"), ("key", "create", "home", "zoe")):
        key = (await said(front, admin, *words)).strip()
        assert key.startswith("oct_")
        assert "zoe@home" in await said(front, key, "keys", "ls")
    listed = await said(front, world.people[Who.TENANT_AUDITOR].key.text, "keys", "ls", "*@home")
    assert "zoe@home" in listed
    assert "una@away" not in listed


async def test_roles_are_granted_shown_and_taken_back(world: AccessWorld, front: Front) -> None:
    owner, other = world.people[Who.OWNER], world.people[Who.OTHER]
    alice, adapter = owner.key.text, owner.adapter
    told = await said(front, alice, "grant", adapter, other.principal, "--role", "editor")
    assert told == f"{adapter} is granted to mallory@away (editor)\n"
    assert await said(front, other.key.text, "promote", f"{adapter}@1", "--alias", "stable")
    told = await said(front, alice, "grant", adapter, other.principal, "--role", "auditor")
    assert told == f"{adapter} is granted to mallory@away (auditor)\n"
    assert "(auditor)" in await said(front, other.key.text, "ls")
    assert "granted" in await said(front, other.key.text, "history", adapter)
    refused = await octavo(front, other.key.text, "ask", adapter, "hi")
    assert "may not use this adapter" in str(refused.exception)
    assert "nobody else" in await said(front, alice, "revoke", adapter, other.principal)
    refused = await octavo(front, other.key.text, "history", adapter)
    assert "no such adapter" in str(refused.exception)


@pytest.mark.parametrize(("text", "expected"), [("90d", 7_776_000), ("12h", 43_200), ("30m", 1_800), ("0s", 0)])
def test_a_duration_is_a_number_and_a_unit(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "1.5h", "1w", "90d "])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="as in 90d"):
        seconds(text)


async def test_an_adapter_is_given_to_another_owner_of_the_tenant(world: AccessWorld, front: Front) -> None:
    owner, adapter = world.people[Who.OWNER], world.people[Who.OWNER].adapter
    carol = await world.issue("carol@home", Role.OWNER)
    refused = await octavo(front, owner.key.text, "transfer", adapter, "nobody")
    assert "'owner' has no key: nobody could do anything as nobody@home" in str(refused.exception)
    assert await said(front, owner.key.text, "ask", adapter, "hi", "--max-tokens", "2")
    assert await said(front, owner.key.text, "transfer", adapter, "carol") == f"{adapter} belongs to carol@home\n"
    refused = await octavo(front, owner.key.text, "ask", adapter, "hi", "--max-tokens", "2")
    assert "no such adapter" in str(refused.exception)
    assert await said(front, carol.text, "ask", adapter, "hi", "--max-tokens", "2")
    assert "alice@home -> carol@home" in await said(front, carol.text, "history", adapter)
