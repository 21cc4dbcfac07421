"""What OpenAI's clients ask for beyond greedy text, against a whole fleet: schemas, logprobs, choices, seeds, reuse."""

import asyncio
import json
import math

import pytest

from support.live import Live

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["colour", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_an_answer_satisfies_its_schema(live: Live, temperature: float) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    for model in (live.base_name, live.alice.adapter):
        answer = await live.ask(model, live.alice.key, 60, response_format=wanted, temperature=temperature, seed=3)
        choice = answer.json()["choices"][0]
        value = json.loads(choice["message"]["content"])
        assert choice["finish_reason"] == "stop"
        assert set(value) == {"colour", "age"}
        assert value["colour"] in ("red", "green", "blue")
        assert 1 <= value["age"] <= 99


async def test_logprobs_are_those_of_the_model(live: Live) -> None:
    answer = await live.ask(live.alice.adapter, live.alice.key, 6, logprobs=True, top_logprobs=3)
    choice = answer.json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in content).decode() == choice["message"]["content"]
    for token in content:
        assert token["top_logprobs"][0]["token"] == token["token"], "the greedy token is the likeliest"
        assert sum(math.exp(top["logprob"]) for top in token["top_logprobs"]) <= 1.0001


async def test_the_same_seed_gives_the_same_answers_alone_and_in_a_crowd(live: Live) -> None:
    fields = {"temperature": 1.0, "top_p": 0.95, "seed": 11, "n": 3}
    alone = (await live.ask(live.alice.adapter, live.alice.key, 16, **fields)).json()["choices"]
    crowd = await asyncio.gather(
        live.ask(live.alice.adapter, live.alice.key, 16, **fields),
        *(live.ask(live.bob.adapter, live.bob.key, 16, temperature=1.0, seed=seed) for seed in range(5)),
        live.ask(live.base_name, live.bob.key, 16),
    )
    assert crowd[0].json()["choices"] == alone
    assert len({choice["message"]["content"] for choice in alone}) == 3


async def test_a_prompt_is_reused_by_its_tenant_and_never_after_a_new_revision(live: Live) -> None:
    async def is_reused(key: str, model: str) -> bool:
        answer = await live.ask(model, key, 4, messages=[{"role": "user", "content": "What is a tide? " * 12}])
        usage = answer.json()["usage"]
        # What the chat template puts before every question may have been seen; the question itself is longer.
        return bool(usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] / 2)

    assert not await is_reused(live.bob.key, live.bob.adapter)
    assert await is_reused(live.bob.key, live.bob.adapter)
    assert not await is_reused(live.alice.key, live.alice.adapter)
    folder = live.bob.folder
    files = (folder / "adapter_config.json", folder / "adapter_model.safetensors")
    await live.command(live.bob.key, lambda client: client.push(live.bob.adapter, *files, dtype="bf16"))
    assert not await is_reused(live.bob.key, live.bob.adapter)
    await live.command(live.bob.key, lambda client: client.rollback(live.bob.adapter, 1))
    assert await is_reused(live.bob.key, live.bob.adapter)
