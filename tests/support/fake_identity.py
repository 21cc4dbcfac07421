"""Hand-written stand-ins for identity and the residency manager, on the real bus."""

import hashlib

from octavo_shared import subjects
from octavo_shared.bases import base_label
from octavo_shared.bus import Bus
from octavo_shared.errors import AdapterNotFound, InvalidRequest, Unauthenticated
from octavo_shared.key_transport import answer_to
from octavo_shared.messages.adapters import AdapterInfo, AdapterList, ListAdapters, Revision
from octavo_shared.messages.bases import BaseInfo, BaseList, BaseState, ListBases
from octavo_shared.messages.evaluation import (
    Evaluate,
    Evaluation,
    EvaluationList,
    Gates,
    GetGate,
    ListEvaluations,
    SetGate,
)
from octavo_shared.messages.fleet import Demand, EvictCommand, EvictReport, View, ViewCommand
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.grants import Grant, Revoke
from octavo_shared.messages.history import History, HistoryEntry, HistoryList
from octavo_shared.messages.identity import VERBS
from octavo_shared.messages.keys import (
    IssueKey,
    KeyInfo,
    KeyIssued,
    KeyList,
    ListKeys,
    RevokeKey,
    Role,
    RotateKey,
    Scope,
    Whoami,
)
from octavo_shared.messages.lifecycle import Branch, Promote, Retire, Rollback, Tag, Unalias
from octavo_shared.messages.privacy import DataKey, Unwrap
from octavo_shared.messages.pushing import BeginUpload, CheckUpload, Commit, UploadBegun, UploadChecked
from octavo_shared.messages.requests import Credential
from octavo_shared.messages.resolving import Locate, Resolution, Resolve
from octavo_shared.messages.tenants import CreateTenant, TenantCreated
from octavo_shared.messages.usage import DayUsage, GetUsage, Quotas, QuotaUse, SetQuota, TenantQuotas, Usage
from octavo_shared.references import AdapterId, Digest, TenantId, WorkerId, parse_reference
from support.fakes import BASE, BASE_NAME
from support.keys import key_for

UPLOAD_ID = "u" * 16
"""The one upload that every begin of one gives out."""


