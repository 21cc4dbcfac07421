"""What a base's directory says beside weights: its context, its dtype, how prompts are written, how answers end."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, PretrainedConfig

from octavo_worker.model.context import UnsupportedBase

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class ServedForm:
    """Everything of the manifest that does not come from the weights. It is part of the fingerprint.

    ``dtype`` is the one that the base is served in, without ``torch.``.
    """

    context_tokens: int
    dtype: str
    chat_template: str
    bos_token: str
    eos_token: str
    stop_token_ids: tuple[int, ...]


def served_form_of(folder: Path, dtype: torch.dtype | None = None) -> ServedForm:
    """Read the form of the Hugging Face model directory ``folder``; ``dtype`` None keeps the checkpoint's.

    Raises ``UnsupportedBase`` where no context is said: such an architecture does not attend.
    """
    config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    text = config.get_text_config()
    context_tokens = getattr(text, "max_position_embeddings", None)
    if not isinstance(context_tokens, int):
        raise UnsupportedBase(f"architecture '{config.model_type}' has no 'max_position_embeddings': no context length")
    tokenizer = _read_json(folder / "tokenizer_config.json")
    served = dtype or getattr(text, "dtype", None) or getattr(config, "dtype", None) or _dtype_of_weights(folder)
    return ServedForm(
        context_tokens=context_tokens,
        dtype=str(served).removeprefix("torch."),
        chat_template=_chat_template(folder, tokenizer),
        bos_token=_token_text(tokenizer.get("bos_token")),
        eos_token=_token_text(tokenizer.get("eos_token")),
        stop_token_ids=_stop_token_ids(folder, config),
    )


def _read_json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text())
    return content if isinstance(content, dict) else {}


def _dtype_of_weights(folder: Path) -> torch.dtype:
    """Return the dtype of the first tensor of floats, for a configuration that names none."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if (dtype := _DTYPES.get(file.get_slice(name).get_dtype())) is not None:
                    return dtype
    return torch.float32


def _token_text(value: object) -> str:
    # Tokenizer configurations write a special token as its text or as an object around it.
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _chat_template(folder: Path, tokenizer: Mapping[str, object]) -> str:
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text()
    template = tokenizer.get("chat_template")
    return template if isinstance(template, str) else ""


def _stop_token_ids(folder: Path, config: PretrainedConfig) -> tuple[int, ...]:
    generation = _read_json(folder / "generation_config.json") or config.to_dict()
    text = config.get_text_config()
    return tuple(sorted({*_ids(generation.get("eos_token_id")), *_ids(getattr(text, "eos_token_id", None))}))


def _ids(value: object) -> Iterator[int]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, int):
            yield one
