"""Every verb on what is served, for everyone who may ask."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo_shared.config import StoreSettings
from octavo_shared.errors import OctavoError
from octavo_shared.messages.adapters import AdapterInfo
from octavo_shared.messages.keys import Role
from octavo_shared.messages.requests import Credential
from support.identity_rig import Client, own_identity

DENIED = "not_permitted"
HIDDEN = "adapter_not_found"
NO_KEY = "unauthenticated"

WRITES: list[tuple[str, dict[str, Any]]] = [
    ("tag", {"adapter": "{}", "add": ("work",)}),
    ("promote", {"reference": "{}@1"}),
    ("promote", {"reference": "{}@1", "alias": "stable"}),
    ("promote", {"reference": "{}@2", "alias": "canary", "share_percent": 10}),
    ("rollback", {"adapter": "{}", "number": 1}),
    ("unalias", {"adapter": "{}", "alias": "canary"}),
    ("unalias", {"adapter": "{}", "alias": "stable"}),
    ("retire", {"adapter": "{}", "number": 2}),
]


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as client:
        yield client


async def answer(who: Client, verb: str, fields: dict[str, Any], adapter: str) -> AdapterInfo | OctavoError:
    filled = {name: value.format(adapter) if isinstance(value, str) else value for name, value in fields.items()}
    try:
        info = await who.ask(verb, **filled)
    except OctavoError as error:
        return error
    assert isinstance(info, AdapterInfo)
    return info


async def test_only_the_owner_changes_what_is_served_and_others_learn_nothing(admin: Client) -> None:
    alice, carol = await admin.new_key("home", "alice"), await admin.new_key("home", "carol")
    bob, tenant_user = await admin.new_key("away", "bob"), await admin.new_key("away", "erin", Role.USER)
    dave, stranger = await admin.new_key("home", "dave", Role.USER), await admin.new_key("away", "mallory")
    phone = await alice.new_key("home", "alice", Role.USER)
    revoked = await admin.new_key("home", "alice")
    await admin.ask("revoke_key", key_id=revoked.credential.key_id)
    unknown = Client(admin.bus, admin.store, msgspec.structs.replace(alice.credential, key_id="f" * 16))
    forged = Client(admin.bus, admin.store, msgspec.structs.replace(alice.credential, secret_sha256=bytes(32)))
    none = Client(admin.bus, admin.store, Credential("", b""))
    for name in ("home/diary", "home/letters"):
        await alice.push(name, 1)
        await alice.push(name, 2)
    for principal in ("bob@away", "erin@away"):
        await alice.ask("grant", adapter="home/diary", principal=principal)
    before = (await alice.ask("history", adapter="home/diary")).entries
    expected = [
        (bob, DENIED), (tenant_user, DENIED),
        (carol, HIDDEN), (dave, HIDDEN), (stranger, HIDDEN), (admin, HIDDEN),
        (revoked, NO_KEY), (unknown, NO_KEY), (forged, NO_KEY), (none, NO_KEY),
    ]  # fmt: skip
    for verb, fields in WRITES:
        for who, code in expected:
            told = await answer(who, verb, fields, "home/diary")
            assert isinstance(told, OctavoError), (verb, who)
            assert told.code == code, (verb, told)
            if code == HIDDEN:
                absent = await answer(who, verb, fields, "home/nothing")
                nowhere = await answer(who, verb, fields, "nowhere/nothing")
                assert isinstance(absent, OctavoError)
                assert isinstance(nowhere, OctavoError)
                assert told.refusal() == absent.refusal() == nowhere.refusal(), verb
    assert (await alice.ask("history", adapter="home/diary")).entries == before
    for who, adapter in ((alice, "home/diary"), (phone, "home/letters")):
        for verb, fields in WRITES:
            assert isinstance(await answer(who, verb, fields, adapter), AdapterInfo), verb


async def test_a_branch_is_for_those_who_may_use_its_source(admin: Client) -> None:
    alice, carol = await admin.new_key("home", "alice"), await admin.new_key("home", "carol")
    bob, stranger = await admin.new_key("away", "bob"), await admin.new_key("away", "mallory")
    revoked = await admin.new_key("home", "alice")
    await admin.ask("revoke_key", key_id=revoked.credential.key_id)
    none = Client(admin.bus, admin.store, Credential("", b""))
    await alice.push("home/diary")
    await alice.ask("grant", adapter="home/diary", principal="bob@away")
    for who, tenant, code in [
        (carol, "home", HIDDEN), (stranger, "away", HIDDEN), (admin, "home", HIDDEN),
        (revoked, "home", NO_KEY), (none, "home", NO_KEY),
    ]:  # fmt: skip
        told = [
            await answer(who, "branch", {"source": "{}", "adapter": f"{tenant}/mine"}, source)
            for source in ("home/diary", "home/nothing", "nowhere/nothing")
        ]
        refusals = [one.refusal() for one in told if isinstance(one, OctavoError)]
        assert len(refusals) == 3
        assert refusals[0] == refusals[1] == refusals[2]
        assert refusals[0].code == code
    for who, tenant in ((alice, "home"), (bob, "away")):
        made = await answer(who, "branch", {"source": "{}", "adapter": f"{tenant}/mine"}, "home/diary")
        assert isinstance(made, AdapterInfo)
