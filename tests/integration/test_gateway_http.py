"""The gateway over HTTP: whole answers, streams, and what the openai client makes of them."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator

import openai
import pytest
from structlog.testing import capture_logs

from octavo_shared.config import StoreSettings
from octavo_shared.errors import AdapterRefused
from octavo_shared.messages.fleet import Placed
from octavo_shared.messages.generation import Tier, TokenChunk, TokenLogprobs
from support.fakes import BASE, BASE_NAME, Exchange, chunks_of
from support.gateway_world import ANSWER, World, gateway_world

CHAT = "/v1/chat/completions"


@pytest.fixture
async def world(store_settings: StoreSettings) -> AsyncIterator[World]:
    async with gateway_world(store_settings) as made:
        yield made


async def answering(world: World, worker_id: str = "w1") -> None:
    await world.add_worker(worker_id, lambda exchange: exchange.answer(world.tokens))


async def test_whole_answer_has_text_usage_and_headers(world: World) -> None:
    await answering(world)
    response = await world.http.post(CHAT, json=world.body(), headers=world.key())
    answer = response.json()
    assert response.status_code == 200
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(world.tokens)
    assert answer["usage"]["octavo"]["timings"]["prefill_ms"] == 5.0
    assert answer["usage"]["octavo"]["worker_id"] == "w1"
    assert response.headers["octavo-revision"] == "3"
    assert response.headers["octavo-digest"] == world.diary.digest
    assert response.headers["octavo-base"] == BASE
    assert response.headers["octavo-tier"] == "warm"
    assert len(response.headers["octavo-trace-id"]) == 32
    await world.until(lambda: world.residency.demand)
    assert world.residency.demand[0].adapter == world.diary


async def test_a_worker_with_less_memory_than_the_base_has_context_is_believed(world: World) -> None:
    worker = await world.add_worker("w1", lambda exchange: exchange.answer(world.tokens))
    worker.context_tokens = 64
    await worker.beat()
    response = await world.http.post(CHAT, json=world.body(max_tokens=64), headers=world.key())
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.json()["error"]["fields"]["context_tokens"] == 64
    assert (await world.http.post(CHAT, json=world.body(), headers=world.key())).status_code == 200
    (generate,) = worker.received
    assert len(generate.prompt) + generate.sampling.max_tokens == 64


async def test_stream_is_openais(world: World) -> None:
    await answering(world)
    body = world.body(stream=True, stream_options={"include_usage": True})
    async with world.http.stream("POST", CHAT, json=body, headers=world.key()) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["octavo-revision"] == "3"
        data = await chunks_of(response.aiter_lines())
    assert data.pop() == "[DONE]"
    chunks = [json.loads(item) for item in data]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]) == ANSWER
    assert not any("\ufffd" in item for item in data)
    assert chunks[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len(world.tokens)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_several_choices_are_generated_apart_and_told_by_their_index(world: World) -> None:
    worker = await world.add_worker("w1", lambda exchange: exchange.answer(world.tokens))
    whole = (await world.http.post(CHAT, json=world.body(n=3, seed=5), headers=world.key())).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in whole["choices"]} == {ANSWER}
    assert whole["usage"]["completion_tokens"] == 3 * len(world.tokens)
    assert whole["usage"]["prompt_tokens"] == len(worker.received[0].prompt)
    assert sorted(generate.sampling.choice for generate in worker.received) == [0, 1, 2]
    assert {generate.sampling.seed for generate in worker.received} == {5}
    assert len({generate.request_id for generate in worker.received}) == 3
    body = world.body(n=2, stream=True, stream_options={"include_usage": True})
    async with world.http.stream("POST", CHAT, json=body, headers=world.key()) as response:
        data = await chunks_of(response.aiter_lines())
    assert data.pop() == "[DONE]"
    chunks = [json.loads(item) for item in data]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2 * len(world.tokens)
    for index in range(2):
        mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == ANSWER
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["stop"]


@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
async def test_where_a_stop_string_ends_an_answer_does_not_depend_on_how_tokens_are_sent(
    world: World, chunk_tokens: int
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.started()
        for first in range(0, len(world.tokens), chunk_tokens):
            await exchange.tokens(first, world.tokens[first : first + chunk_tokens])
        await exchange.finished(len(world.tokens))

    await world.add_worker("w1", script)
    # The longer one begins earlier, the shorter one is complete earlier.
    response = await world.http.post(CHAT, json=world.body(stop=["answer is forty", "swer"]), headers=world.key())
    choice = response.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("the an", "stop")


async def test_a_request_whose_caller_leaves_still_counts_what_was_generated(world: World) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.started()
        await exchange.tokens(0, world.tokens[:5])
        await exchange.is_cancelled.wait()

    worker = await world.add_worker("w1", script)
    with capture_logs() as logs:
        async with world.http.stream("POST", CHAT, json=world.body(stream=True), headers=world.key()) as response:
            lines = response.aiter_lines()
            while "the" not in await anext(lines):
                pass
        async with asyncio.timeout(5):
            await worker.cancelled.get()
        async with asyncio.timeout(5):
            while not (finished := [line for line in logs if line["event"] == "request_finished"]):
                await asyncio.sleep(0.02)
    assert [line["num_completion_tokens"] for line in finished] == [5]


async def test_one_failing_choice_ends_the_request_and_cancels_the_others(world: World) -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.generate.sampling.choice == 1:
            await exchange.failed(AdapterRefused("not_finite", "the adapter's answer is not a number"))
        else:
            await exchange.is_cancelled.wait()

    worker = await world.add_worker("w1", script)
    response = await world.http.post(CHAT, json=world.body(n=3), headers=world.key())
    assert (response.status_code, response.json()["error"]["code"]) == (422, "adapter_refused")
    async with asyncio.timeout(5):
        assert len({await worker.cancelled.get() for _ in range(2)}) == 2


async def test_logprobs_have_openais_forms(world: World) -> None:
    def told(token: int) -> TokenLogprobs:
        return TokenLogprobs(-0.5, ((token, -0.5), (1, -2.0)))

    async def script(exchange: Exchange) -> None:
        await exchange.started()
        tokens = world.tokens
        for index, token in enumerate(tokens):
            generate = exchange.generate
            await exchange.send(TokenChunk(generate.request_id, generate.attempt, index, (token,), (told(token),)))
        await exchange.finished(len(tokens))

    await world.add_worker("w1", script)
    asked = {"logprobs": True, "top_logprobs": 2}
    whole = (await world.http.post(CHAT, json=world.body(**asked), headers=world.key())).json()
    content = whole["choices"][0]["logprobs"]["content"]
    assert len(content) == len(world.tokens)
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == ANSWER
    assert content[0]["logprob"] == -0.5
    assert [top["token"] for top in content[0]["top_logprobs"]] == [content[0]["token"], "<|im_start|>"]
    assert content[0]["top_logprobs"][1]["bytes"] is None
    async with world.http.stream("POST", CHAT, json=world.body(stream=True, **asked), headers=world.key()) as response:
        data = await chunks_of(response.aiter_lines())
    streamed = [
        token
        for item in data
        if item != "[DONE]"
        for choice in json.loads(item)["choices"]
        for token in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content
    text = {"model": "alice/diary", "prompt": "hi", "max_tokens": 200, "logprobs": 2}
    legacy = (await world.http.post("/v1/completions", json=text, headers=world.key())).json()
    logprobs = legacy["choices"][0]["logprobs"]
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert logprobs["token_logprobs"] == [-0.5] * len(world.tokens)
    assert logprobs["text_offset"][1] == len(logprobs["tokens"][0])


async def test_openai_client_works(world: World) -> None:
    await answering(world)
    async with openai.AsyncOpenAI(api_key=world.alice, base_url=f"{world.http.base_url}/v1", max_retries=0) as client:
        whole = await client.chat.completions.create(
            model="alice/diary", messages=[{"role": "user", "content": "hi"}], max_tokens=5, temperature=0, seed=3
        )
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 5
        stream = await client.chat.completions.create(
            model="alice/diary", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ANSWER
        text = await client.completions.create(model=BASE_NAME, prompt="hi", max_tokens=len(world.tokens))
        assert text.choices[0].text == ANSWER
        texts = await client.completions.create(model=BASE_NAME, prompt="hi", max_tokens=400, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in texts]) == ANSWER
        assert {model.id async for model in client.models.list()} == {BASE_NAME, "alice/diary"}
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="alice/none", messages=[{"role": "user", "content": "hi"}])


async def test_base_alone_has_no_revision(world: World) -> None:
    await answering(world)
    response = await world.http.post(CHAT, json=world.body(model=BASE_NAME), headers=world.key())
    assert response.status_code == 200
    assert "octavo-revision" not in response.headers
    assert "octavo-digest" not in response.headers
    assert response.headers["octavo-tier"] == "base"
    assert not world.residency.demand


async def test_stop_string_across_tokens_ends_the_answer_and_the_sequence(world: World) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.started()
        for index, token in enumerate(world.tokens):
            await exchange.tokens(index, [token])
        await exchange.is_cancelled.wait()

    worker = await world.add_worker("w1", endless)
    response = await world.http.post(CHAT, json=world.body(stop=["nothing", "rty two"]), headers=world.key())
    assert response.json()["choices"][0]["message"]["content"] == "the answer is fo"
    assert response.json()["choices"][0]["finish_reason"] == "stop"
    async with asyncio.timeout(5):
        assert await worker.cancelled.get() == worker.received[0].request_id


async def test_resident_worker_is_preferred(world: World) -> None:
    placed = Placed(world.diary.adapter_id, world.diary.digest, Tier.RESIDENT, 10)
    await answering(world, "w1")
    await answering(world, "w2")
    for name in ("holder-a", "holder-b"):
        holder = await world.add_worker(name, lambda exchange: exchange.answer(world.tokens), (placed,))
        response = await world.http.post(CHAT, json=world.body(), headers=world.key())
        assert response.json()["usage"]["octavo"]["worker_id"].startswith("holder")
        assert holder.received or name == "holder-b"


async def test_metrics_and_schema_are_served_without_names(world: World) -> None:
    await answering(world)
    await world.http.post(CHAT, json=world.body(), headers=world.key())
    metrics = (await world.http.get("/metrics")).text
    assert 'octavo_gateway_requests_total{entry="http",status_class="2xx"}' in metrics
    assert 'octavo_gateway_ttft_seconds_count{tier="warm"}' in metrics
    assert "diary" not in metrics
    schema = (await world.http.get("/schema/openapi.json")).json()
    fields = schema["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert "temperature" in fields
    assert "tools" not in fields


def test_gateway_process_never_imports_torch() -> None:
    code = "import sys, octavo_gateway.service; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"
