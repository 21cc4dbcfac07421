"""Crowds: many random requests in one engine, in random order, with loads, evictions and cancellations among them."""

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from torch import Tensor

from octavo_shared.messages.generation import Sampling
from octavo_shared.pack import PackHeader, digest_of, read_header
from octavo_shared.references import AdapterId, PackKey, TenantId
from octavo_worker.adapters.pages import Arena, OutOfPages
from octavo_worker.engine import forward, roster
from octavo_worker.engine.choosing import Chosen
from octavo_worker.engine.engine import Engine, EngineLimits
from octavo_worker.engine.scheduler import Candidate, StepLimits, StepPlan
from octavo_worker.engine.sequence import Sequence as EngineSequence
from octavo_worker.engine.sequence import SequenceRequest
from octavo_worker.model.base import BaseModel
from support.engines import Answers

PROMPT_TOKENS_MAX = 70
ANSWER_TOKENS_MAX = 24
_NUM_STEPS_MAX = 5000


@dataclass(frozen=True, eq=False)
class Packed:
    """An adapter to install."""

    key: PackKey
    pack: bytes
    header: PackHeader

    @classmethod
    def of(cls, name: str, pack: bytes) -> "Packed":
        """Return ``pack`` under a name."""
        return cls((AdapterId(name), digest_of(pack)), pack, read_header(pack))

    def install(self, engine: Engine) -> None:
        """Make it resident, whatever is in it."""
        engine.install(self.key, memoryview(self.pack), self.header)


@dataclass(frozen=True, eq=False)
class Question:
    """What may be asked again and again; ``adapter`` None: of the base."""

    tenant: str
    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: Packed | None

    def request(self, request_id: str) -> SequenceRequest:
        """Ask it once more."""
        key = self.adapter.key if self.adapter else None
        return SequenceRequest(request_id, 1, TenantId(self.tenant), self.prompt, (), self.sampling, key)


def draw_questions(draw: random.Random, count: int, adapters: Sequence[Packed], vocab_size: int) -> list[Question]:
    """Return questions, every third one to the base; many begin alike, so that prefixes are found again."""
    stems = [[draw.randrange(vocab_size) for _ in range(PROMPT_TOKENS_MAX)] for _ in range(3)]
    questions = []
    for number in range(count):
        prompt = draw.choice(stems)[: draw.randint(1, PROMPT_TOKENS_MAX)]
        if draw.random() < 0.5:
            prompt = [*prompt[:-1], draw.randrange(vocab_size)]
        questions.append(
            Question(
                tenant=draw.choice(("ann", "bob")),
                prompt=tuple(prompt),
                sampling=_draw_sampling(draw),
                adapter=draw.choice(adapters) if number % 3 else None,
            )
        )
    return questions


def _draw_sampling(draw: random.Random) -> Sampling:
    max_tokens, seed = draw.randint(1, ANSWER_TOKENS_MAX), draw.getrandbits(64)
    if draw.random() < 0.5:
        return Sampling(max_tokens=max_tokens, seed=seed, temperature=0.0)
    return Sampling(
        max_tokens=max_tokens,
        seed=seed,
        temperature=draw.choice((0.3, 1.0, 2.0)),
        top_p=draw.choice((1.0, 0.9)),
        top_k=draw.choice((0, 0, 5)),
        repetition_penalty=draw.choice((1.0, 1.0, 1.2)),
        choice=draw.randrange(3),
    )


@dataclass
class Watch:
    """Sees every step of every engine: the logits that each token was chosen from, and who was preempted."""

    steps: list[dict[tuple[str, int], Tensor]] = field(default_factory=list)
    """Of each step its sampled rows, by request and the token's index in the answer."""
    num_preempted: int = 0

    def rows(self, request_id: str) -> list[Tensor]:
        """Return the logits of one answer's tokens, in order."""
        found = {index: row for step in self.steps for (name, index), row in step.items() if name == request_id}
        return [found[index] for index in range(len(found))]


