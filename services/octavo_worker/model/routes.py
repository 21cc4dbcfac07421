"""Which experts the unmodified model chose for each token, so that another run can be made to choose them too."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from octavo_worker.model.experts import experts_of


class Routes:
    """The choices of every layer's router for some prompts, [tokens, experts per token] of indices and of weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._told: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {module: [] for module in experts_of(model)}

    def __bool__(self) -> bool:
        """Whether there is anything to follow."""
        return bool(self._told) and all(self._told.values())

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is chosen in this block, in which each prompt is run once, alone and whole."""

        def note(module: nn.Module, arguments: tuple[object, ...]) -> None:
            match arguments:
                case (_, Tensor() as index, Tensor() as weights):
                    self._told[module].append((index, weights))

        with ExitStack() as hooks:
            for module in self._told:
                hooks.callback(module.register_forward_pre_hook(note).remove)
            yield

    @contextmanager
    def followed(self, begins: Sequence[int], ends: Sequence[int]) -> Iterator[None]:
        """Choose as noted in this block, in which one batch packs tokens ``begins[i]`` to ``ends[i]`` of prompt i."""
        spans = list(zip(begins, ends, strict=True))

        def follow(module: nn.Module, arguments: tuple[object, ...]) -> tuple[object, ...]:
            told = zip(self._told[module], spans, strict=True)
            index, weights = zip(
                *((index[slice(*span)], weights[slice(*span)]) for (index, weights), span in told), strict=True
            )
            return arguments[0], torch.cat(index), torch.cat(weights)

        with ExitStack() as hooks:
            for module in self._told:
                hooks.callback(module.register_forward_pre_hook(follow).remove)
            yield
