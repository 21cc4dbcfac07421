"""Requests to identity and its answers. Every request carries a ``Credential``; refusals travel as errors.

Verb → request → reply (see ``VERBS``). Verbs that write take an ``idempotency_key``: a repeated one changes
nothing and gets the first answer.
"""

from enum import StrEnum
from typing import Any

import msgspec

from octavo_shared.envelopes import Envelope
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
    Gates,
    GetGate,
    ListEvaluations,
    SetGate,
)
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.grants import Grant as Grant
from octavo_shared.messages.grants import GrantRole as GrantRole
from octavo_shared.messages.grants import Revoke as Revoke
from octavo_shared.messages.grants import Transfer as Transfer
from octavo_shared.messages.importing import ImportReport, Register
from octavo_shared.messages.keys import IssueKey as IssueKey
from octavo_shared.messages.keys import KeyInfo, KeyList, ListKeys, RotateKey, Whoami
from octavo_shared.messages.keys import KeyIssued as KeyIssued
from octavo_shared.messages.keys import RevokeKey as RevokeKey
from octavo_shared.messages.keys import Role as Role
from octavo_shared.messages.ledger import AUDIT_EVENTS_MAX, AuditPage, RevisionProof
from octavo_shared.messages.privacy import DataKey, Erase, Erased, Erasures, ErasuresSince, Unwrap
from octavo_shared.messages.provenance import GetLineage, GetProvenance, Lineage, Provenance, StatementSigner
from octavo_shared.messages.requests import Credential as Credential
from octavo_shared.messages.requests import Request, Write
from octavo_shared.messages.signers import ListSigners, RegisterSigner, RevokeSigner, SignerInfo, SignerList
from octavo_shared.messages.usage import GetUsage, QuotaUse, SetQuota, TenantQuotas, Usage
from octavo_shared.references import AdapterId, Digest, Fingerprint


class Resolve(Request, frozen=True, kw_only=True):
    """``reference`` None asks for the base alone, which every key may use that is not narrowed to something else."""

    reference: str | None = None


class Resolution(msgspec.Struct, frozen=True):
    """Who asks (``principal``, ``tenant_id``, ``role``) and, if there was a reference, what it names now."""

    principal: str
    tenant: str
    tenant_id: str
    role: Role
    adapter: AdapterHandle | None = None
    exhausted: QuotaUse | None = None
    """The quota of tokens of who asks, once it is used up: then nothing may be generated for them."""


class Locate(Request, frozen=True, kw_only=True):
    """Ask where an adapter's bytes are, without the right to use it: for its owner and for administrators."""

    reference: str


class CreateTenant(Write, frozen=True, kw_only=True):
    tenant: str


class TenantCreated(msgspec.Struct, frozen=True):
    tenant: str


class BeginUpload(Request, frozen=True, kw_only=True):
    """Ask for a staging place for a push to ``adapter`` (``tenant/name``)."""

    adapter: str


class UploadBegun(msgspec.Struct, frozen=True):
    """Files go to ``staging/<upload_id>/<file name>``; unused uploads are swept.

    ``pushed_by``, ``parent`` and ``base`` are what a statement about this push has to say as things are now; the base
    is the gateway's to tell, None where it is not clear.
    """

    upload_id: str
    size_bytes_max: int
    pushed_by: str = ""
    parent: Digest | None = None
    base: Fingerprint | None = None


class CheckUpload(Request, frozen=True, kw_only=True):
    """Ask whether ``upload_id`` was issued to the caller and is still young enough; asked before bytes are staged.

    ``public_key`` (X25519) is made for this one question; without it no key comes back.
    """

    upload_id: str
    public_key: bytes = b""


class UploadChecked(msgspec.Struct, frozen=True):
    """It was, and ``sealed`` holds the key of its files, for the asker (see ``key_transport``).

    The refusal is ``InvalidRequest``.
    """

    upload_id: str
    sealed: bytes = b""


class Commit(Write, frozen=True, kw_only=True):
    """Validate what was staged, store the pack, then make it the adapter's next revision, which ``alias`` names.

    With ``alias`` None no alias moves: the revision is a draft.

    ``declared_base`` is what the pusher says that the adapter was trained on (None: not said);
    ``served_base`` is the base of this deployment. ``dtype`` ``bf16`` stores the small form. ``statement`` is the
    provenance as the pusher signed it; without one the registry makes one and signs alone.
    """

    adapter: str
    upload_id: str
    served_base: Fingerprint
    declared_base: Fingerprint | None = None
    dtype: str | None = None
    note: str = ""
    alias: str | None = "serving"
    tags: tuple[str, ...] = ()
    """Added to those that the adapter has."""
    is_import: bool = False
    """Then what the adapter has with the same digest already is no new revision."""
    statement: Envelope | None = None


class RevisionState(StrEnum):
    DRAFT = "draft"
    """No alias names it: not yet, or not any more."""
    EVALUATED = "evaluated"
    """A draft that has been evaluated, however well."""
    SERVING = "serving"
    """Some alias names it."""
    RETIRED = "retired"
    """It is never resolved and never named again. Its pack stays."""


class Revision(msgspec.Struct, frozen=True):
    """One immutable version, as people see it."""

    number: int
    digest: Digest
    base: Fingerprint
    pack_bytes: int
    rank_max: int
    num_modules: int
    dtype: str
    created_by: str
    created_at_ms: int
    parent: Digest | None = None
    note: str = ""


