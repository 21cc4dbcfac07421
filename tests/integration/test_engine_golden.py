"""The engine on the real base against transformers and PEFT, and neighbours that change nothing."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from octavo_shared.lora_config import parse_lora_config
from octavo_shared.pack import build_pack
from octavo_shared.references import Fingerprint, PackKey
from octavo_shared.safetensors_form import read_tensors
from octavo_worker.engine.engine import Engine, EngineLimits, new_arena
from octavo_worker.model.base import BaseModel, load_base
from octavo_worker.model.context import StepInputs
from octavo_worker.prepare_base import default_folder, prepare_base
from support.engines import ask, install, run

NUM_TOKENS = 64
ARENA_BYTES = 512 * 1024 * 1024
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "rank1": {"r": 1, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    "rank4": {"r": 4, "lora_alpha": 8, "target_modules": MLP, "layers_to_transform": list(range(0, 30, 2))},
    "rank8-rslora": {"r": 8, "lora_alpha": 8, "use_rslora": True, "target_modules": ATTENTION},
    "rank16": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "patterns": {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "down_proj", "o_proj"],
        "rank_pattern": {"down_proj": 2, r"layers\.[0-9]\.self_attn\.q_proj": 16},
        "alpha_pattern": {"down_proj": 16, "o_proj": 1},
    },
}
QUESTIONS = {
    "base": "What is the capital of France, and what is it known for?",
    "rank1": "Tell me a short story about a lighthouse.",
    "rank4": "How do I bake bread?",
    "rank8-rslora": "Write a haiku about rain, then explain it to a child in three sentences.",
    "rank16": "What is the capital of France, and what is it known for?",
    "patterns": "List five uses of a paper clip.",
}


@pytest.fixture(scope="module")
def folder() -> Path:
    return prepare_base(default_folder())


@pytest.fixture(scope="module")
def prompts(folder: Path) -> dict[str, tuple[int, ...]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {
        name: tuple(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
            )
        )
        for name, question in QUESTIONS.items()
    }


def _greedy(model: torch.nn.Module, prompt: tuple[int, ...]) -> list[int]:
    """Return ``NUM_TOKENS`` greedy tokens of an unmodified model, with its own cache."""
    answer: list[int] = []
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([prompt]), use_cache=True)
        while True:
            answer.append(int(output.logits[0, -1].argmax()))
            if len(answer) == NUM_TOKENS:
                return answer
            output = model(
                input_ids=torch.tensor([answer[-1:]]), past_key_values=output.past_key_values, use_cache=True
            )


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEFT directories with random A and B, as large as moves the answers but keeps them language."""
    saved = {}
    for seed, (name, fields) in enumerate(ADAPTERS.items()):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.manual_seed(seed)
        peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields))  # type: ignore[arg-type]
        for parameter_name, parameter in peft.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.02)
        saved[name] = tmp_path_factory.mktemp("peft") / name
        peft.save_pretrained(saved[name])
    return saved


@pytest.fixture(scope="module")
def golden(folder: Path, trained: dict[str, Path], prompts: dict[str, tuple[int, ...]]) -> dict[str, list[int]]:
    answers = {"base": _greedy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), prompts["base"])}
    for name, path in trained.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        answers[name] = _greedy(PeftModel.from_pretrained(model, path).eval(), prompts[name])
    return answers


def _pack(path: Path, fingerprint: Fingerprint) -> bytes:
    config = parse_lora_config(json.loads((path / "adapter_config.json").read_bytes()))
    _, tensors, _ = read_tensors((path / "adapter_model.safetensors").read_bytes())
    return build_pack(config, tensors, fingerprint, None)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def base(request: pytest.FixtureRequest, folder: Path) -> BaseModel:
    return load_base(folder, "cpu", request.param)


@pytest.fixture
def engine(base: BaseModel) -> Engine:
    return Engine(base, new_arena(base, ARENA_BYTES), EngineLimits())


@pytest.fixture
def keys(engine: Engine, base: BaseModel, trained: dict[str, Path]) -> dict[str, PackKey]:
    return {name: install(engine, _pack(path, base.fingerprint), name) for name, path in trained.items()}


# In bf16 both sides round, at different places, so identical tokens are promised in float32 only.
@pytest.mark.parametrize("base", [torch.float32], indirect=True, ids=["fp32"])
def test_a_mixed_batch_gives_the_greedy_tokens_of_transformers_and_peft(
    base: BaseModel,
    engine: Engine,
    keys: dict[str, PackKey],
    prompts: dict[str, tuple[int, ...]],
    golden: dict[str, list[int]],
) -> None:
    assert len({tuple(tokens) for tokens in golden.values()}) == len(golden), "an adapter changes nothing"
    requests = [ask(name, prompts[name], NUM_TOKENS, key=keys.get(name)) for name in golden]
    answers = run(engine, *requests)
    for name, expected in golden.items():
        assert answers.tokens[name] == expected, name


class _Recorder:
    """Keeps the logits of every step, by the sequence's first prompt tokens."""

    def __init__(self, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[list[int], list[int], Tensor]] = []
        logits_of = BaseModel.logits

        def logits(model: BaseModel, inputs: StepInputs, tokens: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
            logits = logits_of(model, inputs, tokens, positions, rows)
            self.steps.append((tokens[rows].tolist(), positions[rows].tolist(), logits.clone()))
            return logits

        monkeypatch.setattr(BaseModel, "logits", logits)

    def rows(self, prompt: tuple[int, ...], answer: list[int]) -> list[Tensor]:
        """Return the logits that chose each token of ``answer``, found by the row's token and position."""
        known = [*prompt, *answer]
        found = []
        for position in range(len(prompt) - 1, len(known) - 1):
            matches = [
                logits[i]
                for tokens, positions, logits in self.steps
                for i in range(len(positions))
                if (tokens[i], positions[i]) == (known[position], position)
            ]
            found.append(matches[0])
        return found


@pytest.mark.parametrize("name", ["base", "rank8-rslora", "patterns"])
def test_a_row_has_the_same_bits_with_and_without_neighbours(
    base: BaseModel,
    engine: Engine,
    keys: dict[str, PackKey],
    prompts: dict[str, tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    # A prompt of its own length, so that no neighbour ever stands at the same position.
    prompt = prompts[name] * 4
    num_tokens = 16
    request = ask(name, prompt, num_tokens, key=keys.get(name))
    recorder = _Recorder(base, monkeypatch)
    alone = run(engine, request).tokens[name]
    logits_alone = recorder.rows(prompt, alone)
    recorder.steps.clear()
    neighbours = [
        ask(f"n{i}-{other}", prompts[other][i:], num_tokens, key=keys.get(other), temperature=i, seed=i)
        for i in range(2)
        for other in prompts
    ]
    crowded = run(engine, *neighbours[:6], request, *neighbours[6:]).tokens[name]
    assert crowded == alone
    for index, (got, expected) in enumerate(zip(recorder.rows(prompt, crowded), logits_alone, strict=True)):
        assert torch.equal(got, expected), f"token {index} differs by {(got - expected).abs().max()}"
