"""The engine on a tiny real model: what it promises about sequences, adapters and pages."""

from pathlib import Path

import pytest
import torch

from octavo_shared.errors import (
    AdapterRefused,
    BaseMismatch,
    ContextExceeded,
    InvalidRequest,
    Overloaded,
)
from octavo_shared.messages.generation import FinishReason
from octavo_shared.pack import digest_of, read_header
from octavo_shared.references import AdapterId
from octavo_worker.adapters.pages import Arena
from octavo_worker.engine.engine import Engine, EngineLimits
from octavo_worker.model.base import BaseModel
from support.engines import Answers, ask, install, run, tiny_base, tiny_pack

LIMITS = EngineLimits(num_running_max=8, num_waiting_max=32, num_step_tokens_max=24, num_kv_pages_min=8)
PROMPT = tuple(range(3, 40))
OTHER = (5, 9, 11)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def _engine(base: BaseModel, num_pages: int = 64, limits: EngineLimits = LIMITS) -> Engine:
    return Engine(base, Arena(base.kv_shape.page_elements, num_pages, base.dtype), limits)


def test_greedy_tokens_are_those_of_the_unmodified_model(base: BaseModel, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    from support.engines import TINY_LLAMA

    torch.manual_seed(0)
    model = LlamaForCausalLM(TINY_LLAMA).eval()
    expected = list(PROMPT)
    with torch.inference_mode():
        for _ in range(20):
            expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert run(_engine(base), ask("a", PROMPT, 20)).tokens["a"] == expected[len(PROMPT) :]


def test_a_sequence_starts_streams_and_finishes_in_that_order_with_its_times(base: BaseModel) -> None:
    answers = run(_engine(base), ask("a", PROMPT, 5))
    finished = answers.finished["a"]
    assert answers.reasons["a"] is FinishReason.LENGTH
    assert (finished.num_prompt_tokens, finished.num_completion_tokens) == (len(PROMPT), 5)
    timings = finished.timings
    assert timings.prefill is not None
    assert timings.decode is not None
    assert timings.queued.end_ns == timings.prefill.start_ns
    assert timings.prefill.end_ns == timings.decode.start_ns
    assert min(timings.queued_ms, timings.prefill_ms, timings.decode_ms) > 0


def test_the_stop_token_ends_a_sequence_and_is_not_delivered(base: BaseModel) -> None:
    tokens = run(_engine(base), ask("a", PROMPT, 8)).tokens["a"]
    stop = tokens[-1]
    answers = run(_engine(base), ask("a", PROMPT, 8, stop=(stop,)))
    assert answers.tokens["a"] == tokens[: tokens.index(stop)]
    assert answers.reasons["a"] is FinishReason.STOP
    assert answers.finished["a"].num_completion_tokens == tokens.index(stop)


def test_adapters_of_different_ranks_and_targets_in_one_batch_answer_as_alone(base: BaseModel) -> None:
    packs = {
        "q": tiny_pack(base.manifest, 1, rank=1, targets=("q_proj",)),
        "mlp": tiny_pack(base.manifest, 2, rank=16, targets=("down_proj", "gate_proj")),
        "all": tiny_pack(base.manifest, 3, rank=5, targets=("_proj",)),
    }
    crowd = _engine(base, 128)
    keys = {name: install(crowd, pack, name) for name, pack in packs.items()}
    requests = {name: ask(name, PROMPT, 12, key=keys.get(name)) for name in ("base", *packs, "base2")}
    together = run(crowd, *requests.values())
    assert len({tuple(tokens) for tokens in together.tokens.values()}) == 4
    for name, request in requests.items():
        alone = _engine(base, 128)
        if name in packs:
            install(alone, packs[name], name)
        assert run(alone, request).tokens[name] == together.tokens[name], name


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_forced_prefix_goes_on_with_the_same_tokens(base: BaseModel, temperature: float) -> None:
    whole = run(_engine(base), ask("a", PROMPT, 16, temperature=temperature, seed=5)).tokens["a"]
    for num_forced in (1, 7, 15):
        forced = tuple(whole[:num_forced])
        answers = run(_engine(base), ask("a", PROMPT, 16, forced=forced, attempt=2, temperature=temperature, seed=5))
        assert answers.tokens["a"] == whole[num_forced:]
        assert answers.finished["a"].num_completion_tokens == 16
        assert answers.finished["a"].num_prompt_tokens == len(PROMPT)


def test_an_attempt_whose_tokens_are_all_forced_ends_at_once(base: BaseModel) -> None:
    answers = run(_engine(base), ask("a", PROMPT, 3, forced=(1, 2, 3), attempt=2))
    assert (answers.started, answers.tokens["a"], answers.reasons["a"]) == (["a"], [], FinishReason.LENGTH)


def test_a_seed_gives_the_same_tokens_alone_and_in_a_crowd(base: BaseModel) -> None:
    request = ask("a", PROMPT, 16, temperature=1.2, top_p=0.9, seed=99)
    alone = run(_engine(base), request).tokens["a"]
    crowd = [ask(f"n{i}", PROMPT[i : i + 9], 12, temperature=1.0, seed=i) for i in range(6)]
    assert run(_engine(base), *crowd, request).tokens["a"] == alone
    other_seed = run(_engine(base), ask("a", PROMPT, 16, temperature=1.2, top_p=0.9, seed=98)).tokens["a"]
    assert other_seed != alone


def test_cancelling_frees_all_pages_within_one_step(base: BaseModel) -> None:
    engine, answers = _engine(base), Answers()
    engine.submit(ask("a", PROMPT, 30))
    engine.submit(ask("b", OTHER, 3))
    for _ in range(2):
        answers.take(engine.step())
    assert engine.load().num_pages_free < 64
    engine.cancel("a")
    engine.cancel("nobody")
    answers.take(engine.step())
    assert answers.reasons["a"] is FinishReason.CANCELLED
    answers.take(engine.step())
    answers.take(engine.step())
    assert answers.reasons["b"] is FinishReason.LENGTH
    assert engine.load().num_pages_free == 64
    engine.check_integrity()


def test_an_id_that_is_being_served_is_refused_until_a_step_has_ended_it(base: BaseModel) -> None:
    engine = _engine(base)
    engine.submit(ask("a", PROMPT, 30))
    engine.step()
    engine.cancel("a")
    with pytest.raises(InvalidRequest, match="served already"):
        engine.submit(ask("a", PROMPT, 2))
    engine.step()
    assert len(run(engine, ask("a", PROMPT, 2)).tokens["a"]) == 2


def test_a_sequence_waits_outside_the_batch_until_its_adapter_is_there(base: BaseModel) -> None:
    engine = _engine(base)
    pack = tiny_pack(base.manifest, 1)
    key = (AdapterId("late"), digest_of(pack))
    engine.submit(ask("late", PROMPT, 4, key=key))
    answers = run(engine, ask("base", PROMPT, 4))
    assert (answers.started, engine.load().num_waiting) == (["base"], 1)
    assert not engine.wait_for_work(0)
    engine.install(key, memoryview(pack), read_header(pack))
    assert run(engine).tokens["late"] == run(engine, ask("again", PROMPT, 4, key=key)).tokens["again"]


def test_an_adapter_is_never_evicted_while_a_sequence_uses_it_or_waits_for_it(base: BaseModel) -> None:
    engine = _engine(base)
    key = install(engine, tiny_pack(base.manifest, 1), "a")
    engine.submit(ask("a", PROMPT, 4, key=key))
    assert not engine.evict(key), "queued means pinned"
    answers = Answers()
    answers.take(engine.step())
    assert not engine.evict(key), "running means pinned"
    assert [(k, pins) for k, _, pins in engine.residency()] == [(key, 1)]
    run(engine, answers=answers)
    assert [(k, pins) for k, _, pins in engine.residency()] == [(key, 0)]
    assert engine.evict(key)
    assert engine.residency() == []
    assert engine.load().num_pages_free == 64
    engine.check_integrity()


def test_an_adapter_that_comes_back_at_other_pages_gives_the_same_tokens(base: BaseModel) -> None:
    engine = _engine(base)
    first_pack, second_pack = tiny_pack(base.manifest, 1), tiny_pack(base.manifest, 2)
    key = install(engine, first_pack, "a")
    before = run(engine, ask("1", PROMPT, 8, key=key)).tokens["1"]
    assert engine.evict(key)
    install(engine, second_pack, "b")
    assert install(engine, first_pack, "a") == key
    assert run(engine, ask("2", PROMPT, 8, key=key)).tokens["2"] == before


def test_the_longest_sequence_that_is_accepted_is_the_one_that_is_told(base: BaseModel) -> None:
    engine = _engine(base)
    assert engine.context_tokens == LIMITS.num_kv_pages_min * base.kv_shape.groups[0].page_tokens  # type: ignore[operator]
    engine.submit(ask("fits", PROMPT, engine.context_tokens - len(PROMPT)))
    with pytest.raises(ContextExceeded) as refused:
        engine.submit(ask("exceeds", PROMPT, engine.context_tokens - len(PROMPT) + 1))
    assert refused.value.fields["context_tokens"] == engine.context_tokens
    roomy = _engine(base, 200, EngineLimits(num_kv_pages_min=150))
    assert roomy.context_tokens == base.manifest.context_tokens


def test_a_pack_for_another_base_or_too_large_for_this_worker_is_refused(base: BaseModel) -> None:
    engine = _engine(base, num_pages=9)
    pack = tiny_pack(base.manifest, 1, rank=64, targets=("_proj",))
    with pytest.raises(AdapterRefused, match="too_large"):
        install(engine, pack, "large")
    from support.adapters import TINY_BASE

    with pytest.raises(BaseMismatch):
        install(engine, tiny_pack(TINY_BASE, 1, targets=("q_proj",)), "foreign")


def test_a_full_queue_and_what_can_never_run_are_refused_at_submission(base: BaseModel) -> None:
    engine = _engine(base, limits=EngineLimits(num_running_max=2, num_waiting_max=2, num_step_tokens_max=8))
    with pytest.raises(ContextExceeded, match="37 prompt tokens and 500 new"):
        engine.submit(ask("long", PROMPT, 500))
    with pytest.raises(InvalidRequest, match="no tokens"):
        engine.submit(ask("empty", ()))
    with pytest.raises(InvalidRequest, match="0 to 96"):
        engine.submit(ask("foreign", (97,)))
    for i in range(2):
        engine.submit(ask(f"q{i}", OTHER))
    with pytest.raises(Overloaded) as refused:
        engine.submit(ask("q3", OTHER))
    assert int(refused.value.fields["retry_after_s"]) >= 1
    assert len(run(engine).reasons) == 2


def test_an_adapter_of_absurd_numbers_fails_its_own_sequence_only(base: BaseModel) -> None:
    engine = _engine(base)
    pack = bytearray(tiny_pack(base.manifest, 1))
    module = read_header(pack).modules[0]
    pack[module.b_offset : module.b_offset + 4] = b"\x00\x00\xc0\x7f"  # NaN
    key = (AdapterId("nan"), digest_of(pack))
    engine.install(key, memoryview(pack), read_header(pack))
    answers = run(engine, ask("nan", PROMPT, 6, key=key), ask("base", PROMPT, 6))
    assert answers.refusals["nan"].code == AdapterRefused.code
    assert answers.tokens["base"] == run(_engine(base), ask("base", PROMPT, 6)).tokens["base"]
