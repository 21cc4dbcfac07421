"""Everything that can go wrong on purpose.

OctavoError
├── InvalidRequest            400  a field is wrong
│   ├── UnsupportedParameter  400  a field that OpenAI knows and Octavo does not serve
│   └── ContextExceeded       400  prompt and answer do not fit the context
├── Unauthenticated           401  no key, a wrong key or a revoked one
├── NotPermitted              403  the key is good but may not do this
├── QuotaExceeded             403  the tenant has as much as it may have
│   └── DailyQuotaExceeded    429  the tenant has used what it may use today, with a truthful Retry-After
├── AdapterNotFound           404  not there, or not yours: one answer for both
├── RevisionConflict          409  somebody else moved the head first
├── AliasMoved                409  the alias does not name the revision that the writer expected
├── RevisionInUse             409  an alias names the revision that was to be retired
├── GateRefused               409  the gate does not let the revision be served
├── NameTaken                 409  a tenant or an adapter of this name exists
├── BaseMismatch              409  the adapter was made for another base
├── BaseUnknown               404  no base of this name is registered, nor published
├── BaseRetired               410  the base takes nothing new
├── ParentMoved               409  a statement names a parent that is not served any more
├── RevisionRetired           410  the revision is there and will never be served again
├── AdapterErased             410  the adapter was erased while this was on its way
├── BodyTooLarge              413  a JSON body of more bytes than the limit
├── UploadTooLarge            413  a file of more bytes than the limit
├── AdapterRefused            422  the validator's answer, with its rule
├── ProvenanceRefused         422  a statement says otherwise than what was made, with its field
├── Overloaded                429  too many requests, with a truthful Retry-After
├── NoWorker                  503  no worker that could serve the base is alive, or all are busy
│   └── BaseNotServed         503  there are workers, and none of them has the revision's base
├── AdapterUnavailable        503  the pack could not be read or did not match its digest
├── DependencyUnavailable     503  NATS, S3, identity or the residency manager does not answer
├── WorkerLost                503  every attempt ended with a worker that died or went silent
├── DeadlineExceeded          504  the time budget is used up
└── InternalError             500  a bug; carries an id that the logs carry too

Codes are API and never change; sentences may. A leaf knows its HTTP status and whether a retry can help.
"""

import uuid
from typing import ClassVar

import msgspec

Fields = dict[str, str | int | float]


class Refusal(msgspec.Struct, frozen=True):
    """An ``OctavoError`` on the wire."""

    code: str
    message: str
    fields: Fields = {}


class OctavoError(Exception):
    """Base of the tree; never raised itself."""

    code: ClassVar[str]
    http_status: ClassVar[int]
    is_retryable: ClassVar[bool] = False

    def __init__(self, message: str, **fields: str | int | float) -> None:
        super().__init__(message)
        self.message = message
        self.fields: Fields = fields

    def refusal(self) -> Refusal:
        """Return the form in which this error travels."""
        return Refusal(self.code, self.message, self.fields)


class InvalidRequest(OctavoError):
    code, http_status = "invalid_request", 400

    def __init__(self, field: str, problem: str, **fields: str | int | float) -> None:
        super().__init__(f"'{field}' {problem}", field=field, **fields)


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"

    def __init__(self, field: str, problem: str = "is not supported") -> None:
        super().__init__(field, problem)


class ContextExceeded(InvalidRequest):
    code = "context_length_exceeded"

    def __init__(self, field: str, *, prompt_tokens: int, max_tokens: int, context_tokens: int) -> None:
        super().__init__(
            field,
            f"does not fit: {prompt_tokens} prompt tokens and {max_tokens} new tokens exceed "
            f"the context of {context_tokens} tokens",
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            context_tokens=context_tokens,
        )


class Unauthenticated(OctavoError):
    code, http_status = "unauthenticated", 401

    def __init__(self) -> None:
        super().__init__("a valid API key is required: send 'Authorization: Bearer <key>'")


