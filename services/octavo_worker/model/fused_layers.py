"""Decoder layers of a base, all computed in one call where that gives the same bits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from octavo_kernels import decoder_layers
from octavo_kernels.decoder_layers import DecoderLayers, LayerInputs, LayerWeights
from octavo_kernels.layout import LayoutError
from octavo_shared.telemetry import log
from octavo_worker.model.context import StepContext, StepInputs
from octavo_worker.model.fused import Fused
from octavo_worker.model.linear import MultiAdapterLinear
from octavo_worker.model.self_check import run_in_two_chunks

_CHILDREN = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class _Candidate:
    """A layer that has the parts of a pre-norm decoder layer, and its modules' names in the order of their tables."""

    module: nn.Module
    index: int
    weights: LayerWeights
    names: tuple[str, ...]


def fuse_layers(model: PreTrainedModel, context: StepContext, fused: Fused, prompts: Sequence[Tensor]) -> int:
    """Let the layers of ``model`` be computed in one call, in place, and return how many they are.

    All or none: that a layer has the right parts says nothing about what is done with them (scaled residuals, a norm
    more), so the logits of ``prompts`` must be the same in every bit as without. Called behind the self-check, which
    watches the linears that are not called any more afterwards.
    """
    found = [candidate for module in model.modules() if (candidate := _candidate(module, context, fused)) is not None]
    weights = [candidate.weights for candidate in found]
    if not found or not all(_is_served(one) for one in weights):
        return 0
    dtype = weights[0].input_norm.weight.dtype
    expected = run_in_two_chunks(model, context, prompts, dtype)
    layers = FusedLayers(found, context)
    for index, candidate in enumerate(found):
        candidate.module.forward = layers.forward_of(index)
    try:
        got = run_in_two_chunks(model, context, prompts, dtype)
        is_same = all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    except Exception:
        # An architecture's own code, given a layer that may not be the one that it knows.
        log.exception("layers_not_fused")
        is_same = False
    if not is_same:
        for candidate in found:
            del candidate.module.forward
        return 0
    return len(found)


def _is_served(weights: LayerWeights) -> bool:
    weight = weights.input_norm.weight
    return decoder_layers.is_available(weight.device, weight.dtype)


def _candidate(module: nn.Module, context: StepContext, fused: Fused) -> _Candidate | None:
    input_norm, attention, inner_norm, mlp = (getattr(module, name, None) for name in _CHILDREN)
    if input_norm not in fused.norms or inner_norm not in fused.norms:
        return None
    if attention not in fused.attentions or mlp not in fused.mlps:
        return None
    if not {name for name, _ in attention.named_children()} <= {*_PROJECTIONS, "rotary_emb"}:
        return None
    modules = [getattr(attention, name, None) for name in _PROJECTIONS]
    modules += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    linears = [linear for linear in modules if isinstance(linear, MultiAdapterLinear)]
    if len(linears) < len(modules):
        return None
    q, k, v, o, gate, up, down = (linear.siblings for linear in linears)
    products = [product for one in (q, o, gate, down) if (product := one.product) is not None]
    if not (q is k is v and gate is up) or len(products) < 4:
        return None
    shape, place = context.kv_shape, context.kv_shape.places[attention.layer_idx]
    weights = LayerWeights(
        input_norm=fused.norms[input_norm],
        inner_norm=fused.norms[inner_norm],
        qkv=products[0],
        o=products[1],
        gate_up=products[2],
        down=products[3],
        activation=fused.mlps[mlp],
        num_heads=linears[0].out_features // shape.head_dim,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        scaling=float(getattr(attention, "scaling", shape.head_dim**-0.5)),
        window=place.window,
        layer_offset=place.layer_offset,
    )
    return _Candidate(module, int(attention.layer_idx), weights, (*q.names, *o.names, *gate.names, *down.names))


class FusedLayers:
    """Layers that follow each other: the first computes them all, and the others pass on what it returned.

    A layer that is given anything else says so: a model that does something between its layers is not one for this.
    """

    def __init__(self, candidates: Sequence[_Candidate], context: StepContext) -> None:
        self._layers = DecoderLayers([candidate.weights for candidate in candidates])
        self._names = [candidate.names for candidate in candidates]
        self._groups = [context.kv_shape.places[candidate.index].group for candidate in candidates]
        self._originals = [candidate.module.forward for candidate in candidates]
        self._context = context
        self._result: Tensor | None = None

    def forward_of(self, index: int) -> Callable[..., Tensor]:
        """Return what takes the place of the forward of layer ``index``."""
        original = self._originals[index]

        def forward(
            hidden_states: Tensor,
            attention_mask: Tensor | None = None,
            position_embeddings: tuple[Tensor, Tensor] | None = None,
            past_key_values: object = None,
            **named: object,
        ) -> Tensor:
            inputs = self._context.inputs
            is_other = attention_mask is not None or past_key_values is not None or hidden_states.shape[:-2] != (1,)
            if inputs is None or position_embeddings is None or is_other:
                result: Tensor = original(
                    hidden_states,
                    attention_mask=attention_mask,
                    position_embeddings=position_embeddings,
                    past_key_values=past_key_values,
                    **named,
                )
                return result
            if index == 0:
                hidden_states = self._result = self._run(hidden_states, position_embeddings, inputs)
            elif hidden_states is not self._result:
                raise LayoutError("a layer was given another tensor than the one before it returned")
            return hidden_states

        return forward

    def _run(self, hidden_states: Tensor, angles: tuple[Tensor, Tensor], inputs: StepInputs) -> Tensor:
        """Return what the layers make of ``hidden_states`` [1, N, hidden]."""
        cos, sin = angles
        tables = inputs.tables
        own = []
        for names, group in zip(self._names, self._groups, strict=True):
            kv = inputs.kv[group]
            own.append(LayerInputs(kv.table, kv.token_offsets, [tables.get(name) for name in names]))
        return self._layers.run(hidden_states[0], cos[0], sin[0], inputs.arena, inputs.groups, own)[None]
