"""From a step's logits to its tokens: change what requests want changed, draw, and tell what was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from octavo_shared.messages.generation import TokenLogprobs
from octavo_worker.engine import sampler, sequence
from octavo_worker.engine.guides import allowed_next
from octavo_worker.engine.logits import adjusted, logprobs_of


@dataclass(frozen=True)
class Chosen:
    """``tokens[i]`` was chosen for row i; ``is_finite[i]`` is False where the logits leave no token to choose."""

    tokens: list[int]
    is_finite: list[bool]
    logprobs: list[tuple[TokenLogprobs, ...]]


def choose_tokens(logits: Tensor, sequences: Sequence["sequence.Sequence"]) -> Chosen:
    """Choose the next token of each sequence; row i of ``logits`` [B, vocabulary] is that of ``sequences[i]``."""
    if not sequences:
        return Chosen([], [], [])
    samplings = [one.request.sampling for one in sequences]
    indices = [one.num_answer_tokens for one in sequences]
    allowed = allowed_next([one.guide for one in sequences])
    choice = sampler.choose(adjusted(logits, sequences), samplings, indices, allowed)
    return Chosen(choice.tokens, choice.is_finite, logprobs_of(logits, samplings, choice.tokens))
