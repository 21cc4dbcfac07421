"""Random adapters as PEFT itself saves them: any rank, any targets, any scaling; and one whose numbers are none."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from octavo_shared.lora_config import parse_lora_config
from octavo_shared.pack import build_pack, read_header
from octavo_shared.references import Fingerprint
from octavo_shared.safetensors_form import read_tensors
from support.engines import TINY_LLAMA

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
RANKS = (1, 2, 3, 4, 7, 8, 13, 16, 32, 33, 64)


def tiny_llama() -> LlamaForCausalLM:
    """Return the unmodified model that ``tiny_base`` serves."""
    torch.manual_seed(0)
    return LlamaForCausalLM(TINY_LLAMA).eval()


@dataclass(frozen=True)
class SavedAdapter:
    """A PEFT directory with random rows, about as large as the base's own."""

    name: str
    folder: Path

    def pack(self, base: Fingerprint) -> bytes:
        """Return its pack for a base."""
        config = parse_lora_config(json.loads((self.folder / "adapter_config.json").read_bytes()))
        _, tensors, _ = read_tensors((self.folder / "adapter_model.safetensors").read_bytes())
        return build_pack(config, tensors, base, None)

    def peft(self) -> PeftModel:
        """Return the unmodified model with this adapter only."""
        return PeftModel.from_pretrained(tiny_llama(), self.folder).eval()


def save_adapter(name: str, folder: Path, draw: random.Random) -> SavedAdapter:
    """Draw an adapter and write it into ``folder``."""
    peft = get_peft_model(tiny_llama(), LoraConfig(task_type="CAUSAL_LM", **_fields(draw)))
    generator = torch.Generator().manual_seed(draw.randrange(2**32))
    with torch.no_grad():
        for parameter_name, parameter in peft.named_parameters():
            if "lora_" in parameter_name:
                # A x is about as large as x, and so is B A x.
                width = parameter.shape[1]
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / width**0.5)
    peft.save_pretrained(folder)
    return SavedAdapter(name, folder)


def _fields(draw: random.Random) -> dict[str, Any]:
    targets = draw.sample((*_ATTENTION, *_MLP), draw.randint(1, 7))
    rank = draw.choice(RANKS)
    fields: dict[str, Any] = {
        "r": rank,
        "lora_alpha": rank * draw.choice((0.5, 1, 2)),
        "target_modules": targets,
    }
    if draw.random() < 0.3:
        fields |= {"use_rslora": True, "lora_alpha": rank**0.5}
    if draw.random() < 0.3:
        fields["rank_pattern"] = {draw.choice(targets): draw.choice(RANKS)}
    if draw.random() < 0.3:
        fields["alpha_pattern"] = {draw.choice(targets): draw.choice((1, 2, 4, 8))}
    if draw.random() < 0.3:
        fields["layers_to_transform"] = [draw.randrange(TINY_LLAMA.num_hidden_layers)]
    return fields


def spoilt(pack: bytes, draw: random.Random) -> bytes:
    """Return ``pack`` with NaN where no gate would let one pass: in one number of a module, or in all of its A or B."""
    changed = bytearray(pack)
    module = draw.choice(read_header(pack).modules)
    begin, num = draw.choice(
        ((module.a_offset, module.rank * module.in_features), (module.b_offset, module.rank * module.out_features))
    )
    assert module.a_dtype == module.b_dtype == "F32"
    count = draw.choice((1, num))
    changed[begin : begin + 4 * count] = b"\x00\x00\xc0\x7f" * count
    return bytes(changed)
