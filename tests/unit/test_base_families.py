"""Dense families of bases: tokens and probabilities of a mixed batch are those of ``transformers`` and PEFT in fp32.

Windows are shorter than the prompts, prompts are computed in chunks, and rows without an adapter stand beside rows of
two, so a wrong mask, position, scale or target shows as another number.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers as hf
from transformers import PretrainedConfig

from support.golden import VOCAB_SIZE, WINDOW, check_golden, make_rig, one_thread, small, without

ROPE = {"rope_theta": 10_000.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
SLIDING = ["sliding_attention", "full_attention"]
NO_GROUPS = small(num_key_value_heads=4)

FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**small()),
    "llama-tied": lambda: hf.LlamaConfig(**small(tie_word_embeddings=True)),
    "llama-biases": lambda: hf.LlamaConfig(**small(attention_bias=True, mlp_bias=True)),
    "llama-llama3": lambda: hf.LlamaConfig(**small(rope_parameters=ROPE | LLAMA3 | {"rope_type": "llama3"})),
    "llama-yarn": lambda: hf.LlamaConfig(**small(rope_parameters=ROPE | YARN | {"rope_type": "yarn"})),
    "llama-linear": lambda: hf.LlamaConfig(**small(rope_parameters=ROPE | {"rope_type": "linear", "factor": 4.0})),
    # One layer of each kind.
    "qwen2": lambda: hf.Qwen2Config(**small(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)),
    "qwen2-tied": lambda: hf.Qwen2Config(**small(tie_word_embeddings=True)),
    "qwen3": lambda: hf.Qwen3Config(**small()),
    "qwen3-tied": lambda: hf.Qwen3Config(**small(tie_word_embeddings=True)),
    "mistral": lambda: hf.MistralConfig(**small(sliding_window=WINDOW)),
    "ministral": lambda: hf.MinistralConfig(**small(sliding_window=WINDOW, layer_types=SLIDING)),
    "gemma": lambda: hf.GemmaConfig(**small(tie_word_embeddings=True)),
    "gemma2": lambda: hf.Gemma2Config(
        **small(
            sliding_window=WINDOW, query_pre_attn_scalar=24, attn_logit_softcapping=5.0, final_logit_softcapping=3.0,
            layer_types=SLIDING,
        )
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **small(
            sliding_window=WINDOW, query_pre_attn_scalar=24, layer_types=SLIDING, tie_word_embeddings=True,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
            },
        )
    ),
    "phi": lambda: hf.PhiConfig(**NO_GROUPS | {"partial_rotary_factor": 0.5}),
    "phi3": lambda: hf.Phi3Config(**small(sliding_window=WINDOW)),
    "granite": lambda: hf.GraniteConfig(
        **small(embedding_multiplier=2.0, logits_scaling=3.0, residual_multiplier=0.5, attention_multiplier=0.2)
    ),
    "olmo2": lambda: hf.Olmo2Config(**small()),
    "olmo3": lambda: hf.Olmo3Config(**small(sliding_window=WINDOW, layer_types=SLIDING)),
    "cohere": lambda: hf.CohereConfig(**small(use_qk_norm=True, logit_scale=1.0)),
    "cohere2": lambda: hf.Cohere2Config(**small(logit_scale=1.0, sliding_window=WINDOW, layer_types=SLIDING)),
    "starcoder2": lambda: hf.Starcoder2Config(**small(sliding_window=WINDOW, use_bias=True)),
    "smollm3": lambda: hf.SmolLM3Config(**small(no_rope_layers=[1, 0])),
    "stablelm": lambda: hf.StableLmConfig(**small(use_qkv_bias=True)),
    "glm4": lambda: hf.Glm4Config(**small(attention_bias=True)),
    "exaone4": lambda: hf.Exaone4Config(**small(sliding_window=WINDOW, layer_types=SLIDING)),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**NO_GROUPS | {"use_parallel_residual": True}),
    "nemotron": lambda: hf.NemotronConfig(**small()),
    "ernie4.5": lambda: hf.Ernie4_5Config(**small()),
    "hunyuan": lambda: hf.HunYuanDenseV1Config(**small()),
    "persimmon": lambda: hf.PersimmonConfig(**NO_GROUPS),
    # The last two layers attend to the keys and values of the first two, beside four residual streams.
    "gemma3n": lambda: hf.Gemma3nTextConfig(
        **small(
            num_hidden_layers=4, sliding_window=WINDOW, layer_types=SLIDING * 2, num_kv_shared_layers=2,
            vocab_size_per_layer_input=VOCAB_SIZE, hidden_size_per_layer_input=8, laurel_rank=4,
            activation_sparsity_pattern=[0.0] * 4,
        )
    ),
    # Learned positions; their first row is not position 0.
    "opt": lambda: hf.OPTConfig(
        **without(small(), "intermediate_size", "initializer_range", "head_dim", "num_key_value_heads"),
        ffn_dim=96, word_embed_proj_dim=64, init_std=0.3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mixed_batch_gets_what_transformers_and_peft_compute_alone(name: str, tmp_path: Path) -> None:
    with one_thread():
        check_golden(make_rig(FAMILIES[name](), tmp_path))
