"""The registry's durable records, in MessagePack. New fields go last, with a default.

Every event carries the new head of its subject, so the last message is the head and all messages are the ledger.
"""

import re

import msgspec

from octavo_shared.dsse import PublicKey
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.evaluation import Evaluation, Gate
from octavo_shared.messages.keys import Role, Scope
from octavo_shared.messages.usage import Quotas
from octavo_shared.references import AdapterId, Fingerprint, TenantId

REVISIONS_IN_HEAD_MAX = 32
EVALUATIONS_IN_HEAD_MAX = 32
WRITES_IN_HEAD_MAX = 32

_OBJECT_KEY = re.compile(r"packs/([0-9a-f]{32})/([1-9][0-9]{0,8})\.[0-9a-f.]+\Z")


class DeploymentHead(msgspec.Struct, frozen=True, tag="deployment"):
    """The first record of the stream: ``secret_mark`` is an HMAC of a constant under the deployment secret."""

    secret_mark: bytes


class TenantHead(msgspec.Struct, frozen=True, tag="tenant", omit_defaults=True):
    """``writes`` as in ``AdapterHead``."""

    tenant_id: TenantId
    tenant: str
    gate: Gate | None = None
    writes: tuple[str, ...] = ()
    quotas: Quotas | None = None


class KeyHead(msgspec.Struct, frozen=True, tag="key"):
    """No ``scopes``: all of them; no ``adapters``: all; ``expires_at_ms`` 0: never; ``issued_at_ms`` 0: not known.

    ``issuer`` is the id of the key that made this one, ``successor`` that of the one it was rotated to.
    """

    key_id: str
    secret_sha256: bytes
    principal: str
    tenant: str
    role: Role
    is_revoked: bool = False
    scopes: tuple[Scope, ...] = ()
    adapters: str = ""
    label: str = ""
    issued_at_ms: int = 0
    expires_at_ms: int = 0
    issuer: str = ""
    successor: str = ""


class RegisteredSigner(msgspec.Struct, frozen=True):
    """An Ed25519 public key of 32 bytes. Until it is revoked it signs for its principal."""

    public_key: bytes
    registered_at_ms: int
    revoked_at_ms: int | None = None

    @property
    def key_id(self) -> str:
        return PublicKey(self.public_key).key_id


class SignersHead(msgspec.Struct, frozen=True, tag="signers"):
    """All signing keys that a principal ever had, the oldest first."""

    principal: str
    signers: tuple[RegisteredSigner, ...] = ()

    def find(self, key_id: str) -> RegisteredSigner | None:
        return next((one for one in self.signers if one.key_id == key_id), None)


class RegisteredBase(msgspec.Struct, frozen=True, omit_defaults=True):
    """A base that was seen once. ``name`` is its manifest's; ``superseded_by`` is empty, or what adapters go on with;
    ``retired_at_ms`` 0: it is not retired.
    """

    fingerprint: Fingerprint
    name: str
    registered_at_ms: int
    superseded_by: Fingerprint = Fingerprint("")
    retired_at_ms: int = 0


class BasesHead(msgspec.Struct, frozen=True, tag="bases", omit_defaults=True):
    """All bases that were ever seen, the oldest first; ``writes`` as in ``AdapterHead``."""

    bases: tuple[RegisteredBase, ...] = ()
    writes: tuple[str, ...] = ()


class StoredRevision(msgspec.Struct, frozen=True):
    """A revision, where its pack lies, and the number of the one that was served when it was pushed."""

    revision: Revision
    object_key: str
    parent_number: int | None = None


class AdapterHead(msgspec.Struct, frozen=True, tag="adapter", omit_defaults=True):
    """``revisions`` holds the newest ones and all that an alias names; older ones are found in the ledger.

    ``writes`` are marks of the latest idempotency keys, the newest last: the broker's own de-duplication forgets
    after minutes. ``retired`` are ranges of numbers, so the head knows what may not be served of revisions that it has
    forgotten. ``trails`` are the numbers that each alias named before, the latest last.

    ``grants`` are those who may use the adapter, ``editors`` those of them who may change it, ``auditors`` those who
    see its history. So a reader of heads who knows only ``grants`` lets nobody do more than they may.

    ``evaluations`` are the newest ones that a gate may ask for, the newest last; of all that there ever were,
    ``num_evaluations``, the ledger has the rest. ``evaluated`` and ``released`` are ranges of numbers: those that have
    been evaluated, and those that an alias behind the gate has named.
    """

    adapter_id: AdapterId
    tenant_id: TenantId
    name: str
    owner: str
    num_revisions: int
    revisions: tuple[StoredRevision, ...]
    aliases: dict[str, int]
    grants: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    canary_percent: int = 0
    retired: tuple[tuple[int, int], ...] = ()
    trails: dict[str, tuple[int, ...]] = {}
    editors: tuple[str, ...] = ()
    auditors: tuple[str, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    num_evaluations: int = 0
    evaluated: tuple[tuple[int, int], ...] = ()
    released: tuple[tuple[int, int], ...] = ()
    gate: Gate | None = None


class ErasedHead(msgspec.Struct, frozen=True, tag="erased"):
    """What is left of an adapter: an id that no name can be told from.

    ``next_incarnation`` goes into the id of whatever gets the name next. ``owner_mark`` lets its owner ask for the
    receipt again; ``write`` is the mark of the request that erased it. ``receipt`` is empty until all that was to be
    destroyed is destroyed.
    """

    adapter_id: AdapterId
    tenant_id: TenantId
    next_incarnation: int
    owner_mark: str
    write: str
    begun_at_ms: int
    receipt: bytes = b""


Head = DeploymentHead | TenantHead | KeyHead | SignersHead | AdapterHead | ErasedHead | BasesHead


class RegistryEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change. ``previous_sequence`` links to the event before it on the same subject (0: the first).

    ``statement`` is the provenance envelope; ``signature`` is empty so far. An event whose head is an adapter's is
    stored sealed, whatever fields it has (see ``event_form``).
    """

    kind: str
    actor: str
    at_ms: int
    previous_sequence: int
    head: Head
    detail: str = ""
    revision: StoredRevision | None = None
    statement: bytes = b""
    signature: bytes = b""
    evaluation: Evaluation | None = None


def object_key(adapter_id: AdapterId, number: int, upload_id: str, nonce: str) -> str:
    """Return where a pack is stored that may become revision ``number``; ``nonce`` is fresh for each commit.

    A branch has no upload; it brings 64 more random bits instead.
    """
    return f"packs/{adapter_id}/{number}.{upload_id}.{nonce}"


def parse_object_key(text: str) -> tuple[AdapterId, int] | None:
    """Return adapter and revision number of a pack's object key, or None when it is none of ours."""
    found = _OBJECT_KEY.match(text)
    return (AdapterId(found[1]), int(found[2])) if found else None
