"""Registry routes of the gateway: uploads, packs, keys, eviction; who may, and how much."""

from collections.abc import AsyncIterator

import pytest

from octavo_gateway.credentials import credential_of
from octavo_shared.config import StoreSettings
from octavo_shared.messages.identity import Commit, IssueKey, Rollback
from octavo_shared.objects import ObjectMissing
from support.fakes import BASE, BASE_NAME
from support.gateway_world import World, gateway_world

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
    assert begun.json() == {"upload_id": "u" * 16, "size_bytes_max": UPLOAD_BYTES_MAX}
    for name, size in (("adapter_config.json", 100), ("adapter_model.safetensors", UPLOAD_BYTES_MAX)):
        stored = await world.http.put(f"{FOLDER}/{name}", content=pieces(size), headers=world.key())
        assert stored.json() == {"size_bytes": size}
        assert len(await world.store.read(f"staging/{'u' * 16}/{name}")) == size
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
        await world.store.read(f"staging/{'u' * 16}/adapter_model.safetensors")


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
    await world.store.write(world.diary.object_key, b"pack")
    response = await world.http.get("/v1/adapters/alice/diary/pack", params={"revision": "3"}, headers=world.key())
    assert response.content == b"pack"
    assert response.headers["octavo-digest"] == world.diary.digest
    assert response.headers["octavo-base-name"] == BASE_NAME
    await world.store.write(world.diary.object_key, b"pbck")
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