class AdapterInfo(msgspec.Struct, frozen=True):
    """An adapter's head, as people see it."""

    name: str
    adapter_id: AdapterId
    owner: str
    aliases: dict[str, int]
    latest: Revision
    grants: tuple[str, ...] = ()
    num_revisions: int = 0
    state: RevisionState = RevisionState.DRAFT
    """Of ``latest``."""
    canary_percent: int = 0
    tags: tuple[str, ...] = ()
    retired: tuple[tuple[int, int], ...] = ()
    """Ranges of retired revisions, both ends included."""
    editors: tuple[str, ...] = ()
    """Those of ``grants`` who may also change it."""
    auditors: tuple[str, ...] = ()
    """Those who see its history and proofs, and may not use it unless they are in ``grants`` too."""
    warnings: tuple[str, ...] = ()
    """In answers to writes: what the writer should know though it was done, a sentence each."""


class Rollback(Write, frozen=True, kw_only=True):
    """Move ``alias`` to revision ``number``, 1 to 999,999,999 (None: to what it named before)."""

    adapter: str
    number: int | None = None
    alias: str = "serving"


class Promote(Write, frozen=True, kw_only=True):
    """Let ``alias`` name the revision that ``reference`` names (``…@12``, ``…@sha256:…`` or ``…:alias``).

    ``share_percent`` is for the alias ``canary`` only (None: as it was): the share of principals whose requests without
    a revision get it. ``expected`` is the number that the alias must name now, 0 for none; else ``AliasMoved``.
    """

    reference: str
    alias: str = "serving"
    share_percent: int | None = None
    expected: int | None = None


class Unalias(Write, frozen=True, kw_only=True):
    """Remove an alias, but for ``serving``. Its revisions stay."""

    adapter: str
    alias: str


class Retire(Write, frozen=True, kw_only=True):
    """Never serve revision ``number`` again. There is no way back; refused while an alias names it."""

    adapter: str
    number: int


class Branch(Write, frozen=True, kw_only=True):
    """Make the new adapter ``adapter`` whose first revision is the one that ``source`` names, with a pack of its own.

    Needs the right to use the source and to push the new adapter. ``alias`` as in ``Commit``.
    """

    source: str
    adapter: str
    alias: str | None = "serving"
    statement: Envelope | None = None
    """As in ``Commit``."""


class Tag(Write, frozen=True, kw_only=True):
    """Add and remove tags of an adapter."""

    adapter: str
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


class ListAdapters(Request, frozen=True, kw_only=True):
    """Adapters that the caller owns or has a role on, ordered by name, after ``after``: all those that match.

    To an admin who names a ``tenant``, and to an auditor who names its own, all its adapters are shown, which gives no
    right to use them. ``base`` (as ``messages.bases`` says) and ``state`` are those of the latest revision; ``prefix``
    is what ``tenant/adapter`` begins with.
    """

    after: str = ""
    num_max: int = 100
    tenant: str = ""
    owner: str = ""
    base: str = ""
    state: RevisionState | None = None
    tag: str = ""
    prefix: str = ""


class AdapterList(msgspec.Struct, frozen=True):
    """A page, which may be short. ``next_after`` is what the next one comes after; empty: there is no more."""

    adapters: tuple[AdapterInfo, ...]
    next_after: str = ""


class History(Request, frozen=True, kw_only=True):
    """What happened to ``adapter``, newest first."""

    adapter: str
    num_max: int = 100


class HistoryEntry(msgspec.Struct, frozen=True):
    kind: str
    actor: str
    at_ms: int
    sequence: int
    detail: str
    revision: Revision | None = None
    state: RevisionState | None = None
    """The state of ``revision`` now."""
    evaluation: Evaluation | None = None


class EvaluationEntry(msgspec.Struct, frozen=True):
    """``sequence`` is that of its event. ``envelope`` and ``signers`` are as in ``Provenance``, if they were wanted."""

    evaluation: Evaluation
    sequence: int
    envelope: Envelope | None = None
    signers: tuple[StatementSigner, ...] = ()


class EvaluationList(msgspec.Struct, frozen=True):
    """A revision and its evaluations, newest first; ``is_whole`` unless there are more of them."""

    name: str
    revision: Revision
    state: RevisionState
    evaluations: tuple[EvaluationEntry, ...]
    is_whole: bool = True


class HistoryList(msgspec.Struct, frozen=True):
    entries: tuple[HistoryEntry, ...]


class Prove(Request, frozen=True, kw_only=True):
    """Ask for the event that made the revision ``reference``, and for what proves that it is in the ledger.

    ``old_size`` is the size of the newest checkpoint that the caller has seen (0: none).
    """

    reference: str
    old_size: int = 0


class Audit(Request, frozen=True, kw_only=True):
    """Ask for ``num_max`` or fewer events of all tenants, from sequence ``first`` on; ``old_size`` as in ``Prove``."""

    first: int
    num_max: int = AUDIT_EVENTS_MAX
    old_size: int = 0


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
"""Verb → (request, reply). The subject is ``subjects.identity(verb)``."""

SLOW_VERBS = frozenset({"commit", "branch", "register", "erase"})
"""Those that move a pack, or ask all workers."""
