"""No row ever depends on its neighbours: thousands of rows out of random crowds, each against its own truth.

``OCTAVO_ROWS_SEED=n`` draws other adapters, questions and crowds.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo_worker.model.base import BaseModel
from support.crowds import Packed, Question, Watch, draw_questions, roomy_engine, run_crowd, watched
from support.engines import num_threads, run, tiny_base
from support.random_adapters import save_adapter, spoilt, tiny_llama

SEED = int(os.environ.get("OCTAVO_ROWS_SEED", "0"))
NUM_CROWDS = 4
NUM_ADAPTERS = 10
NUM_QUESTIONS = 72
NUM_ROWS_MIN = {torch.bfloat16: 10_000, torch.float32: 4_000}
NUM_POOLS = {torch.bfloat16: 4, torch.float32: 2}
TOLERANCE = 1e-4
"""Of float32 logits against PEFT's, relative to the row's largest; measured below 1e-5."""


@dataclass(frozen=True)
class Truth:
    """What one question is answered with, and each token's logits; by somebody who has nothing else to do."""

    tokens: list[int]
    logits: list[Tensor]


@dataclass
class Tally:
    """What the crowds of one test had in them. A count that stays 0 would be a claim that nobody checked."""

    rows: int = 0
    base_rows_beside_adapters: int = 0
    rows_beside_nan: int = 0
    failed: int = 0
    cancelled: int = 0
    preempted: int = 0
    reused: int = 0


class Pool:
    """Adapters, two of them not of numbers, and questions to them; the same for the same draw."""

    def __init__(self, base: BaseModel, folder: Path, draw: random.Random) -> None:
        self.base = base
        self.saved = [save_adapter(f"a{i}", folder / f"a{i}", draw) for i in range(NUM_ADAPTERS)]
        packs = [saved.pack(base.fingerprint) for saved in self.saved]
        self.good = [Packed.of(one.name, pack) for one, pack in zip(self.saved, packs, strict=True)]
        self.bad = [Packed.of(f"nan{i}", spoilt(draw.choice(packs), draw)) for i in range(2)]
        self.adapters = [*self.good, *self.bad]
        self.questions = draw_questions(draw, NUM_QUESTIONS, self.adapters, base.vocab_size)

    def alone(self, question: Question) -> Truth:
        """Return what a fresh engine answers that has nothing else to do."""
        engine = roomy_engine(self.base)
        if question.adapter is not None:
            question.adapter.install(engine)
        with watched(Watch()) as watch:
            answers = run(engine, question.request("alone"))
        assert not answers.refusals
        return Truth(answers.tokens["alone"], watch.rows("alone"))

    def truths(self) -> dict[Question, Truth]:
        """Return what each question that has an answer is answered with alone."""
        return {one: self.alone(one) for one in self.questions if one.adapter not in self.bad}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with num_threads(1):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def _pool(base: BaseModel, folder: Path, number: int) -> Pool:
    name = f"{SEED}/{base.dtype}/{number}"
    return Pool(base, folder / name.replace("/", "-"), random.Random(name))


def _same_bits(got: Tensor, wanted: Tensor) -> bool:
    return torch.equal(got.view(torch.int16), wanted.view(torch.int16))


def _near(got: Tensor, wanted: Tensor) -> bool:
    return bool((got - wanted).abs().max() <= TOLERANCE * wanted.abs().max())


