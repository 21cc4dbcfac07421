"""Norms, gated MLPs and rotary embeddings of a base, each computed in one pass where that is proven to be the same.

No list of architectures: a module that looks like one of these is tried out on random rows against its own code, and
only one whose results agree to the rounding is replaced. What is not recognised keeps its own code and is served just
as well, only slower.
"""

import inspect
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from octavo_kernels import pointwise
from octavo_kernels.decoder_layers import NormWeights
from octavo_kernels.pointwise import Activation, NormForm
from octavo_worker.model.linear import MultiAdapterLinear

_SEED = 20_260_102
_NUM_PROBE_ROWS = 5
_EPS_NAMES = ("variance_epsilon", "eps", "epsilon")
_ROTARY = "apply_rotary_pos_emb"
"""What ``transformers`` calls the function in every architecture whose attention turns queries and keys with it."""

F = TypeVar("F")
Forward = Callable[..., Tensor]
"""Takes one tensor; called with anything more, it is the module's own."""


@dataclass
class Fused:
    """The modules that were recognised, and as what."""

    norms: dict[nn.Module, NormWeights] = field(default_factory=dict)
    mlps: dict[nn.Module, Activation] = field(default_factory=dict)
    attentions: set[nn.Module] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.norms) + len(self.mlps) + len(self.attentions)


def fuse(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Fused:
    """Give modules of ``model`` a forward of one pass, in place, and return which; none where there is no such pass.

    Called when linears are replaced already: a gated MLP is replaced around them.
    """
    fused = Fused()
    if not pointwise.is_fused(device, dtype):
        return fused
    with torch.inference_mode():
        for module in model.modules():
            forward = (
                _norm_forward(module, dtype, fused)
                or _mlp_forward(module, dtype, fused)
                or _attention_forward(module, dtype, fused)
            )
            if forward is not None:
                module.forward = forward
    return fused


def _norm_forward(module: nn.Module, dtype: torch.dtype, fused: Fused) -> Forward | None:
    parameters = dict(module.named_parameters())
    eps = next((value for name in _EPS_NAMES if isinstance(value := getattr(module, name, None), float)), None)
    weight = parameters.get("weight")
    if set(parameters) != {"weight"} or weight is None or weight.dim() != 1 or weight.dtype != dtype or eps is None:
        return None
    frozen, width, original = weight.detach(), weight.numel(), module.forward

    def normed(form: NormForm) -> Forward:
        def forward(x: Tensor, *more: object, **named: object) -> Tensor:
            if more or named:
                own: Tensor = original(x, *more, **named)
                return own
            rows = x.reshape(-1, width)
            return pointwise.rms_norm(rows, frozen, eps, form).view(x.shape)

        return forward

    form = _nearest(module, _probe(width, dtype), NormForm, normed)
    if form is None:
        return None
    fused.norms[module] = NormWeights(frozen, form, eps)
    return normed(form)


def _mlp_forward(module: nn.Module, dtype: torch.dtype, fused: Fused) -> Forward | None:
    gate_proj, up_proj, down_proj = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    if not isinstance(gate_proj, MultiAdapterLinear) or not callable(up_proj) or not callable(down_proj):
        return None
    original = module.forward

    def gated(activation: Activation) -> Forward:
        def forward(x: Tensor, *more: object, **named: object) -> Tensor:
            if more or named:
                own: Tensor = original(x, *more, **named)
                return own
            gates, up = gate_proj(x), up_proj(x)
            width = gates.shape[-1]
            inner = pointwise.gate(gates.reshape(-1, width), up.reshape(-1, width), activation)
            result: Tensor = down_proj(inner.view(*x.shape[:-1], width))
            return result

        return forward

    activation = _nearest(module, _probe(gate_proj.in_features, dtype), Activation, gated)
    if activation is None:
        return None
    fused.mlps[module] = activation
    return gated(activation)


def _attention_forward(module: nn.Module, dtype: torch.dtype, fused: Fused) -> Callable[..., object] | None:
    """Return the module's own forward, with one function that it calls by name replaced, for this module only."""
    forward = type(module).forward
    original = getattr(forward, "__globals__", {}).get(_ROTARY)
    if not inspect.isfunction(forward) or forward.__closure__ or _ROTARY not in forward.__code__.co_names:
        return None
    dim = getattr(module, "head_dim", None)
    if original is None or not isinstance(dim, int) or not _turns_alike(original, dim, dtype):
        return None
    names = {**forward.__globals__, _ROTARY: _rotary(original)}
    own = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__)
    own.__kwdefaults__ = forward.__kwdefaults__
    fused.attentions.add(module)
    return types.MethodType(own, module)


