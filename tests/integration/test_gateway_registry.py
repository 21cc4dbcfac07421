"""Registry routes of the gateway: uploads, packs, keys, eviction; who may, and how much."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from typer.testing import CliRunner

from octavo_cli.answers import ClientError
from octavo_cli.main import app
from octavo_gateway.credentials import credential_of
from octavo_shared.config import StoreSettings
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.keys import IssueKey
from octavo_shared.messages.lifecycle import Promote, Rollback
from octavo_shared.messages.pushing import Commit
from octavo_shared.objects import ObjectMissing
from octavo_shared.seal import open_sealed, staging_context
from support.fakes import BASE, BASE_NAME
from support.gateway_world import World, gateway_world
from support.keys import key_for, sealed_for

UPLOAD_BYTES_MAX = 3 * 1024 * 1024
FOLDER = "/v1/uploads/" + "u" * 16


@pytest.fixture
async def world(store_settings: StoreSettings) -> AsyncIterator[World]:
    async with gateway_world(store_settings, upload_bytes_max=UPLOAD_BYTES_MAX) as made:
        yield made


async def pieces(num_bytes: int) -> AsyncIterator[bytes]:
    """Yield ``num_bytes`` without declaring their number."""
    while num_bytes > 0:
        yield bytes(min(num_bytes, 65536))
        num_bytes -= 65536


async def test_push_is_staged_whole_and_committed_for_the_served_base(world: World) -> None:
    await world.add_worker("w1", lambda exchange: exchange.busy())
    begun = await world.http.post("/v1/uploads", json={"adapter": "alice/diary"}, headers=world.key())
    assert begun.json() == {
        "upload_id": "u" * 16, "size_bytes_max": UPLOAD_BYTES_MAX, "pushed_by": "", "parent": None, "base": BASE,
    }  # fmt: skip
    for name, size in (("adapter_config.json", 100), ("adapter_model.safetensors", UPLOAD_BYTES_MAX)):
        stored = await world.http.put(f"{FOLDER}/{name}", content=pieces(size), headers=world.key())
        assert stored.json() == {"size_bytes": size}
        sealed = await world.store.read(f"staging/{'u' * 16}/{name}", 1 << 24)
        assert len(open_sealed(sealed, key_for("u" * 16), staging_context("u" * 16, name))) == size
    committed = await world.http.post(
        "/v1/adapters/alice/diary/revisions",
        json={"upload_id": "u" * 16, "dtype": "bf16", "note": "n"},
        headers=world.key() | {"Idempotency-Key": "once"},
    )
    assert committed.json()["name"] == "alice/diary"
    order = world.identity.writes[-1]
    assert isinstance(order, Commit)
    assert (order.served_base, order.idempotency_key, order.dtype) == (BASE, "once", "bf16")


async def test_push_without_any_worker_is_503(world: World) -> None:
    response = await world.http.post(
        "/v1/adapters/alice/diary/revisions", json={"upload_id": "u" * 16}, headers=world.key()
    )
    assert (response.status_code, response.json()["error"]["code"]) == (503, "no_worker")


@pytest.mark.parametrize("is_declared", [True, False])
async def test_upload_over_the_limit_is_413_and_leaves_nothing(world: World, is_declared: bool) -> None:
    size = UPLOAD_BYTES_MAX + 1
    content = bytes(size) if is_declared else pieces(size)
    response = await world.http.put(f"{FOLDER}/adapter_model.safetensors", content=content, headers=world.key())
    assert (response.status_code, response.json()["error"]["code"]) == (413, "upload_too_large")
    with pytest.raises(ObjectMissing):
        await world.store.read(f"staging/{'u' * 16}/adapter_model.safetensors", 1 << 24)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{FOLDER}/pytorch_model.bin", 400),
        ("/v1/uploads/..%2f..%2fpacks/adapter_config.json", 400),
        ("/v1/uploads/short/adapter_config.json", 400),
        (f"{FOLDER}/..%2fx", 400),
        ("/v1/uploads/" + "v" * 16 + "/adapter_config.json", 400),
    ],
)
async def test_only_the_two_files_of_an_upload_are_taken(world: World, path: str, status: int) -> None:
    response = await world.http.put(path, content=b"x", headers=world.key())
    assert response.status_code in (status, 404)
    assert "error" in response.json()
    assert await world.store.keys("staging/") == []


async def test_upload_needs_a_key(world: World) -> None:
    response = await world.http.put(f"{FOLDER}/adapter_config.json", content=b"x")
    assert response.status_code == 401


async def test_pack_is_verified_before_it_is_handed_out(world: World) -> None:
    await world.add_worker("w1", lambda exchange: exchange.busy())
    await world.store.write(world.diary.object_key, sealed_for(world.diary, b"pack"))
    response = await world.http.get("/v1/adapters/alice/diary/pack", params={"revision": "3"}, headers=world.key())
    assert response.content == b"pack"
    assert response.headers["octavo-digest"] == world.diary.digest
    assert response.headers["octavo-base-name"] == BASE_NAME
    await world.store.write(world.diary.object_key, sealed_for(world.diary, b"pbck"))
    response = await world.http.get("/v1/adapters/alice/diary/pack", headers=world.key())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "adapter_unavailable")
    foreign = await world.http.get("/v1/adapters/alice/diary/pack", headers=world.key(world.bob))
    unknown = await world.http.get("/v1/adapters/alice/none/pack", headers=world.key(world.bob))
    assert foreign.status_code == 404
    assert foreign.content == unknown.content


async def test_issued_key_is_shown_once_and_identity_gets_only_its_hash(world: World) -> None:
    response = await world.http.post(
        "/v1/tenants/bob/keys", json={"user": "bob", "role": "owner"}, headers=world.key(world.admin)
    )
    order = world.identity.writes[-1]
    assert isinstance(order, IssueKey)
    issued = credential_of(f"Bearer {response.json()['key']}")
    assert (order.key_id, order.secret_sha256) == (issued.key_id, issued.secret_sha256)
    assert response.json()["principal"] == "bob@bob"


async def test_simple_verbs_reach_identity(world: World) -> None:
    key = world.key()
    assert (await world.http.post("/v1/tenants", json={"tenant": "carol"}, headers=key)).json() == {"tenant": "carol"}
    assert (await world.http.delete("/v1/keys/0000000000000009", headers=key)).json()["key_id"] == "0000000000000009"
    listed = (await world.http.get("/v1/adapters", headers=key)).json()
    assert [info["name"] for info in listed["adapters"]] == ["alice/diary"]
    history = (await world.http.get("/v1/adapters/alice/diary/history", headers=key)).json()
    assert history["entries"][0]["kind"] == "committed"
    await world.http.post("/v1/adapters/alice/diary/rollback", json={"revision": 2}, headers=key)
    order = world.identity.writes[-1]
    assert isinstance(order, Rollback)
    assert (order.number, order.alias) == (2, "serving")
    granted = await world.http.post("/v1/adapters/alice/diary/grants", json={"principal": "bob@bob"}, headers=key)
    assert granted.status_code == 200
    revoked = await world.http.delete("/v1/adapters/alice/diary/grants/*@bob", headers=key)
    assert revoked.status_code == 200
    assert world.identity.writes[-1].principal == "*@bob"  # type: ignore[attr-defined]


async def test_lifecycle_verbs_reach_identity_with_their_idempotency_keys(world: World) -> None:
    path = "/v1/adapters/alice/diary"
    asked: list[tuple[str, str, dict[str, object] | None, dict[str, object]]] = [
        ("POST", f"{path}/promote", {"revision": 12},
         {"reference": "alice/diary@12", "alias": "serving", "share_percent": None, "expected": None}),
        ("POST", f"{path}/promote", {"revision": "canary", "alias": "stable", "expect": 0},
         {"reference": "alice/diary:canary", "alias": "stable", "expected": 0}),
        ("POST", f"{path}/promote", {"revision": "sha256:" + "0" * 64, "alias": "canary", "share": 10},
         {"reference": "alice/diary@sha256:" + "0" * 64, "alias": "canary", "share_percent": 10}),
        ("DELETE", f"{path}/aliases/canary", None, {"adapter": "alice/diary", "alias": "canary"}),
        ("POST", f"{path}/retire", {"revision": 3}, {"adapter": "alice/diary", "number": 3}),
        ("POST", "/v1/adapters/alice/poems/branch", {"source": "bob/x@1"}, {"adapter": "alice/poems",
                                                                            "source": "bob/x@1"}),
        ("POST", f"{path}/tags", {"add": ["work"], "remove": ["old"]}, {"add": ("work",), "remove": ("old",)}),
    ]  # fmt: skip
    for number, (method, url, body, fields) in enumerate(asked):
        headers = world.key() | {"Idempotency-Key": f"key {number}"}
        response = await world.http.request(method, url, json=body, headers=headers)
        assert response.status_code == 200, response.text
        order = world.identity.writes[-1]
        expected = fields | {"idempotency_key": f"key {number}"}
        assert {name: getattr(order, name) for name in expected} == expected, url
        assert (await world.http.request(method, url, json=body)).status_code == 401
    assert len(world.identity.writes) == len(asked)


async def test_a_push_may_move_another_alias_or_none(world: World) -> None:
    await world.add_worker("w1", lambda exchange: exchange.busy())
    for fields, alias in (({}, "serving"), ({"alias": "canary"}, "canary"), ({"alias": None}, None)):
        body = {"upload_id": "u" * 16} | fields
        await world.http.post("/v1/adapters/alice/diary/revisions", json=body, headers=world.key())
        order = world.identity.writes[-1]
        assert isinstance(order, Commit)
        assert order.alias == alias


async def test_a_search_reaches_identity(world: World) -> None:
    query = {"tenant": "alice", "owner": "a@b", "base": "sha256:0", "state": "draft", "tag": "work", "prefix": "al"}
    found = await world.http.get("/v1/adapters", params=query | {"limit": "7", "after": "a/b"}, headers=world.key())
    assert found.json()["next_after"] == ""
    order = world.identity.lists[-1]
    assert {name: getattr(order, name) for name in query} == query
    assert (order.num_max, order.after) == (7, "a/b")


async def test_the_schema_names_the_fields_of_the_new_routes(world: World) -> None:
    paths = (await world.http.get("/schema/openapi.json")).json()["paths"]
    for verb, fields in {
        "promote": {"revision", "alias", "share", "expect"}, "retire": {"revision"},
        "branch": {"source", "alias", "statement"},
        "tags": {"add", "remove"},
    }.items():  # fmt: skip
        body = paths[f"/v1/adapters/{{tenant}}/{{name}}/{verb}"]["post"]["requestBody"]["content"]
        assert set(body["application/json"]["schema"]["properties"]) == fields
    queries = {parameter["name"] for parameter in paths["/v1/adapters"]["get"]["parameters"]}
    assert queries >= {"tenant", "owner", "base", "state", "tag", "prefix", "after", "limit"}


async def test_the_command_line_speaks_all_of_it(world: World) -> None:
    where = {"OCTAVO_GATEWAY_URL": str(world.http.base_url), "OCTAVO_KEY": world.alice}

    async def octavo(*words: str) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, app, words, None, where)
        assert result.exit_code == 0, (words, result.output, result.exception)
        return result.output

    assert await octavo("promote", "alice/diary@12", "--alias", "canary", "--share", "10", "--expect", "3") == (
        "alice/diary: serving 3\n"
    )
    assert world.identity.writes[-1] == Promote(
        credential=world.identity.writes[-1].credential, idempotency_key=world.identity.writes[-1].idempotency_key,  # type: ignore[attr-defined]
        reference="alice/diary@12", alias="canary", share_percent=10, expected=3,
    )  # fmt: skip
    for words, fields in [
        (["promote", "alice/diary:canary"], {"reference": "alice/diary:canary", "alias": "serving", "expected": None}),
        (["unalias", "alice/diary", "canary"], {"adapter": "alice/diary", "alias": "canary"}),
        (["retire", "alice/diary@3"], {"adapter": "alice/diary", "number": 3}),
        (["branch", "bob/x", "alice/poems"], {"source": "bob/x", "adapter": "alice/poems"}),
        (["tag", "alice/diary", "+work", "-draft", "+key", "-key2"], {"add": ("work", "key"),
                                                                     "remove": ("draft", "key2")}),
    ]:  # fmt: skip
        await octavo(*words)
        order = world.identity.writes[-1]
        assert {name: getattr(order, name) for name in fields} == fields
    assert "alice/diary" in await octavo("ls", "--tag", "work", "--state", "draft")
    assert (world.identity.lists[-1].tag, world.identity.lists[-1].state) == ("work", "draft")
    for words in (["promote", "alice/diary"], ["retire", "alice/diary:stable"], ["tag", "alice/diary", "work"]):
        result = await asyncio.to_thread(CliRunner().invoke, app, words, None, where)
        assert result.exit_code == 1
        assert isinstance(result.exception, (ClientError, InvalidRequest))


async def test_bad_bodies_and_queries_name_their_field(world: World) -> None:
    for method, path, body, field in (
        ("POST", "/v1/tenants", {"tenant": "No Name"}, "tenant"),
        ("POST", "/v1/tenants", {}, "tenant"),
        ("POST", "/v1/tenants/bob/keys", {"user": "bob", "role": "king"}, "role"),
        ("POST", "/v1/uploads", {"adapter": "diary"}, "adapter"),
        ("POST", "/v1/adapters/alice/diary/evict", {"tier": "resident"}, "tier"),
        ("POST", "/v1/adapters/alice/diary/revisions", {"upload_id": "u" * 16, "base": "x"}, "base"),
        ("POST", "/v1/adapters/alice/diary/rollback", {"revision": 0}, "revision"),
        ("POST", "/v1/adapters/alice/diary/rollback", {"revision": 10**30}, "revision"),
        ("POST", "/v1/adapters/alice/diary/promote", {"revision": 0}, "revision"),
        ("POST", "/v1/adapters/alice/diary/promote", {"revision": "No Alias"}, "revision"),
        ("POST", "/v1/adapters/alice/diary/promote", {"revision": 1, "share": 101}, "share"),
        ("POST", "/v1/adapters/alice/diary/promote", {"revision": 1, "expect": -1}, "expect"),
        ("POST", "/v1/adapters/alice/diary/retire", {"revision": "3"}, "revision"),
        ("POST", "/v1/adapters/alice/diary/branch", {"source": "diary"}, "source"),
        ("POST", "/v1/adapters/alice/diary/tags", {"add": "work"}, "add"),
        ("GET", "/v1/adapters?state=king", None, "state"),
        ("GET", "/v1/adapters?limit=0", None, "limit"),
        ("GET", "/v1/adapters?limit=many", None, "limit"),
    ):
        response = await world.http.request(method, path, json=body, headers=world.key())
        assert response.status_code == 400, path
        assert response.json()["error"]["param"] == field, response.text


async def test_only_owner_and_admin_evict_and_only_admin_sees_the_fleet(world: World) -> None:
    path = "/v1/adapters/alice/diary/evict"
    assert (await world.http.post(path, json={"tier": "cold"}, headers=world.key())).json()["evicted"] == ["w1"]
    assert (await world.http.post(path, json={"tier": "cold"}, headers=world.key(world.admin))).status_code == 200
    assert (await world.http.post(path, json={"tier": "cold"}, headers=world.key(world.bob))).status_code == 404
    assert [command.adapter for command in world.residency.commands] == [world.diary] * 2
    assert (await world.http.get("/v1/fleet", headers=world.key())).status_code == 403
    assert (await world.http.get("/v1/fleet", headers=world.key(world.admin))).json()["workers"] == []
