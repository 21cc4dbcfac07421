"""The gate before every measurement: our tokens are those of transformers and PEFT in float32."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bench.rig import Rig
from octavo_shared.references import PackKey
from octavo_worker.model.base import load_base

_ARENA_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Verdict:
    """Whether every token agreed; ``problem`` says in one sentence where they did not."""

    is_golden: bool
    problem: str = ""


def check_float32(
    base: Path,
    prompt: tuple[int, ...],
    adapters: Sequence[Path],
    num_new_tokens: int,
    reference: Sequence[Path] | None = None,
) -> Verdict:
    """Compare one mixed batch (the base's own row and one row per adapter) with transformers and PEFT, in float32.

    All rows have the same prompt, so that only the adapters can tell them apart. ``reference`` is what PEFT loads
    instead of ``adapters``; given others there the gate must fail.
    """
    rig = Rig(load_base(base, "cpu", torch.float32), _ARENA_BYTES, len(adapters) + 1)
    keys = [rig.add(folder) for folder in adapters]
    rig.make_resident(keys)
    ours = rig.run([prompt] * (len(keys) + 1), [None, *keys], num_new_tokens).tokens
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    expected = [_greedy(model, prompt, num_new_tokens)]
    for folder in reference or adapters:
        with warnings.catch_warnings():
            # Other projects' notices to each other.
            warnings.simplefilter("ignore", FutureWarning)
            adapted = PeftModel.from_pretrained(model, folder)
        expected.append(_greedy(adapted, prompt, num_new_tokens))
        model = adapted.unload()
    if len(set(expected)) < len(expected):
        return Verdict(False, "an adapter of the gate changes nothing, so the gate would prove nothing")
    return _compare(ours, expected, "transformers and PEFT in float32")


def check_alone(
    rig: Rig,
    prompts: Sequence[tuple[int, ...]],
    keys: Sequence[PackKey | None],
    crowd: Sequence[tuple[int, ...]],
    num_alone: int,
) -> Verdict:
    """Compare ``crowd``, what the whole batch answered, with ``num_alone`` of its requests run one by one."""
    for i in range(0, len(prompts), max(1, len(prompts) // num_alone)):
        alone = rig.run([prompts[i]], [keys[i]], len(crowd[i])).tokens
        verdict = _compare(alone, [crowd[i]], "its own answer in a crowd")
        if not verdict.is_golden:
            return verdict
    return Verdict(True)


def _compare(ours: Sequence[tuple[int, ...]], expected: Sequence[tuple[int, ...]], whose: str) -> Verdict:
    for row, (got, wanted) in enumerate(zip(ours, expected, strict=True)):
        if got != wanted:
            index = next(i for i, pair in enumerate(zip(got, wanted, strict=True)) if pair[0] != pair[1])
            return Verdict(False, f"row {row} differs from {whose} at token {index}: {got[index]}, not {wanted[index]}")
    return Verdict(True)


def _greedy(model: torch.nn.Module, prompt: tuple[int, ...], num_new_tokens: int) -> tuple[int, ...]:
    model.train(mode=False)
    answer: list[int] = []
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([prompt]), use_cache=True)
        while True:
            answer.append(int(output.logits[0, -1].argmax()))
            if len(answer) == num_new_tokens:
                return tuple(answer)
            output = model(
                input_ids=torch.tensor([answer[-1:]]), past_key_values=output.past_key_values, use_cache=True
            )
