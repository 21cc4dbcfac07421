"""The engine when pages run out, loads come between plan and allocation, and other threads ask at the same time."""

import contextlib
import threading
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_shared.messages.generation import FinishReason
from octavo_shared.pack import digest_of, read_header
from octavo_shared.references import AdapterId
from octavo_worker.adapters.pages import Arena, OutOfPages, PageUse
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


class CountingArena(Arena):
    """Tells how often pages were given back: once for each sequence that ends, and for each preemption."""

    num_frees = 0

    def free(self, pages: Sequence[int], use: PageUse) -> None:
        self.num_frees += 1
        super().free(pages, use)


class ContestedArena(Arena):
    """Lets something else happen between the plan of a step and each allocation for keys and values."""

    before_kv: Callable[[], None] = staticmethod(lambda: None)

    def alloc(self, num_pages: int, use: PageUse, num_use_max: int | None = None) -> list[int]:
        if use is PageUse.KV:
            self.before_kv()
        return super().alloc(num_pages, use, num_use_max)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.3, 1.0), (1.0, 0.8)])
def test_preempted_sequences_go_on_with_the_same_tokens(base: BaseModel, temperature: float, top_p: float) -> None:
    def requests() -> list:  # type: ignore[type-arg]
        return [ask(f"r{i}", PROMPT[i:], 40, temperature=temperature, top_p=top_p, seed=i) for i in range(4)]

    roomy = run(_engine(base, 64), *requests())
    arena = CountingArena(base.kv_shape.page_elements, 12, base.dtype)
    tight = run(Engine(base, arena, LIMITS), *requests())
    assert arena.num_frees > 4, "nothing was preempted"
    assert tight.tokens == roomy.tokens
    assert set(tight.reasons.values()) == {FinishReason.LENGTH}


def test_pages_that_run_out_are_back_pressure_and_keep_room_for_sequences(base: BaseModel) -> None:
    engine = _engine(base, num_pages=12)
    page_bytes = engine.load().page_bytes
    installed = [install(engine, tiny_pack(base.manifest, 0), "a0")]
    pages_each = engine.residency()[0][1] // page_bytes
    for seed in range(1, 4 // pages_each):
        installed.append(install(engine, tiny_pack(base.manifest, seed), f"a{seed}"))
    one_more = tiny_pack(base.manifest, 9)
    with pytest.raises(OutOfPages):
        install(engine, one_more, "a9")
    assert engine.load().num_pages_free >= 8
    assert len(run(engine, ask("long", PROMPT, 60, key=installed[0])).tokens["long"]) == 60
    assert engine.evict(installed[0])
    install(engine, tiny_pack(base.manifest, 99), "new")
    engine.check_integrity()


def test_the_oldest_goes_on_when_a_load_takes_pages_while_newcomers_are_let_in(base: BaseModel) -> None:
    arena = ContestedArena(base.kv_shape.page_elements, 12, base.dtype)
    engine, answers = Engine(base, arena, LIMITS), Answers()
    engine.submit(ask("oldest", tuple(range(90)) + tuple(range(10)), 28))
    while not answers.tokens["oldest"]:
        answers.take(engine.step())
    assert engine.load().num_pages_free == 5
    allocations: list[int] = []

    def load_before_the_second() -> None:
        allocations.append(1)
        if len(allocations) == 2:
            for seed in range(4):
                install(engine, tiny_pack(base.manifest, seed), f"a{seed}")

    arena.before_kv = load_before_the_second
    # The first newcomer gets the last page but one that it needs; the second finds none.
    answers = run(engine, ask("first", PROMPT[:16], 2), ask("second", OTHER, 2), answers=answers)
    assert len(allocations) > 2
    assert {name: len(tokens) for name, tokens in answers.tokens.items()} == {"oldest": 28, "first": 2, "second": 2}


def test_the_oldest_goes_on_with_the_page_that_an_abandoned_plan_gave_it(base: BaseModel) -> None:
    arena = ContestedArena(base.kv_shape.page_elements, 12, base.dtype)
    engine, answers = Engine(base, arena, LIMITS), Answers()
    engine.submit(ask("oldest", tuple(range(90)) + tuple(range(10)), 28))
    while len(answers.tokens["oldest"]) < 13:
        answers.take(engine.step())
    allocations: list[int] = []

    def load_before_the_second() -> None:
        allocations.append(1)
        if len(allocations) == 2:
            for seed in range(4):
                install(engine, tiny_pack(base.manifest, seed), f"a{seed}")

    arena.before_kv = load_before_the_second
    # The oldest gets its eighth and last page, then the newcomer finds none.
    answers = run(engine, ask("new", OTHER, 2), answers=answers)
    assert len(allocations) > 2
    assert {name: len(tokens) for name, tokens in answers.tokens.items()} == {"oldest": 28, "new": 2}


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=2, max_size=6),
    st.lists(st.sampled_from(["load", "evict", "nothing"]), max_size=40),
)
def test_loads_and_evictions_between_plan_and_allocation_stop_nobody(
    base: BaseModel, sizes: list[tuple[int, int]], happenings: list[str]
) -> None:
    arena = ContestedArena(base.kv_shape.page_elements, 12, base.dtype)
    engine = Engine(base, arena, LIMITS)
    packs = [tiny_pack(base.manifest, seed) for seed in range(4)]
    script = iter(enumerate(happenings))

    def happen() -> None:
        number, happening = next(script, (0, "nothing"))
        key = (AdapterId(f"a{number % 4}"), digest_of(packs[number % 4]))
        if happening == "load":
            with contextlib.suppress(OutOfPages):
                engine.install(key, memoryview(packs[number % 4]), read_header(packs[number % 4]))
        elif happening == "evict":
            engine.evict(key)

    arena.before_kv = happen
    requests = [ask(f"r{i}", tuple(range(num)), most) for i, (num, most) in enumerate(sizes)]
    answers = run(engine, *requests)
    assert {name: len(answers.tokens[name]) for name in answers.reasons} == {
        f"r{i}": most for i, (_, most) in enumerate(sizes)
    }


def test_submissions_loads_and_evictions_from_other_threads_lose_nothing(base: BaseModel) -> None:
    engine = _engine(base, num_pages=40)
    packs = [tiny_pack(base.manifest, seed) for seed in range(3)]
    keys = [(AdapterId(f"a{i}"), digest_of(pack)) for i, pack in enumerate(packs)]
    expected = []
    for i, pack in enumerate(packs):
        install(engine, pack, f"a{i}")
        expected.append(run(engine, ask("e", PROMPT, 6, key=keys[i])).tokens["e"])

    def submitter() -> None:
        for n in range(18):
            engine.submit(ask(f"r{n}", PROMPT, 6, key=keys[n % 3]))

    def shuffler() -> None:
        for n in range(60):
            engine.evict(keys[n % 3])
            engine.install(keys[n % 3], memoryview(packs[n % 3]), read_header(packs[n % 3]))

    threads = [threading.Thread(target=submitter), threading.Thread(target=shuffler)]
    for thread in threads:
        thread.start()
    answers = Answers()
    while any(thread.is_alive() for thread in threads) or len(answers.reasons) < 18:
        engine.wait_for_work(0.02)
        answers.take(engine.step())
    for thread in threads:
        thread.join(10)
    assert {n: answers.tokens[f"r{n}"] for n in range(18)} == {n: expected[n % 3] for n in range(18)}
    engine.check_integrity()
    assert all(num_pins == 0 for _, _, num_pins in engine.residency())
