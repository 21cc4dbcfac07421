"""Whatever is asked of an engine in whatever order: pages are conserved, pins are those of requests, each ends once.

The same lives every time; ``OCTAVO_LIVES=n`` draws n others.
"""

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from octavo_shared.errors import ContextExceeded, InvalidRequest, Overloaded
from octavo_shared.pack import digest_of, read_header
from octavo_shared.references import AdapterId, PackKey
from octavo_worker.adapters.pages import OutOfPages
from octavo_worker.engine.engine import Engine, EngineLimits
from octavo_worker.engine.sequence import SequenceRequest
from support.crowds import Watch, watched
from support.engines import Answers, ask, num_threads, tiny_base, tiny_pack
from support.frail import BrittleBase, WatchedArena
from support.random_adapters import spoilt

NUM_PAGES = 12
LIMITS = EngineLimits(num_running_max=6, num_waiting_max=12, num_step_tokens_max=30, num_kv_pages_min=6)
PROMPT_TOKENS_MAX, ANSWER_TOKENS_MAX = 70, 20
STEMS = tuple(tuple((first + step * i) % 97 for i in range(90)) for first in (0, 50) for step in (1, 3, 5))
ADAPTERS = ((4, ("q_proj",)), (16, ("v_proj", "o_proj")), (1, ("down_proj",)), (5, ("_proj",)))
"""Ranks and targets: one page to five. One more adapter is of NaN."""
NUM_LIVES, NUM_RULES = int(os.environ.get("OCTAVO_LIVES", "60")), 40
NUM_STEPS_MAX = 500
TO_BE_SEEN = (
    "finished", "cancelled", "failed in a step", "not finite", "overloaded", "preempted", "reused", "pinned",
    "no room for an adapter", "scored",
)  # fmt: skip