@contextlib.contextmanager
def watched(steps_kept: Watch) -> Iterator[Watch]:
    """Fill ``steps_kept`` inside the block, at the two places where the engine asks what to run and what to say."""
    choose, plan = forward.choose_tokens, roster.schedule

    def choose_tokens(logits: Tensor, sequences: Sequence[EngineSequence]) -> Chosen:
        names = [(one.request.request_id, one.num_answer_tokens) for one in sequences]
        assert len(set(names)) == len(names), "a sequence has two rows in one step"
        steps_kept.steps.append({name: logits[i].clone() for i, name in enumerate(names)})
        return choose(logits, sequences)

    def schedule(
        running: Sequence[Candidate], waiting: Sequence[Candidate], num_pages_free: int, limits: StepLimits
    ) -> StepPlan:
        made = plan(running, waiting, num_pages_free, limits)
        steps_kept.num_preempted += len(made.preempted)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "choose_tokens", choose_tokens)
        patch.setattr(roster, "schedule", schedule)
        yield steps_kept


def run_crowd(
    base: BaseModel, questions: Mapping[str, Question], adapters: Sequence[Packed], draw: random.Random
) -> Answers:
    """Ask all ``questions``, by request id, in one engine that is short of everything; returns what it said."""
    engine, answers = _tight_engine(base, adapters, draw), Answers()
    to_come, here = list(questions), set[str]()
    draw.shuffle(to_come)
    burst = draw.randint(1, 8)
    for _ in range(_NUM_STEPS_MAX):
        if draw.random() < 0.3:
            for _ in range(min(len(to_come), draw.randint(1, burst))):
                name = to_come.pop()
                engine.submit(questions[name].request(name))
                here.add(name)
        if here and draw.random() < 0.02:
            engine.cancel(draw.choice(sorted(here)))
        wanted = [one for name in sorted(here) if (one := questions[name].adapter) is not None]
        is_stuck = not engine.wait_for_work(0)
        if wanted and (is_stuck or draw.random() < 0.2):
            _shuffle_residents(engine, wanted, draw, num_evicted=len(adapters) if is_stuck else 1)
        answers.take(engine.step())
        engine.check_integrity()
        here.difference_update(answers.reasons, answers.refusals)
        if not to_come and not here:
            break
    else:
        raise AssertionError(f"{sorted(here)} did not end within {_NUM_STEPS_MAX} steps")
    assert all(num_pins == 0 for _, _, num_pins in engine.residency()), "a pin outlived its request"
    assert all(engine.evict(adapter.key) for adapter in adapters)
    assert engine.load().num_pages_free == engine.load().num_pages, "pages were lost"
    return answers


def _tight_engine(base: BaseModel, adapters: Sequence[Packed], draw: random.Random) -> Engine:
    """Return an engine with random bounds, in which the longest request and the largest adapter just have room."""
    roomy = roomy_engine(base)
    for adapter in adapters:
        adapter.install(roomy)
    sizes = [size_bytes // roomy.load().page_bytes for _, size_bytes, _ in roomy.residency()]
    num_tokens = PROMPT_TOKENS_MAX + ANSWER_TOKENS_MAX
    longest = base.kv_shape.num_pages_max(num_tokens, num_tokens)
    num_kv_pages, num_running_max = longest + draw.randint(0, 12), draw.randint(2, 24)
    limits = EngineLimits(
        num_running_max=num_running_max,
        num_step_tokens_max=num_running_max + draw.randint(0, 60),
        num_kv_pages_min=num_kv_pages,
    )
    num_pages = num_kv_pages + draw.randint(max(sizes), max(max(sizes), sum(sizes) // 2))
    return Engine(base, Arena(base.kv_shape.page_elements, num_pages, base.dtype), limits)


def roomy_engine(base: BaseModel) -> Engine:
    """Return a fresh engine in which nothing is short."""
    return Engine(base, Arena(base.kv_shape.page_elements, 1000, base.dtype), EngineLimits())


def _shuffle_residents(engine: Engine, wanted: Sequence[Packed], draw: random.Random, num_evicted: int) -> None:
    """Evict some that nobody uses, and install what is wanted as far as there is room."""
    idle = [key for key, _, num_pins in engine.residency() if not num_pins]
    for key in draw.sample(idle, min(len(idle), num_evicted)):
        assert engine.evict(key)
    for adapter in draw.sample(list(wanted), len(wanted)):
        with contextlib.suppress(OutOfPages):
            adapter.install(engine)
