"""The frozen base: a ``transformers`` model made ready to serve packed, paged, multi-adapter batches."""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as hf_logging

from octavo_shared.manifest import BaseManifest, ModuleShape
from octavo_shared.references import Fingerprint
from octavo_shared.telemetry import log
from octavo_worker.model import attention, self_check
from octavo_worker.model.context import StepContext, StepInputs, UnsupportedBase
from octavo_worker.model.experts import replace_experts
from octavo_worker.model.fingerprint import fingerprint_of
from octavo_worker.model.fused import fuse
from octavo_worker.model.fused_layers import fuse_layers
from octavo_worker.model.kv_shape import KvShape
from octavo_worker.model.linear import MultiAdapterLinear, replace_linears
from octavo_worker.model.packed_run import run_packed
from octavo_worker.model.requirements import check_config, window_max
from octavo_worker.model.served_form import ServedForm, served_form_of
from octavo_worker.model.windows import windows_of


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
        """How keys and values lie in pages."""
        return self.context.kv_shape

    def logits(self, inputs: StepInputs, tokens: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """Run one packed batch and return the logits of ``rows``; shapes as in ``run_packed``."""
        return run_packed(self.model, self.context, inputs, tokens, positions, rows)


def load_base(folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> BaseModel:
    """Load the Hugging Face directory ``folder``, replace what is ours, and prove it with the self-check.

    ``dtype`` None keeps the checkpoint's. Takes seconds and up to twice the weights' memory while it runs.
    Raises ``UnsupportedBase`` with one sentence when this base cannot be served right.
    """
    device = torch.device(device)
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with _in_one_sentence("this base cannot be loaded"):
        check_config(AutoConfig.from_pretrained(folder, local_files_only=True))
        fingerprint = fingerprint_of(folder, dtype)
        form = served_form_of(folder, dtype)
        # The reference run needs an attention that every architecture has and that knows windows and soft caps.
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, form.dtype), attn_implementation="eager", local_files_only=True
        )
        model.train(mode=False)
        model.requires_grad_(False)
        torch.nn.Module.to(model, device=device)
    with _in_one_sentence("this architecture cannot be served"):
        return _adopt(model, folder, fingerprint, form)


@contextlib.contextmanager
def _in_one_sentence(problem: str) -> Iterator[None]:
    """Turn whatever an architecture's own code raises into ``UnsupportedBase``: its code is not ours to foresee."""
    try:
        yield
    except UnsupportedBase:
        raise
    except Exception as cause:
        detail = (str(cause).strip().splitlines() or [""])[0].partition(". ")[0]
        raise UnsupportedBase(f"{problem}: {type(cause).__name__}: {detail}") from cause


def _adopt(model: PreTrainedModel, folder: Path, fingerprint: Fingerprint, form: ServedForm) -> BaseModel:
    """Turn a loaded, still unmodified ``model`` of ``folder`` into a ``BaseModel``; see ``load_base``."""
    config = model.config.get_text_config()
    _check_served(model, form)
    dtype, device = model.dtype, model.device
    windows = windows_of(model, config.num_hidden_layers)
    expected = self_check.expect(model, config.vocab_size, window_max(config, form.context_tokens), form.context_tokens)

    heads = config.num_attention_heads
    context = StepContext(
        KvShape(
            windows,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )
    )
    attention.register()
    model.set_attn_implementation(attention.NAME)
    attention.attach_context(model, context)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linears = replace_linears(model, head, context)
    replace_experts(model)
    fused = fuse(model, device, dtype)
    targetable = self_check.check(model, context, expected, dtype, linears)
    fuse_layers(model, context, fused, expected.prompts)
    if not targetable:
        raise UnsupportedBase("this base has no linear layer that an adapter could be put on")
    if dropped := sorted(linears.keys() - targetable):
        log.warning("modules_not_targetable", num_modules=len(dropped), first=dropped[0])
    return BaseModel(
        model=model,
        context=context,
        fingerprint=fingerprint,
        manifest=BaseManifest(
            name=folder.resolve().name,
            fingerprint=fingerprint,
            context_tokens=form.context_tokens,
            dtype=form.dtype,
            chat_template=form.chat_template,
            bos_token=form.bos_token,
            eos_token=form.eos_token,
            stop_token_ids=form.stop_token_ids,
            modules={name: _shape_of(linear) for name, linear in linears.items() if name in targetable},
            num_layers=config.num_hidden_layers,
        ),
        tokenizer_json=(folder / "tokenizer.json").read_bytes(),
        device=device,
        dtype=dtype,
        vocab_size=config.vocab_size,
    )


def _shape_of(linear: MultiAdapterLinear) -> ModuleShape:
    return ModuleShape(linear.in_features, linear.out_features)


def _check_served(model: PreTrainedModel, form: ServedForm) -> None:
    if model.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise UnsupportedBase(f"this base has dtype {model.dtype}; served are bfloat16, float16 and float32")
    if form.dtype != str(model.dtype).removeprefix("torch."):
        raise UnsupportedBase(f"this base was asked for in {form.dtype} and keeps {model.dtype}")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise UnsupportedBase("this architecture cannot compute the logits of chosen rows only")
