import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from octavo_shared.errors import AdapterRefused
from octavo_shared.lora_config import LoraConfig, parse_lora_config
from octavo_shared.pack import build_pack, digest_of, read_header, unpack
from octavo_shared.patterns import Matcher
from octavo_shared.safetensors_form import read_tensors, write_tensors
from support.adapters import TINY_FINGERPRINT, q_proj_modules, raw, tiny_tensors, tiny_weights

CONFIG = LoraConfig(r=4, lora_alpha=8, target_modules=("q_proj",), task_type="CAUSAL_LM")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_unpacking_gives_back_the_bits_that_were_packed(dtype: str, tmp_path: Path) -> None:
    tensors = tiny_tensors(q_proj_modules(), dtype=dtype)
    unpack(build_pack(CONFIG, tensors, TINY_FINGERPRINT, None), tmp_path, "tiny")
    _, found, _ = read_tensors((tmp_path / "adapter_model.safetensors").read_bytes())
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert np.array_equal(found[name].words, tensor.words)


def test_a_pack_of_mixed_dtypes_gives_back_every_bit(tmp_path: Path) -> None:
    one, two = q_proj_modules()
    tensors = tiny_tensors({one: 1}, dtype="F16") | tiny_tensors({two: 4})
    tensors[f"base_model.model.{two}.lora_B.weight"] = raw(np.full((16, 4), 1.5), "BF16")
    pack = build_pack(parse_lora_config({"r": 4, "rank_pattern": {one: 1}}), tensors, TINY_FINGERPRINT, None)
    assert read_header(pack).dtype == "mixed"
    unpack(pack, tmp_path, "tiny")
    _, found, _ = read_tensors((tmp_path / "adapter_model.safetensors").read_bytes())
    assert {name: (tensor.dtype, tensor.words.tolist()) for name, tensor in found.items()} == {
        name: (tensor.dtype, tensor.words.tolist()) for name, tensor in tensors.items()
    }


def test_the_first_pattern_that_matches_still_decides_after_unpacking(tmp_path: Path) -> None:
    one, two = q_proj_modules()
    config = parse_lora_config({"rank_pattern": {two: 3, ".*q_proj": 2}, "target_modules": ["q_proj"]})
    unpack(build_pack(config, tiny_tensors({one: 2, two: 3}), TINY_FINGERPRINT, None), tmp_path, "tiny")
    again = parse_lora_config(json.loads((tmp_path / "adapter_config.json").read_text()))
    assert (again.rank_of(one, Matcher()), again.rank_of(two, Matcher())) == (2, 3)


def test_a_header_that_begins_like_a_pickle_is_read() -> None:
    lengths = set()
    for padding in range(0, 1024, 8):
        data = write_tensors(tiny_tensors(q_proj_modules()), {"padding": "x" * padding})
        assert len(read_tensors(data)[1]) == 4
        lengths.add(data[:2])
    assert {b"\x80\x02", b"\x80\x04"} <= lengths


def test_the_same_adapter_has_the_same_digest_however_its_file_was_written() -> None:
    tensors = tiny_tensors(q_proj_modules())
    shuffled = dict(reversed(tensors.items()))
    spelt = {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "q_proj"], "rank_pattern": {}}
    other = {"base_model_name_or_path": "/home/somebody/base", "target_modules": ["q_proj", "v_proj"],
             "lora_alpha": 8, "r": 4, "inference_mode": True, "use_rslora": False}  # fmt: skip
    one = build_pack(parse_lora_config(spelt), tensors, TINY_FINGERPRINT, None)
    two = build_pack(parse_lora_config(other), shuffled, TINY_FINGERPRINT, None)
    assert digest_of(one) == digest_of(two)
    assert digest_of(build_pack(parse_lora_config(spelt | {"r": 5}), tensors, TINY_FINGERPRINT, None)) != digest_of(one)


def test_the_small_form_rounds_to_the_nearest_bf16() -> None:
    tensors = tiny_tensors(q_proj_modules(), seed=3)
    header = read_header(pack := build_pack(CONFIG, tensors, TINY_FINGERPRINT, "bf16"))
    assert header.dtype == "BF16"
    module = header.modules[0]
    stored = torch.frombuffer(bytearray(pack), dtype=torch.bfloat16, count=4 * 16, offset=module.a_offset)
    original = torch.from_numpy(tensors[f"base_model.model.{module.name}.lora_A.weight"].words.view(np.float32))
    assert torch.equal(stored.view(4, 16), original.to(torch.bfloat16))


