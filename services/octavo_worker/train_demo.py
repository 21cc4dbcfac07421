"""Train a small personal adapter on one person's conversations, with PEFT, in less than a minute on two cores.

Prints one JSON line per step on standard output: ``{"step": 1, "steps": 28, "loss": 3.2}``.
The result is a PEFT directory, plus ``octavo.json`` that names the base it was trained on.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from octavo_shared import decoding
from octavo_worker.model.fingerprint import fingerprint_of

_IGNORED = -100
"""The label that the loss skips: prompts are read, only answers are learnt."""
_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_CLIP_NORM = 1.0

Report = Callable[[int, int, float], None]


class _Turn(msgspec.Struct, frozen=True):
    role: str
    content: str


class _Conversation(msgspec.Struct, frozen=True):
    messages: tuple[_Turn, ...]


@dataclass(frozen=True)
class Recipe:
    """How to train. ``steps`` batches of ``batch_size`` conversations; the rate rises, then falls to zero."""

    rank: int = 16
    steps: int = 28
    batch_size: int = 4
    learning_rate: float = 2e-3
    seed: int = 7


@dataclass(frozen=True)
class _Example:
    tokens: tuple[int, ...]
    prompt_len: int


def train(base: Path, data: Path, out: Path, recipe: Recipe, report: Report) -> None:
    """Write the adapter trained on ``data`` to ``out``; the directory appears complete or not at all.

    Raises ``msgspec.MsgspecError`` when a line of ``data`` is no conversation, ``ValueError`` when there is none.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    # float32: on a CPU without bf16 matrix units it is the faster one, and the update is not rounded away.
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=_TARGETS, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)
    examples = _read_examples(data, tokenizer)
    if not examples:
        raise ValueError(f"{data} holds no conversation")
    _fit(adapted, examples, recipe, report)
    _save(adapted, base, out)


def _read_examples(data: Path, tokenizer: Any) -> list[_Example]:
    conversations = decoding.json_decoder(_Conversation)
    examples = []
    for line in filter(str.strip, data.read_text(encoding="utf-8").splitlines()):
        turns = [msgspec.to_builtins(turn) for turn in conversations.decode(line).messages]
        prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, tokenize=False)
        answer = tokenizer.apply_chat_template(turns, tokenize=False).removeprefix(prompt).rstrip("\n")
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        examples.append(_Example((*prompt_ids, *answer_ids), len(prompt_ids)))
    return examples


def _fit(model: Any, examples: list[_Example], recipe: Recipe, report: Report) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=recipe.steps, pct_start=0.15
    )
    model.train()
    batches = _batches(examples, recipe)
    for step in range(1, recipe.steps + 1):
        tokens, mask, labels = next(batches)
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels, logits_to_keep=labels.shape[1]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, _CLIP_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        report(step, recipe.steps, loss.item())


def _batches(examples: list[_Example], recipe: Recipe) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (tokens, mask, labels) for ever; every epoch in an order of its own.

    Shapes: tokens and mask [batch_size, T], labels [batch_size, K], for the last K positions only. Rows are padded
    on the left, so that all answers end together and no logits are computed for the prompts before them.
    """
    order = random.Random(recipe.seed)
    while True:
        shuffled = order.sample(examples, len(examples))
        for first in range(0, len(shuffled), recipe.batch_size):
            batch = shuffled[first : first + recipe.batch_size]
            shape = (len(batch), max(len(example.tokens) for example in batch))
            tokens = torch.zeros(shape, dtype=torch.long)
            mask = torch.zeros(shape, dtype=torch.long)
            labels = torch.full(shape, _IGNORED)
            for row, example in enumerate(batch):
                num_answer = len(example.tokens) - example.prompt_len
                tokens[row, -len(example.tokens) :] = torch.tensor(example.tokens)
                mask[row, -len(example.tokens) :] = 1
                labels[row, -num_answer:] = tokens[row, -num_answer:]
            # One position more than the longest answer: its first token is predicted from the one before it.
            kept = 1 + max(len(example.tokens) - example.prompt_len for example in batch)
            yield tokens, mask, labels[:, -kept:]


def _save(model: Any, base: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        model.save_pretrained(work)
        (work / "octavo.json").write_text(json.dumps({"base": fingerprint_of(base)}) + "\n")
        work.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _print_progress(step: int, steps: int, loss: float) -> None:
    sys.stdout.write(json.dumps({"step": step, "steps": steps, "loss": round(loss, 4)}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Train what the command line names."""
    default = Recipe()
    parser = argparse.ArgumentParser(prog="octavo_worker.train_demo", description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face directory of the base")
    parser.add_argument("--data", type=Path, required=True, help='JSON lines: {"messages": [{"role", "content"}, …]}')
    parser.add_argument("--out", type=Path, required=True, help="PEFT directory to write")
    parser.add_argument("--rank", type=int, default=default.rank)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--seed", type=int, default=default.seed)
    given = parser.parse_args()
    recipe = Recipe(rank=given.rank, steps=given.steps, seed=given.seed)
    try:
        train(given.base, given.data, given.out, recipe, _print_progress)
    except (OSError, ValueError, msgspec.MsgspecError) as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
