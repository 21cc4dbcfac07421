"""Verbs on how good revisions are, and on the gates that ask for it."""

import math
from collections.abc import Sequence

import msgspec

from octavo_identity import access
from octavo_identity.desk import Desk
from octavo_identity.evaluations import is_known, with_evaluation
from octavo_identity.records import AdapterHead, KeyHead, RegistryEvent
from octavo_identity.registry import LEDGER_WALK_MAX, Change
from octavo_identity.signers import Signers
from octavo_identity.statements import Statements
from octavo_identity.states import state_of
from octavo_shared import dsse
from octavo_shared.clock import wall_ms
from octavo_shared.errors import BaseMismatch, InvalidRequest
from octavo_shared.messages import evaluation as messages
from octavo_shared.messages.evaluation import Evaluation, EvaluationEntry, EvaluationList, Metric, Score
from octavo_shared.references import DIGEST_PATTERN, Digest, Reference, check_name, parse_reference

_ITEMS_MAX = 10_000_000


class Evaluating:
    """One method per verb."""

    def __init__(self, desk: Desk, signers: Signers, statements: Statements) -> None:
        self._desk = desk
        self._registry = desk.registry
        self._signers = signers
        self._statements = statements

    async def evaluate(self, request: messages.Evaluate) -> Evaluation:
        """Record what a suite's run gave; the revision is then evaluated, however well.

        For the adapter's owner and editors, and for those of its users whom a gate names as evaluators. Idempotent by
        key, and the finding that is the evaluator's newest with this suite already is no event. Raises ``BaseMismatch``
        when the answers came from another base than the revision's, ``RevisionRetired``, and for a statement that says
        otherwise ``ProvenanceRefused``.
        """
        key = await self._desk.authenticate(request.credential)
        reference = parse_reference(request.reference, "revision")
        if not reference.names_revision:
            raise InvalidRequest("revision", "must be named: by number, digest or alias")
        suite, suite_digest = check_name(request.suite, "suite"), _digest(request.suite_digest, "suite_digest")
        scores = _check_scores(request.scores)
        offered = await self._statements.open_evaluation(request.statement, key.principal)

        number = 0

        async def record(now: AdapterHead | None) -> Change | None:
            nonlocal number
            head = await self._check_evaluator(key, reference, now)
            target = (await self._registry.select(head, reference)).revision
            number = target.number
            if request.base != target.base:
                raise BaseMismatch(adapter_base=target.base, served_base=request.base)
            made = Evaluation(
                target.number, target.digest, target.base, suite, suite_digest, scores, key.principal, wall_ms(),
                offered is not None,
            )  # fmt: skip
            statement = self._statements.close_evaluation(offered, head.name, made)
            if is_known(head, made):
                return None
            detail = f"revision {target.number}: {_told(made)}"
            return Change(
                "evaluated", with_evaluation(head, made), detail, statement=statement, evaluation=made
            )  # fmt: skip

        head = await self._desk.change(reference, key, request.idempotency_key, record)
        # A repeated write gets the head that it made then, whose newest evaluation is what it recorded.
        own = [one for one in head.evaluations if (one.evaluator, one.suite_digest) == (key.principal, suite_digest)]
        return next(one for one in reversed(own) if number in (0, one.number))

    async def evaluations(self, request: messages.ListEvaluations) -> EvaluationList:
        """Return a revision's evaluations from the ledger, newest first. For all who have a role on the adapter."""
        key = await self._desk.authenticate(request.credential)
        reference = parse_reference(request.reference, "revision")
        num_max = messages.SIGNED_EVALUATIONS_MAX if request.with_statements else messages.EVALUATIONS_MAX
        if not 1 <= request.num_max <= num_max:
            raise InvalidRequest("limit", f"must be 1 to {num_max}")
        head = access.check_see(key, await self._registry.head(reference))
        revision = (await self._registry.find(head, reference)).revision
        found: list[EvaluationEntry] = []
        num_left = head.num_evaluations
        is_whole = not num_left
        if num_left:
            async for event, sequence in self._registry.ledger(reference, LEDGER_WALK_MAX):
                if event.evaluation is None:
                    continue
                num_left -= 1
                if event.evaluation.number == revision.number:
                    entry = EvaluationEntry(event.evaluation, sequence)
                    found.append(await self._signed(entry, event) if request.with_statements else entry)
                is_whole = not num_left
                if is_whole or len(found) == request.num_max:
                    break
        return EvaluationList(head.name, revision, state_of(head, revision.number), tuple(found), is_whole)

    async def _signed(self, entry: EvaluationEntry, event: RegistryEvent) -> EvaluationEntry:
        if not event.statement:
            return entry
        envelope = dsse.decode(event.statement)
        signers = await self._signers.shown(envelope, event.actor, entry.sequence)
        return msgspec.structs.replace(entry, envelope=envelope, signers=signers)

    async def _check_evaluator(self, key: KeyHead, reference: Reference, now: AdapterHead | None) -> AdapterHead:
        head = access.check_see(key, now)
        gates = (head.gate, await self._desk.gatekeeper.tenant_gate(reference.tenant))
        if any(gate is not None and key.principal in gate.evaluators for gate in gates):
            return access.check_use(key, head)
        return access.check_edit(key, head)


def _check_scores(scores: Sequence[Score]) -> tuple[Score, ...]:
    if not 1 <= len(scores) <= messages.SCORES_MAX:
        raise InvalidRequest("scores", f"must be 1 to {messages.SCORES_MAX}")
    if len({score.metric for score in scores}) != len(scores):
        raise InvalidRequest("scores", "may hold each metric once")
    for score in scores:
        low, high = (1.0, math.inf) if score.metric is Metric.PERPLEXITY else (0.0, 1.0)
        if not (math.isfinite(score.value) and low <= score.value <= high):
            raise InvalidRequest("scores", f"holds a {score.metric} that is not from {low:g} to {high:g}")
        if not 1 <= score.num_items <= _ITEMS_MAX:
            raise InvalidRequest("scores", f"must be over 1 to {_ITEMS_MAX} items")
    return tuple(scores)


def _digest(text: str, field: str) -> Digest:
    if DIGEST_PATTERN.match(text) is None:
        raise InvalidRequest(field, "must be 'sha256:' and 64 hexadecimal digits")
    return Digest(text)


def _told(evaluation: Evaluation) -> str:
    scores = ", ".join(f"{score.metric} {score.value:g} of {score.num_items}" for score in evaluation.scores)
    return f"{evaluation.suite} {scores}"
