"""Rude requests to gateways and identity as they run: one sentence each that says what is wrong, and nothing breaks."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from structlog.testing import capture_logs

from octavo_identity.ids import Ids, load_secret
from octavo_shared import subjects
from octavo_shared.config import StoreSettings
from octavo_shared.messages.history import History
from support.access_gateways import front_of
from support.access_world import AccessWorld
from support.adapters import config_json, tiny_weights
from support.command_world import alice_of, octavo
from support.fakes import Exchange
from support.identity_rig import Client, own_identity
from support.rude import ADMIN, GENERATION, REGISTRY, UPLOAD_ID, Rude

_PATIENCE_S = 10.0
_SENTENCE_CHARS_MAX = 600


@dataclass
class Rudeness:
    """A gateway before an identity, with home/diary, and what all of them logged."""

    url: str
    http: httpx.AsyncClient
    admin: Client
    admin_key: str
    alice: Client
    key: str
    logs: list[MutableMapping[str, Any]]
    records: list[logging.LogRecord]

    async def status(self, method: str, path: str, key: str, content: bytes | None = None, **headers: str) -> int:
        headers |= {"Authorization": f"Bearer {key}"}
        return (await self.http.request(method, path, content=content, headers=headers)).status_code

    def check_calm(self) -> None:
        """Nothing was logged that somebody would have to look at."""
        loud = [one for one in self.logs if one["log_level"] in ("error", "critical") or one.get("exc_info")]
        assert loud == []
        assert [record.getMessage() for record in self.records if record.levelno >= logging.ERROR] == []


@pytest.fixture
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as made:
        yield made


@pytest.fixture
async def rudeness(
    store_settings: StoreSettings,
    tmp_path: Path,
    logs: list[MutableMapping[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> AsyncIterator[Rudeness]:
    async def answering(exchange: Exchange) -> None:
        await exchange.answer([65, 66])

    async with own_identity(store_settings, tmp_path) as admin:
        alice, key = await alice_of(admin)
        await alice.push("home/diary", 1)
        admin_key = (tmp_path / "identity" / "admin_key").read_text().strip()
        world = AccessWorld(admin, alice, Ids(load_secret(tmp_path / "identity")))
        async with front_of(world, store_settings, answering, 1) as front:
            (http,) = front.http
            yield Rudeness(str(http.base_url), http, admin, admin_key, alice, key, logs, caplog.records)


def problem_with(rude: Rude, status: int, body: bytes) -> str:
    """Return what is wrong with a refusal, or nothing."""
    try:
        error = json.loads(body)["error"]
        message = error["message"]
    except (ValueError, KeyError, TypeError):
        return f"{rude.name}: {status} {body[:200]!r} is no refusal"
    is_sentence = message and "\n" not in message and "Traceback" not in message and len(message) <= _SENTENCE_CHARS_MAX
    if status != rude.status or not is_sentence or rude.names not in message:
        return f"{rude.name}: {status} {message[:300]!r}, and {rude.status} with {rude.names!r} was expected"
    return ""


async def test_over_http_each_gets_one_sentence(rudeness: Rudeness) -> None:
    upload_id = await rudeness.alice.stage("home/diary", 2)
    wrong = []
    for rudes, key in ((GENERATION + REGISTRY, rudeness.key), (ADMIN, rudeness.admin_key)):
        for rude in rudes:
            method, path = rude.route.split(maxsplit=1)
            headers = {"Authorization": f"Bearer {key}"} | rude.headers
            content = (rude.content or b"").replace(UPLOAD_ID.encode(), upload_id.encode())
            url = path.replace(UPLOAD_ID, upload_id)
            try:
                answer = await rudeness.http.request(method, url, content=content, headers=headers)
            except httpx.HTTPError as error:
                wrong.append(f"{rude.name}: {error!r}")
                continue
            wrong.append(problem_with(rude, answer.status_code, answer.content))
    assert "\n".join(filter(None, wrong)) == ""
    assert len(wrong) >= 100
    rudeness.check_calm()
    assert await rudeness.status("GET", "/v1/adapters/home/diary/history", rudeness.key) == 200


async def test_over_nats_each_gets_the_same_sentence(rudeness: Rudeness) -> None:
    client = rudeness.admin.bus.client
    wrong = []
    for rude in GENERATION:
        headers = {"Authorization": f"Bearer {rudeness.key}"}
        if len(rude.content or b"") > client.max_payload:
            continue
        answer = await client.request(subjects.GENERATE, rude.content or b"", _PATIENCE_S, headers=headers)
        assert answer.headers
        assert answer.headers["octavo-final"] == "1"
        wrong.append(problem_with(rude, rude.status, answer.data))
    for bad in ("Bearer", "Bearer oct_*_0", "Basic YTpi", "oct_"):
        answer = await client.request(subjects.GENERATE, b"{}", _PATIENCE_S, headers={"Authorization": bad})
        wrong.append(problem_with(Rude(bad, "", "API key"), 400, answer.data))
    assert "\n".join(filter(None, wrong)) == ""
    assert len(wrong) >= 25
    rudeness.check_calm()


async def test_identity_outlives_what_no_gateway_sends(rudeness: Rudeness) -> None:
    """Only gateways may ask it. Bytes that are no request are a fault between services, which is logged as one."""
    client = rudeness.admin.bus.client
    one = History(credential=rudeness.alice.credential, adapter="home/diary", num_max=1)
    bodies = [b"", b"\xff" * 100, b"\xc1", b"\x92" * 5_000, msgspec.msgpack.encode(one)[:-5]]
    bodies += [msgspec.msgpack.encode(value) for value in ([1, 2], {"adapter": 1}, {"credential": {}})]
    for body in bodies:
        for verb in ("history", "commit", "register", "unwrap"):
            answer = await client.request(subjects.identity(verb), body, _PATIENCE_S)
            assert answer.headers == {"octavo-error": "internal"}, (verb, body[:20], answer.data)
    loud = [one for one in rudeness.logs if one["log_level"] == "error" or one.get("exc_info")]
    assert {one["event"] for one in loud} == {"message_undecodable"}
    assert len(loud) == 4 * len(bodies)
    assert len((await rudeness.alice.ask("history", adapter="home/diary", num_max=5)).entries) == 1


async def test_a_key_that_is_over_is_one_like_none(rudeness: Rudeness) -> None:
    http = rudeness.http
    bearer = {"Authorization": f"Bearer {rudeness.key}"}

    async def fresh(**fields: Any) -> tuple[str, str]:
        made = (await http.post("/v1/tenants/home/keys", json={"user": "alice"} | fields, headers=bearer)).json()
        return made["key"], made["key_id"]

    revoked, key_id = await fresh()
    assert await rudeness.status("DELETE", f"/v1/keys/{key_id}", rudeness.key) == 200
    rotated, key_id = await fresh()
    assert await rudeness.status("POST", f"/v1/keys/{key_id}/rotate", rudeness.key, b'{"overlap_s": 0}') == 200
    expired, _ = await fresh(lifetime_s=1)
    async with asyncio.timeout(_PATIENCE_S):
        while await rudeness.status("GET", "/v1/key", expired) == 200:
            await asyncio.sleep(0.05)
    for text in (revoked, rotated, expired, revoked[:-2], revoked.upper(), revoked + "00", f" {revoked}"):
        answer = await http.get("/v1/key", headers={"Authorization": f"Bearer {text}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated"), text
    rudeness.check_calm()


async def test_an_idempotency_key_with_another_body_changes_nothing_more(rudeness: Rudeness) -> None:
    path, once = "/v1/adapters/home/diary/tags", {"Idempotency-Key": "once"}
    for tag in (b"first", b"second", b"third"):
        assert await rudeness.status("POST", path, rudeness.key, b'{"add": ["' + tag + b'"]}', **once) == 200
    (only,) = (await rudeness.alice.ask("list")).adapters
    assert only.tags == ("first",)


@pytest.mark.parametrize(
    ("config", "weights", "words"),
    [
        (config_json(), tiny_weights()[:-7], "format"),
        (config_json(), tiny_weights()[:4], "safetensors"),
        (config_json(), b"", "safetensors"),
        (config_json(), b"\xff" * 64, "safetensors"),
        (config_json()[:-3], tiny_weights(), "adapter_config.json"),
        (config_json(target_modules="(.+)+x"), tiny_weights(), "target_modules"),
        (config_json(target_modules="((a+)+)+$|" * 20 + "q_proj"), tiny_weights(), "target_modules"),
        (config_json(rank_pattern={"(": 8}), tiny_weights(), "rank_pattern"),
        (config_json(exclude_modules="(x{1000}){1000}"), tiny_weights(), "exclude_modules"),
        (config_json(r=10**30), tiny_weights(), "r"),
        (config_json(lora_alpha=-1), tiny_weights(), "lora_alpha"),
    ],
    ids=range(11),
)
async def test_a_file_that_is_no_adapter_is_refused_by_its_rule(
    rudeness: Rudeness, config: bytes, weights: bytes, words: str
) -> None:
    bearer = {"Authorization": f"Bearer {rudeness.key}"}
    begun = await rudeness.http.post("/v1/uploads", json={"adapter": "home/diary"}, headers=bearer)
    upload_id = begun.json()["upload_id"]
    for name, content in (("adapter_config.json", config), ("adapter_model.safetensors", weights)):
        assert await rudeness.status("PUT", f"/v1/uploads/{upload_id}/{name}", rudeness.key, content) == 200
    body = {"upload_id": upload_id}
    async with asyncio.timeout(_PATIENCE_S):
        answer = await rudeness.http.post("/v1/adapters/home/diary/revisions", json=body, headers=bearer)
    assert problem_with(Rude("push", "", words, status=422), answer.status_code, answer.content) == ""
    rudeness.check_calm()


async def test_the_command_line_says_it_in_one_line(rudeness: Rudeness, tmp_path: Path) -> None:
    suite = tmp_path / "facts.jsonl"
    suite.write_text('{"prompt": "x", "expect": "(", "check": "regex"}\n')
    huge = tmp_path / "huge.jsonl"
    huge.write_text(json.dumps({"prompt": "x", "expect": "(" * 60_000, "check": "regex"}) + "\n")
    (tmp_path / "empty").mkdir()
    runs = {
        ("history", "../diary"): "adapter",
        ("history", "home/diary\u200b"): "adapter",
        ("promote", "home/diary@0"): "revision",
        ("rollback", "home/diary", "--to", "-1"): "",
        ("push", "home/diary", str(tmp_path / "nowhere")): "nowhere",
        ("push", "home/diary", str(tmp_path / "empty")): "adapter_config.json",
        ("evaluate", "home/diary@1", "--suite", str(suite)): "line 1",
        ("evaluate", "home/diary@1", "--suite", str(huge)): "line 1",
        ("import", str(tmp_path / "empty"), "--tenant", "home"): "",
        ("verify", "home/diary@1", "--public-key", "x"): "key",
        ("tag", "home/diary", "+\x07"): "tag",
        ("keys", "issue", "--expires", "-3d"): "",
    }
    for words, named in runs.items():
        code, said = await asyncio.wait_for(octavo(rudeness.url, rudeness.key, tmp_path, *words), 60)
        assert code in (1, 2), (words, said)
        assert "Traceback" not in said, (words, said)
        assert named in said, (words, said)
    rudeness.check_calm()
