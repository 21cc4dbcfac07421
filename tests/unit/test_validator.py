import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import peft
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from octavo_identity.validator import IGNORED, NEUTRAL, SERVED, check_base, validate
from octavo_shared.errors import AdapterRefused, BaseMismatch
from octavo_shared.manifest import ModuleShape
from octavo_shared.patterns import Matcher
from octavo_shared.references import Fingerprint
from octavo_shared.safetensors_form import write_tensors
from support.adapters import (
    TINY_BASE,
    TINY_FINGERPRINT,
    config_json,
    q_proj_modules,
    raw,
    tiny_tensors,
    tiny_weights,
)

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def refusal(config: bytes, weights: bytes | None = None) -> str:
    with pytest.raises(AdapterRefused) as refused:
        validate(config, tiny_weights() if weights is None else weights, TINY_BASE)
    return str(refused.value.fields["rule"])


def test_a_good_adapter_passes() -> None:
    valid = validate(config_json(), tiny_weights(), TINY_BASE)
    assert len(valid.tensors) == 4


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"use_dora": True}, "dora"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"init_lora_weights": "corda"}, "init_lora_weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"init_lora_weights": "eva"}, "init_lora_weights"),
        ({"init_lora_weights": "mica"}, "init_lora_weights"),
        ({"init_lora_weights": "MiCA"}, "init_lora_weights"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights"),
        ({"init_lora_weights": [[]]}, "init_lora_weights"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"use_qalora": True}, "use_qalora"),
        ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow"),
        ({"a_field_of_tomorrow": 0}, "a_field_of_tomorrow"),
        ({"a_field_of_tomorrow": ""}, "a_field_of_tomorrow"),
        ({"a_field_of_tomorrow": True}, "a_field_of_tomorrow"),
        ({"a_field_of_tomorrow": [None]}, "a_field_of_tomorrow"),
        ({"kasa_config": {}}, "kasa_config"),
        ({"use_bdlora": {}}, "use_bdlora"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"r": 4096}, "rank"),
        ({"r": 0}, "rank"),
        ({"r": -1}, "rank"),
        ({"r": "four"}, "config"),
        ({"rank_pattern": {"q_proj": 4096}}, "rank"),
        ({"lora_alpha": 1e9}, "alpha"),
        ({"lora_alpha": 0}, "alpha"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha"),
        ({"target_modules": ["no_such_module"]}, "no_match"),
        ({"target_modules": ["v_proj"]}, "target_modules"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"rank_pattern": {"(": 4}}, "pattern"),
        ({"target_modules": ["q_proj", "v_proj"]}, "missing_module"),
        ({"target_modules": "("}, "pattern"),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_served_right_is_refused_by_name(fields: dict[str, object], rule: str) -> None:
    assert refusal(config_json(**fields)) == rule


@pytest.mark.parametrize("config", [b"", b"[]", b"{", b"\xff", b"[" * 100_000], ids=str)
def test_a_configuration_that_is_no_json_object_is_refused(config: bytes) -> None:
    assert refusal(config) == "config"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_weights_that_are_not_finite_are_refused(value: float, dtype: str) -> None:
    tensors = tiny_tensors(q_proj_modules(), dtype=dtype)
    poisoned = np.ones((4, 16), np.float32)
    poisoned[2, 3] = value
    tensors[f"{Q}.lora_A.weight"] = raw(poisoned, dtype)
    assert refusal(config_json(), write_tensors(tensors, {})) == "nan"


