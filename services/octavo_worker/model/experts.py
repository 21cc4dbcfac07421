"""Mixtures of experts: on a CPU each expert's weights are packed once, so that no neighbour changes a row's bits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from octavo_worker.model.linear import PackedWeight

NAME = "octavo_packed"
_ONE_ROW_AT_A_TIME = "batched_mm"
"""transformers' experts that gather weights for every row: too slow to serve, but of shapes that no router moves."""


class PackedExperts:
    """The weights of all experts of one layer, in place of the parameters that they were."""

    def __init__(self, module: nn.Module) -> None:
        first = "gate_up_proj" if module.has_gate else "up_proj"
        self._up = _pack(module, first)
        self._down = _pack(module, "down_proj")

    @property
    def num_experts(self) -> int:
        return len(self._up)

    def up(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Map ``rows`` [S, hidden], sorted by expert, ``counts[e]`` of them of expert e."""
        return _project(self._up, rows, counts)

    def down(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Map ``rows`` [S, intermediate] back; as ``up``."""
        return _project(self._down, rows, counts)


def _pack(module: nn.Module, name: str) -> list[PackedWeight]:
    weights = getattr(module, name).detach()
    biases = getattr(module, f"{name}_bias").detach() if module.has_bias else [None] * len(weights)
    packed = []
    for weight, bias in zip(weights, biases, strict=True):
        weight = weight.T.contiguous() if module.is_transposed else weight.clone()
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias, requires_grad=False)
        packed.append(PackedWeight([linear]))
    # They would lie in memory twice.
    delattr(module, name)
    return packed


def _project(experts: Sequence[PackedWeight], rows: Tensor, counts: Sequence[int]) -> Tensor:
    pieces = torch.split(rows, list(counts))
    return torch.cat([expert.project(piece) for expert, piece in zip(experts, pieces, strict=True) if len(piece)])


def replace_experts(model: PreTrainedModel) -> None:
    """Pack the experts of ``model`` in place, on a CPU and where its architecture lets them be replaced.

    How many rows an expert gets depends on the neighbours, and what multiplies for any number of rows sums in another
    order for another number; packed weights do not. Elsewhere the architecture's own experts stay.
    """
    modules = experts_of(model)
    if model.device.type != "cpu" or not modules:
        return
    ALL_EXPERTS_FUNCTIONS.register(NAME, packed_experts_forward)
    for module in modules:
        module.octavo_experts = PackedExperts(module)  # type: ignore[assignment]
    model.set_experts_implementation(NAME)


@contextmanager
def one_row_at_a_time(model: PreTrainedModel) -> Iterator[bool]:
    """Multiply each row alone with its experts' weights in this block; False where that is not to be had, or packed."""
    before = model.get_experts_implementation()
    is_possible = bool(experts_of(model)) and NAME not in before.values()
    if is_possible:
        model.set_experts_implementation(_ONE_ROW_AT_A_TIME)
    try:
        yield is_possible
    finally:
        if is_possible:
            model.set_experts_implementation(before)


def experts_of(model: PreTrainedModel) -> list[nn.Module]:
    """Return the experts of every layer of ``model`` that has some, where its architecture lets them be replaced."""
    # What transformers' decorator of replaceable experts leaves in every module.
    return [module for module in model.modules() if hasattr(module, "_is_expert_parallel")]


def packed_experts_forward(
    module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Compute what transformers' ``grouped_mm_experts_forward`` does, with packed weights.

    Shapes: N rows, each of K experts
        hidden_states               [N, hidden]
        top_k_index, top_k_weights  [N, K]
        result                      [N, hidden]
    """
    packed: PackedExperts = module.octavo_experts  # type: ignore[assignment]
    num_rows, num_chosen = top_k_index.shape
    chosen = top_k_index.flatten()
    order = chosen.argsort(stable=True)
    counts = torch.bincount(chosen, minlength=packed.num_experts).tolist()
    inner = packed.up(hidden_states[order // num_chosen], counts)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)  # type: ignore[operator]
    sorted_out = packed.down(inner, counts)
    if module.has_post_expert_norm:
        sorted_out = module.post_expert_norm(sorted_out)  # type: ignore[operator]
    out = torch.empty_like(sorted_out)
    out[order] = sorted_out
    # Each row sums its experts in the order of its own choice.
    weighted = out * top_k_weights.reshape(-1, 1)
    return weighted.view(num_rows, num_chosen, -1).sum(dim=1).to(hidden_states.dtype)
