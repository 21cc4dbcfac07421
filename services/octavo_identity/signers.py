"""Whose signing keys there are, at which point of the ledger, and the registry's own key, which countersigns."""

from collections.abc import Callable

import msgspec

from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids
from octavo_identity.records import RegisteredSigner, RegistryEvent, SignersHead
from octavo_identity.registry import walk
from octavo_shared import dsse, subjects
from octavo_shared.clock import wall_ms
from octavo_shared.dsse import Envelope, PublicKey
from octavo_shared.errors import InvalidRequest, RevisionConflict
from octavo_shared.messages.provenance import StatementSigner
from octavo_shared.messages.signers import REGISTRY_PRINCIPAL, SIGNERS_MAX

_ATTEMPTS_MAX = 8
_WALK_MAX = 2 * SIGNERS_MAX
_REGISTRY = "identity"

Change = Callable[[SignersHead, int], SignersHead | None]
"""(head, time) → the new one, or None when all is as wanted."""


class Signers:
    """Keys by principal, one head for each. All that is asked is asked of the stream's leader."""

    def __init__(self, heads: HeadStore, ids: Ids, registry: dsse.Signer) -> None:
        self._heads = heads
        self._ids = ids
        self._registry = registry

    def subject(self, principal: str) -> str:
        """Return the registry subject of a principal's keys."""
        return subjects.signers_head(self._ids.principal(principal))

    async def of(self, principal: str) -> SignersHead:
        """Return a principal's keys as they are now."""
        found = await self._heads.read(self.subject(principal))
        return _signers_head(found[0]) if found else SignersHead(principal)

    async def as_of(self, principal: str, sequence: int) -> tuple[SignersHead, int]:
        """Return a principal's keys as they were when the event ``sequence`` came, and where the ledger says so (0:
        nowhere). The ledger's order decides what was valid when, and no clock.
        """
        async for event, at in walk(self._heads, self.subject(principal), _WALK_MAX):
            if at < sequence:
                return _signers_head(event), at
        return SignersHead(principal), 0

    async def shown(self, envelope: Envelope, actor: str, sequence: int) -> tuple[StatementSigner, ...]:
        """Return the keys of ``actor`` and of the registry that signed an envelope of the event ``sequence``."""
        found = []
        for principal in (actor, REGISTRY_PRINCIPAL):
            then, at = await self.as_of(principal, sequence)
            now = await self.of(principal)
            for key_id in envelope.key_ids:
                if (today := now.find(key_id)) is not None:
                    known = then.find(key_id)
                    is_valid = known is not None and known.revoked_at_ms is None
                    pem = PublicKey(today.public_key).pem
                    found.append(StatementSigner(key_id, principal, pem, is_valid, at, today.revoked_at_ms))
        return tuple(found)

    async def register(self, principal: str, key: PublicKey, actor: str) -> SignersHead:
        """Add a key; raises ``InvalidRequest`` for one that was revoked, and for one too many."""

        def add(head: SignersHead, now_ms: int) -> SignersHead | None:
            known = head.find(key.key_id)
            if known is not None and known.revoked_at_ms is None:
                return None
            if known is not None:
                raise InvalidRequest("public_key", "is of a key that was revoked; make another one")
            if len(head.signers) >= SIGNERS_MAX:
                raise InvalidRequest("public_key", f"would be more than the {SIGNERS_MAX} that a principal may have")
            return msgspec.structs.replace(head, signers=(*head.signers, RegisteredSigner(key.raw, now_ms)))

        return await self._change(principal, actor, "signer_registered", key.key_id, add)

    async def revoke(self, principal: str, key_id: str, actor: str) -> SignersHead:
        """End a key for what comes from now on; raises ``InvalidRequest`` for one that is not there."""

        def end(head: SignersHead, now_ms: int) -> SignersHead | None:
            known = head.find(key_id)
            if known is None:
                raise InvalidRequest("key_id", f"is of no signing key of {principal}")
            if known.revoked_at_ms is not None:
                return None
            ended = msgspec.structs.replace(known, revoked_at_ms=now_ms)
            signers = tuple(ended if one is known else one for one in head.signers)
            return msgspec.structs.replace(head, signers=signers)

        return await self._change(principal, actor, "signer_revoked", key_id, end)

    async def ensure_registry(self) -> None:
        """Record the registry's own key, so that the ledger says since when it countersigns."""
        await self.register(REGISTRY_PRINCIPAL, self._registry.public_key, _REGISTRY)

    async def check(self, envelope: Envelope, principal: str) -> str:
        """Return the id of the key of ``principal`` that alone signed ``envelope`` and is not revoked.

        Raises ``InvalidRequest`` that names the signature otherwise.
        """
        head = await self.of(principal)
        key_ids = dsse.verify(
            envelope, [PublicKey(one.public_key) for one in head.signers if one.revoked_at_ms is None]
        )
        if len(key_ids) != 1:
            raise InvalidRequest("envelope.signatures", "must be one: the registry adds its own")
        return key_ids[0]

    def countersign(self, envelope: Envelope) -> Envelope:
        """Add the registry's signature."""
        return dsse.countersign(envelope, self._registry)

    def sign(self, payload: bytes) -> Envelope:
        """Return an in-toto statement signed by the registry alone."""
        return dsse.sign(dsse.STATEMENT_TYPE, payload, self._registry)

    async def _change(self, principal: str, actor: str, kind: str, detail: str, change: Change) -> SignersHead:
        subject = self.subject(principal)
        for _ in range(_ATTEMPTS_MAX):
            found = await self._heads.read(subject)
            head, sequence = (_signers_head(found[0]), found[1]) if found else (SignersHead(principal), 0)
            now_ms = wall_ms()
            new = change(head, now_ms)
            if new is None:
                return head
            try:
                await self._heads.append(subject, RegistryEvent(kind, actor, now_ms, sequence, new, detail))
            except RevisionConflict:
                continue
            return new
        raise RevisionConflict("the signing keys changed at the same time; look again and retry")


def _signers_head(event: RegistryEvent) -> SignersHead:
    assert isinstance(event.head, SignersHead), "a subject of signing keys holds nothing else"
    return event.head
