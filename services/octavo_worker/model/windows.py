"""How far back each layer looks: asked of the model itself, for configurations say it in many ways."""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from octavo_worker.model.context import UnsupportedBase

_NAME = "octavo_windows"


def windows_of(model: PreTrainedModel, num_layers: int) -> tuple[int | None, ...]:
    """Run one token through ``model`` and return the window that each layer passes to its attention; None: no window.

    Leaves the model with the attention it had. Raises ``UnsupportedBase`` when a layer attends in another way.
    """
    windows: dict[int, int | None] = {}

    def note(
        module: nn.Module,
        query: Tensor,
        _key: Tensor,
        value: Tensor,
        _mask: Tensor | None,
        sliding_window: int | None = None,
        **_others: object,
    ) -> tuple[Tensor, None]:
        windows[int(module.layer_idx)] = sliding_window  # type: ignore[arg-type]
        _, num_heads, num_rows, _ = query.shape
        return query.new_zeros(1, num_rows, num_heads, value.shape[3]), None

    before = model.config._attn_implementation
    AttentionInterface.register(_NAME, note)
    model.set_attn_implementation(_NAME)
    with torch.inference_mode():
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)
    model.set_attn_implementation(before)
    if missing := set(range(num_layers)) - windows.keys():
        raise UnsupportedBase(f"layer {min(missing)} of this base does not attend through the paged attention")
    return tuple(windows[layer] for layer in range(num_layers))
