"""Verbs that show the ledger with its proofs: one revision to its owner and auditors, everything to admins."""

import msgspec

from octavo_identity import access
from octavo_identity.desk import Desk
from octavo_identity.event_form import Opener
from octavo_identity.ledger import Ledger
from octavo_identity.records import AdapterHead, KeyHead, RegistryEvent, SignersHead, StoredRevision
from octavo_identity.signers import Signers
from octavo_shared import decoding, dsse, subjects
from octavo_shared.errors import DependencyUnavailable, InvalidRequest
from octavo_shared.messages import ledger as messages
from octavo_shared.messages.keys import Role
from octavo_shared.messages.ledger import AUDIT_EVENTS_MAX, AuditPage, LedgerEvent, RevisionProof, SignerProof
from octavo_shared.messages.signers import REGISTRY_PRINCIPAL
from octavo_shared.references import parse_reference

_PAGE_BYTES_MAX = 512 * 1024
"""Less than the limit on a message, also after one more event."""
_SIZE_MAX = 2**53
_VIEW = "the view of the registry"


class Proving:
    """One method per verb, of the same name."""

    def __init__(self, desk: Desk, ledger: Ledger, signers: Signers) -> None:
        self._desk = desk
        self._ledger = ledger
        self._signers = signers

    async def prove(self, request: messages.Prove) -> RevisionProof:
        """Return the event that made a revision, what opens it, and what proves that it is in the ledger. Reads only.

        Raises ``NotPermitted`` for those who may only use or edit the adapter, ``AdapterNotFound`` for all others, and
        ``DependencyUnavailable`` while the event is not under a signed root yet.
        """
        key = await self._desk.authenticate(request.credential)
        _check_size(request.old_size)
        reference = parse_reference(request.reference)
        head = access.check_verify(key, await self._desk.registry.head(reference))
        stored = await self._desk.registry.select(head, reference)
        event = await self._event_of(head, stored)
        signed = await self._ledger.signed_root(event.sequence, request.old_size)
        size = self._ledger.size_of(signed)
        inclusion = self._ledger.tree.inclusion_proof(event.sequence - 1, size)
        opener = await self._desk.heads.opener([event])
        signers = await self._signers_of(event, opener, size)
        revision = stored.revision
        return RevisionProof(
            head.name, revision.number, revision.digest, event, inclusion, signed, signers, opener.key_of(event)
        )

    async def _signers_of(self, event: LedgerEvent, opener: Opener, size: int) -> tuple[SignerProof, ...]:
        """Return what proves whose the keys were, just before ``event``, that signed its statement."""
        try:
            made = opener.open(event)
            key_ids = dsse.decode(made.statement).key_ids if made and made.statement else ()
        except (DependencyUnavailable, InvalidRequest):
            made = None
        if made is None:
            # It is not what it was, which is for whoever asks to find out.
            return ()
        proofs = []
        for principal in (made.actor, REGISTRY_PRINCIPAL):
            then, sequence = await self._signers.as_of(principal, event.sequence)
            if any(then.find(key_id) is not None for key_id in key_ids):
                for stored in await self._desk.heads.read_what_is_left(sequence, sequence):
                    inclusion = self._ledger.tree.inclusion_proof(sequence - 1, size)
                    proofs.append(SignerProof(principal, stored, inclusion))
        return tuple(proofs)

    async def _event_of(self, head: AdapterHead, stored: StoredRevision) -> LedgerEvent:
        projection = self._desk.projection
        # The head comes from the leader, so the view may not have come to the revision yet.
        projection.expect((await self._desk.heads.state()).last_sequence)
        await projection.read_own_writes()
        hint = await projection.find_revision(head.adapter_id, stored.revision.number, None)
        found = await self._desk.heads.read_what_is_left(hint.sequence, hint.sequence) if hint.sequence else []
        if not found:
            raise DependencyUnavailable(_VIEW)
        return found[0]

    async def audit(self, request: messages.Audit) -> AuditPage:
        """Return events as they are stored, those that are left, with their leaf hashes. Reads only.

        What is sealed comes with its key, unless its adapter was erased: that it is unchanged is seen without.
        Admins see those of all tenants, a tenant's auditors its adapters' only; the rest is named as withheld.
        A page ends before the newest checkpoint's end, at ``num_max`` events or where it gets large.
        """
        key = await self._desk.authenticate(request.credential)
        access.check_audit(key)
        _check_size(request.old_size)
        if not 1 <= request.num_max <= AUDIT_EVENTS_MAX:
            raise InvalidRequest("limit", f"must be 1 to {AUDIT_EVENTS_MAX}")
        if not 1 <= request.first <= _SIZE_MAX:
            raise InvalidRequest("first", f"must be 1 to {_SIZE_MAX}")
        signed = await self._ledger.signed_root(request.first, request.old_size)
        last = min(request.first + request.num_max - 1, self._ledger.size_of(signed))
        # The view may be rebuilt meanwhile, with another tree.
        tree = self._ledger.tree
        events = await self._desk.heads.read_what_is_left(request.first, last)
        kept: list[LedgerEvent] = []
        num_bytes = 0
        withheld: list[int] = []
        for event in events:
            if not self._may_read(key, event):
                withheld.append(event.sequence)
                continue
            num_bytes += len(event.data)
            if kept and num_bytes > _PAGE_BYTES_MAX:
                last = event.sequence - 1
                break
            kept.append(event)
        leaf_hashes = tuple(tree.leaf(sequence - 1) for sequence in range(request.first, last + 1))
        opener = await self._desk.heads.opener(kept)
        event_keys = tuple(opener.key_of(event) for event in kept)
        return AuditPage(tuple(kept), leaf_hashes, signed, tuple(withheld), event_keys)

    def _may_read(self, key: KeyHead, event: LedgerEvent) -> bool:
        """Tell whether ``key`` may read the event itself.

        Those of API keys hold hashes of secrets: they are for admins. Those of signing keys hold public ones only: a
        tenant's auditor reads its own people's, and the registry's.
        """
        if key.role is Role.ADMIN or event.subject.startswith(self._desk.tenant_subject(key.tenant) + "."):
            return True
        if not event.subject.startswith(subjects.signers_head("")):
            return False
        try:
            head = decoding.from_msgpack(event.data, RegistryEvent).head
        except msgspec.MsgspecError:
            # It is not what it was, which is what an audit looks for.
            return True
        assert isinstance(head, SignersHead), "a subject of signing keys holds nothing else"
        return head.principal == REGISTRY_PRINCIPAL or head.principal.endswith(f"@{key.tenant}")


def _check_size(old_size: int) -> None:
    if not 0 <= old_size <= _SIZE_MAX:
        raise InvalidRequest("old_size", f"must be 0 to {_SIZE_MAX}")
