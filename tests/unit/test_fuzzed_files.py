"""Good files that were changed at random: accepted only if they are what PEFT and safetensors load, to the bit."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig as PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import deserialize

from octavo_identity.building import build, read_back
from octavo_shared.errors import AdapterRefused
from octavo_shared.pack import PEFT_PREFIX, build_pack, read_header, unpack
from octavo_shared.safetensors_form import write_tensors
from support.adapters import TINY_BASE, TINY_FINGERPRINT, config_json, raw, tiny_tensors
from support.hostile import PACK_CONFIG, join, split

MODULES = list(TINY_BASE.modules)
_FIELDS = {field.name for field in dataclasses.fields(PeftConfig)} - {"peft_type", "task_type"}
_NUMBERS = st.sampled_from([0, 1, 2, 4, 8, 16, 64, 256, -1, 2**31, 2**63, 1.5, True, None, "4"])
_NAMES = st.sampled_from(
    [f"{PEFT_PREFIX}{module}.lora_{side}.weight" for module in MODULES for side in "AB"]
    + [f"{module}.{side}" for module in MODULES for side in "ab"]
    + ["x", "", "__metadata__", "a/b", "..", "\x00", "é"]
)
_WORDS = st.sampled_from(
    [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 0x80000000, 1, 0x7F80, 0x7C00, 0x7F7F, 0xFFFFFFFF]
)


def _changed_entry(data: st.DataObject, entry: dict[str, Any]) -> object:
    part = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "gone", "more", "swapped"]))
    if part == "dtype":
        return entry | {"dtype": data.draw(st.sampled_from(["F32", "F16", "BF16", "F64", "I32", "U8"]))}
    if part in ("shape", "data_offsets"):
        values = list(entry[part])
        values[data.draw(st.integers(0, len(values) - 1))] = data.draw(_NUMBERS)
        return entry | {part: values}
    if part == "swapped":
        return entry | {"shape": entry["shape"][::-1]}
    return entry | {"more": 1} if part == "more" else {}


def _changed_header(data: st.DataObject, header: dict[str, Any]) -> bytes:
    names = [name for name in header if name != "__metadata__"]
    name = data.draw(st.sampled_from(names))
    how = data.draw(st.sampled_from(["entry", "rename", "drop", "copy", "metadata", "order", "spaces", "swap"]))
    if how == "entry":
        header[name] = _changed_entry(data, header[name])
    elif how == "rename":
        header = {data.draw(_NAMES) if key == name else key: value for key, value in header.items()}
    elif how == "drop":
        del header[name]
    elif how == "copy":
        header[data.draw(_NAMES)] = header[name]
    elif how == "metadata":
        header["__metadata__"] = data.draw(st.sampled_from([{}, {"a": "b"}, {"a": 1}, [], None, {"octavo": "{}"}]))
    elif how == "order":
        header = {key: header[key] for key in data.draw(st.permutations(list(header)))}
    elif how == "swap":
        other = data.draw(st.sampled_from(names))
        header[name], header[other] = header[other], header[name]
    encoded = json.dumps(header, indent=2 if how == "spaces" else None).encode()
    if how == "spaces":
        return encoded + b" " * data.draw(st.integers(0, 16))
    return encoded


def _changed_file(data: st.DataObject, file: bytes) -> bytes:
    header, body = split(file)
    how = data.draw(st.sampled_from(["header", "header", "word", "bytes", "end", "nothing"]))
    if how == "header":
        return join(_changed_header(data, header), body)
    changed = bytearray(file)
    start = len(file) - len(body)
    if how == "word":
        at = start + 2 * data.draw(st.integers(0, (len(body) - 4) // 2))
        changed[at : at + 4] = data.draw(_WORDS).to_bytes(4, "little")
    elif how == "bytes":
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    elif how == "end":
        more = data.draw(st.integers(-8, 8))
        changed = changed[:more] if more < 0 else changed + bytes(more)
    return bytes(changed)


def _changed_config(data: st.DataObject, config: dict[str, Any]) -> bytes:
    field = data.draw(
        st.sampled_from(["r", "lora_alpha", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern", "use_dora",
                         "bias", "layers_to_transform", "exclude_modules", "lora_dropout", "fan_in_fan_out"])
    )  # fmt: skip
    config[field] = data.draw(
        _NUMBERS
        | st.sampled_from([["q_proj"], ["v_proj", "q_proj"], "all-linear", r".*\.\d\.self_attn\.q_proj", [], {}, [0, 1],
                           {"q_proj": 4}, {".*1.*q_proj": 8}, {"v_proj": 2}, "none", ["down_proj"]])
    )  # fmt: skip
    encoded = json.dumps(config).encode()
    if data.draw(st.integers(0, 9)) == 0:
        damaged = bytearray(encoded)
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        return bytes(damaged)
    return encoded


def _good(data: st.DataObject) -> tuple[dict[str, Any], dict[str, int], str]:
    """Return a configuration, and which module has which rank, in which dtype."""
    rank = data.draw(st.sampled_from([1, 4, 8]))
    ranks = {module: rank for module in MODULES if module.endswith("q_proj")}
    config = json.loads(config_json(r=rank))
    return config, ranks, data.draw(st.sampled_from(["F32", "F16", "BF16"]))


def _loaded(file: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Return what the safetensors library itself makes of a file."""
    return {name: (found["dtype"], list(found["shape"]), bytes(found["data"])) for name, found in deserialize(file)}


