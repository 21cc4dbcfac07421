"""Which tokens rows of logits may become."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EVERYTHING = -1


@dataclass(frozen=True)
class Allowed:
    """Row i of N may have the elements whose bit is set in ``words[of_row[i]]``, all where that is ``EVERYTHING``.

    The lowest bit of the first word is that of element 0. Elements for which there is no bit are not allowed.

    Shapes: words [masks, words] int32, contiguous; of_row [N] int64, contiguous.
    """

    words: NDArray[np.int32]
    of_row: NDArray[np.int64]

    def take(self, rows: Sequence[int]) -> "Allowed":
        """Return the same for the rows ``rows``, in that order."""
        return Allowed(self.words, self.of_row[list(rows)])

    def mask(self, width: int) -> Tensor:
        """Return it as booleans, [N, width], for code that knows no bits."""
        bits = np.unpackbits(self.words.view(np.uint8), axis=1, bitorder="little")[:, :width]
        masks = np.zeros((len(bits) + 1, width), dtype=np.bool_)
        masks[:-1, : bits.shape[1]] = bits
        masks[EVERYTHING] = True
        return torch.from_numpy(masks[self.of_row])
