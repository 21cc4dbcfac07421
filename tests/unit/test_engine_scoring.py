"""Prompts that are scored: how likely their own tokens are, whatever else is in the batch and however it is cut."""

import random

import pytest
import torch
from transformers import LlamaForCausalLM

from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.generation import FinishReason
from octavo_worker.adapters.pages import Arena
from octavo_worker.engine.engine import Engine, EngineLimits
from octavo_worker.model.base import BaseModel
from support.crowds import Watch, watched
from support.engines import TINY_LLAMA, Answers, ask, install, run, tiny_base, tiny_pack
from support.random_adapters import spoilt

LIMITS = EngineLimits(num_running_max=8, num_waiting_max=32, num_step_tokens_max=24, num_kv_pages_min=8)
PROMPT = tuple((5 * i + 3) % 97 for i in range(70))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def _engine(base: BaseModel, num_pages: int = 64, limits: EngineLimits = LIMITS) -> Engine:
    return Engine(base, Arena(base.kv_shape.page_elements, num_pages, base.dtype), limits)


def _scored(answers: Answers, name: str = "a") -> tuple[float, ...]:
    finished = answers.finished[name]
    assert (finished.reason, finished.num_completion_tokens) == (FinishReason.LENGTH, 0)
    assert answers.tokens[name] == []
    assert name in answers.started
    return finished.prompt_logprobs


def test_tokens_are_as_likely_as_the_unmodified_model_says(base: BaseModel) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(TINY_LLAMA).eval()
    with torch.inference_mode():
        rows = torch.log_softmax(model(torch.tensor([PROMPT])).logits[0], -1)
    expected = [float(rows[i, token]) for i, token in enumerate(PROMPT[1:])]
    assert _scored(run(_engine(base), ask("a", PROMPT, 0, is_scored=True))) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("length", [1, 2, 24, 25, 48, 49])
def test_every_token_but_the_first_is_scored_wherever_the_prompt_is_cut(base: BaseModel, length: int) -> None:
    whole = _scored(run(_engine(base), ask("a", PROMPT, 0, is_scored=True)))
    part = _scored(run(_engine(base), ask("a", PROMPT[:length], 0, is_scored=True)))
    assert part == pytest.approx(whole[: length - 1], abs=1e-5)
    assert len(part) == length - 1


def test_a_prompt_that_is_known_is_scored_whole(base: BaseModel) -> None:
    engine = _engine(base)
    alone = _scored(run(engine, ask("a", PROMPT, 0, is_scored=True)))
    answers = run(engine, ask("b", PROMPT, 4), ask("c", PROMPT, 0, is_scored=True))
    assert _scored(answers, "c") == pytest.approx(alone, abs=1e-5)
    assert answers.finished["b"].num_reused_tokens > 0, "what was scored is a prefix like any other"
    assert answers.finished["c"].num_reused_tokens == 0


def test_neighbours_of_a_scored_prompt_get_the_tokens_that_they_get_alone(base: BaseModel) -> None:
    alone = run(_engine(base), ask("n", PROMPT[:30], 20, temperature=1.0, seed=4)).tokens["n"]
    engine = _engine(base)
    scored = [ask(f"s{i}", PROMPT[i:], 0, is_scored=True) for i in range(5)]
    answers = run(engine, scored[0], ask("n", PROMPT[:30], 20, temperature=1.0, seed=4), *scored[1:])
    assert answers.tokens["n"] == alone


def test_a_preempted_prompt_is_scored_once(base: BaseModel) -> None:
    alone = _scored(run(_engine(base), ask("a", PROMPT, 0, is_scored=True)))
    limits = EngineLimits(num_running_max=4, num_waiting_max=32, num_step_tokens_max=8, num_kv_pages_min=6)
    with watched(Watch()) as watch:
        engine = _engine(base, 6, limits)
        answers = run(engine, ask("first", PROMPT[:12], 60), ask("a", PROMPT, 0, is_scored=True))
    assert watch.num_preempted, "nothing was preempted"
    assert _scored(answers) == pytest.approx(alone, abs=1e-5)


def test_an_adapter_changes_what_is_likely_and_one_that_is_no_number_is_refused(base: BaseModel) -> None:
    engine = _engine(base)
    pack = tiny_pack(base.manifest, 1)
    key, broken = install(engine, pack, "one"), install(engine, spoilt(pack, random.Random(0)), "broken")
    answers = run(
        engine, ask("a", PROMPT, 0, is_scored=True), ask("b", PROMPT, 0, is_scored=True, key=key),
        ask("c", PROMPT, 0, is_scored=True, key=broken),
    )  # fmt: skip
    assert _scored(answers, "a") != pytest.approx(_scored(answers, "b"), abs=1e-3)
    assert answers.refusals["c"].code == "adapter_refused"


def test_a_prompt_is_scored_or_answered(base: BaseModel) -> None:
    for request in (ask("a", PROMPT, 1, is_scored=True), ask("a", PROMPT, 0, is_scored=True, forced=(1,))):
        with pytest.raises(InvalidRequest):
            _engine(base).submit(request)


def test_a_cancelled_prompt_leaves_nothing_behind(base: BaseModel) -> None:
    engine = _engine(base)
    engine.submit(ask("a", PROMPT, 0, is_scored=True))
    engine.step()
    engine.cancel("a")
    answers = run(engine, ask("b", PROMPT, 0, is_scored=True))
    assert len(_scored(answers, "b")) == len(PROMPT) - 1