def _values(dtype: str, data: bytes) -> np.ndarray[Any, Any]:
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.float32 if dtype == "F32" else np.float16)


@settings(max_examples=1_500, deadline=None, derandomize=True)
@given(st.data())
def test_an_upload_that_is_accepted_is_what_peft_loads_to_the_bit(data: st.DataObject) -> None:
    config, ranks, dtype = _good(data)
    weights = write_tensors(tiny_tensors(ranks, dtype=dtype), {"format": "pt"})
    config_bytes = json.dumps(config).encode()
    for _ in range(data.draw(st.integers(0, 2))):
        try:
            weights = _changed_file(data, weights)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            break  # What was changed before can no longer be taken apart.
    if data.draw(st.integers(0, 3)) == 0:
        config_bytes = _changed_config(data, config)
    try:
        pack = build(config_bytes, weights, TINY_BASE, None)
    except AdapterRefused:
        return
    loaded = _loaded(weights)
    for of_dtype, _, values in loaded.values():
        assert np.isfinite(_values(of_dtype, values)).all()
    # As PEFT does, leave out what this PEFT does not know.
    given = {name: value for name, value in json.loads(config_bytes).items() if name in _FIELDS}
    peft = PeftConfig(**given)
    targeted = {module for module in MODULES if check_target_module_exists(peft, module)}
    assert loaded.keys() == {f"{PEFT_PREFIX}{module}.lora_{side}.weight" for module in targeted for side in "AB"}
    built = read_back(pack)
    assert {module.name for module in built.header.modules} == targeted
    with tempfile.TemporaryDirectory() as folder:
        unpack(pack, Path(folder), "tiny")
        pulled = (Path(folder) / "adapter_model.safetensors").read_bytes()
        again = (Path(folder) / "adapter_config.json").read_bytes()
    assert _loaded(pulled) == loaded
    assert read_back(build(again, pulled, TINY_BASE, None)).digest == built.digest


@settings(max_examples=2_500, deadline=None, derandomize=True)
@given(st.data())
def test_a_pack_that_is_read_holds_its_rows_where_it_says(data: st.DataObject) -> None:
    _, ranks, dtype = _good(data)
    tensors = tiny_tensors(ranks, dtype=dtype)
    pack = build_pack(PACK_CONFIG, tensors, TINY_FINGERPRINT, None)
    for _ in range(data.draw(st.integers(0, 2))):
        try:
            pack = _changed_file(data, pack)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            break
    try:
        header = read_header(pack)
    except AdapterRefused:
        return
    loaded, ends = _loaded(pack), []
    assert len(loaded) == 2 * len(header.modules)
    for module in header.modules:
        for side, offset, of_dtype, features in (
            ("a", module.a_offset, module.a_dtype, module.in_features),
            ("b", module.b_offset, module.b_dtype, module.out_features),
        ):
            size = module.rank * features * (4 if of_dtype == "F32" else 2)
            assert loaded[f"{module.name}.{side}"] == (of_dtype, [module.rank, features], pack[offset : offset + size])
            ends.append((offset, offset + size))
    assert all(one[1] == two[0] for one, two in zip(sorted(ends), sorted(ends)[1:], strict=False))
    assert max(end for _, end in ends) == len(pack)


def test_the_changes_leave_some_files_good() -> None:
    """A fuzz target that is refused always proves nothing: count how many come through."""
    accepted, refused = [0], [0]

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(st.data())
    def count(data: st.DataObject) -> None:
        config, ranks, dtype = _good(data)
        weights = _changed_file(data, write_tensors(tiny_tensors(ranks, dtype=dtype), {}))
        try:
            build(json.dumps(config).encode(), weights, TINY_BASE, None)
            accepted[0] += 1
        except AdapterRefused:
            refused[0] += 1

    count()
    assert accepted[0] > 30
    assert refused[0] > 100


def test_rows_of_many_dtypes_come_back_as_they_were(tmp_path: Path) -> None:
    values = np.array([[0.0, -0.0, 1e-40, 65_504.0]] * 4, np.float32)
    for dtype in ("F32", "F16", "BF16"):
        weights = write_tensors(
            {f"{PEFT_PREFIX}{MODULES[0]}.lora_A.weight": raw(np.tile(values, 4), dtype),
             f"{PEFT_PREFIX}{MODULES[0]}.lora_B.weight": raw(np.ones((16, 4)), dtype)}, {},
        )  # fmt: skip
        pack = build(config_json(target_modules=["layers.0.self_attn.q_proj"]), weights, TINY_BASE, None)
        unpack(pack, tmp_path / dtype, "tiny")
        assert _loaded((tmp_path / dtype / "adapter_model.safetensors").read_bytes()) == _loaded(weights)
