"""The frozen base: a ``transformers`` model made ready to serve packed, paged, multi-adapter batches."""

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from octavo_shared.manifest import BaseManifest, ModuleShape
from octavo_shared.references import Fingerprint
from octavo_worker.model import attention, self_check
from octavo_worker.model.context import KvShape, StepContext, StepInputs, UnsupportedBase
from octavo_worker.model.fingerprint import fingerprint_of
from octavo_worker.model.linear import replace_linears

_COUPLING_ROPES = {"dynamic", "longrope"}
"""Rotary embeddings computed from the largest position of the batch: neighbours would change each other."""


@dataclass(frozen=True)
class BaseModel:
    """A loaded base. Its linears and attention are ours; everything else is the architecture's own code."""

    model: PreTrainedModel
    context: StepContext
    fingerprint: Fingerprint
    manifest: BaseManifest
    tokenizer_json: bytes
    device: torch.device
    dtype: torch.dtype
    vocab_size: int

    @property
    def kv_shape(self) -> KvShape:
        """How keys and values lie in a page."""
        return self.context.kv_shape

    def logits(self, inputs: StepInputs, tokens: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """Run one packed batch and return the logits of ``rows``; shapes as in ``self_check.run_packed``."""
        return self_check.run_packed(self.model, self.context, inputs, tokens, positions, rows)


def load_base(folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> BaseModel:
    """Load the Hugging Face directory ``folder``, replace what is ours, and prove it with the self-check.

    ``dtype`` None keeps the checkpoint's. Takes seconds and up to twice the weights' memory while it runs.
    Raises ``UnsupportedBase`` with one sentence when this base cannot be served right.
    """
    device = torch.device(device)
    fingerprint = fingerprint_of(folder)
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # The reference run needs an attention that every architecture has and that knows windows and soft caps.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype or "auto", attn_implementation="eager", local_files_only=True
    )
    model.train(mode=False)
    model.requires_grad_(False)
    torch.nn.Module.to(model, device=device)
    return adopt(model, folder, fingerprint)


def adopt(model: PreTrainedModel, folder: Path, fingerprint: Fingerprint) -> BaseModel:
    """Turn a loaded, still unmodified ``model`` of ``folder`` into a ``BaseModel``; see ``load_base``."""
    config = model.config.get_text_config()
    _check_served(model, config)
    dtype, device = model.dtype, model.device
    expected = self_check.expect(model, config.vocab_size, _window_max(config))

    heads = config.num_attention_heads
    context = StepContext(
        KvShape(
            num_layers=config.num_hidden_layers,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )
    )
    attention.register()
    model.set_attn_implementation(attention.NAME)
    attention.attach_context(model, context)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    modules = replace_linears(model, head, context)
    self_check.check(model, context, expected, dtype)

    manifest = _manifest(
        folder,
        model,
        fingerprint,
        {name: ModuleShape(linear.in_features, linear.out_features) for name, linear in modules.items()},
    )
    return BaseModel(
        model=model,
        context=context,
        fingerprint=fingerprint,
        manifest=manifest,
        tokenizer_json=(folder / "tokenizer.json").read_bytes(),
        device=device,
        dtype=dtype,
        vocab_size=config.vocab_size,
    )


def _check_served(model: PreTrainedModel, config: PretrainedConfig) -> None:
    if model.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise UnsupportedBase(f"this base has dtype {model.dtype}; served are bfloat16, float16 and float32")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise UnsupportedBase("this architecture cannot compute the logits of chosen rows only")
    if coupling := _COUPLING_ROPES.intersection(_rope_types(getattr(config, "rope_parameters", None))):
        raise UnsupportedBase(f"rotary embedding '{min(coupling)}' depends on the longest sequence of a batch")


def _rope_types(parameters: object) -> Iterator[str]:
    # One mapping for all layers, or one for each kind of layer.
    if isinstance(parameters, Mapping):
        if isinstance(kind := parameters.get("rope_type"), str):
            yield kind
        for nested in parameters.values():
            yield from _rope_types(nested)


def _window_max(config: PretrainedConfig) -> int:
    return max(getattr(config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size"))


def _read_json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text())
    return content if isinstance(content, dict) else {}


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


def _stop_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation: GenerationConfig | None = getattr(model, "generation_config", None)
    found: set[int] = set()
    for source in (generation, model.config.get_text_config()):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return tuple(sorted(found))


def _manifest(
    folder: Path, model: PreTrainedModel, fingerprint: Fingerprint, modules: dict[str, ModuleShape]
) -> BaseManifest:
    config = model.config.get_text_config()
    tokenizer = _read_json(folder / "tokenizer_config.json")
    return BaseManifest(
        name=folder.resolve().name,
        fingerprint=fingerprint,
        context_tokens=config.max_position_embeddings,
        dtype=str(model.dtype).removeprefix("torch."),
        chat_template=_chat_template(folder, tokenizer),
        bos_token=_token_text(tokenizer.get("bos_token")),
        eos_token=_token_text(tokenizer.get("eos_token")),
        stop_token_ids=_stop_token_ids(model),
        modules=modules,
        num_layers=config.num_hidden_layers,
    )
