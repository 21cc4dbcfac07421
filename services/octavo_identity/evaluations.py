"""What a head keeps of evaluations. Pure: a head in, a head out, and it stays bounded."""

import msgspec

from octavo_identity import ranges
from octavo_identity.records import EVALUATIONS_IN_HEAD_MAX, AdapterHead
from octavo_shared.messages.evaluation import Evaluation

_RANGES_MAX = 256


def is_known(head: AdapterHead, evaluation: Evaluation) -> bool:
    """Tell whether the evaluator's newest finding with this suite is the same already, and signed if this one is."""
    newest = next((one for one in reversed(head.evaluations) if _is_replaced(one, evaluation)), None)
    return (
        newest is not None and newest.scores == evaluation.scores and (newest.is_signed or not evaluation.is_signed)
    )  # fmt: skip


def with_evaluation(head: AdapterHead, evaluation: Evaluation) -> AdapterHead:
    """Return ``head`` with one more evaluation, which replaces an older one of the same suite by the same evaluator.

    When there are too many, the oldest one goes, first of all those of revisions that no alias names: the gate asks for
    what is to be served and for what is. It then objects that the evaluation is missing, which running it again mends.
    """
    kept = [one for one in head.evaluations if not _is_replaced(one, evaluation)]
    named = {*head.aliases.values(), evaluation.number}
    if len(kept) >= EVALUATIONS_IN_HEAD_MAX:
        kept.remove(next((one for one in kept if one.number not in named), kept[0]))
    return msgspec.structs.replace(
        head,
        evaluations=(*kept, evaluation),
        num_evaluations=head.num_evaluations + 1,
        evaluated=bounded(ranges.added(head.evaluated, evaluation.number)),
    )


def bounded(marked: ranges.Ranges) -> ranges.Ranges:
    """Return the newest of ``marked``: what is forgotten of old revisions only makes them be looked at again."""
    return marked[-_RANGES_MAX:]


def _is_replaced(old: Evaluation, new: Evaluation) -> bool:
    return (old.number, old.suite_digest, old.evaluator) == (new.number, new.suite_digest, new.evaluator)
