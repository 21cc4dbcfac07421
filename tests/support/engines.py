"""Tiny real bases, adapters for them, and a way to run an engine until nothing is left to do."""

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from octavo_shared.errors import Refusal
from octavo_shared.lora_config import LoraConfig
from octavo_shared.manifest import BaseManifest
from octavo_shared.messages.generation import FinishReason, Sampling
from octavo_shared.pack import build_pack, digest_of, read_header
from octavo_shared.references import AdapterId, PackKey, TenantId
from octavo_worker.engine.engine import Engine
from octavo_worker.engine.sequence import (
    SequenceFailed,
    SequenceFinished,
    SequenceRequest,
    SequenceStarted,
    StepEvent,
    TokensDecoded,
)
from octavo_worker.model.base import BaseModel, load_base
from support.adapters import tiny_tensors

TINY_LLAMA = LlamaConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=None,
    eos_token_id=None,
    # Untrained weights this large make the next token depend on the whole context.
    initializer_range=0.3,
    tie_word_embeddings=False,
)


@contextlib.contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Compute on ``count`` threads. Tiny products gain nothing from two, which wait for each other where it is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def save_base(model: PreTrainedModel, folder: Path) -> Path:
    """Write ``model`` as a Hugging Face directory with a tokenizer file that nobody reads, and return it."""
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    return folder


def tiny_base(folder: Path, dtype: torch.dtype = torch.float32) -> BaseModel:
    """Return a two-layer random Llama, loaded the way every base is."""
    torch.manual_seed(0)
    return load_base(save_base(LlamaForCausalLM(TINY_LLAMA), folder), "cpu", dtype)


def tiny_pack(base: BaseManifest, seed: int, rank: int = 4, targets: tuple[str, ...] = ("q_proj", "v_proj")) -> bytes:
    """Return a pack of random rows for the modules of ``base`` whose names end with one of ``targets``."""
    modules = {name: rank for name in base.modules if name.endswith(targets)}
    config = LoraConfig(r=rank, lora_alpha=0.1 * rank, target_modules=targets, task_type="CAUSAL_LM")
    return build_pack(config, tiny_tensors(modules, seed, base=base), base.fingerprint, None)


def install(engine: Engine, pack: bytes, name: str) -> PackKey:
    """Install ``pack`` and return its key."""
    key = PackKey((AdapterId(name), digest_of(pack)))
    engine.install(key, memoryview(pack), read_header(pack))
    return key


def ask(
    request_id: str,
    prompt: tuple[int, ...],
    max_tokens: int = 8,
    *,
    key: PackKey | None = None,
    forced: tuple[int, ...] = (),
    attempt: int = 1,
    tenant: str = "t",
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: tuple[int, ...] = (),
    is_scored: bool = False,
) -> SequenceRequest:
    """Return a request."""
    sampling = Sampling(
        max_tokens=max_tokens, seed=seed, temperature=temperature, top_p=top_p, stop_token_ids=stop,
        is_scored=is_scored,
    )  # fmt: skip
    return SequenceRequest(request_id, attempt, TenantId(tenant), prompt, forced, sampling, key)


@dataclass
class Answers:
    """What an engine said, by request id."""

    tokens: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    reasons: dict[str, FinishReason] = field(default_factory=dict)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    finished: dict[str, SequenceFinished] = field(default_factory=dict)

    def take(self, events: list[StepEvent]) -> None:
        """Note ``events``; asserts that they keep their promises of order."""
        for event in events:
            name = event.request_id
            assert name not in self.reasons, "something came after the end"
            assert name not in self.refusals, "something came after the end"
            match event:
                case SequenceStarted():
                    assert name not in self.started, "started twice"
                    self.started.append(name)
                case TokensDecoded():
                    assert name in self.started, "tokens came before the start"
                    if self.tokens[name]:
                        assert event.first_index == self._next[name], "a token is missing or came twice"
                    self._next[name] = event.first_index + len(event.tokens)
                    self.tokens[name] += event.tokens
                case SequenceFinished():
                    self.reasons[name], self.finished[name] = event.reason, event
                case SequenceFailed():
                    self.refusals[name] = event.refusal

    def __post_init__(self) -> None:
        self._next: dict[str, int] = {}


def run(
    engine: Engine, *requests: SequenceRequest, answers: Answers | None = None, num_steps_max: int = 2000
) -> Answers:
    """Submit ``requests``, step until there is nothing to do, and return what was said; pages are checked.

    ``answers`` goes on with what was said before.
    """
    answers = answers or Answers()
    for request in requests:
        engine.submit(request)
    for _ in range(num_steps_max):
        if not engine.wait_for_work(0):
            break
        answers.take(engine.step())
        engine.check_integrity()
    else:
        raise AssertionError(f"not done after {num_steps_max} steps")
    return answers
