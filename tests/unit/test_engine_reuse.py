"""The engine reuses what was computed: the same answer with less work, for the same tenant and revision only."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_shared.references import AdapterId
from octavo_worker.adapters.pages import Arena, PageUse
from octavo_worker.engine.engine import Engine, EngineLimits
from octavo_worker.model.base import BaseModel
from support.engines import ask, install, run, tiny_base, tiny_pack

LIMITS = EngineLimits(num_running_max=8, num_waiting_max=32, num_step_tokens_max=24, num_kv_pages_min=8)
PROMPT = tuple(range(3, 53))
"""Three whole pages and two tokens more."""
NUM_REUSED = 48
LONG = tuple(7 * i % 90 for i in range(100))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def _engine(base: BaseModel, num_pages: int = 64) -> Engine:
    return Engine(base, Arena(base.kv_shape.page_elements, num_pages, base.dtype), LIMITS)


def test_a_prompt_that_comes_again_is_not_computed_again_and_gets_the_same_answer(base: BaseModel) -> None:
    engine = _engine(base)
    answers = run(engine, ask("a", PROMPT, 12))
    run(engine, ask("b", PROMPT, 12), ask("longer", (*PROMPT, 9, 9), 12), answers=answers)
    assert answers.tokens["b"] == answers.tokens["a"]
    assert [answers.finished[name].num_reused_tokens for name in ("a", "b", "longer")] == [0, NUM_REUSED, NUM_REUSED]
    assert answers.tokens["longer"] == run(_engine(base), ask("x", (*PROMPT, 9, 9), 12)).tokens["x"]


def test_an_answer_is_reused_as_the_beginning_of_the_next_turn(base: BaseModel) -> None:
    engine = _engine(base)
    answers = run(engine, ask("a", PROMPT, 20))
    turn = (*PROMPT, *answers.tokens["a"], 5, 6)
    run(engine, ask("b", turn, 4), answers=answers)
    assert answers.finished["b"].num_reused_tokens == 64


def test_a_prompt_of_whole_pages_still_leaves_a_token_to_compute(base: BaseModel) -> None:
    engine = _engine(base)
    answers = run(engine, ask("a", PROMPT[:32], 6))
    run(engine, ask("b", PROMPT[:32], 6), answers=answers)
    assert answers.finished["b"].num_reused_tokens == 16
    assert answers.tokens["b"] == answers.tokens["a"]


def test_nothing_is_reused_across_tenants_adapters_or_revisions(base: BaseModel) -> None:
    engine = _engine(base, 128)
    old, new = (install(engine, tiny_pack(base.manifest, seed), "diary") for seed in (1, 2))
    answers = run(engine, ask("old", PROMPT, 8, key=old))
    run(
        engine,
        ask("new", PROMPT, 8, key=new),
        ask("base", PROMPT, 8),
        ask("tenant", PROMPT, 8, key=old, tenant="other"),
        ask("same", PROMPT, 8, key=old),
        answers=answers,
    )
    assert {name: finished.num_reused_tokens for name, finished in answers.finished.items()} == {
        "old": 0, "new": 0, "base": 0, "tenant": 0, "same": NUM_REUSED,
    }  # fmt: skip
    fresh = _engine(base, 128)
    key = install(fresh, tiny_pack(base.manifest, 2), "diary")
    assert answers.tokens["new"] == run(fresh, ask("x", PROMPT, 8, key=key)).tokens["x"] != answers.tokens["old"]


def test_what_an_adapter_computed_is_zeroed_when_it_is_forgotten(base: BaseModel) -> None:
    arena = Arena(base.kv_shape.page_elements, 128, base.dtype)
    engine = Engine(base, arena, LIMITS)
    first, other = (install(engine, tiny_pack(base.manifest, n), name) for n, name in ((1, "diary"), (2, "poems")))
    answers = run(engine, ask("a", PROMPT, 20, key=first), ask("b", PROMPT, 20, key=other), ask("base", PROMPT, 20))
    assert engine.evict(first)
    engine.forget(AdapterId("diary"))
    engine.check_integrity()
    pages = arena.memory.view(arena.num_pages, -1)
    assert not pages[arena._free].any(), "keys, values and rows of it lie in free pages"
    # Its neighbours keep what they had, and it is computed anew if it ever comes back.
    run(engine, ask("b2", PROMPT, 20, key=other), ask("base2", PROMPT, 20), answers=answers)
    again = install(engine, tiny_pack(base.manifest, 1), "diary")
    run(engine, ask("a2", PROMPT, 20, key=again), answers=answers)
    reused = {name: answers.finished[name].num_reused_tokens for name in ("a2", "b2", "base2")}
    assert reused == {"a2": 0, "b2": NUM_REUSED, "base2": NUM_REUSED}
    assert answers.tokens["a2"] == answers.tokens["a"]


def test_two_that_compute_the_same_at_the_same_time_share_one_copy(base: BaseModel) -> None:
    arena = Arena(base.kv_shape.page_elements, 64, base.dtype)
    engine = Engine(base, arena, LIMITS)
    for name in ("a", "b"):
        engine.submit(ask(name, PROMPT[:33], 8))
    while arena.num_used(PageUse.KV) < 4:
        engine.step()
    for _ in range(4):
        engine.step()
        engine.check_integrity()
    assert arena.num_used(PageUse.KV) == 2 + 2, "two whole pages shared, one open page each"


def test_idle_pages_make_room_for_sequences_and_for_adapters(base: BaseModel) -> None:
    engine = _engine(base, 12)
    answers = run(engine, ask("a", PROMPT, 4), ask("b", PROMPT[::-1], 4))
    assert engine.load().num_pages_free == 12, "what is only kept counts as free"
    run(engine, ask("c", LONG, 20), answers=answers)
    assert answers.tokens["c"] == run(_engine(base), ask("x", LONG, 20)).tokens["x"]
    key = install(engine, tiny_pack(base.manifest, 1, rank=4), "diary")
    run(engine, ask("d", PROMPT, 4, key=key), answers=answers)
    assert len(answers.tokens["d"]) == 4


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 90), st.integers(1, 12)), min_size=1, max_size=14))
def test_whatever_is_reused_or_preempted_every_answer_is_the_one_it_has_alone(
    base: BaseModel, asked: list[tuple[int, int, int]]
) -> None:
    engine = _engine(base, 10)
    requests = {f"r{i}": (tuple(range(start, start + length)), num) for i, (start, length, num) in enumerate(asked)}
    together = run(engine, *(ask(name, prompt, num) for name, (prompt, num) in requests.items()))
    for name, (prompt, num) in requests.items():
        assert together.tokens[name] == _alone(base, prompt, num), name
    assert engine.load().num_pages_free == 10


_ANSWERS: dict[tuple[int, ...], list[int]] = {}


def _alone(base: BaseModel, prompt: tuple[int, ...], num_tokens: int) -> list[int]:
    if prompt not in _ANSWERS:
        _ANSWERS[prompt] = run(_engine(base), ask("x", prompt, 12)).tokens["x"]
    return _ANSWERS[prompt][:num_tokens]