class NotPermitted(OctavoError):
    code, http_status = "not_permitted", 403

    def __init__(self, action: str) -> None:
        super().__init__(f"this key may not {action}", action=action)


class QuotaExceeded(OctavoError):
    """``quota`` is its name, ``used`` what there is and is on its way."""

    code, http_status = "quota_exceeded", 403

    def __init__(self, quota: str, *, limit: int, used: int, problem: str = "", **fields: int) -> None:
        super().__init__(
            f"the tenant's quota '{quota}' is {limit}, of which {used} are used{problem}",
            quota=quota, limit=limit, used=used, **fields,
        )  # fmt: skip


class DailyQuotaExceeded(QuotaExceeded):
    code, http_status = "daily_quota_exceeded", 429

    def __init__(self, quota: str, *, limit: int, used: int, retry_after_s: int) -> None:
        problem = f"; it begins again in {retry_after_s} s"
        super().__init__(quota, limit=limit, used=used, problem=problem, retry_after_s=retry_after_s)


class AdapterNotFound(OctavoError):
    code, http_status = "adapter_not_found", 404

    def __init__(self) -> None:
        # The reference is left out on purpose: the body must not differ between 'not there' and 'not yours'.
        super().__init__("no such adapter or revision, or this key may not use it")


class RevisionConflict(OctavoError):
    code, http_status, is_retryable = "revision_conflict", 409, True

    def __init__(self, problem: str = "the adapter changed at the same time; look again and retry") -> None:
        super().__init__(problem)


class AliasMoved(OctavoError):
    code, http_status = "alias_moved", 409

    def __init__(self, alias: str, *, expected: int, actual: int) -> None:
        named = f"names revision {actual}" if actual else "names no revision"
        wanted = f"revision {expected}" if expected else "no revision"
        super().__init__(f"'{alias}' {named}, not {wanted}", alias=alias, expected=expected, actual=actual)


class RevisionInUse(OctavoError):
    code, http_status = "revision_in_use", 409

    def __init__(self, number: int, alias: str) -> None:
        super().__init__(f"revision {number} is what '{alias}' names; move or remove the alias first",
                         number=number, alias=alias)  # fmt: skip


class GateRefused(OctavoError):
    """``detail`` says what is wrong with each rule that does not hold; the other fields are those of the first one."""

    code, http_status = "gate_refused", 409

    def __init__(self, alias: str, number: int, detail: str, **rule: str | int | float) -> None:
        super().__init__(f"'{alias}' may not name revision {number}: {detail}",
                         alias=alias, number=number, detail=detail, **rule)  # fmt: skip


class RevisionRetired(OctavoError):
    code, http_status = "revision_retired", 410

    def __init__(self, number: int) -> None:
        super().__init__(f"revision {number} is retired", number=number)


class AdapterErased(OctavoError):
    code, http_status = "adapter_erased", 410

    def __init__(self) -> None:
        super().__init__("the adapter was erased; nothing of it is left")


class NameTaken(OctavoError):
    code, http_status = "name_taken", 409

    def __init__(self, name: str) -> None:
        super().__init__(f"'{name}' exists already", name=name)


class BaseMismatch(OctavoError):
    code, http_status = "base_mismatch", 409

    def __init__(self, *, adapter_base: str, served_base: str) -> None:
        super().__init__(
            f"the adapter was made for base {adapter_base}; the base served here is {served_base}",
            adapter_base=adapter_base,
            served_base=served_base,
        )


class BaseUnknown(OctavoError):
    code, http_status = "base_unknown", 404

    def __init__(self, base: str) -> None:
        super().__init__(f"base '{base}' is not registered here", base=base)


class BaseRetired(OctavoError):
    """``base`` and ``successor`` are labels; the latter is empty where nothing superseded it."""

    code, http_status = "base_retired", 410

    def __init__(self, base: str, successor: str = "") -> None:
        instead = f"; train for {successor}" if successor else ""
        super().__init__(f"base {base} is retired and takes nothing new{instead}", base=base, successor=successor)


