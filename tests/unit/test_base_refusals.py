"""Bases and adapters that cannot be served right: each refused with one sentence that a user understands."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from transformers import PretrainedConfig, PreTrainedModel

from octavo_identity.validator import validate
from octavo_shared.errors import AdapterRefused
from octavo_shared.lora_config import LoraConfig as ServedConfig
from octavo_shared.manifest import ModuleShape
from octavo_shared.pack import build_pack
from octavo_worker.engine.engine import Engine, EngineLimits, new_arena
from octavo_worker.model.base import BaseModel, load_base
from octavo_worker.model.context import UnsupportedBase
from octavo_worker.model.requirements import window_max
from support.adapters import tiny_tensors
from support.engines import install, save_base
from support.golden import ARENA_BYTES, make_model, one_thread, small, without

ROPE = {"rope_theta": 10_000.0, "original_max_position_embeddings": 64}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
         "linear_value_head_dim": 16}  # fmt: skip
GPT2 = {"vocab_size": 97, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1,
        "eos_token_id": 1}  # fmt: skip
T5 = {"vocab_size": 97, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
BART = {"vocab_size": 97, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}  # fmt: skip
ONLY = "served are layers that attend to all or to a sliding window"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def _kind(architecture: str, kind: str) -> str:
    return f"layers of architecture '{architecture}' are of kind '{kind}'; {ONLY}"


def _untrained(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = hf.AutoModelForCausalLM.from_config(config)
    return model


REFUSED: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    # Linear attention, state spaces and convolutions: a packed batch would run from one sequence into the next.
    "qwen3-next": (
        lambda: hf.Qwen3NextConfig(
            **small(num_experts=2, num_experts_per_tok=1, moe_intermediate_size=32, shared_expert_intermediate_size=32),
            **DELTA,
        ),
        _kind("qwen3_next", "linear_attention"),
    ),
    "qwen3.5": (lambda: hf.Qwen3_5TextConfig(**small(), **DELTA), _kind("qwen3_5_text", "linear_attention")),
    "jamba": (
        lambda: hf.JambaConfig(
            **small(pad_token_id=0), attn_layer_period=2, attn_layer_offset=1, num_experts=2, use_mamba_kernels=False
        ),
        _kind("jamba", "linear_attention"),
    ),
    "bamba": (lambda: hf.BambaConfig(**small(), **MAMBA, attn_layer_indices=[1]), _kind("bamba", "linear_attention")),
    "falcon-h1": (lambda: hf.FalconH1Config(**small(), **MAMBA, mamba_d_ssm=128), _kind("falcon_h1", "hybrid")),
    "recurrent-gemma": (
        lambda: hf.RecurrentGemmaConfig(**small(), attention_window_size=8, lru_width=64),
        _kind("recurrent_gemma", "linear_attention"),
    ),
    "mamba2": (
        lambda: hf.Mamba2Config(
            vocab_size=97, hidden_size=64, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=16, n_groups=1
        ),
        "architecture 'mamba2' has no attention heads; only decoders that attend are served",
    ),
    "lfm2": (lambda: hf.Lfm2Config(**small(), layer_types=["conv", "full_attention"]), _kind("lfm2", "conv")),
    "llama4": (
        lambda: hf.Llama4TextConfig(
            **small(), num_local_experts=2, intermediate_size_mlp=96, attention_chunk_size=8, no_rope_layers=[1, 0]
        ),
        f"layers of architecture 'llama4_text' attend in chunks; {ONLY}",
    ),
    "dynamic": (
        lambda: hf.LlamaConfig(**small(rope_parameters=ROPE | {"rope_type": "dynamic", "factor": 2.0})),
        "rotary embedding 'dynamic' depends on the longest sequence of a batch",
    ),
    "longrope": (
        lambda: hf.Phi3Config(**small(rope_parameters=ROPE | FACTORS | {"rope_type": "longrope"})),
        "rotary embedding 'longrope' depends on the longest sequence of a batch",
    ),
    "dynamic-of-one-kind": (
        lambda: hf.Gemma3TextConfig(
            **small(
                rope_parameters={
                    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                    "full_attention": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
                }
            )
        ),
        "rotary embedding 'dynamic' depends on the longest sequence of a batch",
    ),
    "gpt2": (lambda: hf.GPT2Config(**GPT2), "this base has no linear layer that an adapter could be put on"),
    # Attention of its own making.
    "gpt-j": (lambda: hf.GPTJConfig(**GPT2, rotary_dim=8), "layer 0 of this base does not attend through the paged "
              "attention"),
    "falcon-alibi": (
        lambda: hf.FalconConfig(**without(small(), "head_dim", "num_key_value_heads"), alibi=True),
        "layer 0 of this base does not attend through the paged attention",
    ),
    "bert": (
        lambda: hf.BertConfig(**without(small(), "head_dim", "num_key_value_heads"), is_decoder=False),
        "attention of layer 0 also looks ahead, which is not served",
    ),
    "rwkv": (
        lambda: hf.RwkvConfig(vocab_size=97, hidden_size=64, num_hidden_layers=2, context_length=128),
        "architecture 'rwkv' has no attention heads; only decoders that attend are served",
    ),
    # Positions are no part of it, so nothing says how long a context is.
    "bloom": (
        lambda: hf.BloomConfig(vocab_size=97, hidden_size=64, n_layer=2, n_head=4),
        "architecture 'bloom' has no 'max_position_embeddings': no context length",
    ),
    # Keys longer than values.
    "deepseek-v3": (
        lambda: hf.DeepseekV3Config(
            **without(small(num_key_value_heads=4), "head_dim"), moe_intermediate_size=32, n_routed_experts=4,
            num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=16,
            qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16,
        ),
        "keys of layer 0 have shape (1, 4, 30, 24) and values (1, 4, 30, 16); pages are laid out for (1, 4, 30, 8)",
    ),
}  # fmt: skip


def _refusal(folder: Path) -> str:
    """Return why the base in ``folder`` is refused; asserts that it is one sentence."""
    with pytest.raises(UnsupportedBase) as refused:
        load_base(folder)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert ". " not in sentence
    assert len(sentence) < 300
    return sentence


# Some architectures say so of their own tiny configurations.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_a_base_that_cannot_be_served_right_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    make_config, sentence = REFUSED[name]
    assert _refusal(save_base(_untrained(make_config()), tmp_path / "base")) == sentence


@pytest.mark.parametrize(
    ("make", "architecture"),
    [
        (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)), "t5"),
        (lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)), "bart"),
    ],
    ids=["t5", "bart"],
)
def test_an_encoder_with_a_decoder_is_refused(
    make: Callable[[], PreTrainedModel], architecture: str, tmp_path: Path
) -> None:
    folder = save_base(make(), tmp_path / "base")
    assert _refusal(folder) == f"architecture '{architecture}' is an encoder with a decoder; only decoders are served"


def _llama(folder: Path, **said: object) -> Path:
    """Save a tiny Llama whose ``config.json`` says ``said`` too."""
    save_base(make_model(hf.LlamaConfig(**small())), folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    return folder


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        # As GPT-OSS is published.
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
        {"quant_method": "a-method-of-tomorrow"},
    ],
    ids=lambda said: str(said["quant_method"]),
)
def test_a_quantised_base_is_refused_whatever_the_method(said: dict[str, object], tmp_path: Path) -> None:
    assert _refusal(_llama(tmp_path / "base", quantization_config=said)) == (
        f"this base is quantised ('{said['quant_method']}'), which is not served; save it dequantised, as bfloat16, "
        "float16 or float32"
    )


def test_a_directory_that_transformers_does_not_know_is_refused_in_one_sentence(tmp_path: Path) -> None:
    sentence = _refusal(_llama(tmp_path / "base", model_type="unheard-of"))
    assert sentence.startswith("this base cannot be loaded: ValueError: ")
    assert "unheard-of" in sentence


def test_a_window_as_long_as_the_context_is_none() -> None:
    assert window_max(hf.MistralConfig(sliding_window=100), 101) == 100
    assert window_max(hf.MistralConfig(sliding_window=100), 100) == 0
    assert window_max(hf.ModernBertDecoderConfig(local_attention=64), 100) == 64


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def llama(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, BaseModel]:
    model = make_model(hf.LlamaConfig(**small(tie_word_embeddings=request.param)))
    return model, load_base(save_base(model, tmp_path / "base"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"]], ids=str)
def test_an_adapter_on_the_output_head_is_refused_by_name(
    llama: tuple[PreTrainedModel, BaseModel], targets: list[str], tmp_path: Path
) -> None:
    model, base = llama
    config = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    said, weights = (tmp_path / "peft" / file for file in ("adapter_config.json", "adapter_model.safetensors"))
    with pytest.raises(AdapterRefused, match=r"'\S+\.lm_head\.lora_\S+' belongs to the output head, which takes no"):
        validate(said.read_bytes(), weights.read_bytes(), base.manifest)


@pytest.mark.parametrize("module", ["lm_head", "model.layers.0.mlp.experts.0.gate_proj"])
def test_an_engine_installs_nothing_on_a_module_that_takes_no_adapters(
    llama: tuple[PreTrainedModel, BaseModel], module: str
) -> None:
    _, base = llama
    engine = Engine(base, new_arena(base, ARENA_BYTES), EngineLimits())
    lying = msgspec.structs.replace(base.manifest, modules=base.manifest.modules | {module: ModuleShape(64, 97)})
    tensors = tiny_tensors({"model.layers.0.self_attn.q_proj": 2, module: 2}, base=lying)
    served = ServedConfig(r=2, target_modules=("q_proj", module))
    with pytest.raises(AdapterRefused, match=f"^unknown_module: the base has no linear module '{module}' that takes"):
        install(engine, build_pack(served, tensors, base.fingerprint, None), "a")
    assert engine.residency() == []
    engine.check_integrity()