class FakeIdentity:
    """Knows keys and adapters by heart; writes are recorded, not done."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._keys: dict[str, tuple[Credential, str, str, Role]] = {}
        self._adapters: dict[str, tuple[AdapterHandle, set[str]]] = {}
        self.writes: list[object] = []
        self.lists: list[ListAdapters] = []
        self.exhausted: dict[str, QuotaUse] = {}
        """Tenants that have used up their tokens."""
        self.shown_digest: Digest | None = None
        """What it shows instead of the digest of the revision that it resolves."""

    async def start(self) -> None:
        await self._bus.jetstream.add_stream(name=subjects.USAGE_STREAM, subjects=list(subjects.USAGE_SUBJECTS))
        for verb, (request, _) in VERBS.items():
            await self._bus.serve(subjects.identity(verb), request, self._answer, subjects.IDENTITY_QUEUE)

    def add_key(self, number: int, user: str, tenant: str, role: Role = Role.OWNER) -> str:
        """Return the text of a new key."""
        key_id, secret = f"{number:016x}", bytes([number]) * 32
        credential = Credential(key_id, hashlib.sha256(secret).digest())
        self._keys[key_id] = (credential, f"{user}@{tenant}", tenant, role)
        return f"oct_{key_id}_{secret.hex()}"

    def add_adapter(self, name: str, principals: set[str], pack: bytes = b"pack") -> AdapterHandle:
        """Make ``name`` usable by ``principals`` and return its handle."""
        handle = AdapterHandle(
            adapter_id=AdapterId(hashlib.sha256(name.encode()).hexdigest()[:32]),
            tenant_id=TenantId("t-" + name.split("/")[0]),
            revision=3,
            digest=Digest("sha256:" + hashlib.sha256(pack).hexdigest()),
            base=BASE,
            object_key=f"packs/{name.replace('/', '-')}/3.upload01",
            pack_bytes=len(pack),
        )
        self._adapters[name] = (handle, principals)
        return handle

    def _info(self, name: str) -> AdapterInfo:
        handle = self._adapters[name][0] if name in self._adapters else self.add_adapter(name, set())
        revision = Revision(
            handle.revision,
            self.shown_digest or handle.digest,
            handle.base,
            4,
            8,
            1,
            "F32",
            "alice@alice",
            1_700_000_000_000,
        )
        return AdapterInfo(name, handle.adapter_id, "alice@alice", {"serving": 3}, revision)

    async def _answer(self, request: object) -> object:
        if isinstance(request, Unwrap):
            return DataKey(answer_to(request.public_key, key_for(request.adapter.adapter_id)))
        credential = request.credential  # type: ignore[attr-defined]
        known = self._keys.get(credential.key_id)
        if known is None or known[0] != credential:
            raise Unauthenticated
        _, principal, tenant, role = known
        match request:
            case Resolve(reference=reference):
                adapter = None
                if reference is not None:
                    adapter, principals = self._adapters.get(parse_reference(reference).name, (None, set()))
                    if adapter is None or principal not in principals:
                        raise AdapterNotFound
                exhausted = self.exhausted.get(tenant)
                return Resolution(principal, tenant, "t-" + tenant, role, adapter, exhausted)
            case Locate(reference=reference):
                adapter, _ = self._adapters.get(parse_reference(reference).name, (None, set()))
                if adapter is None or (role is not Role.ADMIN and reference.split("/")[0] != tenant):
                    raise AdapterNotFound
                return Resolution(principal, tenant, "t-" + tenant, role, adapter)
            case ListAdapters():
                self.lists.append(request)
                names = sorted(name for name, (_, principals) in self._adapters.items() if principal in principals)
                return AdapterList(tuple(self._info(name) for name in names))
            case ListBases():
                return BaseList((BaseInfo(BASE, base_label(BASE_NAME, BASE), BaseState.CURRENT, 1),))
            case History():
                return HistoryList((HistoryEntry("committed", principal, 1, 1, ""),))
            case BeginUpload():
                return UploadBegun(UPLOAD_ID, 1 << 40)
            case CheckUpload(upload_id=upload_id, public_key=public_key):
                if upload_id != UPLOAD_ID:
                    raise InvalidRequest("upload_id", "was not issued to this principal")
                return UploadChecked(upload_id, answer_to(public_key, key_for(upload_id)))
            case CreateTenant(tenant=name):
                return TenantCreated(name)
            case IssueKey():
                self.writes.append(request)
                return KeyIssued(request.key_id, f"{request.user}@{request.tenant}", request.role)
            case RotateKey():
                self.writes.append(request)
                return KeyIssued(request.new_key_id, principal, role)
            case Whoami() | ListKeys():
                own = KeyInfo(credential.key_id, principal, role, tuple(Scope), "", "", False, False, 1, 0, "", "")
                return own if isinstance(request, Whoami) else KeyList((own,))
            case RevokeKey():
                return KeyIssued(request.key_id, principal, role)
            case Commit() | Rollback() | Grant() | Revoke() | Unalias() | Retire() | Branch() | Tag():
                self.writes.append(request)
                return self._info(request.adapter)
            case Promote(reference=reference):
                self.writes.append(request)
                return self._info(parse_reference(reference).name)
            case Evaluate(reference=reference, suite=suite, suite_digest=digest, scores=scores, base=base):
                self.writes.append(request)
                of = self._info(parse_reference(reference).name).latest
                return Evaluation(of.number, of.digest, base, suite, digest, scores, principal, 1)
            case ListEvaluations(reference=reference):
                info = self._info(parse_reference(reference).name)
                return EvaluationList(info.name, info.latest, info.state, ())
            case SetQuota(tenant=target, limits=limits):
                self.writes.append(request)
                return TenantQuotas(target, Quotas(**{name.value: limit for name, limit in limits.items()}))
            case GetUsage(target=target):
                return Usage(target or tenant, (DayUsage("2026-11-28", 1, 2, 3, 4),), 5, 6)
            case GetGate(target=target):
                return Gates(target)
            case SetGate(target=target, gate=gate):
                self.writes.append(request)
                return Gates(target, adapter=gate)
        raise AssertionError(f"no answer for {type(request).__name__}")


class FakeResidency:
    """Records demand and answers the two commands."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.demand: list[Demand] = []
        self.commands: list[EvictCommand] = []

    async def start(self) -> None:
        await self._bus.serve(subjects.DEMAND, Demand, self._on_demand, subjects.RESIDENCY_QUEUE)
        await self._bus.serve(subjects.residency("evict"), EvictCommand, self._on_evict, subjects.RESIDENCY_QUEUE)
        await self._bus.serve(subjects.residency("view"), ViewCommand, self._on_view, subjects.RESIDENCY_QUEUE)

    async def _on_demand(self, demand: Demand) -> None:
        self.demand.append(demand)

    async def _on_evict(self, command: EvictCommand) -> EvictReport:
        self.commands.append(command)
        return EvictReport((WorkerId("w1"),), ())

    async def _on_view(self, _: ViewCommand) -> View:
        return View(())
