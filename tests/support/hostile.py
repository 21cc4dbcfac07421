"""Files that somebody made to do harm: uploads as a pusher sends them, and packs as a worker would read them.

Each is made when it is asked for, beside the rule that must refuse it. Run as a program, this looks at every one of
them and prints what that took.
"""

import gc
import gzip
import io
import json
import mmap
import os
import pickle
import resource
import struct
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from octavo_identity.building import build
from octavo_shared.errors import AdapterRefused
from octavo_shared.lora_config import LoraConfig
from octavo_shared.manifest import ModuleShape
from octavo_shared.pack import build_pack, read_header
from octavo_shared.safetensors_form import read_tensors, write_tensors
from support.adapters import TINY_BASE, TINY_FINGERPRINT, config_json, q_proj_modules, raw, tiny_tensors, tiny_weights

BASE = msgspec.structs.replace(
    TINY_BASE,
    modules=TINY_BASE.modules
    | {"model.huge": ModuleShape(400_000, 16)}
    | {
        f"model.layers.{layer}.{name}": ModuleShape(16, 16)
        for layer in range(2, 32)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                     "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    },
)  # fmt: skip
"""As many modules as the base of a laptop has; the small adapters fit its first two layers."""
TARGETS = ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"]
PACK_CONFIG = LoraConfig(r=4, lora_alpha=8, target_modules=("q_proj",), task_type="CAUSAL_LM")
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Upload:
    config: bytes
    weights: bytes | memoryview
    dtype: str | None = None


def good_config(**fields: object) -> bytes:
    return config_json(**{"target_modules": TARGETS, **fields})


def good_pack() -> bytes:
    return build_pack(PACK_CONFIG, tiny_tensors(q_proj_modules()), TINY_FINGERPRINT, None)


def split(file: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file and what follows it."""
    (length,) = struct.unpack("<Q", file[:8])
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def join(header: bytes | dict[str, Any], body: bytes = b"", *, is_aligned: bool = True) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    if is_aligned and not isinstance(header, bytes):
        encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + body


def _zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(32 * 1024 * 1024))
    return file.getvalue()


def _forms(good: bytes) -> Iterator[tuple[str, Callable[[], bytes], str]]:
    """Yield files that no safetensors file may be, made of ``good``: name, how it is made, and its rule."""
    header, body = split(good)
    first = next(name for name in header if name != "__metadata__")
    entry = header[first]
    stop = entry["data_offsets"][1]

    def with_entry(**changed: object) -> Callable[[], bytes]:
        return lambda: join(header | {first: entry | changed}, body)

    def with_name(name: str) -> Callable[[], bytes]:
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(body), len(body)]}
        return lambda: join(header | {name: empty}, body)

    def saying_before(place: str, more: str) -> Callable[[], bytes]:
        return lambda: join(json.dumps(header).replace(place, more + place, 1).encode(), body)

    empty_entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    yield "empty file", lambda: b"", "format"
    yield "three bytes", lambda: b"\x01\x02\x03", "format"
    yield "zeros", lambda: bytes(4096), "format"
    yield "pickle", lambda: pickle.dumps({"x": 1}, protocol=2), "pickle"
    yield "new pickle", lambda: pickle.dumps({"x": 1}, protocol=5), "pickle"
    yield "zip bomb", _zip_bomb, "pickle"
    yield "gzip bomb", lambda: gzip.compress(bytes(32 * 1024 * 1024)), "format"
    yield "GGUF", lambda: b"GGUF\x03\x00\x00\x00" + bytes(64), "format"
    yield "absurd header length", lambda: struct.pack("<Q", 2**62) + b"{}", "format"
    yield "negative header length", lambda: struct.pack("<q", -8) + good[8:], "format"
    yield "header beyond the file", lambda: struct.pack("<Q", len(good)) + good[8:], "format"
    yield "header longer by one", lambda: struct.pack("<Q", struct.unpack("<Q", good[:8])[0] + 1) + good[8:], "format"
    yield "header shorter by one", lambda: join(json.dumps(header).encode()[:-1], body), "format"
    yield "header no JSON", lambda: join(b"{{{{"), "format"
    yield "header a list", lambda: join(b"[]"), "format"
    yield "header null", lambda: join(b"null"), "format"
    yield "header with a byte order mark", lambda: join(b"\xef\xbb\xbf" + json.dumps(header).encode(), body), "format"
    yield "header in UTF-16", lambda: join(json.dumps(header).encode("utf-16"), body), "format"
    yield "header no UTF-8", lambda: join(b'{"\xff\xfe":' + empty_entry.encode() + b"}"), "format"
    yield "header padded by NUL", lambda: join(json.dumps(header).encode() + b"\x00", body), "format"
    yield "two headers", lambda: join(json.dumps(header).encode() * 2, body), "format"
    yield "deep JSON", lambda: join(b"[" * 200_000), "format"
    yield "deep objects", lambda: join(b'{"a":' * 8_000), "format"
    yield "deep JSON in an entry", lambda: join(b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}"), "format"
    yield "deep JSON in metadata", lambda: join(b'{"__metadata__":' + b"[" * 90_000 + b"]" * 90_000 + b"}"), "format"
    yield "no tensor", lambda: join(b"{}"), "format"
    yield "only metadata", lambda: join({"__metadata__": {"format": "pt"}}), "format"
    yield (
        "200,000 empty tensors",
        lambda: join(("{" + ",".join(f'"t{n}":{empty_entry}' for n in range(200_000)) + "}").encode()),
        "format",
    )
    yield (
        "short keys to fill memory",
        lambda: join(("{" + ",".join(f'"{n:x}":1' for n in range(200_000)) + "}").encode()),
        "format",
    )
    yield "a header of escaped quotes", lambda: join(b'{"' + b'\\"' * 900_000 + b'":1}'), "format"
    yield "a header of small lists", lambda: join(b'{"a":[' + b"[]," * 600_000 + b"[]]}"), "format"
    yield (
        "a shape of 600,000 sizes",
        lambda: join(b'{"a":{"dtype":"F32","shape":[' + b"0," * 600_000 + b'0],"data_offsets":[0,0]}}'),
        "format",
    )
    yield (
        "a shape of huge numbers",
        lambda: join(b'{"a":{"dtype":"F32","shape":[' + b"9" * 1_000_000 + b'],"data_offsets":[0,0]}}'),
        "format",
    )
    yield "10 MB of metadata", lambda: join(header | {"__metadata__": {"a": "x" * 10_000_000}}, body), "format"
    yield (
        "metadata of 100,000 keys",
        lambda: join(header | {"__metadata__": {f"k{n}": "" for n in range(100_000)}}, body),
        "format",
    )
    yield "metadata no strings", lambda: join(header | {"__metadata__": {"a": 1}}, body), "format"
    yield "metadata a list", lambda: join(header | {"__metadata__": ["a"]}, body), "format"
    yield "metadata null", lambda: join(header | {"__metadata__": None}, body), "format"
    for name in ("../../etc/passwd", "/etc/passwd", "..", "a..b", "a\\b", "a\x00b", "a\nb", "a" * 300, "", " ",
                 "q\u202eproj", "\u0430.lora_A.weight", "a/b", "\u2028", "%2e%2e%2f", "${HOME}", "a;b"):  # fmt: skip
        yield f"named {name[:20]!r}", with_name(name), "tensor_name"
    yield "a lone surrogate", with_name("\ud800"), "format"
    yield "an entry with a surrogate in it", with_entry(dtype="\udfff"), "format"
    yield "a tensor twice", saying_before(f'"{first}"', f'"{first}": {empty_entry}, '), "format"
    yield "a dtype twice", saying_before('"dtype"', '"dtype": "F64", '), "format"
    yield (
        "metadata twice",
        lambda: join(('{"__metadata__":{"a":"b"},' + json.dumps(header)[1:]).encode(), body),
        "format",
    )
    yield "a key more in an entry", with_entry(another=1), "format"
    yield (
        "an entry that lacks its shape",
        lambda: join(header | {first: {"dtype": "F32", "data_offsets": entry["data_offsets"]}}, body),
        "format",
    )
    yield "an entry that is a number", lambda: join(header | {first: 7}, body), "format"
    yield "overlapping", lambda: join(header | {"another": entry}, body), "format"
    yield "overlapping by a byte", with_entry(data_offsets=[1, stop + 1]), "format"
    yield (
        "a gap",
        lambda: join(
            header | {"z": {"dtype": "F32", "shape": [0], "data_offsets": [len(body) + 8, len(body) + 8]}},
            body + bytes(8),
        ),
        "format",
    )
    yield "backwards offsets", with_entry(data_offsets=[stop, 0]), "format"
    yield "negative offsets", with_entry(data_offsets=[-4, stop - 4]), "format"
    yield "offsets beyond the file", with_entry(data_offsets=[0, 2**40]), "format"
    yield "offsets beyond all files", with_entry(data_offsets=[0, 10**30]), "format"
    yield "offsets of a thousand digits", with_entry(data_offsets=[0, 10**1000]), "format"
    yield "offsets with fractions", with_entry(data_offsets=[0, 256.5]), "format"
    yield "offsets that are true", with_entry(data_offsets=[False, True]), "format"
    yield "three offsets", with_entry(data_offsets=[0, stop, stop]), "format"
    yield "a shape too large", with_entry(shape=[2**31, 2**31, 2**31]), "format"
    yield "a shape that wraps to nothing", with_entry(shape=[2**31, 2**31, 4, 1], data_offsets=[0, 0]), "format"
    yield "a shape that wraps to itself", with_entry(shape=[2**31, 2**31, 4, 0]), "format"
    yield "negative sizes", with_entry(shape=[-1, -stop // 4]), "format"
    yield "five sizes", with_entry(shape=[1, 1, 1, 1, stop // 4]), "format"
    yield "sizes that are strings", with_entry(shape=["a"]), "format"
    yield "sizes with fractions", with_entry(shape=[4.5, 16]), "format"
    for dtype in ("F64", "I8", "F8_E4M3", "BOOL", "f32", "", "F32" * 1000):
        yield f"dtype {dtype[:10]!r}", with_entry(dtype=dtype), "dtype"
    yield "truncated by one", lambda: good[:-1], "format"
    yield "truncated to its half", lambda: good[: len(good) // 2 + 300], "format"
    yield "truncated in its header", lambda: good[:100], "format"
    yield "a byte more", lambda: good + b"\x00", "format"
    yield "a megabyte more", lambda: good + bytes(1_000_000), "format"


def hostile_uploads() -> dict[str, tuple[Callable[[], Upload], str]]:
    """Return by name how an upload is made, and the rule that must refuse it."""
    good = tiny_weights()
    tensors = tiny_tensors(q_proj_modules())
    found: dict[str, tuple[Callable[[], Upload], str]] = {}

    def weights(name: str, make: Callable[[], bytes], rule: str) -> None:
        found[name] = (lambda: Upload(good_config(), make()), rule)

    def config(name: str, rule: str, **fields: object) -> None:
        found[name] = (lambda: Upload(good_config(**fields), good), rule)

    def text(name: str, rule: str, make: Callable[[], bytes]) -> None:
        found[name] = (lambda: Upload(make(), good), rule)

    def with_tensors(name: str, rule: str, changed: dict[str, np.ndarray[Any, Any]], dtype: str = "F32") -> None:
        weights(name, lambda: write_tensors(tensors | {n: raw(v, dtype) for n, v in changed.items()}, {}), rule)

    for name, make, rule in _forms(good):
        weights(name, make, rule)
    weights("a megabyte of metadata", lambda: write_tensors(tensors, {"a": "x" * 1_000_000}), "metadata")
    weights(
        "8,000 empty tensors",
        lambda: write_tensors({f"t{n}": raw(np.zeros(0)) for n in range(8_000)}, {}),
        "tensor_name",
    )
    for dtype in ("F32", "F16", "BF16"):
        for value in (np.nan, np.inf, -np.inf):
            poisoned = np.ones((4, 16), np.float32)
            poisoned[-1, -1] = value
            with_tensors(f"{value} in {dtype}", "nan", {f"{Q}.lora_A.weight": poisoned}, dtype)
    found["a weight that is infinite in bf16"] = (
        lambda: Upload(
            good_config(),
            write_tensors(tensors | {f"{Q}.lora_B.weight": raw(np.full((16, 4), 3.4e38, np.float32))}, {}),
            "bf16",
        ),
        "nan",
    )
    for name, shape in {"another rank": (5, 16), "turned": (16, 4), "flat": (64,), "with a third side": (4, 16, 1),
                        "too narrow": (4, 15), "of rank 0": (0, 16), "a scalar": ()}.items():  # fmt: skip
        with_tensors(name, "shape", {f"{Q}.lora_A.weight": np.ones(shape)})
    for name, value, dtype in (("NaN", np.nan, None), ("infinity in bf16", 3.4e38, "bf16")):
        found[f"200 MB with {name} at their end"] = (
            lambda value=value, dtype=dtype: Upload(  # type: ignore[misc]
                good_config(target_modules=["huge"], r=128), _two_hundred_megabytes(value), dtype
            ),
            "nan",
        )
    weights("no partner", lambda: write_tensors({n: t for n, t in tensors.items() if "lora_A" in n}, {}), "partner")
    for name, rule in {
        "somebody.lora_A.weight": "tensor_name",
        f"{Q}.lora_A.bias": "tensor_name",
        f"{Q}.lora_magnitude_vector": "tensor_name",
        f"{Q}.lora_A.default.weight": "tensor_name",
        f"{Q}.lora_A.weight.weight": "tensor_name",
        "base_model.model.model.embed_tokens.lora_embedding_A": "embedding",
        "base_model.model.lm_head.weight": "embedding",
        "base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight": "experts",
    }.items():
        with_tensors(name[-40:], rule, {name: np.ones((4, 16))})

    text("configuration empty", "config", lambda: b"")
    text("configuration a list", "config", lambda: b"[]")
    text("configuration deep", "config", lambda: b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")
    text("configuration no UTF-8", "config", lambda: b'{"peft_type": "\xff"}')
    text("configuration in UTF-16", "config", lambda: good_config().decode().encode("utf-16"))
    text("configuration of 10 MB", "config", lambda: good_config(revision="x" * 10_000_000))
    text("configuration of small lists", "junk", lambda: _with_junk(b"[],", b"[]"))
    text("configuration of small objects", "junk", lambda: _with_junk(b"{},", b"{}"))
    text("configuration of fractions", "junk", lambda: _with_junk(b"1.5,", b"2"))
    text("configuration of huge numbers", "config", lambda: good_config().replace(b'"r": 4', b'"r": ' + b"9" * 300_000))
    text("a rank of a thousand digits", "config", lambda: good_config().replace(b'"r": 4', b'"r": ' + b"9" * 1_000))
    text("alpha of a thousand digits", "config", lambda: good_config().replace(b": 8", b": " + b"9" * 1_000))
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        text(f"alpha {number}", "config",
             lambda number=number: good_config().replace(b'"lora_alpha": 8', f'"lora_alpha": {number}'.encode()))  # type: ignore[misc]  # fmt: skip
    for rank in (-1, 0, 513, 2**31, 2**62):
        config(f"rank {rank}", "rank", r=rank)
        config(f"rank {rank} by pattern", "rank", rank_pattern={"q_proj": rank})
    for wrong in ("4", 4.5, None, True, [4], {"a": 4}):
        config(f"rank {wrong!r}", "shape" if wrong is None else "config", r=wrong)
    for alpha in (0, -8, 1e6, 1e308, -1e308):
        config(f"alpha {alpha}", "alpha", lora_alpha=alpha)
        config(f"alpha {alpha} by pattern", "alpha", alpha_pattern={"q_proj": alpha})
    config("DoRA", "dora", use_dora=True)
    config("a saved module", "modules_to_save", modules_to_save=["lm_head"])
    config("an unknown switch", "runs_this", runs_this="os.system('id')")
    config("a field with a long name", "x" * 64, **{"x" * 100_000: 1})
    for field in ("target_modules", "exclude_modules", "layers_to_transform"):
        config(f"10,001 {field}", "config", **{"layers_to_transform": [1], field: [str(n) for n in range(10_001)]})
    config("10,000 target_modules", "target_modules", target_modules=[f"m{n}" for n in range(9_999)] + ["k_proj"])
    config("100,000 numbers of layers", "config", layers_to_transform=list(range(100_000)))
    config("a layer of a thousand digits", "config", layers_to_transform=[10**1_000])
    config("4,000 rank patterns", "config", rank_pattern={f"a{n}": 4 for n in range(4_000)})
    config("2,048 names in rank_pattern", "shape",
           rank_pattern={f"model.layers.{n}.q_proj": 4 for n in range(2_047)} | {"q_proj": 3})  # fmt: skip
    config("2,048 expressions", "pattern", rank_pattern={f".*(a|b){n}.*": 4 for n in range(2_048)})
    for pattern in ("(.|..)+[!?]{3}", "(?:.|..|...)+[!?]", "(?:[a-z_.0-9]|[a-z_.0-9][a-z_.0-9])+[!?]"):
        for field in ("target_modules", "exclude_modules"):
            config(f"{field} {pattern}", "pattern", **{field: pattern})
        config(f"rank_pattern {pattern}", "pattern", rank_pattern={pattern: 4})
        config(f"layers_pattern {pattern}", "pattern", target_modules=["q_proj"], layers_to_transform=[0],
               layers_pattern=[pattern])  # fmt: skip
    for pattern in ("((q{1000}){1000}){1000}", "(((((q{9}){9}){9}){9}){9}){9}", "q{1000000000}", "q{999}" * 170,
                    "(" * 500 + "a" + ")" * 500, "a" * 2_000 + "*", "(?R)", r"(a)\1", "(?#", "[", "\\", "q{e<=9}",
                    "\x00", "é", "(?P<a>.)(?P=a)", "(?(1)a|b)", "(?i)" * 400):  # fmt: skip
        config(f"pattern {pattern[:24]!r}", "pattern", rank_pattern={pattern: 4})
    return found


def _two_hundred_megabytes(last: float) -> bytes:
    a = np.zeros((128, 400_000), np.float32)
    a[-1, -1] = last
    name = "base_model.model.model.huge"
    return write_tensors({f"{name}.lora_A.weight": raw(a), f"{name}.lora_B.weight": raw(np.ones((16, 128)))}, {})


def _with_junk(part: bytes, last: bytes) -> bytes:
    return good_config()[:-1] + b', "junk": [' + part * (500_000 // len(part)) + last + b"]}"


def hostile_packs() -> dict[str, tuple[Callable[[], bytes], str]]:
    """Return by name how a pack is made, and the rule that must refuse it when it is read."""
    good = good_pack()
    found = {name: (make, rule) for name, make, rule in _forms(good)}
    metadata, tensors, _ = read_tensors(good)
    given = metadata["octavo"]
    header, body = split(good)
    name = next(iter(q_proj_modules()))

    def said(title: str, rule: str, old: str, new: str) -> None:
        assert old in given, old
        found[title] = (lambda: write_tensors(tensors, {"octavo": given.replace(old, new, 1)}), rule)

    def holding(title: str, rule: str, **changed: np.ndarray[Any, Any]) -> None:
        rows = {f"{name}.{side}": raw(values) for side, values in changed.items()}
        found[title] = (lambda: write_tensors(tensors | rows, metadata), rule)

    found["no pack at all"] = (tiny_weights, "format")
    found["no metadata"] = (lambda: write_tensors(tensors, {}), "format")
    found["more metadata"] = (lambda: write_tensors(tensors, metadata | {"a": "b"}), "format")
    found["metadata deep"] = (lambda: write_tensors(tensors, {"octavo": "[" * 100_000}), "format")
    found["an unknown field deep"] = (
        lambda: write_tensors(tensors, {"octavo": given[:-1] + ',"a":' + "[" * 90_000 + "]" * 90_000 + "}"}),
        "format",
    )
    scalings = f'"scalings":{{"{name}":2.0'
    said("of another format", "format", "octavo-pack/1", "octavo-pack/9")
    said("of a format with a long name", "format", "octavo-pack/1", "x" * 1_000_000)
    said("a module twice", "format", scalings, f'{scalings},"{name}":3.0')
    said("the rank twice", "format", '"r":4', '"r":4,"r":4')
    said("the base twice", "format", '"base":', f'"base":"{TINY_FINGERPRINT}","base":')
    said("a module that has no rows", "format", scalings, f'{scalings},"model.layers.9.q":2.0')
    said("a scaling that is no number", "format", ":2.0", ":NaN")
    said("a scaling that is infinite", "format", ":2.0", ":1e999")
    for value in ("1e308", "-2.0", "0", "0.0", "65537", "-0.0"):
        said(f"a scaling of {value}", "scaling", ":2.0", f":{value}")
    said("a rank of a thousand digits", "format", '"r":4', f'"r":{"9" * 1_000}')
    said("a rank that is a name", "format", '"r":4', '"r":"4"')
    said("patterns that fill memory", "format", '"rank_pattern":{',
         '"rank_pattern":{' + ",".join(f'"{n:x}":1' for n in range(100_000)))  # fmt: skip
    holding("rank 513", "rank", a=np.ones((513, 1)), b=np.ones((513, 1)))
    holding("rank 0", "rank", a=np.ones((0, 16)), b=np.ones((0, 16)))
    holding("ranks that differ", "format", b=np.ones((5, 16)))
    holding("flat rows", "format", a=np.ones(64))
    holding("rows with a third side", "format", a=np.ones((4, 4, 4)))
    holding("rows without elements", "format", a=np.ones((4, 0)))
    holding("rows that belong to nobody", "format", c=np.ones((4, 16)))
    found["rows of another module"] = (
        lambda: write_tensors(tensors | {"another.a": tensors[f"{name}.a"], "another.b": tensors[f"{name}.a"]},
                              metadata), "format",
    )  # fmt: skip
    found["half a pair"] = (
        lambda: write_tensors({n: t for n, t in tensors.items() if n != f"{name}.b"}, metadata), "format",
    )  # fmt: skip
    encoded = json.dumps(header).encode()
    found["rows off their places"] = (lambda: join(encoded + b" " * (3 - len(encoded) % 8 + 8), body), "format")
    return found


def _run(kind: str) -> None:
    """Print, for each case, the rule that refused it, what it took of a process's time, and of its memory.

    Each is looked at in a process that has done nothing else, and made in another one: memory that was taken once and
    given back would hide what is taken next.
    """

    def accept(given: Upload) -> None:
        build(given.config, given.weights, BASE, given.dtype)

    cases: dict[str, tuple[Callable[[], Any], str]] = dict(hostile_uploads() if kind == "uploads" else hostile_packs())
    # Once before anything is counted: what is imported or made at first use belongs to no case.
    accept(Upload(good_config(rank_pattern={".*q_proj": 4}), tiny_weights()))
    read_header(good_pack())
    gc.freeze()  # A collection in a child would touch all that it shares with us, and count it as the child's.
    for name, (make, _) in cases.items():
        config_file, weights_file = os.memfd_create("config"), os.memfd_create("weights")

        def write(make: Callable[[], Any] = make, files: tuple[int, int] = (config_file, weights_file)) -> None:
            given = make()
            upload = given if isinstance(given, Upload) else Upload(b"", given)
            _file(files[0]).write_bytes(msgspec.json.encode((upload.config, upload.dtype)))
            _file(files[1]).write_bytes(upload.weights)

        def look(name: str = name, files: tuple[int, int] = (config_file, weights_file)) -> None:
            config, dtype = msgspec.json.decode(_file(files[0]).read_bytes(), type=tuple[bytes, str | None])
            num_bytes = os.fstat(files[1]).st_size
            view = memoryview(mmap.mmap(files[1], num_bytes, prot=mmap.PROT_READ) if num_bytes else b"")
            np.frombuffer(view, np.uint8).sum()  # The file's own bytes are there before anything is counted.
            if kind == "uploads":
                _measure(name, lambda: accept(Upload(config, view, dtype)))
            else:
                _measure(name, lambda: read_header(view))

        for work in (write, look):
            _in_child(work)
        os.close(config_file)
        os.close(weights_file)


def _measure(name: str, look: Callable[[], object]) -> None:
    Path("/proc/self/clear_refs").write_text("5")
    before_bytes, begin_s, rule = _resident_bytes("VmRSS"), time.process_time(), ""
    try:
        look()
    except AdapterRefused as refused:
        rule = str(refused.fields["rule"])
    cpu_ms = (time.process_time() - begin_s) * 1e3
    peak_bytes = _resident_bytes("VmHWM") - before_bytes
    print(json.dumps({"name": name, "rule": rule, "cpu_ms": cpu_ms, "peak_bytes": peak_bytes}), flush=True)


def _in_child(work: Callable[[], None]) -> None:
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)


def _file(number: int) -> Path:
    return Path(f"/proc/self/fd/{number}")


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    # No case may fill the machine of whoever runs this.
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    _run(sys.argv[1])
