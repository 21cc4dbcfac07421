"""Sliding windows: their pages are given back, and every answer stays the one that ``transformers`` gives."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_worker.adapters.pages import Arena, PageUse
from octavo_worker.engine.engine import Engine, EngineLimits
from support.engines import Answers, ask, install, run, tiny_pack
from support.windowed_bases import KINDS, WINDOW, WindowedBase

NUM_STEP_TOKENS = 24
LIMITS = EngineLimits(num_running_max=8, num_waiting_max=32, num_step_tokens_max=NUM_STEP_TOKENS)
LONG = tuple(7 * i % 90 + 3 for i in range(5 * WINDOW + 7))
OTHER = tuple(11 * i % 83 + 2 for i in range(3 * WINDOW + 1))


@pytest.fixture(scope="module", params=KINDS)
def windowed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WindowedBase:
    return WindowedBase(request.param, tmp_path_factory.mktemp(request.param) / "base")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> WindowedBase:
    return WindowedBase("three_to_one", tmp_path_factory.mktemp("mixed") / "base")


class PoisonedArena(Arena):
    """Fills pages with NaN as they are given back, and notes the most that ever held keys and values."""

    num_kv_max = 0

    def alloc(self, num_pages: int, use: PageUse, num_use_max: int | None = None) -> list[int]:
        pages = super().alloc(num_pages, use, num_use_max)
        self.num_kv_max = max(self.num_kv_max, self.num_used(PageUse.KV))
        return pages

    def free(self, pages: Sequence[int], use: PageUse) -> None:
        if use is PageUse.KV:
            self._rows()[torch.tensor(pages)] = torch.nan
        super().free(pages, use)


def _engine(windowed: WindowedBase, num_pages: int = 64, num_kv_pages_min: int | None = None) -> Engine:
    arena = PoisonedArena(windowed.base.kv_shape.page_elements, num_pages, torch.float32)
    limits = EngineLimits(8, 32, NUM_STEP_TOKENS, num_kv_pages_min)
    return Engine(windowed.base, arena, limits)


def _arena(engine: Engine) -> PoisonedArena:
    assert isinstance(engine._arena, PoisonedArena)
    return engine._arena


def test_prompts_of_several_windows_are_answered_as_transformers_does(windowed: WindowedBase) -> None:
    prompts = {"long": LONG, "other": OTHER, "short": LONG[:5], "window": LONG[:WINDOW], "reversed": LONG[::-1]}
    answers = run(_engine(windowed), *(ask(name, prompt, 30) for name, prompt in prompts.items()))
    for name, prompt in prompts.items():
        assert answers.tokens[name] == windowed.generate(prompt, 30), name


def test_adapters_answer_in_a_mixed_batch_as_alone(windowed: WindowedBase) -> None:
    pack = tiny_pack(windowed.base.manifest, 1, rank=3)
    crowd, alone = _engine(windowed), _engine(windowed)
    key = install(crowd, pack, "a")
    install(alone, pack, "a")
    together = run(crowd, ask("adapted", LONG, 12, key=key), ask("base", LONG, 12), ask("other", OTHER, 12, key=key))
    assert together.tokens["base"] == windowed.generate(LONG, 12) != together.tokens["adapted"]
    assert together.tokens["adapted"] == run(alone, ask("x", LONG, 12, key=key)).tokens["x"]


def test_a_page_is_gone_as_soon_as_its_window_has_passed_and_nobody_misses_it(windowed: WindowedBase) -> None:
    engine, answers = _engine(windowed), Answers()
    arena = _arena(engine)
    for request in (ask("a", LONG, 60), ask("b", OTHER, 60)):
        engine.submit(request)
    num_tokens_max = len(LONG) + 60
    while engine.wait_for_work(0):
        answers.take(engine.step())
        # Nothing that only might be found again is left: what was passed is NaN now.
        arena.reclaim(64)
        engine.check_integrity()
    assert answers.tokens["a"] == windowed.generate(LONG, 60)
    assert answers.tokens["b"] == windowed.generate(OTHER, 60)
    groups = windowed.base.kv_shape.groups
    assert arena.num_kv_max <= 2 * windowed.base.kv_shape.num_pages_max(num_tokens_max, NUM_STEP_TOKENS)
    assert arena.num_kv_max < sum(group.page_end(len(LONG) + 60) + group.page_end(len(OTHER) + 60) for group in groups)


def test_where_all_layers_slide_a_long_sequence_needs_no_more_pages_than_its_window(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    windowed = WindowedBase("all_windows", tmp_path_factory.mktemp("all") / "base")
    # 20 - 1 + 24 consecutive tokens lie in four pages at worst.
    engine = _engine(windowed, num_pages=4, num_kv_pages_min=4)
    assert engine.context_tokens == 512
    assert len(run(engine, ask("a", LONG, 512 - len(LONG))).tokens["a"]) == 512 - len(LONG)
    assert _arena(engine).num_kv_max <= 4
    assert engine.load().num_pages_free == 4
    assert run(engine, ask("b", LONG, 60)).tokens["b"] == windowed.generate(LONG, 60)
    assert _engine(windowed, num_pages=4, num_kv_pages_min=3).context_tokens == 48


def test_the_longest_sequence_that_is_accepted_runs_in_the_pages_that_are_kept_for_it(mixed: WindowedBase) -> None:
    # Four for the windows, four of 48 tokens for the other layer.
    engine = _engine(mixed, num_pages=8, num_kv_pages_min=8)
    assert engine.context_tokens == 4 * 48
    answers = run(engine, ask("a", LONG, 192 - len(LONG)), ask("b", LONG[::-1], 192 - len(LONG)))
    assert answers.tokens["a"] == mixed.generate(LONG, 192 - len(LONG))
    assert answers.tokens["b"] == mixed.generate(LONG[::-1], 192 - len(LONG))


def test_a_preempted_sequence_goes_on_with_the_same_tokens(windowed: WindowedBase) -> None:
    shape = windowed.base.kv_shape
    num_pages = shape.num_pages_max(60, NUM_STEP_TOKENS)
    engine, preempted = _engine(windowed, num_pages, num_pages), set()
    requests = [ask(f"r{i}", LONG[i : i + 30], 30) for i in range(3)]
    answers = Answers()
    for request in requests:
        engine.submit(request)
    while engine.wait_for_work(0):
        before = set(engine._roster.running)
        answers.take(engine.step())
        engine.check_integrity()
        preempted |= before & set(engine._roster.waiting)
    assert preempted, "nothing was preempted"
    for request in requests:
        assert answers.tokens[request.request_id] == windowed.generate(request.prompt, 30)


def test_a_beginning_is_reused_where_the_pages_of_all_groups_end(windowed: WindowedBase) -> None:
    unit = windowed.base.kv_shape.shared_tokens
    engine = _engine(windowed)
    answers = run(engine, ask("a", LONG, 30))
    branch = (*LONG[:99], 5, 6)
    run(engine, ask("again", LONG, 30), ask("branch", branch, 30), answers=answers)
    assert answers.finished["a"].num_reused_tokens == 0
    assert answers.finished["again"].num_reused_tokens == len(LONG) // unit * unit == 96
    assert answers.finished["branch"].num_reused_tokens == 96
    assert answers.tokens["a"] == answers.tokens["again"] == windowed.generate(LONG, 30)
    assert answers.tokens["branch"] == windowed.generate(branch, 30)


def test_a_beginning_is_not_reused_without_the_pages_that_its_window_reads(windowed: WindowedBase) -> None:
    engine = _engine(windowed)
    answers = run(engine, ask("a", LONG, 30))
    # The pages that were passed first have been idle for longest.
    assert _arena(engine).reclaim(2) == 2
    branch = (*LONG[:49], 5, 6)
    run(engine, ask("again", LONG, 30), answers=answers)
    run(engine, ask("branch", branch, 30), answers=answers)
    assert answers.finished["again"].num_reused_tokens == 96
    # Position 48 reads from position 29, in the second page.
    assert answers.finished["branch"].num_reused_tokens == 0
    assert answers.tokens["again"] == windowed.generate(LONG, 30)
    assert answers.tokens["branch"] == windowed.generate(branch, 30)


def test_a_shorter_beginning_is_reused_where_the_window_of_the_longest_is_gone(windowed: WindowedBase) -> None:
    engine = _engine(windowed)
    answers = run(engine, ask("a", LONG, 3))
    # Uses the pages behind position 48 again, so that those are let go of last.
    run(engine, ask("branch", (*LONG[:49], 5), 3), answers=answers)
    assert answers.finished["branch"].num_reused_tokens == 48
    # Pages 0, 3 and 4 of the window: position 96 would read the end of page 4.
    assert _arena(engine).reclaim(3) == 3
    run(engine, ask("again", LONG, 3), answers=answers)
    assert answers.finished["again"].num_reused_tokens == 48
    assert answers.tokens["again"] == answers.tokens["a"] == windowed.generate(LONG, 3)


def test_a_beginning_that_is_taken_back_while_it_is_looked_up_is_computed_again(windowed: WindowedBase) -> None:
    engine = _engine(windowed)
    answers = run(engine, ask("a", LONG, 5))
    prefixes, arena = engine._roster.kv._prefixes, _arena(engine)
    num_found = prefixes.num_found

    def found_and_taken_back(digests: Sequence[bytes]) -> list[int]:
        found = num_found(digests)
        arena.reclaim(64)
        return found

    prefixes.num_found = found_and_taken_back  # type: ignore[method-assign]
    run(engine, ask("b", LONG, 5), answers=answers)
    assert answers.finished["b"].num_reused_tokens == 0
    assert answers.tokens["b"] == answers.tokens["a"]


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 90), st.integers(1, 12)), min_size=1, max_size=12),
    st.sets(st.integers(0, 11)),
    st.integers(0, 3),
)
def test_whatever_is_reused_preempted_or_cancelled_no_page_is_lost_and_answers_stay(
    mixed: WindowedBase, asked: list[tuple[int, int, int]], cancelled: set[int], num_taken: int
) -> None:
    engine, answers = _engine(mixed, num_pages=9, num_kv_pages_min=9), Answers()
    prompts = {f"r{i}": tuple(range(start, start + length)) for i, (start, length, _) in enumerate(asked)}
    for (name, prompt), (_, _, num_tokens) in zip(prompts.items(), asked, strict=True):
        engine.submit(ask(name, prompt, num_tokens))
    for step in range(1000):
        if not engine.wait_for_work(0):
            break
        if step in cancelled:
            engine.cancel(f"r{step}")
        answers.take(engine.step())
        _arena(engine).reclaim(num_taken)
        engine.check_integrity()
    assert set(answers.reasons) == set(prompts)
    assert engine.load().num_pages_free == 9
    for (name, prompt), (_, _, num_tokens) in zip(prompts.items(), asked, strict=True):
        tokens = answers.tokens[name]
        assert len(tokens) == num_tokens or int(name[1:]) in cancelled
        assert tokens == mixed.generate(prompt, 12)[: len(tokens)], name
