"""From answers to scores. Pure; only a pattern takes time, and that is bounded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from octavo_cli.suite import Check, Line
from octavo_shared.messages.evaluation import Metric, Score

_MATCH_TIMEOUT_S = 1.0
_EXPONENT_MAX = 700.0
"""Beyond, a float is infinite."""
_METRICS = {Check.EXACT: Metric.EXACT, Check.CONTAINS: Metric.CONTAINS, Check.REGEX: Metric.REGEX}


class SlowPattern(Exception):
    """A pattern that backtracks for too long to be judged with."""


@dataclass(frozen=True)
class Result:
    """What one item gave: whether it passed, or for a perplexity how likely its tokens were (summed logarithms)."""

    check: Check
    is_passed: bool = False
    logprob: float = 0.0
    num_tokens: int = 0


def judge(line: Line, answer: str) -> Result:
    """Hold ``answer`` against what the line expects; white space around exact answers does not count."""
    match line.check:
        case Check.EXACT:
            is_passed = answer.strip() == line.expect.strip()
        case Check.CONTAINS:
            is_passed = line.expect in answer
        case Check.REGEX:
            try:
                is_passed = regex.search(line.expect, answer, timeout=_MATCH_TIMEOUT_S, concurrent=True) is not None
            except TimeoutError:
                raise SlowPattern from None
        case Check.PERPLEXITY:
            raise AssertionError("a perplexity is not told from an answer")
    return Result(line.check, is_passed)


def likelihood(prompt: str, logprobs: Sequence[float | None], offsets: Sequence[int]) -> Result:
    """Return how likely the tokens behind ``prompt`` were; a token across its end counts. The first has no logprob."""
    ends = [*offsets[1:], math.inf]
    told = [logprob for logprob, end in zip(logprobs, ends, strict=True) if end > len(prompt) and logprob is not None]
    return Result(Check.PERPLEXITY, logprob=math.fsum(told), num_tokens=len(told))


def scores_of(results: Sequence[Result]) -> tuple[Score, ...]:
    """Return one score for each check that occurs, and the share of all that pass or fail."""
    found = []
    judged = [result for result in results if result.check in _METRICS]
    if judged:
        found.append(_share(Metric.PASSED, judged))
    for check, metric in _METRICS.items():
        if same := [result for result in judged if result.check is check]:
            found.append(_share(metric, same))
    read = [result for result in results if result.check is Check.PERPLEXITY]
    num_tokens = sum(result.num_tokens for result in read)
    if num_tokens:
        mean = math.fsum(result.logprob for result in read) / num_tokens
        # Rounding must not make a certain text more than certain.
        found.append(Score(Metric.PERPLEXITY, math.exp(min(_EXPONENT_MAX, max(0.0, -mean))), len(read)))
    return tuple(found)


def _share(metric: Metric, results: Sequence[Result]) -> Score:
    return Score(metric, sum(result.is_passed for result in results) / len(results), len(results))
