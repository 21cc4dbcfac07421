"""The fingerprint of a base: one digest over its configuration, tokenizer, weights (however they are sharded) and form.

The form is in it because it is in the manifest, and a manifest is found by its fingerprint: two workers that would
write another prompt or stop at another token do not serve the same base.
"""

import hashlib
import json
import mmap
from dataclasses import asdict
from pathlib import Path

import torch

from octavo_shared.references import Fingerprint
from octavo_worker.model.context import UnsupportedBase
from octavo_worker.model.served_form import served_form_of

_VOLATILE = ("transformers_version", "_name_or_path")
"""Keys of ``config.json`` that say who wrote the file, not what the model computes."""
_HEADER_BYTES_MAX = 100 * 1024 * 1024


def fingerprint_of(folder: Path, dtype: torch.dtype | None = None) -> Fingerprint:
    """Return the fingerprint of the Hugging Face model directory ``folder`` served in ``dtype``, ``sha256:…``.

    ``dtype`` None is the checkpoint's own. Reads every weight once (about 1 s per GB). Raises ``UnsupportedBase``
    when a part is missing.
    """
    parts = {
        "config": _config_digest(folder / "config.json"),
        "tokenizer": _sha256(_read(folder / "tokenizer.json")),
        "weights": _weights_digest(folder),
        "form": _sha256(_canonical(asdict(served_form_of(folder, dtype)))),
    }
    return Fingerprint("sha256:" + _sha256(_canonical(parts)))


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UnsupportedBase(f"{path} does not exist") from None


def _config_digest(path: Path) -> str:
    config = json.loads(_read(path))
    for key in _VOLATILE:
        config.pop(key, None)
    return _sha256(_canonical(config))


def _weights_digest(folder: Path) -> str:
    tensors = [line for path in sorted(folder.glob("*.safetensors")) for line in _tensor_lines(path)]
    if not tensors:
        raise UnsupportedBase(f"{folder} holds no safetensors weights")
    return _sha256(_canonical(sorted(tensors)))


def _tensor_lines(path: Path) -> list[tuple[str, str, list[int], str]]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        header_bytes = int.from_bytes(mapped[:8], "little")
        if not 2 <= header_bytes <= min(_HEADER_BYTES_MAX, len(mapped) - 8):
            raise UnsupportedBase(f"{path} is not a safetensors file")
        header = json.loads(mapped[8 : 8 + header_bytes])
        header.pop("__metadata__", None)
        lines = []
        with memoryview(mapped) as view:
            for name, entry in header.items():
                begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
                with view[begin:end] as tensor:
                    lines.append((name, entry["dtype"], entry["shape"], _sha256(tensor)))
        return lines
