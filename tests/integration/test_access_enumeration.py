"""Every verb for everybody: the table in ``support/access_table.py``, held against a real identity."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from octavo_shared.config import StoreSettings
from octavo_shared.errors import OctavoError, Refusal
from octavo_shared.messages.identity import VERBS
from octavo_shared.messages.privacy import KEYLESS_VERBS
from support.access_table import CODES, REQUESTS, TELLS_WHAT_IS_TAKEN, Cell, readme_lines, rows
from support.access_world import LIVE, NO_KEYS, AccessWorld, Person, Who, access_world

README = Path(__file__).parents[2] / "README.md"
NOWHERE = ("home/nothing", "nowhere/nothing")


@pytest.fixture
async def world(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[AccessWorld]:
    async with access_world(store_settings, tmp_path) as made:
        yield made


async def answer(world: AccessWorld, person: Person, row: str, expected: str, adapter: str) -> Refusal | None:
    """Return what the person is refused with, or None."""
    fields = await REQUESTS[row](Cell(world, person, expected, adapter))
    try:
        await person.client.ask(row.split()[0], **fields)
    except OctavoError as error:
        return error.refusal()
    return None


def test_every_verb_has_a_row_and_every_row_a_request() -> None:
    assert {row.split()[0] for row in rows()} == set(VERBS) - KEYLESS_VERBS
    assert set(rows()) == set(REQUESTS)


def test_the_readme_shows_the_table() -> None:
    shown = README.read_text().splitlines()
    missing = [line for line in readme_lines() if line not in shown]
    assert not missing, "these lines belong into the README:\n" + "\n".join(readme_lines())


async def test_every_verb_for_everybody_is_as_the_table_says(world: AccessWorld) -> None:
    wrong = []
    for row, cells in rows().items():
        for who, expected in cells.items():
            person = world.people[who]
            refused = await answer(world, person, row, expected, person.adapter)
            if (refused.code if refused else "") != CODES[expected]:
                wrong.append(f"{row} for {who}: {refused or 'an answer'}, not {expected}")
            if expected == "404":
                names = NOWHERE[1:] if (row, who) in TELLS_WHAT_IS_TAKEN else NOWHERE
                absent = [await answer(world, person, row, expected, name) for name in names]
                if any(one != refused for one in absent):
                    wrong.append(f"{row} for {who}: {refused}, and {absent} for what is not there")
    assert not wrong, "\n".join(wrong)


async def test_whoever_has_no_good_key_is_refused_everything_alike(world: AccessWorld) -> None:
    answers = {
        (row, who): await answer(world, world.people[who], row, "no key", adapter)
        for row in rows()
        for who in NO_KEYS
        for adapter in (world.people[who].adapter, *NOWHERE)
    }
    assert len(answers) == len(rows()) * len(NO_KEYS)
    one = Refusal("unauthenticated", "a valid API key is required: send 'Authorization: Bearer <key>'")
    assert {cell: refused for cell, refused in answers.items() if refused != one} == {}


async def test_a_list_holds_what_each_may_see_and_no_more(world: AccessWorld) -> None:
    seen = {}
    for who in LIVE:
        adapters = (await world.people[who].client.ask("list")).adapters
        seen[who] = {info.name: (info.grants, info.editors, info.auditors) for info in adapters}
    everything = {person.adapter for person in world.people.values()}
    nothing = ((), (), ())
    for who in (Who.OWNER, Who.ONLY_USE, Who.ONLY_PUSH, Who.ONLY_MANAGE, Who.ONLY_AUDIT):
        assert set(seen[who]) == everything, who
        shown = {name: roles for name, roles in seen[who].items() if roles != nothing}
        assert shown == (
            {
                world.people[Who.EDITOR].adapter: (("ed@away",), ("ed@away",), ()),
                world.people[Who.USER].adapter: (("una@away",), (), ()),
                world.people[Who.AUDITOR].adapter: ((), (), ("abe@away",)),
            }
            if who in (Who.OWNER, Who.ONLY_AUDIT)
            else {}
        ), who
    for who in (Who.EDITOR, Who.USER):
        assert seen[who] == {world.people[who].adapter: nothing}
    assert seen[Who.AUDITOR] == {world.people[Who.AUDITOR].adapter: ((), (), ("abe@away",))}
    assert seen[Who.TENANT_AUDITOR] == seen[Who.ADMIN] == seen[Who.OTHER] == seen[Who.ELSEWHERE] == {}
    for who, num_seen in ((Who.TENANT_AUDITOR, len(everything)), (Who.ADMIN, len(everything)), (Who.OTHER, 0)):
        adapters = (await world.people[who].client.ask("list", tenant="home")).adapters
        assert len(adapters) == num_seen, who
        assert any(info.grants for info in adapters) == (who is Who.TENANT_AUDITOR)
