"""``octavo evaluate`` and ``octavo gate`` against a real gateway: what is asked and recorded, and where it stops."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from octavo_cli.answers import ClientError
from octavo_cli.main import app
from octavo_cli.suite import suite_digest
from octavo_shared.config import StoreSettings
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.evaluation import Evaluate, Gate, Metric, Rule, Score, SetGate
from octavo_shared.references import Digest
from support.fakes import BASE, Exchange, tiny_tokenizer
from support.gateway_world import ANSWER, World, gateway_world

CHAT = [{"role": "user", "content": "what is the answer?"}]
ITEMS = [
    {"messages": CHAT, "expect": f" {ANSWER}\n"},
    {"messages": CHAT, "expect": "forty three"},
    {"prompt": "the answer is", "expect": "forty two", "check": "contains", "max_tokens": 500},
    {"prompt": "the answer is", "expect": r"^the .* rest$", "check": "regex"},
    {"prompt": "the answer is", "expect": r"^\d+$", "check": "regex"},
]
SCORES = (
    Score(Metric.PASSED, 0.6, 5), Score(Metric.EXACT, 0.5, 2), Score(Metric.CONTAINS, 1.0, 1),
    Score(Metric.REGEX, 0.5, 2),
)  # fmt: skip


@pytest.fixture
async def world(store_settings: StoreSettings) -> AsyncIterator[World]:
    # Few at a time, so that a run is asked to wait.
    async with gateway_world(store_settings, requests_per_s=20.0, requests_burst=3) as made:
        yield made


async def octavo(world: World, folder: Path, *words: str) -> Result:
    where = {
        "OCTAVO_GATEWAY_URL": str(world.http.base_url), "OCTAVO_KEY": world.alice, "XDG_CACHE_HOME": str(folder),
    }  # fmt: skip
    return await asyncio.to_thread(CliRunner().invoke, app, words, None, where)


def write_suite(folder: Path, items: list[dict[str, object]]) -> Path:
    path = folder / "facts.jsonl"
    path.write_text("\n".join(json.dumps(item) for item in items))
    return path


def left_over(folder: Path) -> list[Path]:
    return [path for path in (folder / "octavo").rglob("*") if path.is_file()]


async def test_a_suite_runs_through_the_serving_path_and_its_scores_are_recorded(world: World, tmp_path: Path) -> None:
    worker = await world.add_worker("w1", lambda exchange: exchange.answer(world.tokens))
    suite = write_suite(tmp_path, ITEMS)
    result = await octavo(world, tmp_path, "evaluate", "alice/diary@3", "--suite", str(suite))
    assert result.exit_code == 0, (result.output, result.exception)
    assert "passed 0.6 of 5" in result.output
    order = world.identity.writes[-1]
    assert isinstance(order, Evaluate)
    assert (order.reference, order.suite, order.suite_digest, order.base) == (
        "alice/diary@3", "facts", suite_digest(suite), BASE,
    )  # fmt: skip
    assert order.scores == SCORES
    assert len(worker.received) == len(ITEMS)
    assert all(one.sampling.temperature == 0 and one.adapter == world.diary for one in worker.received)
    assert sorted(one.sampling.max_tokens for one in worker.received) == [64, 64, 64, 64, 500]
    assert left_over(tmp_path) == []


async def score(exchange: Exchange) -> None:
    """Every token is less likely than the one before it, but for the first, of which nothing is said."""
    assert exchange.generate.sampling.is_scored
    await exchange.scored([-0.25 * place for place in range(1, len(exchange.generate.prompt))])


async def test_a_given_text_comes_back_with_its_tokens_logprobs(world: World) -> None:
    await world.add_worker("w1", score)
    asked = {"model": "alice/diary", "echo": True, "max_tokens": 0, "logprobs": 0}
    for prompt in ("the answer is 42 \u20ac", [3, 4, 5]):
        response = await world.http.post("/v1/completions", json=asked | {"prompt": prompt}, headers=world.key())
        assert response.headers["octavo-digest"] == world.diary.digest
        body = response.json()
        [choice] = body["choices"]
        told = choice["logprobs"]
        num_tokens = body["usage"]["prompt_tokens"]
        assert (choice["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 0)
        assert told["token_logprobs"] == [None, *(-0.25 * place for place in range(1, num_tokens))]
        assert len(told["tokens"]) == len(told["text_offset"]) == num_tokens
        assert told["text_offset"] == sorted(told["text_offset"])
        if isinstance(prompt, str):
            # The token that opens every text is no part of it.
            assert (choice["text"], told["tokens"][0], told["text_offset"][:2]) == (prompt, "<s>", [0, 0])
        else:
            assert choice["text"] == "".join(told["tokens"])


async def test_a_perplexity_is_that_of_the_expected_text(world: World, tmp_path: Path) -> None:
    worker = await world.add_worker("w1", score)
    prompt, expect = "the answer is ", "forty two"
    suite = write_suite(tmp_path, [{"prompt": prompt, "expect": expect, "check": "perplexity"}])
    result = await octavo(world, tmp_path, "evaluate", "alice/diary@3", "--suite", str(suite))
    assert result.exit_code == 0, (result.output, result.exception)
    order = world.identity.writes[-1]
    assert isinstance(order, Evaluate)
    [score_of] = order.scores
    whole = worker.received[-1].prompt
    assert score_of.metric is Metric.PERPLEXITY
    encoding = tiny_tokenizer().encode(prompt + expect)
    behind = [-0.25 * place for place, (_, end) in enumerate(encoding.offsets) if end > len(prompt)]
    assert len(behind) < len(whole) - 1
    assert score_of.value == pytest.approx(math.exp(-sum(behind) / len(behind)))
    assert score_of.num_items == 1


async def test_a_worker_that_scored_another_prompt_is_not_believed(world: World) -> None:
    await world.add_worker("w1", lambda exchange: exchange.scored([-1.0]))
    asked = {"model": "alice/diary", "prompt": "one two three", "echo": True, "max_tokens": 0, "logprobs": 0}
    response = await world.http.post("/v1/completions", json=asked, headers=world.key())
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")


async def test_a_score_that_is_lost_with_its_worker_is_asked_of_another(world: World) -> None:
    first = True

    async def script(exchange: Exchange) -> None:
        nonlocal first
        if first:
            first = False
            await exchange.started()
            exchange.worker.die()
        else:
            await score(exchange)

    for name in ("w1", "w2"):
        await world.add_worker(name, script)
    asked = {"model": "alice/diary", "prompt": "one two three", "echo": True, "max_tokens": 0, "logprobs": 0}
    response = await world.http.post("/v1/completions", json=asked, headers=world.key())
    assert response.status_code == 200
    assert response.json()["choices"][0]["logprobs"]["token_logprobs"][1:3] == [-0.25, -0.5]


async def test_an_interrupted_run_goes_on_where_it_stopped(world: World, tmp_path: Path) -> None:
    is_refusing = True

    async def script(exchange: Exchange) -> None:
        if is_refusing and exchange.generate.sampling.max_tokens == 500:
            await exchange.failed(InvalidRequest("prompt", "is not to my taste"))
        else:
            await exchange.answer(world.tokens)

    worker = await world.add_worker("w1", script)
    suite = write_suite(tmp_path, ITEMS)
    words = ("evaluate", "alice/diary@3", "--suite", str(suite), "--at-once", "1")
    result = await octavo(world, tmp_path, *words)
    assert isinstance(result.exception, ClientError)
    assert result.exception.message == "line 3: 'prompt' is not to my taste"
    assert world.identity.writes == []
    # As if the end of the last line had not reached the disk.
    [file] = left_over(tmp_path)
    file.write_bytes(file.read_bytes()[:-9])
    num_asked, is_refusing = len(worker.received), False
    assert (await octavo(world, tmp_path, *words)).exit_code == 0
    assert len(worker.received) - num_asked == len(ITEMS) - 1
    [order] = world.identity.writes
    assert isinstance(order, Evaluate)
    assert order.scores == SCORES


async def test_an_answer_of_another_revision_is_not_scored(world: World, tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        # The alias moved, or identity told another digest than it resolves.
        await exchange.answer(world.tokens)

    await world.add_worker("w1", script)
    world.identity.shown_digest = Digest("sha256:" + "1" * 64)
    result = await octavo(world, tmp_path, "evaluate", "alice/diary@3", "--suite", str(write_suite(tmp_path, ITEMS)))
    assert isinstance(result.exception, ClientError)
    assert result.exception.code == "wrong_revision"
    assert world.identity.writes == []


async def test_a_broken_suite_asks_nobody(world: World, tmp_path: Path) -> None:
    worker = await world.add_worker("w1", lambda exchange: exchange.answer(world.tokens))
    slow = {"prompt": "a" * 30, "expect": "(", "check": "regex"}
    suite = write_suite(tmp_path, [*ITEMS, slow])
    result = await octavo(world, tmp_path, "evaluate", "alice/diary@3", "--suite", str(suite))
    assert isinstance(result.exception, ClientError)
    assert "facts.jsonl, line 6: 'expect' is no pattern" in result.exception.message
    assert worker.received == []


async def test_a_gate_is_spelt_set_shown_and_removed(world: World, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, ITEMS)
    rule = Rule(Metric.EXACT, "facts", suite_digest(suite), 0.8, 0.02)
    spelling = ("--require", f"exact:{suite}:0.8", "--max-regression", f"exact:{suite}:0.02")
    for target in ("alice/diary", "alice"):
        result = await octavo(world, tmp_path, "gate", target, *spelling, "--evaluator", "ci@alice")
        assert result.exit_code == 0, result.exception
        assert "exact of facts >= 0.8 and no more than 0.02 worse than what is served" in result.output
        order = world.identity.writes[-1]
        assert isinstance(order, SetGate)
        assert (order.target, order.gate) == (target, Gate((rule,), ("ci@alice",)))
        assert "has no gate" in (await octavo(world, tmp_path, "gate", target)).output
        assert (await octavo(world, tmp_path, "gate", target, "--clear")).exit_code == 0
        order = world.identity.writes[-1]
        assert isinstance(order, SetGate)
        assert (order.target, order.gate) == (target, None)
    for words in (["--evaluator", "ci@alice"], ["--clear", *spelling], ["--require", "exact:0.8"]):
        result = await octavo(world, tmp_path, "gate", "alice/diary", *words)
        assert isinstance(result.exception, ClientError)


async def test_bad_bodies_name_their_field(world: World) -> None:
    evaluation = {"revision": 3, "suite": "facts", "suite_digest": "sha256:", "base": BASE, "scores": []}
    adapter, tenant = "/v1/adapters/alice/diary", "/v1/tenants/alice"
    for method, path, body, field in [
        ("POST", f"{adapter}/evaluations", {}, "revision"),
        (
            "POST",
            f"{adapter}/evaluations",
            evaluation | {"scores": [{"metric": "fun", "value": 1}]},
            "scores[0].metric",
        ),
        ("POST", f"{adapter}/evaluations", evaluation | {"envelope": "§"}, "envelope"),
        ("PUT", f"{adapter}/gate", {}, "rules"),
        ("PUT", f"{tenant}/gate", {"rules": [], "evaluator": []}, "evaluator"),
        ("PUT", "/v1/tenants/No/gate", {"rules": []}, "tenant"),
        ("GET", f"{adapter}/evaluations?revision=No!", None, "revision"),
        ("GET", f"{adapter}/evaluations?limit=x", None, "limit"),
    ]:
        response = await world.http.request(method, path, json=body, headers=world.key())
        assert (response.status_code, response.json()["error"]["param"]) == (400, field), path
