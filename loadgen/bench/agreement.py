"""How far two engines agree on greedy answers in bf16, where each rounds at other places."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Shares of the answers that begin with the same token and that are the same, and tokens until they part."""

    first_tokens: float
    whole_answers: float
    mean_common_tokens: float


def agreement_of(ours: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]]) -> Agreement:
    """Compare answer by answer."""
    common = [_num_common(*pair) for pair in zip(ours, theirs, strict=True)]
    num = len(common)
    return Agreement(
        first_tokens=sum(tokens > 0 for tokens in common) / num,
        whole_answers=sum(a == b for a, b in zip(ours, theirs, strict=True)) / num,
        mean_common_tokens=sum(common) / num,
    )


def is_same_model(agreement: Agreement, chance: Agreement, num_tokens: int) -> bool:
    """Tell whether differences are those of rounding and not those of another adapter.

    ``chance`` is how far answers to the same prompts agree when the adapters differ. Rounding turns a token where two
    are nearly equal, and all that follow: answers part late. With another adapter they part after a few tokens. The
    bound is the geometric mean of that and of whole answers.
    """
    return agreement.mean_common_tokens**2 >= chance.mean_common_tokens * num_tokens


def _num_common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    differing = (i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    return next(differing, len(a))