def test_wrong_tensors_are_refused_by_name() -> None:
    good = tiny_tensors(q_proj_modules())

    def with_tensor(name: str, shape: tuple[int, int] = (4, 16)) -> bytes:
        return write_tensors(good | {name: raw(np.ones(shape))}, {})

    without_b = {name: tensor for name, tensor in good.items() if name != f"{Q}.lora_B.weight"}
    assert refusal(config_json(), write_tensors(without_b, {})) == "partner"
    assert refusal(config_json(), with_tensor("../../x.lora_A.weight")) == "tensor_name"
    assert refusal(config_json(), with_tensor("somebody.lora_A.weight")) == "tensor_name"
    assert refusal(config_json(), with_tensor("base_model.model.lm_head.lora_embedding_A")) == "embedding"
    assert refusal(config_json(), with_tensor(f"{Q}.lora_A.weight", (4, 17))) == "shape"
    assert refusal(config_json(), with_tensor(f"{Q}.lora_A.weight", (5, 16))) == "shape"
    foreign = {name.replace("q_proj", "x_proj"): tensor for name, tensor in good.items()}
    assert refusal(config_json(target_modules=["x_proj"]), write_tensors(foreign, {})) == "no_match"
    assert refusal(config_json(target_modules=["x_proj", "q_proj"]), write_tensors(foreign, {})) == "tensor_name"
    assert refusal(config_json(), b"\x80\x02}q\x00.") == "pickle"


@pytest.mark.parametrize("value", [None, False, [], {}], ids=str)
def test_a_field_of_another_peft_that_is_switched_off_locks_nobody_out(value: object) -> None:
    validate(config_json(a_field_of_tomorrow=value), tiny_weights(), TINY_BASE)


@pytest.mark.parametrize("name", ["eva", "mica"])
def test_an_initialisation_that_leaves_the_base_alone_is_not_accused_of_rewriting_it(name: str) -> None:
    with pytest.raises(AdapterRefused) as refused:
        validate(config_json(init_lora_weights=name), tiny_weights(), TINY_BASE)
    assert "rewrote" not in refused.value.message
    assert name in refused.value.message


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(
    ("targets", "is_saved"),
    [
        (["q_proj", "embed_tokens"], "auto"),
        (["q_proj", "embed_tokens"], False),
        (["q_proj", "lm_head"], "auto"),
        (["q_proj", "lm_head"], False),
        (["lm_head"], False),
        (["q_proj"], True),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_embeddings_that_peft_saved_are_refused_as_such(
    targets: list[str], is_saved: bool | str, is_tied: bool, tmp_path: Path
) -> None:
    shape = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=32, tie_word_embeddings=is_tied,
    )  # fmt: skip
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(LlamaForCausalLM(shape), config)
    model.save_pretrained(tmp_path, save_embedding_layers=is_saved)
    saved = [(tmp_path / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")]
    assert refusal(*saved) == "embedding"


def test_a_base_that_serves_its_output_layer_takes_adapters_on_it() -> None:
    base = msgspec.structs.replace(TINY_BASE, modules={**TINY_BASE.modules, "lm_head": ModuleShape(16, 32)})
    tensors = tiny_tensors({"lm_head": 4}, base=base)
    config = config_json(target_modules=["lm_head"])
    assert len(validate(config, write_tensors(tensors, {}), base).tensors) == 2


def test_matching_is_charged_to_the_matcher_that_is_given() -> None:
    slow = config_json(rank_pattern={f"(.|..)+[!?]{{{number}}}": 4 for number in range(1, 150)})
    matcher = Matcher(budget_s=0.3)
    for _ in range(2):
        with pytest.raises(AdapterRefused, match="pattern"):
            validate(slow, tiny_weights(), TINY_BASE, matcher)


def test_an_adapter_for_another_base_is_refused_with_both_fingerprints() -> None:
    other = Fingerprint("sha256:" + "cd" * 32)
    with pytest.raises(BaseMismatch) as refused:
        check_base(other, TINY_FINGERPRINT)
    assert other in refused.value.message
    assert TINY_FINGERPRINT in refused.value.message
    check_base(None, TINY_FINGERPRINT)
    check_base(TINY_FINGERPRINT, TINY_FINGERPRINT)


def test_every_field_of_pefts_configuration_passes_at_its_default() -> None:
    """A new PEFT with a field whose default we would refuse fails here, before it fails a user."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM").to_dict()
    given = {
        name: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for name, value in config.items()
    }
    valid = validate(config_json(**given), tiny_weights(), TINY_BASE)
    assert valid.config.target_modules == ("q_proj",)


def test_the_tables_name_all_fields_that_peft_has_and_no_other() -> None:
    """A field that is in no table counts as switched off when it is empty, which is not true of all that PEFT has."""
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert (IGNORED | SERVED | NEUTRAL.keys()) == known
