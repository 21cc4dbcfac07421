"""The gateway's client for evaluations and gates, and for whole answers that are asked again when it is busy."""

import time

import httpx
import msgspec

from octavo_cli.answers import ClientError, as_client_errors, check
from octavo_cli.connection import adapter_path, revision_query
from octavo_cli.provenance_client import ProvenanceClient
from octavo_shared.envelopes import Envelope
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.evaluation import Evaluation, EvaluationList, Gate, Gates, Score
from octavo_shared.references import Digest, Fingerprint, check_name, parse_reference

_ATTEMPTS_MAX = 8
_WAIT_S_MAX = 30.0
_RETRIED = (429, 503)


class EvaluationClient(ProvenanceClient):
    """A ``Client`` that also knows how good revisions are, and how good they must be."""

    def evaluations(self, reference: str, *, with_statements: bool = False) -> EvaluationList:
        """Return a revision, its state and its evaluations, newest first, as they were signed if that is wanted."""
        parsed = parse_reference(reference, "revision")
        query = {"statements": str(with_statements).lower()} | revision_query(parsed)
        return self._call("GET", f"{adapter_path(parsed.name)}/evaluations", EvaluationList, query=query)

    def evaluate(
        self,
        reference: str,
        suite: str,
        suite_digest: Digest,
        scores: tuple[Score, ...],
        base: Fingerprint,
        write: str | None = None,
        statement: Envelope | None = None,
    ) -> Evaluation:
        """Record what a suite's run gave; ``write`` is the idempotency key (None: a fresh one)."""
        parsed = parse_reference(reference, "revision")
        if parsed.number is None:
            raise InvalidRequest("revision", "must be named by its number")
        body: dict[str, object] = {
            "revision": parsed.number,
            "suite": suite,
            "suite_digest": suite_digest,
            "scores": [msgspec.to_builtins(score) for score in scores],
            "base": base,
        }
        if statement is not None:
            body["statement"] = msgspec.to_builtins(statement)
        return self._call("POST", f"{adapter_path(parsed.name)}/evaluations", Evaluation, body, write=write)

    def gates(self, target: str) -> Gates:
        """Return the gates of ``tenant/adapter``, or that of ``tenant``."""
        return self._call("GET", _gate_path(target), Gates)

    def set_gate(self, target: str, gate: Gate) -> Gates:
        body = msgspec.to_builtins(gate)
        return self._call("PUT", _gate_path(target), Gates, body)

    def clear_gate(self, target: str) -> Gates:
        return self._call("DELETE", _gate_path(target), Gates)

    def answer(self, url: str, body: dict[str, object]) -> httpx.Response:
        """Return the whole answer to ``body``. A gateway that is busy is asked again when it says, so many times."""
        for attempt in range(_ATTEMPTS_MAX):
            with as_client_errors():
                response = self._http.post(url, json=body)
                if not _is_busy(response) or attempt == _ATTEMPTS_MAX - 1:
                    check(response)
                    return response
            time.sleep(_wait_s(response, attempt))
        raise AssertionError("the last attempt returns or raises")


def _is_busy(response: httpx.Response) -> bool:
    """Tell whether it may be otherwise in a moment. A quota of the day is used up until the next day."""
    told = response.headers.get("retry-after", "")
    return response.status_code in _RETRIED and not (told.isdecimal() and float(told) > _WAIT_S_MAX)


def _wait_s(response: httpx.Response, attempt: int) -> float:
    told = response.headers.get("retry-after", "")
    return min(_WAIT_S_MAX, float(told) if told.isdecimal() else 0.25 * 2.0**attempt)


def _gate_path(target: str) -> str:
    if "/" not in target:
        return f"/v1/tenants/{check_name(target, 'tenant')}/gate"
    parsed = parse_reference(target, "adapter")
    if parsed.names_revision:
        raise ClientError("usage", "a gate is an adapter's or a tenant's, not a revision's", 0)
    return f"{adapter_path(parsed.name)}/gate"
