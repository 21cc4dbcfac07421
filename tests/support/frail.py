"""An engine's surroundings at their worst: a base whose steps fail, and an arena that looks at what it gives out."""

from collections.abc import Sequence
from dataclasses import fields
from typing import ClassVar

import torch
from torch import Tensor

from octavo_worker.adapters.pages import Arena, PageUse
from octavo_worker.model.base import BaseModel
from octavo_worker.model.context import StepInputs


class WatchedArena(Arena):
    """Holds every page that it gives out against what is promised of pages that an adapter had before."""

    def __init__(self, page_elements: int, num_pages: int, dtype: torch.dtype) -> None:
        super().__init__(page_elements, num_pages, dtype)
        self._had_adapters: set[int] = set()

    def free(self, pages: Sequence[int], use: PageUse) -> None:
        super().free(pages, use)
        if use is PageUse.ADAPTER:
            self._had_adapters.update(pages)

    def alloc(self, num_pages: int, use: PageUse, num_use_max: int | None = None) -> list[int]:
        pages = super().alloc(num_pages, use, num_use_max)
        for page in self._had_adapters.intersection(pages):
            begin = page * self.page_elements
            assert not self.memory[begin : begin + self.page_elements].any(), f"page {page} still holds an adapter"
        self._had_adapters.difference_update(pages)
        return pages


class BrittleBase(BaseModel):
    """A base whose next step fails when told so, as one does that finds no memory."""

    is_step_failing: ClassVar[bool] = False

    @classmethod
    def of(cls, base: BaseModel) -> "BrittleBase":
        """Return ``base`` as one that can fail."""
        return cls(**{one.name: getattr(base, one.name) for one in fields(base)})

    def logits(self, inputs: StepInputs, tokens: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        if BrittleBase.is_step_failing:
            BrittleBase.is_step_failing = False
            raise RuntimeError("out of memory")
        return super().logits(inputs, tokens, positions, rows)
