"""A client of identity on NATS, as a gateway is one: calls of the history as verbs, and answers as what they show."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from chaos import history as h
from chaos.adapters import BASE, TinyAdapter
from chaos.findings import evaluate_request, finding_of
from octavo_shared import dsse
from octavo_shared.bus import Bus
from octavo_shared.errors import AdapterNotFound, OctavoError, from_refusal
from octavo_shared.identity_calls import ask_identity
from octavo_shared.key_transport import Question
from octavo_shared.messages.adapters import AdapterInfo
from octavo_shared.messages.evaluation import Evaluation
from octavo_shared.messages.grants import Grant, Revoke
from octavo_shared.messages.importing import ImportItem, ImportReport, Register
from octavo_shared.messages.keys import IssueKey, KeyIssued, Role
from octavo_shared.messages.lifecycle import Promote, Retire, Rollback, Tag, Unalias
from octavo_shared.messages.privacy import Erase, Erased
from octavo_shared.messages.pushing import BeginUpload, CheckUpload, Commit, UploadBegun, UploadChecked
from octavo_shared.messages.requests import Credential
from octavo_shared.messages.resolving import Resolution, Resolve
from octavo_shared.messages.signers import RegisterSigner, SignerInfo
from octavo_shared.messages.tenants import CreateTenant, TenantCreated
from octavo_shared.objects import ObjectStore
from octavo_shared.seal import seal, staging_context

T = TypeVar("T")


def key_credential(text: str) -> Credential:
    """Return the credential of a key of the form ``oct_<id>_<secret>``."""
    _, key_id, secret = text.strip().split("_")
    return Credential(key_id, hashlib.sha256(bytes.fromhex(secret)).digest())


@dataclass(frozen=True)
class IdentityCaller:
    """One key's calls over one connection. Raises what identity refuses with and ``DependencyUnavailable``.

    ``principal`` is whose key it is, and ``signer`` what it signs its evaluations with.
    """

    bus: Bus
    store: ObjectStore
    credential: Credential
    principal: str = ""
    signer: dsse.Signer | None = None

    async def create_tenant(self, tenant: str) -> None:
        request = CreateTenant(credential=self.credential, idempotency_key=tenant, tenant=tenant)
        await self._ask("create_tenant", request, TenantCreated)

    async def issue_key(self, tenant: str, user: str, role: Role) -> Credential:
        """Return the credential of a new key."""
        key_id, secret = secrets.token_hex(8), hashlib.sha256(secrets.token_bytes(32)).digest()
        request = IssueKey(
            credential=self.credential, idempotency_key=key_id, tenant=tenant, user=user, role=role,
            key_id=key_id, secret_sha256=secret,
        )  # fmt: skip
        await self._ask("issue_key", request, KeyIssued)
        return Credential(key_id, secret)

    async def register_signer(self) -> None:
        """Let the registry know the key that signs evaluations; once more changes nothing."""
        assert self.signer is not None, "this caller signs"
        key = self.signer.public_key
        request = RegisterSigner(credential=self.credential, idempotency_key=key.key_id, public_key=key.pem)
        await self._ask("register_signer", request, SignerInfo)

    async def stage(self, adapter: str, files: TinyAdapter) -> str:
        """Put an adapter's files where a commit finds them; returns the upload's id."""
        who = self.credential
        begun = await self._ask("begin_upload", BeginUpload(credential=who, adapter=adapter), UploadBegun)
        upload_id = begun.upload_id
        question = Question()
        check = CheckUpload(credential=who, upload_id=upload_id, public_key=question.public_key)
        key = question.open((await self._ask("check_upload", check, UploadChecked)).sealed)
        for name, data in (("adapter_config.json", files.config), ("adapter_model.safetensors", files.weights)):
            sealed = seal(data, key, staging_context(upload_id, name))
            await self.store.write(f"staging/{upload_id}/{name}", sealed)
        return upload_id

    async def write(self, adapter: str, call: h.Write, key: str, upload_id: str = "") -> h.Snapshot | h.Finding:
        """Do ``call`` under the idempotency key ``key``; a push also names what was staged for it."""
        if isinstance(call, h.Erase):
            await self._ask("erase", Erase(credential=self.credential, idempotency_key=key, adapter=adapter), Erased)
            return h.GONE
        if isinstance(call, h.Evaluate):
            assert self.signer is not None, "who evaluates signs"
            evaluate = evaluate_request(self.credential, key, adapter, call.finding, self.principal, self.signer)
            return finding_of(await self._ask("evaluate", evaluate, Evaluation))
        verb, request = self._request(adapter, call, key, upload_id)
        return snapshot_of(await self._ask(verb, request, AdapterInfo))

    async def register(self, items: Sequence[ImportItem]) -> Sequence[h.Imported | OctavoError]:
        """Import what was staged, all of it at once; returns what each item was told."""
        report = await self._ask("register", Register(credential=self.credential, items=tuple(items)), ImportReport)
        return [
            from_refusal(one.refusal) if one.refusal is not None else h.Imported(one.revision or 0, one.digest or "")
            for one in report.outcomes
        ]

    async def resolve(self, adapter: str, call: h.Resolve) -> h.Resolved | h.NotFound:
        """Return what the alias names for the caller."""
        reference = f"{adapter}:{call.alias}"
        request = Resolve(credential=self.credential, reference=reference)
        try:
            found = (await self._ask("resolve", request, Resolution)).adapter
        except AdapterNotFound:
            return h.NotFound()
        assert found is not None, "there was a reference"
        return h.Resolved(found.revision, found.digest)

    def _request(self, adapter: str, call: h.Write, key: str, upload_id: str) -> tuple[str, msgspec.Struct]:
        who = self.credential
        match call:
            case h.Push():
                return "commit", Commit(
                    credential=who, idempotency_key=key, adapter=adapter, upload_id=upload_id,
                    served_base=BASE.fingerprint, alias=call.alias,
                )  # fmt: skip
            case h.Promote():
                return "promote", Promote(
                    credential=who, idempotency_key=key, reference=f"{adapter}@{call.number}", alias=call.alias,
                    expected=call.expected,
                )  # fmt: skip
            case h.Rollback():
                return "rollback", Rollback(
                    credential=who, idempotency_key=key, adapter=adapter, number=call.number, alias=call.alias
                )
            case h.Unalias():
                return "unalias", Unalias(credential=who, idempotency_key=key, adapter=adapter, alias=call.alias)
            case h.Retire():
                return "retire", Retire(credential=who, idempotency_key=key, adapter=adapter, number=call.number)
            case h.Tag():
                return "tag", Tag(
                    credential=who, idempotency_key=key, adapter=adapter, add=call.add, remove=call.remove
                )
            case h.Grant():
                return "grant", Grant(credential=who, idempotency_key=key, adapter=adapter, principal=call.principal)
            case h.Import() | h.Erase() | h.Evaluate():
                raise AssertionError("they have methods of their own")
            case h.Revoke():
                return "revoke", Revoke(credential=who, idempotency_key=key, adapter=adapter, principal=call.principal)

    async def _ask(self, verb: str, request: msgspec.Struct, reply: type[T]) -> T:
        return await ask_identity(self.bus, verb, request, reply)


def snapshot_of(info: AdapterInfo) -> h.Snapshot:
    """Return what the owner was shown of an adapter."""
    return h.Snapshot(
        info.num_revisions, info.latest.digest, info.aliases, tuple(info.tags), tuple(info.grants),
        tuple(info.retired),
    )  # fmt: skip