def test_a_field_that_is_left_out_has_the_digest_of_its_default() -> None:
    tensors = tiny_tensors(q_proj_modules(8))
    spelt = {"r": 8, "lora_alpha": 8, "lora_dropout": 0, "use_rslora": False, "rank_pattern": {}, "layers_pattern": []}
    one = build_pack(parse_lora_config({"target_modules": ["q_proj"]}), tensors, TINY_FINGERPRINT, None)
    two = build_pack(parse_lora_config(spelt | {"target_modules": ["q_proj"]}), tensors, TINY_FINGERPRINT, None)
    assert digest_of(one) == digest_of(two)


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
@pytest.mark.parametrize("value", [np.finfo(np.float32).max, np.finfo(np.float32).min, 3.3962e38])
def test_a_weight_that_would_round_to_infinity_is_refused_and_not_stored(value: float, side: str) -> None:
    tensors = tiny_tensors(q_proj_modules())
    name = f"base_model.model.{next(iter(q_proj_modules()))}.{side}.weight"
    largest = np.full(tensors[name].shape, 3.3895e38, np.float32)
    small = build_pack(CONFIG, tensors | {name: raw(largest)}, TINY_FINGERPRINT, "bf16")
    assert read_header(small).dtype == "BF16"
    largest[1, 1] = value
    build_pack(CONFIG, tensors | {name: raw(largest)}, TINY_FINGERPRINT, None)
    with pytest.raises(AdapterRefused) as refused:
        build_pack(CONFIG, tensors | {name: raw(largest)}, TINY_FINGERPRINT, "bf16")
    assert refused.value.fields["rule"] == "nan"


def _hostile() -> dict[str, bytes]:
    good = tiny_weights()
    (length,) = struct.unpack("<Q", good[:8])
    header = json.loads(good[8 : 8 + length])
    body = good[8 + length :]
    first = next(name for name in header if name != "__metadata__")

    def rebuilt(**changed: object) -> bytes:
        encoded = json.dumps(header | changed).encode()
        return struct.pack("<Q", len(encoded)) + encoded + body

    entry = header[first]
    return {
        "empty": b"",
        "short": b"\x01\x02",
        "pickle": b"\x80\x02}q\x00.",
        "torch zip": b"PK\x03\x04" + bytes(64),
        "absurd header length": struct.pack("<Q", 2**62) + b"{}",
        "header beyond the file": struct.pack("<Q", 1000) + b"{}",
        "header no JSON": struct.pack("<Q", 4) + b"{{{{",
        "header a list": struct.pack("<Q", 2) + b"[]",
        "deep JSON": struct.pack("<Q", 200_000) + b"[" * 200_000,
        "no tensor": struct.pack("<Q", 2) + b"{}",
        "truncated": good[:-1],
        "trailing bytes": good + b"x",
        "metadata no strings": rebuilt(__metadata__={"a": 1}),
        "path in a name": rebuilt(**{"../../etc/passwd": entry}),
        "control character in a name": rebuilt(**{"a\nb": entry}),
        "long name": rebuilt(**{"a" * 300: entry}),
        "overlapping": rebuilt(another=entry),
        "negative offset": rebuilt(**{first: entry | {"data_offsets": [-4, 4]}}),
        "offsets out of range": rebuilt(**{first: entry | {"data_offsets": [0, 2**40]}}),
        "shape too large": rebuilt(**{first: entry | {"shape": [2**31, 2**31, 2**31]}}),
        "negative shape": rebuilt(**{first: entry | {"shape": [-1, -64]}}),
        "unknown dtype": rebuilt(**{first: entry | {"dtype": "F64"}}),
        "integer dtype": rebuilt(**{first: entry | {"dtype": "I8"}}),
        "entry of another form": rebuilt(**{first: 7}),
        "shape of strings": rebuilt(**{first: entry | {"shape": ["a"]}}),
    }


@pytest.mark.parametrize("name", _hostile())
def test_hostile_files_are_refused_by_rule(name: str) -> None:
    for read in (read_tensors, read_header):
        with pytest.raises(AdapterRefused) as refused:
            read(_hostile()[name])
        assert refused.value.fields["rule"] in {"format", "pickle", "tensor_name", "dtype"}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_but_nothing_else(data: st.DataObject) -> None:
    good = build_pack(CONFIG, tiny_tensors(q_proj_modules()), TINY_FINGERPRINT, None)
    (length,) = struct.unpack("<Q", good[:8])
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 8 + length - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(good), len(good) // 2, 8 + length, 9]))
    with contextlib.suppress(AdapterRefused):
        read_header(bytes(damaged[:end]))


