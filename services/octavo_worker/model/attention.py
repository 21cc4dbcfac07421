"""Attention over the arena's pages, registered with ``transformers`` under the name ``octavo_paged``."""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from octavo_kernels import ops
from octavo_worker.model.context import StepContext, UnsupportedBase

NAME = "octavo_paged"
# Said by models, but nothing that changes attention here: positions went into the rotary embedding already,
# and the flags below only ever carry what this attention does anyway (the router's belongs to the experts).
_WITHOUT_EFFECT = {"position_ids", "cache_position"}
_EXPECTED = {
    "use_cache": False,
    "is_causal": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
}


def register() -> None:
    """Make ``octavo_paged`` known to ``transformers``. Idempotent.

    No mask function is registered with it on purpose: for attention that has none, ``transformers`` builds no
    mask at all, which for a packed batch would be N × N and wrong.
    """
    AttentionInterface.register(NAME, paged_attention_forward)


def attach_context(model: nn.Module, context: StepContext) -> None:
    """Give every module that knows its layer the context that it reads its step from."""
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            module.octavo_context = context  # type: ignore[assignment]


def _check_unused(layer: int, unused: dict[str, object]) -> None:
    for name, value in unused.items():
        if value is None or name in _WITHOUT_EFFECT:
            continue
        if name in _EXPECTED and value is _EXPECTED[name]:
            continue
        raise UnsupportedBase(f"attention of layer {layer} asks for '{name}', which is not served")


def paged_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unused: object,
) -> tuple[Tensor, None]:
    """Write this step's keys and values into pages, then attend over each sequence's own pages.

    Shapes: N rows of the packed batch
        query              [1, Hq, N, D]
        key, value         [1, Hkv, N, D]
        result             [1, N, Hq, D]

    Raises ``UnsupportedBase`` for anything asked for that this attention does not do, and for another window than
    the layer's group has: its pages may be gone.
    """
    context: StepContext = module.octavo_context  # type: ignore[assignment]
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    shape = context.kv_shape
    _check_unused(layer, unused)
    if not getattr(module, "is_causal", True):
        raise UnsupportedBase(f"attention of layer {layer} also looks ahead, which is not served")
    if attention_mask is not None or dropout:
        raise UnsupportedBase(f"attention of layer {layer} asks for a mask or dropout, which is not served")
    expected = (1, shape.num_kv_heads, query.shape[2], shape.head_dim)
    if tuple(key.shape) != expected or tuple(value.shape) != expected or layer >= len(shape.places):
        raise UnsupportedBase(
            f"keys of layer {layer} have shape {tuple(key.shape)} and values {tuple(value.shape)}; "
            f"pages are laid out for {expected}"
        )
    place = shape.places[layer]
    if sliding_window != place.window:
        raise UnsupportedBase(f"layer {layer} asks for a window of {sliding_window}; its pages are for {place.window}")
    inputs = context.inputs
    assert inputs is not None, "the model was called outside a step"
    kv = inputs.kv[place.group]
    rows = query[0].transpose(0, 1)
    ops.write_kv(
        inputs.arena,
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        kv.token_offsets,
        place.layer_offset,
        kv.table.page_tokens,
    )
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    ops.paged_attention(
        rows,
        inputs.arena,
        kv.table,
        place.layer_offset,
        out,
        scaling=shape.head_dim**-0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        # Kept in the base's dtype by the model; they enter an fp32 softmax.
        sinks=None if s_aux is None else s_aux.float(),
    )
    return out.unsqueeze(0), None
