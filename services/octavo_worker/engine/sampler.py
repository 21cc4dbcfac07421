"""Choosing tokens. Noise is a function of (seed, choice, token index), so neighbours and restarts change nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_kernels import pointwise
from octavo_kernels.allowed import Allowed
from octavo_shared.messages.generation import Sampling

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_TEMPERATURE_MIN = 1e-6
"""What lies below is greedy: the likeliest token has all the mass anyway, and in fp32 the smallest become 0: 0 / 0."""
_NUM_LIKELIEST = 512
"""How many tokens are sorted for top_p at first; a row whose nucleus is larger sorts them all."""


def uniform(seeds: Sequence[int], choices: Sequence[int], indices: Sequence[int]) -> NDArray[np.float64]:
    """Return one number in [0, 1) for each seed (64 bits of it), choice and token index.

    Philox 4x32-10, keyed by the seed and counted by index and choice.
    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
    """
    keys = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)
    counter = np.array(indices, dtype=np.uint64)
    key0, key1 = keys & _LOW, keys >> _SHIFT
    c0, c1, c2, c3 = counter & _LOW, counter >> _SHIFT, np.array(choices, dtype=np.uint64), np.zeros_like(counter)
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


def choose(
    logits: Tensor, samplings: Sequence[Sampling], indices: Sequence[int], allowed: Allowed | None = None
) -> Choice:
    """Choose one token for each row of ``logits`` [B, vocabulary]; row i is the ``indices[i]``-th of its answer.

    What is not ``allowed`` counts as minus infinity. Nothing is copied for it where the likeliest are wanted.

    Semantics:
        temperature below 1e-6: the likeliest token, the first of equals
        else: inverse of the cumulative distribution of p = softmax(logits / temperature) at uniform(seed, choice,
        index), over the likeliest tokens: those with p ≥ min_p · max p, at most top_k of them, and of these the
        smallest set whose mass reaches top_p of theirs
    """
    highest, tokens = pointwise.largest(logits, allowed)
    is_finite = torch.isfinite(highest)
    drawn = [i for i, sampling in enumerate(samplings) if sampling.temperature >= _TEMPERATURE_MIN]
    if drawn:
        wanted = [samplings[i] for i in drawn]
        noise = uniform([s.seed for s in wanted], [s.choice for s in wanted], [indices[i] for i in drawn])
        scaled = logits[drawn].float() - highest[drawn, None]
        if allowed is not None:
            pointwise.forbid(scaled, allowed.take(drawn))
        scaled /= torch.tensor([[s.temperature] for s in wanted], device=logits.device)
        tokens = tokens.clone()
        tokens[drawn] = _draw(torch.softmax(scaled, dim=-1), wanted, torch.from_numpy(noise).to(logits.device))
    return Choice(tokens.tolist(), is_finite.tolist())


@dataclass(frozen=True)
class _Cuts:
    """How each of B rows is cut to its likeliest tokens, [B]; ``top_k`` is the vocabulary's size where it cuts none."""

    top_p: Tensor
    min_p: Tensor
    top_k: Tensor

    @classmethod
    def of(cls, samplings: Sequence[Sampling], vocab_size: int, device: torch.device) -> "_Cuts":
        top_k = [min(s.top_k, vocab_size) if s.top_k else vocab_size for s in samplings]
        return cls(
            torch.tensor([s.top_p for s in samplings], dtype=torch.float64, device=device),
            torch.tensor([s.min_p for s in samplings], dtype=torch.float32, device=device),
            torch.tensor(top_k, device=device),
        )

    def __getitem__(self, rows: Tensor) -> "_Cuts":
        return _Cuts(self.top_p[rows], self.min_p[rows], self.top_k[rows])


def _draw(probabilities: Tensor, samplings: Sequence[Sampling], noise: Tensor) -> Tensor:
    device, vocab_size = noise.device, probabilities.shape[1]
    tokens = torch.empty(len(noise), dtype=torch.int64, device=device)
    is_cut = torch.tensor([s.top_p < 1 or s.min_p > 0 or 0 < s.top_k < vocab_size for s in samplings], device=device)
    if bool(is_cut.any()):
        cuts = _Cuts.of(samplings, vocab_size, device)[is_cut]
        tokens[is_cut] = _draw_likeliest(probabilities[is_cut], cuts, noise[is_cut], _NUM_LIKELIEST)
    if not bool(is_cut.all()):
        # Nothing is cut off, so nothing has to be sorted.
        cumulative = probabilities[~is_cut].double().cumsum(-1)
        tokens[~is_cut] = _invert(cumulative, noise[~is_cut] * cumulative[:, -1])
    return tokens


def _draw_likeliest(probabilities: Tensor, cuts: _Cuts, noise: Tensor, num_sorted: int) -> Tensor:
    vocab_size = probabilities.shape[1]
    num_sorted = min(num_sorted, vocab_size)
    if num_sorted < vocab_size:
        ordered, names = probabilities.topk(num_sorted, dim=-1)
    else:
        ordered, names = probabilities.sort(dim=-1, descending=True, stable=True)
    mass = ordered.double().cumsum(-1)
    # A row of NaN has none. Nobody gets its token, but an index before the first would fail the neighbours' step.
    num_likely = (ordered >= cuts.min_p[:, None] * ordered[:, :1]).sum(-1).clamp(min=1)
    # How many min_p and top_k leave; all of them where neither cuts, and then their mass is 1.
    is_whole = (cuts.min_p == 0) & (cuts.top_k == vocab_size)
    num_left = torch.where(is_whole, vocab_size, torch.minimum(num_likely, cuts.top_k))
    mass_left = mass.gather(1, num_left.clamp(max=num_sorted)[:, None] - 1)[:, 0]
    mass_left = torch.where(is_whole, 1.0, mass_left)
    num_kept = torch.minimum((mass < (cuts.top_p * mass_left)[:, None]).sum(-1) + 1, num_left)
    last = num_kept.clamp(max=num_sorted)[:, None] - 1
    position = _invert(mass, noise * mass.gather(1, last)[:, 0])[:, None]
    tokens = names.gather(1, torch.minimum(position, last))[:, 0]
    # Rows that reach past what was sorted: sort them whole.
    is_open = (num_kept > num_sorted) | (~is_whole & (num_left >= num_sorted) & (cuts.top_k > num_sorted))
    if num_sorted < vocab_size and bool(is_open.any()):
        tokens[is_open] = _draw_likeliest(probabilities[is_open], cuts[is_open], noise[is_open], vocab_size)
    return tokens


def _invert(cumulative: Tensor, targets: Tensor) -> Tensor:
    # The first token whose cumulative mass exceeds the target: one without mass is never chosen.
    position = torch.searchsorted(cumulative, targets[:, None], right=True)[:, 0]
    return position.clamp(max=cumulative.shape[1] - 1)