class ParentMoved(OctavoError):
    """Retryable, but with another statement: ``parent`` is what it must name, empty for none."""

    code, http_status = "parent_moved", 409

    def __init__(self, *, stated: str, actual: str) -> None:
        said, served = stated or "no revision", actual or "no revision"
        super().__init__(
            f"the statement names {said} as parent, and {served} is served; sign again", stated=stated, parent=actual
        )


class BodyTooLarge(OctavoError):
    code, http_status = "body_too_large", 413

    def __init__(self, *, limit_bytes: int) -> None:
        super().__init__(f"the body exceeds the limit of {limit_bytes} bytes", limit_bytes=limit_bytes)


class UploadTooLarge(OctavoError):
    code, http_status = "upload_too_large", 413

    def __init__(self, *, limit_bytes: int) -> None:
        super().__init__(f"the upload exceeds the limit of {limit_bytes} bytes", limit_bytes=limit_bytes)


class AdapterRefused(OctavoError):
    code, http_status = "adapter_refused", 422

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}", rule=rule, detail=detail)


class ProvenanceRefused(OctavoError):
    code, http_status = "provenance_refused", 422

    def __init__(self, field: str, stated: str, actual: str) -> None:
        super().__init__(f"the statement's '{field}' is {stated!r}, and what was made has {actual!r}", field=field)


class Overloaded(OctavoError):
    code, http_status, is_retryable = "overloaded", 429, True

    def __init__(self, *, retry_after_s: int) -> None:
        super().__init__(f"too many requests; retry after {retry_after_s} s", retry_after_s=retry_after_s)


class NoWorker(OctavoError):
    code, http_status, is_retryable = "no_worker", 503, True

    def __init__(self, problem: str = "no worker can serve this request now") -> None:
        super().__init__(problem)


class BaseNotServed(NoWorker):
    code = "base_not_served"

    def __init__(self, adapter_base: str, served_bases: str) -> None:
        super().__init__(f"the revision is for base {adapter_base}, which no worker has; served here: {served_bases}")
        self.fields = {"adapter_base": adapter_base, "served_bases": served_bases}


class AdapterUnavailable(OctavoError):
    code, http_status, is_retryable = "adapter_unavailable", 503, True

    def __init__(self, problem: str) -> None:
        super().__init__(f"the adapter could not be loaded: {problem}")


class DependencyUnavailable(OctavoError):
    code, http_status, is_retryable = "dependency_unavailable", 503, True

    def __init__(self, dependency: str) -> None:
        super().__init__(f"{dependency} does not answer", dependency=dependency)


class WorkerLost(OctavoError):
    code, http_status, is_retryable = "worker_lost", 503, True

    def __init__(self, attempts: int) -> None:
        super().__init__(f"the worker was lost and no other could go on ({attempts} attempts)", attempts=attempts)


class DeadlineExceeded(OctavoError):
    code, http_status, is_retryable = "deadline_exceeded", 504, True

    def __init__(self, budget_ms: int) -> None:
        super().__init__(f"the time budget of {budget_ms} ms is used up", budget_ms=budget_ms)


class InternalError(OctavoError):
    code, http_status, is_retryable = "internal", 500, True

    def __init__(self, error_id: str | None = None) -> None:
        error_id = error_id or uuid.uuid4().hex[:12]
        super().__init__(f"internal error {error_id}", error_id=error_id)


def _leaves(root: type[OctavoError]) -> dict[str, type[OctavoError]]:
    found = {root.code: root} if "code" in vars(root) else {}
    for child in root.__subclasses__():
        found |= _leaves(child)
    return found


def from_refusal(refusal: Refusal) -> OctavoError:
    """Return the error that ``refusal`` names, as its own class; unknown codes become ``InternalError``."""
    leaf = _leaves(OctavoError).get(refusal.code, InternalError)
    error = leaf.__new__(leaf)
    OctavoError.__init__(error, refusal.message, **refusal.fields)
    return error
