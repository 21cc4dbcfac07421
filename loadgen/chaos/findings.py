"""Evaluations as the registry has them, and as a history does."""

import hashlib

from chaos import history as h
from chaos.adapters import BASE
from octavo_shared import dsse, evaluation_statement
from octavo_shared.clock import wall_ms
from octavo_shared.envelopes import Envelope
from octavo_shared.errors import InvalidRequest, ProvenanceRefused
from octavo_shared.messages.evaluation import Evaluate, Evaluation, Metric, Score
from octavo_shared.messages.requests import Credential
from octavo_shared.references import Digest


def evaluate_request(
    credential: Credential, idempotency_key: str, adapter: str, finding: h.Finding, evaluator: str, signer: dsse.Signer
) -> Evaluate:
    """Return the request that records ``finding``, as ``evaluator`` signs it."""
    made = _evaluation(finding, evaluator)
    return Evaluate(
        credential=credential, idempotency_key=idempotency_key, reference=f"{adapter}@{finding.number}",
        suite=made.suite, suite_digest=made.suite_digest, scores=made.scores, base=made.base,
        statement=dsse.sign(dsse.STATEMENT_TYPE, evaluation_statement.build(adapter, made), signer),
    )  # fmt: skip


def finding_of(made: Evaluation) -> h.Finding:
    """Return what ``made`` says."""
    score = made.score(Metric.PASSED)
    assert score is not None, "what is asked to be recorded has this score alone"
    return h.Finding(made.number, made.digest, made.suite, score.value, score.num_items)


def what_is_wrong(envelope: bytes, adapter: str, made: Evaluation, keys: tuple[dsse.PublicKey, ...]) -> str:
    """Return what keeps ``envelope`` from being the statement of ``made``, signed by each of ``keys``; or nothing."""
    try:
        decoded: Envelope = dsse.decode(envelope)
        signed = dsse.verify(decoded, keys)
        evaluation_statement.check_made(evaluation_statement.parse(decoded.data), adapter, made)
    except (InvalidRequest, ProvenanceRefused) as error:
        return error.message
    if len(signed) != len(keys) or not made.is_signed:
        return f"it has {len(signed)} of {len(keys)} signatures"
    return ""


def _evaluation(finding: h.Finding, evaluator: str) -> Evaluation:
    suite_digest = Digest("sha256:" + hashlib.sha256(finding.suite.encode()).hexdigest())
    scores = (Score(Metric.PASSED, finding.share, finding.num_items),)
    return Evaluation(
        finding.number, Digest(finding.digest), BASE.fingerprint, finding.suite, suite_digest, scores, evaluator,
        wall_ms(), is_signed=True,
    )  # fmt: skip