def test_a_safetensors_file_that_is_no_pack_is_refused() -> None:
    with pytest.raises(AdapterRefused, match="not a pack"):
        read_header(tiny_weights())
    with pytest.raises(AdapterRefused, match="not a pack"):
        read_header(write_tensors({"x.a": raw(np.ones((1, 2)))}, {"octavo": "{}"}))


def test_a_pack_whose_parts_do_not_fit_together_is_refused() -> None:
    good = build_pack(CONFIG, tiny_tensors(q_proj_modules()), TINY_FINGERPRINT, None)
    metadata, tensors, _ = read_tensors(good)
    name = next(iter(q_proj_modules()))
    a = tensors[f"{name}.a"]
    huge = {f"{name}.a": raw(np.ones((513, 1))), f"{name}.b": raw(np.ones((513, 1)))}
    empty = {f"{name}.a": raw(np.ones((0, 16))), f"{name}.b": raw(np.ones((0, 16)))}
    for changed, rule in [
        ({key: value for key, value in tensors.items() if key != f"{name}.b"}, "format"),
        (tensors | {f"{name}.b": raw(np.ones((5, 16)))}, "format"),
        (tensors | {f"{name}.b": raw(np.ones(16))}, "format"),
        (tensors | {"another.a": a, "another.b": a}, "format"),
        (tensors | huge, "rank"),
        (tensors | empty, "rank"),
    ]:
        with pytest.raises(AdapterRefused) as refused:
            read_header(write_tensors(changed, metadata))
        assert refused.value.fields["rule"] == rule
    for old, new in [("octavo-pack/1", "octavo-pack/9"), ("scalings", "scaling"), (name, "somebody")]:
        with pytest.raises(AdapterRefused):
            read_header(write_tensors(tensors, {"octavo": metadata["octavo"].replace(old, new)}))


TINY = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=64, tie_word_embeddings=True,
)  # fmt: skip
FORMS: list[dict[str, object]] = [
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": "all-linear"},
    {"target_modules": r".*\.mlp\.(up|down)_proj"},
    {"target_modules": ["q_proj", "down_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
    {"target_modules": ["k_proj"], "layers_to_transform": [0, 2]},
    {"target_modules": ["k_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    {"target_modules": ["model.layers.0.self_attn.k_proj", "v_proj"], "layers_to_transform": [1]},
    {"target_modules": r".*k_proj", "exclude_modules": r".*layers\.2.*"},
    {"target_modules": ["q_proj"], "use_rslora": True, "r": 9},
    {"target_modules": ["q_proj"], "rank_pattern": {"model.layers.1.self_attn.q_proj": 3, ".*q_proj": 2}},
    {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2, r"layers\.1\..*q_proj": 3}},
    {"target_modules": ["q_proj", "up_proj"], "alpha_pattern": {"q_proj": 3, "model.layers.2.mlp.up_proj": 5}},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_targets_ranks_and_scalings_are_those_of_peft(form: dict[str, object]) -> None:
    given: dict[str, object] = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **form}
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(TINY), PeftConfig(**given))  # type: ignore[arg-type]
    config = parse_lora_config(given)
    wrapped = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and module.lora_A
    }
    plain = [name for name, module in LlamaForCausalLM(TINY).named_modules() if isinstance(module, torch.nn.Linear)]
    matcher = Matcher()
    assert {name for name in plain if config.targets(name, matcher)} == wrapped.keys()
    for name, module in wrapped.items():
        rank = config.rank_of(name, matcher)
        assert rank == module.r["default"]
        assert config.scaling_of(name, rank, matcher) == pytest.approx(module.scaling["default"])


def test_peft_loads_what_was_unpacked_and_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(1)
    base = LlamaForCausalLM(TINY)
    given = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 2}}
    model = get_peft_model(base, PeftConfig(task_type="CAUSAL_LM", init_lora_weights=False, **given))  # type: ignore[arg-type]
    model.save_pretrained(tmp_path / "saved")
    ids = torch.arange(10)[None]
    expected = model(ids).logits
    _, tensors, _ = read_tensors((tmp_path / "saved/adapter_model.safetensors").read_bytes())
    config = parse_lora_config(json.loads((tmp_path / "saved/adapter_config.json").read_text()))
    unpack(build_pack(config, tensors, TINY_FINGERPRINT, None), tmp_path / "pulled", "tiny")
    torch.manual_seed(1)
    again = PeftModel.from_pretrained(LlamaForCausalLM(TINY), tmp_path / "pulled")
    assert torch.equal(again(ids).logits, expected)
