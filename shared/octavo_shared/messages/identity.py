"""All that identity is asked, and what it answers: verb → (request, reply).

A request is a ``Request``, which carries a ``Credential``, or a ``Write``, whose repetition changes nothing; those of
``KEYLESS_VERBS`` are neither. Refusals travel as errors.
"""

from typing import Any

from octavo_shared.messages.adapters import AdapterInfo, AdapterList, ListAdapters
from octavo_shared.messages.auditing import AuditReport, GetAuditState
from octavo_shared.messages.bases import (
    BaseInfo,
    BaseList,
    ListBases,
    ListOutdated,
    OutdatedList,
    RestoreBase,
    RetireBase,
    SupersedeBase,
)
from octavo_shared.messages.evaluation import (
    Evaluate,
    Evaluation,
    EvaluationList,
    Gates,
    GetGate,
    ListEvaluations,
    SetGate,
)
from octavo_shared.messages.grants import Grant, Revoke, Transfer
from octavo_shared.messages.history import History, HistoryList
from octavo_shared.messages.importing import ImportReport, Register
from octavo_shared.messages.keys import IssueKey, KeyInfo, KeyIssued, KeyList, ListKeys, RevokeKey, RotateKey, Whoami
from octavo_shared.messages.ledger import Audit, AuditPage, Prove, RevisionProof
from octavo_shared.messages.lifecycle import Branch, Promote, Retire, Rollback, Tag, Unalias
from octavo_shared.messages.privacy import DataKey, Erase, Erased, Erasures, ErasuresSince, Unwrap
from octavo_shared.messages.provenance import GetLineage, GetProvenance, Lineage, Provenance
from octavo_shared.messages.pushing import BeginUpload, CheckUpload, Commit, UploadBegun, UploadChecked
from octavo_shared.messages.resolving import Locate, Resolution, Resolve
from octavo_shared.messages.signers import ListSigners, RegisterSigner, RevokeSigner, SignerInfo, SignerList
from octavo_shared.messages.tenants import CreateTenant, TenantCreated
from octavo_shared.messages.usage import GetUsage, SetQuota, TenantQuotas, Usage

VERBS: dict[str, tuple[type[Any], type[Any]]] = {
    "resolve": (Resolve, Resolution),
    "locate": (Locate, Resolution),
    "create_tenant": (CreateTenant, TenantCreated),
    "issue_key": (IssueKey, KeyIssued),
    "revoke_key": (RevokeKey, KeyIssued),
    "rotate_key": (RotateKey, KeyIssued),
    "list_keys": (ListKeys, KeyList),
    "whoami": (Whoami, KeyInfo),
    "begin_upload": (BeginUpload, UploadBegun),
    "check_upload": (CheckUpload, UploadChecked),
    "commit": (Commit, AdapterInfo),
    "rollback": (Rollback, AdapterInfo),
    "register": (Register, ImportReport),
    "promote": (Promote, AdapterInfo),
    "unalias": (Unalias, AdapterInfo),
    "retire": (Retire, AdapterInfo),
    "branch": (Branch, AdapterInfo),
    "tag": (Tag, AdapterInfo),
    "grant": (Grant, AdapterInfo),
    "revoke": (Revoke, AdapterInfo),
    "transfer": (Transfer, AdapterInfo),
    "list": (ListAdapters, AdapterList),
    "history": (History, HistoryList),
    "register_signer": (RegisterSigner, SignerInfo),
    "revoke_signer": (RevokeSigner, SignerInfo),
    "list_signers": (ListSigners, SignerList),
    "provenance": (GetProvenance, Provenance),
    "lineage": (GetLineage, Lineage),
    "prove": (Prove, RevisionProof),
    "audit": (Audit, AuditPage),
    "audit_state": (GetAuditState, AuditReport),
    "evaluate": (Evaluate, Evaluation),
    "evaluations": (ListEvaluations, EvaluationList),
    "get_gate": (GetGate, Gates),
    "set_gate": (SetGate, Gates),
    "bases": (ListBases, BaseList),
    "supersede_base": (SupersedeBase, BaseInfo),
    "retire_base": (RetireBase, BaseInfo),
    "restore_base": (RestoreBase, BaseInfo),
    "outdated": (ListOutdated, OutdatedList),
    "usage": (GetUsage, Usage),
    "set_quota": (SetQuota, TenantQuotas),
    "erase": (Erase, Erased),
    "unwrap": (Unwrap, DataKey),
    "erasures": (ErasuresSince, Erasures),
}
"""The subject of a verb is ``subjects.identity(verb)``."""

SLOW_VERBS = frozenset({"commit", "branch", "register", "erase"})
"""Those that move a pack, or ask all workers."""