def _rotary(original: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: object, **named: object) -> tuple[Tensor, Tensor]:
        """Turn q [1, Hq, N, D] and k [1, Hkv, N, D] by cos and sin [1, N, D]; anything else is the original's."""
        is_known = q.dim() == 4 and q.shape[0] == 1 and cos.shape == (1, q.shape[2], q.shape[3])
        if (
            more
            or named
            or not is_known
            or k.shape[2:] != q.shape[2:]
            or not cos.is_contiguous()
            or not sin.is_contiguous()
        ):
            return original(q, k, cos, sin, *more, **named)
        turned = pointwise.rotate(q[0].transpose(0, 1), k[0].transpose(0, 1), cos[0], sin[0])
        heads = turned.transpose(0, 1).unsqueeze(0)
        num_heads = q.shape[1]
        return heads[:, :num_heads], heads[:, num_heads:]

    return apply


def _turns_alike(original: Callable[..., tuple[Tensor, Tensor]], dim: int, dtype: torch.dtype) -> bool:
    if dim % 2:
        return False
    heads = _probe(3 * dim, dtype).view(1, _NUM_PROBE_ROWS, 3, dim).transpose(1, 2)
    angles = _probe(2 * dim, dtype).view(1, _NUM_PROBE_ROWS, 2 * dim).clamp(-1, 1)
    cos, sin = (part.contiguous() for part in torch.split(angles, dim, dim=-1))
    try:
        expected = original(heads, heads[:, :1], cos, sin)
    except Exception:
        # Somebody else's function, called with guessed arguments: whatever it says, it is not the one we know.
        return False
    got = _rotary(original)(heads, heads[:, :1], cos, sin)
    return all(_distance(one, other) <= _tolerance(dtype) for one, other in zip(got, expected, strict=True))


def _nearest(module: nn.Module, rows: Tensor, forms: Iterable[F], forward_in: Callable[[F], Forward]) -> F | None:
    """Return the form in which a forward gives what the module's own code makes of ``rows``; None: in none of them."""
    expected = _tried(module, rows)
    if expected is None:
        return None
    # Forms that differ in rounding only are both near; the nearest is the module's own.
    distances = {form: _distance(forward_in(form)(rows), expected) for form in forms}
    form = min(distances, key=lambda form: distances[form])
    # Not a number is no distance.
    return form if distances[form] <= _tolerance(rows.dtype) else None


def _probe(width: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    return (3 * torch.randn(_NUM_PROBE_ROWS, width, generator=generator)).to(dtype)


def _tried(module: nn.Module, rows: Tensor) -> Tensor | None:
    """Return what the module's own code makes of ``rows``, or None where it is nothing of the kind."""
    try:
        result = module(rows)
    except Exception:
        # Somebody else's code, called with a guessed argument.
        return None
    return result if isinstance(result, Tensor) else None


def _distance(got: Tensor, expected: Tensor) -> float:
    """Return the largest distance in units of the largest expected value; infinite where shapes or dtypes differ."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return float("inf")
    return float((got.float() - expected.float()).abs().max() / expected.float().abs().max())


def _tolerance(dtype: torch.dtype) -> float:
    # Two roundings of the largest value.
    return 2 * torch.finfo(dtype).eps
