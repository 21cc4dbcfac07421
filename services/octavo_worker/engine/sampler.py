"""Choosing tokens. Noise is a function of (seed, token index) alone, so neighbours and restarts change nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_shared.messages.generation import Sampling

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_NUM_LIKELIEST = 512
"""How many tokens are sorted for top_p at first; a row whose nucleus is larger sorts them all."""


def uniform(seeds: Sequence[int], indices: Sequence[int]) -> NDArray[np.float64]:
    """Return one number in [0, 1) for each pair of a seed (64 bits of it) and a token index.

    Philox 4x32-10, keyed by the seed and counted by the index.
    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
    """
    keys = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)
    counter = np.array(indices, dtype=np.uint64)
    key0, key1 = keys & _LOW, keys >> _SHIFT
    c0, c1, c2, c3 = counter & _LOW, counter >> _SHIFT, np.zeros_like(counter), np.zeros_like(counter)
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ key0,
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ key1,
            product0 & _LOW,
        )
        key0, key1 = (key0 + _WEYL[0]) & _LOW, (key1 + _WEYL[1]) & _LOW
    return ((c0 << _SHIFT | c1) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Choice:
    """``tokens[i]`` was chosen for row i; ``is_finite[i]`` is False where the logits were not numbers."""

    tokens: list[int]
    is_finite: list[bool]


def choose(logits: Tensor, samplings: Sequence[Sampling], indices: Sequence[int]) -> Choice:
    """Choose one token for each row of ``logits`` [B, vocabulary]; row i is the ``indices[i]``-th of its answer.

    Semantics:
        temperature 0: the likeliest token, the first of equals
        else: inverse of the cumulative distribution of softmax(logits / temperature), cut to the smallest set of
        likeliest tokens whose mass reaches top_p, at uniform(seed, index)
    """
    highest, tokens = logits.max(dim=-1)
    is_finite = torch.isfinite(highest)
    drawn = [i for i, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        noise = torch.from_numpy(uniform([samplings[i].seed for i in drawn], [indices[i] for i in drawn]))
        scaled = logits[drawn].float() - highest[drawn, None].float()
        scaled /= torch.tensor([[samplings[i].temperature] for i in drawn], device=logits.device)
        top_p = torch.tensor([samplings[i].top_p for i in drawn], dtype=torch.float64, device=logits.device)
        tokens = tokens.clone()
        tokens[drawn] = _draw(torch.softmax(scaled, dim=-1), top_p, noise.to(logits.device))
    return Choice(tokens.tolist(), is_finite.tolist())


def _draw(probabilities: Tensor, top_p: Tensor, noise: Tensor) -> Tensor:
    tokens = torch.empty(len(noise), dtype=torch.int64, device=noise.device)
    cut = top_p < 1
    if bool(cut.any()):
        tokens[cut] = _draw_nucleus(probabilities[cut], top_p[cut], noise[cut], _NUM_LIKELIEST)
    if not bool(cut.all()):
        # Nothing is cut off, so nothing has to be sorted.
        cumulative = probabilities[~cut].double().cumsum(-1)
        tokens[~cut] = _invert(cumulative, noise[~cut] * cumulative[:, -1])
    return tokens


def _draw_nucleus(probabilities: Tensor, top_p: Tensor, noise: Tensor, num_sorted: int) -> Tensor:
    vocab_size = probabilities.shape[1]
    if num_sorted < vocab_size:
        ordered, names = probabilities.topk(num_sorted, dim=-1)
    else:
        ordered, names = probabilities.sort(dim=-1, descending=True, stable=True)
    mass = ordered.double().cumsum(-1)
    num_kept = (mass < top_p[:, None]).sum(-1, keepdim=True) + 1
    last = num_kept.clamp(max=mass.shape[1]) - 1
    position = _invert(mass, noise * mass.gather(1, last)[:, 0])[:, None]
    tokens = names.gather(1, torch.minimum(position, last))[:, 0]
    is_open = num_kept[:, 0] > mass.shape[1]
    if num_sorted < vocab_size and bool(is_open.any()):
        tokens[is_open] = _draw_nucleus(probabilities[is_open], top_p[is_open], noise[is_open], vocab_size)
    return tokens


def _invert(cumulative: Tensor, targets: Tensor) -> Tensor:
    # The first token whose cumulative mass exceeds the target: one without mass is never chosen.
    position = torch.searchsorted(cumulative, targets[:, None], right=True)[:, 0]
    return position.clamp(max=cumulative.shape[1] - 1)