class Life(RuleBasedStateMachine):
    """One engine with little memory, and what must be true of it after everything that is done to it."""

    base: BrittleBase
    packs: tuple[bytes, ...]
    seen: ClassVar[Counter[str]] = Counter()

    @initialize(num_pages=st.sampled_from([NUM_PAGES, NUM_PAGES + 4]))
    def begin(self, num_pages: int) -> None:
        BrittleBase.is_step_failing = False
        self.arena = WatchedArena(self.base.kv_shape.page_elements, num_pages, self.base.dtype)
        self.engine = Engine(self.base, self.arena, LIMITS)
        self.answers = Answers()
        self.accepted: dict[str, SequenceRequest] = {}
        self.resident: set[PackKey] = set()

    def _key(self, index: int) -> PackKey:
        return PackKey((AdapterId(f"a{index}"), digest_of(self.packs[index])))

    @property
    def live(self) -> dict[str, SequenceRequest]:
        """Requests that were accepted and have not ended."""
        ended = self.answers.reasons.keys() | self.answers.refusals.keys()
        return {name: request for name, request in self.accepted.items() if name not in ended}

    def _pins(self, key: PackKey) -> int:
        return sum(request.adapter_key == key for request in self.live.values())

    @rule(
        tenant=st.sampled_from(["ann", "bob"]),
        adapter=st.sampled_from([None, None, *range(len(ADAPTERS) + 1)]),
        stem=st.sampled_from(STEMS),
        length=st.sampled_from([1, 15, 16, 33, 44, PROMPT_TOKENS_MAX]),
        max_tokens=st.sampled_from([0, 1, 6, ANSWER_TOKENS_MAX]),
        num_choices=st.sampled_from([1, 3, 5]),
        temperature=st.sampled_from([0.0, 1.0]),
    )
    def submit(
        self,
        tenant: str,
        adapter: int | None,
        stem: tuple[int, ...],
        length: int,
        max_tokens: int,
        num_choices: int,
        temperature: float,
    ) -> None:
        key = None if adapter is None else self._key(adapter)
        for seed in range(num_choices):
            self._submit(stem[:length], max_tokens, key=key, tenant=tenant, temperature=temperature, seed=seed)

    @rule()
    def submit_more_than_there_is_room_for(self) -> None:
        for stem in STEMS:
            self._submit(stem[:33], ANSWER_TOKENS_MAX)
        self.step(ANSWER_TOKENS_MAX // 2)

    def _submit(self, prompt: tuple[int, ...], max_tokens: int, **choices: Any) -> None:
        name = f"r{len(self.accepted)}"
        request = ask(name, prompt, max_tokens, **choices, is_scored=max_tokens == 0)
        try:
            self.engine.submit(request)
            self.accepted[name] = request
        except Overloaded:
            self.seen["overloaded"] += 1
            assert len(self.live) >= LIMITS.num_waiting_max

    @rule(adapter=st.integers(0, len(ADAPTERS)))
    def submit_what_cannot_be_served(self, adapter: int) -> None:
        key = self._key(adapter)
        with pytest.raises(ContextExceeded):
            self.engine.submit(ask("long", STEMS[0], 20, key=key))
        with pytest.raises(InvalidRequest):
            self.engine.submit(ask("empty", (), 20, key=key))
        if self.live:
            with pytest.raises((InvalidRequest, Overloaded)):
                self.engine.submit(ask(next(iter(self.live)), (1,), 2, key=key))

    @rule(num_steps=st.sampled_from([1, 4, 20]))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.answers.take(self.engine.step())
            self.conserved()

    @rule()
    def fail_a_step(self) -> None:
        BrittleBase.is_step_failing = True
        num_failed = len(self.answers.refusals)
        self.answers.take(self.engine.step())
        self.seen["failed in a step"] += len(self.answers.refusals) > num_failed
        BrittleBase.is_step_failing = False

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.engine.cancel(data.draw(st.sampled_from(sorted(self.live))))

    @rule(index=st.integers(0, len(ADAPTERS)))
    def install(self, index: int) -> None:
        key, pack = self._key(index), self.packs[index]
        try:
            self.engine.install(key, memoryview(pack), read_header(pack))
            self.resident.add(key)
        except OutOfPages:
            self.seen["no room for an adapter"] += 1

    @rule(index=st.integers(0, len(ADAPTERS)))
    def evict(self, index: int) -> None:
        key = self._key(index)
        is_pinned = self._pins(key) > 0
        assert self.engine.evict(key) is not is_pinned
        if not is_pinned:
            self.resident.discard(key)

    @rule()
    def take_idle_pages(self) -> None:
        self.arena.reclaim(2)

    @invariant()
    def conserved(self) -> None:
        self.engine.check_integrity()
        load = self.engine.load()
        assert 0 <= load.num_pages_free <= self.arena.num_pages
        pins = {key: num_pins for key, _, num_pins in self.engine.residency()}
        assert pins == {key: self._pins(key) for key in self.resident}
        for key in (key for key in self.resident if pins[key]):
            assert not self.engine.evict(key), "a pinned adapter was evicted"
            self.seen["pinned"] += 1
        assert load.num_running + load.num_waiting == len(self.live), "a request is nowhere"

    def teardown(self) -> None:
        for _ in range(NUM_STEPS_MAX):
            if not self.live:
                break
            if not self.engine.wait_for_work(0):
                self._make_runnable()
            self.answers.take(self.engine.step())
        assert not self.live, "a request never ended"
        assert self.answers.reasons.keys() | self.answers.refusals.keys() == self.accepted.keys()
        for index in range(len(self.packs)):
            self.evict(index)
        self.conserved()
        assert self.engine.load().num_pages_free == self.arena.num_pages
        self.arena.reclaim(self.arena.num_pages)
        assert self.arena.num_free == self.arena.num_pages
        self.engine.check_integrity()
        self._note_what_happened()

    def _make_runnable(self) -> None:
        """Everybody waits for an adapter: make room, and load one that somebody waits for."""
        for index in range(len(self.packs)):
            self.evict(index)
        for index in range(len(self.packs)):
            if self._pins(self._key(index)):
                self.install(index)

    def _note_what_happened(self) -> None:
        self.seen["cancelled"] += sum(reason.value == "cancelled" for reason in self.answers.reasons.values())
        self.seen["finished"] += sum(reason.value == "length" for reason in self.answers.reasons.values())
        self.seen["not finite"] += sum("not_finite" in one.message for one in self.answers.refusals.values())
        for name, finished in self.answers.finished.items():
            sampling, num_prompt_tokens = self.accepted[name].sampling, finished.num_prompt_tokens
            if sampling.is_scored and finished.reason.value == "length":
                assert len(finished.prompt_logprobs) == num_prompt_tokens - 1
                self.seen["scored"] += 1
        self.seen["reused"] += sum(finished.num_reused_tokens > 0 for finished in self.answers.finished.values())


def test_pages_and_pins_are_conserved_and_every_request_ends_once_in_every_life_of_an_engine(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    packs = [tiny_pack(base.manifest, seed, rank, targets) for seed, (rank, targets) in enumerate(ADAPTERS)]
    Life.base = BrittleBase.of(base)
    Life.packs = (*packs, spoilt(packs[0], random.Random(0)))
    Life.seen = Counter()
    bounds = settings(
        max_examples=NUM_LIVES,
        stateful_step_count=NUM_RULES,
        deadline=None,
        derandomize="OCTAVO_LIVES" not in os.environ,
    )
    # Every step that fails is logged with all that it held, which would take longer than the steps.
    with num_threads(1), watched(Watch()) as watch, structlog.testing.capture_logs():
        run_state_machine_as_test(Life, settings=bounds)
    Life.seen["preempted"] = watch.num_preempted
    print(dict(Life.seen))
    assert all(Life.seen[what] for what in TO_BE_SEEN), (
        f"{dict(Life.seen)} lacks something, so something went unchecked"
    )
