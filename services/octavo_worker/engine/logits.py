"""What a request wants changed in its logits before a token is chosen: biases, penalties, a minimum length."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo_shared.messages.generation import Sampling, TokenLogprobs
from octavo_worker.engine import sequence

_NUM_ROWS_SCORED = 32


def adjusted(logits: Tensor, sequences: Sequence["sequence.Sequence"]) -> Tensor:
    """Return the logits that tokens are chosen from: ``logits`` itself when nobody wants them changed.

    Semantics, in this order, for row i of ``logits`` [B, vocabulary]:
        bias        l[t] += bias[t]
        repetition  l[t] / p where positive, else l[t] · p, for every token t of prompt and answer
        presence    l[t] −= p, and frequency l[t] −= p · count(t), for every token t of the answer
        min_tokens  l[stop] = −inf while the answer is shorter
    A row depends on its own sequence only.
    """
    if not any(_is_changed(one) for one in sequences):
        return logits
    # A copy, and exact: the model's own probabilities are still to be told.
    changed = logits.to(torch.float32, copy=True)
    for row, one in zip(changed, sequences, strict=True):
        if _is_changed(one):
            _adjust(row, one)
    return changed


def logprobs_of(
    logits: Tensor, samplings: Sequence[Sampling], tokens: Sequence[int]
) -> list[tuple[TokenLogprobs, ...]]:
    """Return for each row none, or one entry for its chosen token; from the model's own, unchanged ``logits``."""
    found: list[tuple[TokenLogprobs, ...]] = [()] * len(samplings)
    for i, sampling in enumerate(samplings):
        if sampling.num_logprobs >= 0:
            row = torch.log_softmax(logits[i].float(), dim=-1)
            values, names = row.topk(sampling.num_logprobs)
            top = tuple(zip(names.tolist(), values.tolist(), strict=True))
            found[i] = (TokenLogprobs(float(row[tokens[i]]), top),)
    return found


def scores_of(logits: Tensor, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return how likely the given tokens are: ``tokens[i]`` by as many rows, the rows of all behind each other.

    A few rows at a time: in single precision they are large, and each is independent of the others.
    """
    if not tokens:
        return []
    wanted = torch.tensor([token for some in tokens for token in some], dtype=torch.int64, device=logits.device)
    found: list[float] = []
    for begin in range(0, len(wanted), _NUM_ROWS_SCORED):
        some = wanted[begin : begin + _NUM_ROWS_SCORED]
        rows = torch.log_softmax(logits[begin : begin + len(some)].float(), dim=-1)
        found += rows.gather(1, some[:, None])[:, 0].tolist()
    told = iter(found)
    return [[next(told) for _ in some] for some in tokens]


def _is_changed(one: "sequence.Sequence") -> bool:
    sampling = one.request.sampling
    return bool(
        sampling.logit_bias
        or sampling.repetition_penalty != 1.0
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or _lacks_tokens(one)
    )


def _lacks_tokens(one: "sequence.Sequence") -> bool:
    # What a schema allows comes first: an answer that is complete and may not end would have no token left.
    sampling = one.request.sampling
    return one.guide is None and bool(sampling.stop_token_ids) and one.num_answer_tokens < sampling.min_tokens


def _adjust(row: Tensor, one: "sequence.Sequence") -> None:
    sampling = one.request.sampling
    if sampling.logit_bias:
        biased = _index([token for token, _ in sampling.logit_bias], row)
        row[biased] += torch.tensor([bias for _, bias in sampling.logit_bias], device=row.device)
    if sampling.repetition_penalty != 1.0:
        seen = _index(np.unique(one.tokens), row)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        names, counts = np.unique(one.tokens[len(one.request.prompt) :], return_counts=True)
        penalties = sampling.presence_penalty + sampling.frequency_penalty * counts
        row[_index(names, row)] -= torch.from_numpy(penalties).to(row)
    if _lacks_tokens(one):
        row[_index(sampling.stop_token_ids, row)] = -torch.inf


def _index(tokens: object, row: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(tokens, dtype=np.int64)).to(row.device)
