"""Any tiny base with two PEFT adapters: what ``transformers`` and PEFT compute alone, and what the engine answers."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from octavo_identity.validator import validate
from octavo_shared.manifest import BaseManifest
from octavo_shared.messages.generation import Sampling, TokenLogprobs
from octavo_shared.pack import build_pack
from octavo_shared.references import PackKey
from octavo_worker.engine.engine import Engine, EngineLimits, new_arena
from octavo_worker.engine.sequence import SequenceRequest, StepEvent, TokensDecoded
from octavo_worker.model.base import BaseModel, load_base
from support.engines import install, save_base

WINDOW = 8
VOCAB_SIZE = 97
NUM_TOKENS = 8
NUM_STEP_TOKENS_MAX = 24
"""Far fewer than the prompts have, so that each is computed in several chunks beside parts of others."""
ARENA_BYTES = 8 * 1024 * 1024
ADAPTERS: dict[str, dict[str, object]] = {
    "wide": {"r": 3, "lora_alpha": 6, "use_rslora": True},
    "narrow": {"r": 8, "lora_alpha": 4, "target_modules": ["q_proj", "o_proj", "qkv_proj", "query_key_value"]},
}
LENGTHS = {"base 1": 53, "wide 1": 37, "narrow 1": 61, "base 2": 9, "wide 2": 70, "narrow 2": 45}
"""By the name of each request, which begins with that of its adapter; most are many windows long."""
LOGPROB_TOLERANCE = 5e-4
"""Largest absolute difference of a log probability. Measured over all families: rounding gives at most 4e-5, an adapter
that is left out at least 0.14, a window that is one token longer at least 1.2."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread in this block: for models this small, meeting at barriers takes longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_model(config: PretrainedConfig) -> PreTrainedModel:
    """Return an untrained model of ``config``, its biases, norms and sinks not at the zeros and ones of the start."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "bias" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@dataclass(frozen=True)
class Rig:
    """A base as it is served, and the models that say what it must compute, by adapter; ``base`` is the one without."""

    base: BaseModel
    engine: Engine
    models: dict[str, nn.Module]
    keys: dict[str, PackKey]


def make_rig(config: PretrainedConfig, folder: Path, wide: str | list[str] = "all-linear") -> Rig:
    """Save a model of ``config`` and adapters for it below ``folder``, and load all as a worker would.

    ``wide`` says what the adapter of that name targets.
    """
    model = make_model(config)
    base = load_base(save_base(model, folder / "base"), "cpu", torch.float32)
    # One sequence of the arena's pages for itself, and several at once.
    engine = Engine(
        base, new_arena(base, ARENA_BYTES), EngineLimits(num_running_max=8, num_step_tokens_max=NUM_STEP_TOKENS_MAX)
    )
    models, keys = {"base": model}, {}
    adapters = ADAPTERS | {"wide": ADAPTERS["wide"] | {"target_modules": wide}}
    for seed, (name, fields) in enumerate(adapters.items()):
        models[name] = _with_adapter(model, fields, seed)
        models[name].save_pretrained(folder / name, save_embedding_layers=False)
        keys[name] = install(engine, pack_of(folder / name, base.manifest), name)
    return Rig(base, engine, models, keys)


def _with_adapter(model: PreTrainedModel, fields: dict[str, object], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    peft: nn.Module = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **fields))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return peft.eval()


def pack_of(folder: Path, base: BaseManifest) -> bytes:
    """Return the pack of a PEFT directory, through the gate that every push goes through."""
    config, weights = (folder / name for name in ("adapter_config.json", "adapter_model.safetensors"))
    valid = validate(config.read_bytes(), weights.read_bytes(), base)
    return build_pack(valid.config, valid.tensors, base.fingerprint, None)


def prompts() -> dict[str, tuple[int, ...]]:
    """Return a random prompt for each name of ``LENGTHS``."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: tuple(torch.randint(1, VOCAB_SIZE, (length,), generator=generator).tolist())
        for name, length in LENGTHS.items()
    }


@dataclass(frozen=True)
class Answer:
    """The greedy tokens of one request, and the log probabilities [tokens, vocabulary] that chose them."""

    tokens: list[int]
    logprobs: Tensor


def answers(rig: Rig, names: Sequence[str]) -> dict[str, Answer]:
    """Let the engine answer the prompts of ``names`` in one batch."""
    wanted = prompts()
    for name in names:
        sampling = Sampling(max_tokens=NUM_TOKENS, seed=0, temperature=0.0, num_logprobs=VOCAB_SIZE)
        key = rig.keys.get(name.split()[0])
        rig.engine.submit(SequenceRequest(name, 1, "t", wanted[name], (), sampling, key))  # type: ignore[arg-type]
    events: list[StepEvent] = []
    num_steps = 0
    while rig.engine.wait_for_work(0):
        events += rig.engine.step()
        num_steps += 1
        assert num_steps < 500, "the engine does not come to an end"
    rig.engine.check_integrity()
    decoded = [event for event in events if isinstance(event, TokensDecoded)]
    return {
        name: Answer(
            [token for event in decoded if event.request_id == name for token in event.tokens],
            torch.stack([_row(one) for event in decoded if event.request_id == name for one in event.logprobs]),
        )
        for name in names
    }


def _row(said: TokenLogprobs) -> Tensor:
    names, values = zip(*said.top, strict=True)
    row = torch.full((VOCAB_SIZE,), torch.nan)
    row[torch.tensor(names)] = torch.tensor(values)
    return row


def expected_logprobs(rig: Rig, name: str, tokens: Sequence[int], adapter: str | None = None) -> Tensor:
    """Return what the model of ``name``'s adapter (or ``adapter``) says, alone, wherever one of ``tokens`` was chosen.

    If each of them is the likeliest there, ``tokens`` are its greedy answer.
    """
    prompt = prompts()[name]
    with torch.inference_mode():
        said = rig.models[adapter or name.split()[0]](
            input_ids=torch.tensor([[*prompt, *tokens[:-1]]]), use_cache=False
        ).logits[0, len(prompt) - 1 :]
    return said.float().log_softmax(dim=-1)


def check_golden(rig: Rig) -> None:
    """Assert that a mixed batch gets the tokens and log probabilities of ``transformers`` and PEFT alone."""
    given = answers(rig, list(LENGTHS))
    for name, answer in given.items():
        expected = expected_logprobs(rig, name, answer.tokens)
        assert answer.tokens == expected.argmax(dim=-1).tolist(), name
        difference = float((answer.logprobs - expected).abs().max())
        # Written so that NaN fails too.
        assert difference <= LOGPROB_TOLERANCE, f"log probabilities of {name} differ by {difference:.2g}"
    for name in ("wide 1", "narrow 2"):
        without = expected_logprobs(rig, name, given[name].tokens, "base")
        assert float((given[name].logprobs - without).abs().max()) > 0.1, f"the adapter of {name} changes nothing"


def small(**fields: object) -> dict[str, object]:
    """Return what the configurations of most families say, small, with ``fields`` on top."""
    common: dict[str, object] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        # Untrained weights this large make every token depend on the whole context.
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    return common | fields


def without(fields: dict[str, object], *names: str) -> dict[str, object]:
    """Return ``fields`` but for ``names``, which some configurations do not know."""
    return {name: value for name, value in fields.items() if name not in names}