def _check_crowd(pool: Pool, truths: dict[Question, Truth], where: str, tally: Tally, stride: int = 1) -> None:
    """Run one crowd of every ``stride``-th question and hold every row of every step against its truth."""
    is_right = _same_bits if pool.base.dtype is torch.bfloat16 else _near
    questions = {f"{i}": question for i, question in enumerate(pool.questions[::stride])}
    with watched(Watch()) as watch:
        answers = run_crowd(pool.base, questions, pool.adapters, random.Random(where))
    assert answers.reasons.keys() | answers.refusals.keys() == questions.keys(), where
    for name, refusal in answers.refusals.items():
        assert questions[name].adapter in pool.bad, f"{where}: request {name} failed: {refusal}"
        assert (refusal.code, refusal.fields["rule"]) == ("adapter_refused", "not_finite"), where
    for step in watch.steps:
        adapters = [questions[name].adapter for name, _ in step]
        num_good = sum(adapter not in pool.bad for adapter in adapters)
        tally.base_rows_beside_adapters += adapters.count(None) if len(set(adapters)) > 1 else 0
        tally.rows_beside_nan += num_good if num_good < len(adapters) else 0
        for (name, index), row in step.items():
            whose = f"{where}: request {name}, token {index}"
            if questions[name].adapter in pool.bad:
                assert row.isnan().any(), whose
                continue
            truth = truths[questions[name]]
            assert is_right(row, truth.logits[index]), f"{whose}: its logits are not its own"
            assert answers.tokens[name][index] == truth.tokens[index], whose
            tally.rows += 1
    for name, question in questions.items():
        if question.adapter in pool.bad:
            assert not answers.tokens[name], f"{where}: request {name} got tokens out of NaN"
    tally.failed += len(answers.refusals)
    tally.cancelled += sum(reason.value == "cancelled" for reason in answers.reasons.values())
    tally.preempted += watch.num_preempted
    tally.reused += sum(finished.num_reused_tokens for finished in answers.finished.values())


def _check_crowds(pool: Pool, truths: dict[Question, Truth], number: int, tally: Tally) -> None:
    for crowd in range(NUM_CROWDS):
        where = f"OCTAVO_ROWS_SEED={SEED}, {pool.base.dtype}, pool {number}, crowd {crowd}"
        _check_crowd(pool, truths, where, tally)


def _check_tally(tally: Tally, dtype: torch.dtype) -> None:
    print(f"seed {SEED}: {tally}")
    assert tally.rows >= NUM_ROWS_MIN[dtype]
    assert all(count > 0 for count in vars(tally).values()), tally


def test_in_bf16_every_row_of_every_crowd_has_the_bits_that_it_has_alone(folder: Path) -> None:
    base, tally = tiny_base(folder / "bf16", torch.bfloat16), Tally()
    for number in range(NUM_POOLS[base.dtype]):
        pool = _pool(base, folder, number)
        truths = pool.truths()
        _check_crowds(pool, truths, number, tally)
    with num_threads(2):
        # The truths were computed on one thread. Few, because threads wait for each other where it is busy.
        _check_crowd(pool, truths, f"OCTAVO_ROWS_SEED={SEED}, two threads", tally, stride=3)
    _check_tally(tally, base.dtype)


def test_in_float32_every_row_of_every_crowd_is_that_of_transformers_and_peft(folder: Path) -> None:
    base, tally = tiny_base(folder / "float32"), Tally()
    for number in range(NUM_POOLS[base.dtype]):
        pool = _pool(base, folder, number)
        models = {adapter: saved.peft() for adapter, saved in zip(pool.good, pool.saved, strict=True)}
        truths = {
            question: _peft_truth(models.get(question.adapter, tiny_llama()), question, alone.tokens)
            for question, alone in pool.truths().items()
        }
        _check_crowds(pool, truths, number, tally)
    _check_tally(tally, base.dtype)


def _peft_truth(model: torch.nn.Module, question: Question, tokens: list[int]) -> Truth:
    """Return the logits of ``model`` behind the prompt and each of ``tokens``; greedy ones must be its own greedy ones.

    All at once: if each is the likeliest behind those before it, then they are what the model would have written.
    """
    with torch.inference_mode():
        logits = model(torch.tensor([[*question.prompt, *tokens]])).logits[0, len(question.prompt) - 1 : -1]
    if question.sampling.temperature == 0:
        assert logits.argmax(dim=-1).tolist() == tokens, f"OCTAVO_ROWS_SEED={SEED}: {question}"
    return Truth(tokens, list(logits))


def test_the_random_adapters_are_of_many_kinds(folder: Path) -> None:
    base = tiny_base(folder / "kinds")
    pools = [_pool(base, folder / "kinds", number) for number in range(2)]
    modules = [module for pool in pools for adapter in pool.good for module in adapter.header.modules]
    assert {module.name for module in modules} == base.manifest.modules.keys()
    assert {1, 64} <= {module.rank for module in modules}
    assert len({module.scaling for module in modules}) > 5
