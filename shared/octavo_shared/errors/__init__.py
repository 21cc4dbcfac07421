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

from octavo_shared.errors.registry import (
    AdapterErased,
    AdapterNotFound,
    AdapterRefused,
    AliasMoved,
    BaseMismatch,
    BaseRetired,
    BaseUnknown,
    GateRefused,
    NameTaken,
    ParentMoved,
    ProvenanceRefused,
    RevisionConflict,
    RevisionInUse,
    RevisionRetired,
)
from octavo_shared.errors.requests import (
    BodyTooLarge,
    ContextExceeded,
    DailyQuotaExceeded,
    InvalidRequest,
    NotPermitted,
    Overloaded,
    QuotaExceeded,
    Unauthenticated,
    UnsupportedParameter,
    UploadTooLarge,
)
from octavo_shared.errors.serving import (
    AdapterUnavailable,
    BaseNotServed,
    DeadlineExceeded,
    DependencyUnavailable,
    NoWorker,
    WorkerLost,
)
from octavo_shared.errors.tree import Fields, InternalError, OctavoError, Refusal, from_refusal

__all__ = [
    "AdapterErased",
    "AdapterNotFound",
    "AdapterRefused",
    "AdapterUnavailable",
    "AliasMoved",
    "BaseMismatch",
    "BaseNotServed",
    "BaseRetired",
    "BaseUnknown",
    "BodyTooLarge",
    "ContextExceeded",
    "DailyQuotaExceeded",
    "DeadlineExceeded",
    "DependencyUnavailable",
    "Fields",
    "GateRefused",
    "InternalError",
    "InvalidRequest",
    "NameTaken",
    "NoWorker",
    "NotPermitted",
    "OctavoError",
    "Overloaded",
    "ParentMoved",
    "ProvenanceRefused",
    "QuotaExceeded",
    "Refusal",
    "RevisionConflict",
    "RevisionInUse",
    "RevisionRetired",
    "Unauthenticated",
    "UnsupportedParameter",
    "UploadTooLarge",
    "WorkerLost",
    "from_refusal",
]
