"""The main job against a whole fleet: chats, pushes, pulls, refusals and the tiers."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import nats
import numpy as np
import openai
import pytest

from octavo_cli.answers import ClientError
from octavo_shared.messages.privacy import RECEIPT_TYPE
from octavo_shared.permissions import BusRole, inbox_prefix
from octavo_shared.safetensors_form import RawTensor, read_tensors, write_tensors
from octavo_shared.subjects import GENERATE
from support.adapters import raw
from support.live import CHAT, QUESTION, Live, Stream, adapter_config, adapter_tensors, bearer, body, make_person

pytestmark = pytest.mark.asyncio(loop_scope="session")

OCTAVO = Path(sys.executable).parent / "octavo"
FIRST_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


async def test_the_openai_client_gets_the_base_and_two_adapters_at_the_same_moment(live: Live) -> None:
    asked = {live.base_name: live.alice.key, live.alice.adapter: live.alice.key, live.bob.adapter: live.bob.key}

    async def one(model: str, key: str) -> str:
        async with openai.AsyncOpenAI(base_url=f"{live.fleet.gateway_url}/v1", api_key=key, max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=24, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    together = await asyncio.gather(*(one(model, key) for model, key in asked.items()))
    alone = [await one(model, key) for model, key in asked.items()]
    assert together == alone, "a neighbour changed an answer"
    assert len(set(together)) == 3
    assert all(together)


async def test_headers_name_what_computed_the_answer(live: Live) -> None:
    adapted = await live.ask(live.alice.adapter, live.alice.key)
    assert adapted.headers["octavo-digest"] == live.alice.digest
    assert adapted.headers["octavo-revision"] == "1"
    assert adapted.headers["octavo-base"] == live.base
    plain = await live.ask(live.base_name, live.alice.key)
    assert plain.headers["octavo-tier"] == "base"
    assert "octavo-digest" not in plain.headers


async def test_an_evicted_adapter_is_found_cold_and_says_the_same(live: Live) -> None:
    before = await live.ask(live.alice.adapter, live.alice.key, 24)
    report = await live.command(live.alice.key, lambda client: client.evict(live.alice.adapter))
    assert (len(report.evicted), report.pinned) == (1, ())
    num_ordered = (await live.view()).num_prefetches_ordered
    after = await live.ask(live.alice.adapter, live.alice.key, 24)
    assert after.headers["octavo-tier"] == "cold"
    assert after.json()["usage"]["octavo"]["timings"]["fetch_ms"] > 0
    assert after.json()["choices"] == before.json()["choices"]
    assert (await live.view()).num_prefetches_ordered == num_ordered + 1, "the manager ordered the load"
    again = await live.ask(live.alice.adapter, live.alice.key)
    assert again.headers["octavo-tier"] == "resident"


async def test_what_is_pulled_is_bit_identical_to_what_was_pushed(live: Live) -> None:
    octavo = live.fleet.plan.folder.parent / "pulled"
    await _octavo(live, live.alice.key, "pull", live.alice.adapter, str(octavo))
    pushed, pulled = (
        read_tensors((folder / "adapter_model.safetensors").read_bytes())[1] for folder in (live.alice.folder, octavo)
    )
    assert {name: tensor.dtype for name, tensor in pushed.items()} == {n: t.dtype for n, t in pulled.items()}
    assert all(np.array_equal(tensor.words, pulled[name].words) for name, tensor in pushed.items())
    config = json.loads((octavo / "adapter_config.json").read_text())
    assert {name: config[name] for name in ("r", "lora_alpha")} == {"r": 8, "lora_alpha": 16}
    assert set(config["target_modules"]) == {"q_proj", "v_proj", "down_proj"}
    said = await _octavo(live, live.alice.key, "push", live.alice.adapter, str(octavo), "--note", "the same again")
    assert live.alice.digest in said, "the same tensors have the same digest, and octavo.json names the right base"
    await live.command(live.alice.key, lambda client: client.rollback(live.alice.adapter, 1))


async def test_nothing_tells_bob_whether_alices_adapter_exists(live: Live) -> None:
    answers = [
        await live.ask(model, live.bob.key)
        for model in (live.alice.adapter, "alice/nothing", "nobody/nothing", f"{live.bob.adapter}@99")
    ]
    assert [answer.status_code for answer in answers] == [404] * 4
    assert len({answer.content for answer in answers}) == 1
    for path in ("history", "pack"):
        foreign, missing = [
            await live.http.get(f"/v1/adapters/{name}/{path}", headers=bearer(live.bob.key))
            for name in (live.alice.adapter, "nobody/nothing")
        ]
        assert (foreign.status_code, foreign.content) == (404, missing.content)
    await live.command(live.alice.key, lambda client: client.grant(live.alice.adapter, "bob@bob"))
    assert (await live.ask(live.alice.adapter, live.bob.key)).status_code == 200
    await live.command(live.alice.key, lambda client: client.revoke(live.alice.adapter, "bob@bob"))
    assert (await live.ask(live.alice.adapter, live.bob.key)).content == answers[1].content


async def test_a_message_to_the_nats_subject_gets_the_same_stream(live: Live) -> None:
    over_http = await live.read(Stream(), live.alice.adapter, live.alice.key, 24)
    seed_file = str(live.fleet.seed_file(BusRole.CLIENT))
    bus = await nats.connect(live.fleet.nats_url, nkeys_seed=seed_file, inbox_prefix=inbox_prefix(BusRole.CLIENT))
    try:
        inbox = bus.new_inbox()
        answers = await bus.subscribe(inbox)
        content = json.dumps(body(live.alice.adapter, 24)).encode()
        await bus.publish(GENERATE, content, inbox, headers=bearer(live.alice.key))
        first = await answers.next_msg(timeout=60)
        assert first.headers is not None
        assert first.headers["octavo-digest"] == live.alice.digest
        messages = [first]
        while "octavo-final" not in (messages[-1].headers or {}):
            messages.append(await answers.next_msg(timeout=60))
    finally:
        await bus.close()
    chunks = [json.loads(message.data) for message in messages]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text == over_http.text


async def test_nothing_that_the_fleet_does_is_denied(live: Live) -> None:
    answers = [await live.ask(person.adapter, person.key) for person in (live.alice, live.bob)]
    assert [answer.status_code for answer in answers] == [200, 200]
    logs = {path.name: path.read_text() for path in (live.fleet.plan.folder / "logs").glob("*.log")}
    assert {"gateway.log", "identity.log", "residency.log", "worker-1.log"} <= logs.keys()
    assert [name for name, text in logs.items() if "permission_denied" in text] == []


async def test_a_client_that_leaves_cancels_its_sequence(live: Live) -> None:
    stream = Stream()
    reading = asyncio.create_task(live.read(stream, live.alice.adapter, live.alice.key, 1500))
    await asyncio.wait_for(stream.began.wait(), 60)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await live.idle()


async def test_malformed_requests_get_an_error_that_names_the_field(live: Live) -> None:
    key = live.alice.key

    async def error_of(content: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict[str, object]]:
        response = await live.http.post(CHAT, content=content, headers=bearer(key) if headers is None else headers)
        return response.status_code, response.json()["error"]

    good = body(live.base_name, 4)
    status, error = await error_of(b'{"model": ')
    assert (status, error["code"]) == (400, "invalid_request")
    status, error = await error_of(json.dumps(good | {"temperature": "warm"}).encode())
    assert (status, error["param"]) == (400, "temperature")
    status, error = await error_of(json.dumps(good | {"store": True}).encode())
    assert (status, error["code"], error["param"]) == (400, "unsupported_parameter", "store")
    long = [{"role": "user", "content": "sea " * 9000}]
    status, error = await error_of(json.dumps(good | {"messages": long}).encode())
    assert (status, error["code"]) == (400, "context_length_exceeded")
    fields = error["fields"]
    assert isinstance(fields, dict)
    assert fields["prompt_tokens"] > fields["context_tokens"]
    for headers in ({}, bearer("oct_" + "0" * 16 + "_" + "0" * 64), bearer(key[:-1] + "x")):
        status, error = await error_of(json.dumps(good).encode(), headers)
        assert (status, error["code"]) == (401, "unauthenticated")


def _poisoned() -> dict[str, RawTensor]:
    values = np.ones((8, 576), np.float32)
    values[3, 5] = np.nan
    return adapter_tensors(5) | {FIRST_A: raw(values)}


def _with_foreign_name() -> dict[str, RawTensor]:
    return adapter_tensors(5) | {"../../etc/x.lora_A.weight": raw(np.ones((8, 8)))}


def _for_another_architecture() -> bytes:
    tensors = {name: tensor for name, tensor in adapter_tensors(5).items() if ".q_proj." in name}
    return write_tensors({name.replace("q_proj", "x_proj"): tensor for name, tensor in tensors.items()}, {})


def _weights() -> bytes:
    return write_tensors(adapter_tensors(5), {})


BAD_PUSHES: dict[str, tuple[dict[str, object], Callable[[], bytes]]] = {
    "dora": (adapter_config(use_dora=True), _weights),
    "modules_to_save": (adapter_config(modules_to_save=["lm_head"]), _weights),
    "no_match": (adapter_config(target_modules=["x_proj"]), _for_another_architecture),
    "rank": (adapter_config(rank=4096), _weights),
    "nan": (adapter_config(), lambda: write_tensors(_poisoned(), {})),
    "tensor_name": (adapter_config(), lambda: write_tensors(_with_foreign_name(), {})),
    "pickle": (adapter_config(), lambda: b"PK\x03\x04" + b"archive/data.pkl" * 8),
}


@pytest.mark.parametrize("rule", BAD_PUSHES)
async def test_an_adapter_that_would_be_served_wrong_is_refused_by_name(live: Live, tmp_path: Path, rule: str) -> None:
    config, weights = BAD_PUSHES[rule]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").write_bytes(await asyncio.to_thread(weights))
    with pytest.raises(ClientError) as refused:
        await live.command(live.bob.key, lambda client: client.push("bob/bad", *_files(tmp_path)))
    assert (refused.value.status, refused.value.code) == (422, "adapter_refused")
    assert refused.value.message.startswith(f"{rule}:")
    history = await live.http.get("/v1/adapters/bob/bad/history", headers=bearer(live.bob.key))
    assert history.status_code == 404, "a refused push leaves no adapter"


async def test_an_adapter_for_another_base_is_refused_with_both_fingerprints(live: Live) -> None:
    other = "sha256:" + "cd" * 32
    with pytest.raises(ClientError) as refused:
        await live.command(live.bob.key, lambda client: client.push("bob/other", *_files(live.bob.folder), base=other))
    assert (refused.value.status, refused.value.code) == (409, "base_mismatch")
    assert other in refused.value.message
    assert live.base in refused.value.message


async def test_the_base_that_is_served_is_registered_and_nobody_had_to_do_it(live: Live) -> None:
    answer = await live.http.get("/v1/bases", headers=bearer(live.alice.key))
    (base,) = answer.json()["bases"]
    digits = live.base.removeprefix("sha256:")[:12]
    assert (base["label"], base["state"]) == (f"{live.base_name}@{digits}", "current")
    assert (base["fingerprint"], base["is_served"]) == (live.base, True)
    assert base["num_adapters"] >= 1, "alice's own are counted"
    assert (await live.ask(base["label"], live.alice.key)).status_code == 200


async def test_bob_can_not_push_into_alices_tenant(live: Live) -> None:
    with pytest.raises(ClientError) as refused:
        await live.command(live.bob.key, lambda client: client.push("alice/diary", *_files(live.bob.folder)))
    assert refused.value.status in (403, 404)
    answer = await live.ask(live.alice.adapter, live.alice.key)
    assert answer.headers["octavo-digest"] == live.alice.digest


async def test_an_erased_adapter_is_gone_by_command_and_its_stream_ends_by_name(live: Live, tmp_path: Path) -> None:
    carol = await asyncio.to_thread(make_person, live.fleet, "carol", tmp_path / "carol", 77)
    stream = Stream()
    reading = asyncio.create_task(live.read(stream, carol.adapter, carol.key, 400))
    await asyncio.wait_for(stream.began.wait(), 60)
    receipt = tmp_path / "receipt.json"
    said = await _octavo(live, carol.key, "erase", carol.adapter, "--yes", "--receipt", str(receipt))
    workers = [worker.worker_id for worker in (await live.view()).workers]
    assert f"hold nothing of it any more: {', '.join(workers)}" in said
    assert "did not answer" not in said
    await asyncio.wait_for(reading, 60)
    assert stream.error is not None
    assert stream.error["code"] == "adapter_erased"
    assert json.loads(receipt.read_text())["payloadType"] == RECEIPT_TYPE
    assert (await live.ask(carol.adapter, carol.key)).status_code == 404
    assert await _octavo(live, carol.key, "erase", carol.adapter, "--yes") == said
    pushed = await live.command(carol.key, lambda client: client.push(carol.adapter, *_files(carol.folder)))
    assert pushed.num_revisions == 1
    assert (await live.ask(carol.adapter, carol.key)).headers["octavo-digest"] == carol.digest


async def test_an_overloaded_gateway_says_when_to_come_back(live: Live) -> None:
    answers = await asyncio.gather(*(live.ask("x" * 80, live.bob.key) for _ in range(250)))
    shed = [answer for answer in answers if answer.status_code == httpx.codes.TOO_MANY_REQUESTS]
    assert shed
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in shed)


def _files(folder: Path) -> tuple[Path, Path]:
    return folder / "adapter_config.json", folder / "adapter_model.safetensors"


async def _octavo(live: Live, key: str, *words: str) -> str:
    """Run the command line as a user would and return what it printed."""
    environ = {"PATH": "/usr/bin:/bin", "OCTAVO_GATEWAY_URL": live.fleet.gateway_url, "OCTAVO_KEY": key}
    child = await asyncio.create_subprocess_exec(
        OCTAVO, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environ
    )
    out, err = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode == 0, err.decode()
    return out.decode()
