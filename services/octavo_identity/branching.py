"""The verb that makes a new adapter from a revision of another one."""

import secrets

import msgspec

from octavo_identity import access
from octavo_identity.admission import Admission
from octavo_identity.aliases import with_revision
from octavo_identity.desk import Desk, adapter_reference, info, with_warnings
from octavo_identity.quota_keeper import QuotaKeeper
from octavo_identity.records import AdapterHead, KeyHead, StoredRevision, object_key
from octavo_identity.registry import Change, write_mark
from octavo_identity.staging import PackPlace, Staging
from octavo_identity.statements import Statements
from octavo_shared.clock import wall_ms
from octavo_shared.errors import NameTaken
from octavo_shared.messages import lifecycle as messages
from octavo_shared.messages.adapters import AdapterInfo
from octavo_shared.provenance import Made
from octavo_shared.references import Fingerprint, Reference, check_name, parse_reference


class Branching:
    """One method, of the verb's name."""

    def __init__(
        self, desk: Desk, staging: Staging, statements: Statements, admission: Admission, quotas: QuotaKeeper
    ) -> None:
        self._desk = desk
        self._quotas = quotas
        self._staging = staging
        self._statements = statements
        self._admission = admission

    async def branch(self, request: messages.Branch) -> AdapterInfo:
        """Begin an adapter with a revision of another one: the same digest, and a pack of its own.

        Whoever may use the source may pull it and push what came, so using is the right that it takes, beside that to
        push the new one. Neither adapter needs the other afterwards. Idempotent by key; raises ``NameTaken``, and
        ``GateRefused`` when the tenant's gate wants an evaluation first, which the source's is not, ``BaseRetired`` and
        ``BaseNotServed``. What does not fit into the new one's tenant's quotas is ``QuotaExceeded`` or
        ``DailyQuotaExceeded``.
        """
        key = await self._desk.authenticate(request.credential)
        reference = adapter_reference(request.adapter)
        source = parse_reference(request.source, "source")
        if request.alias is not None:
            check_name(request.alias, "alias")
        mark = write_mark(key.principal, request.idempotency_key)
        head = await self._desk.head_to_push(key, reference)
        if head is not None:
            if repeated := await self._desk.registry.repeated(reference, mark):
                return info(repeated, key)
            raise NameTaken(reference.name)
        offered = await self._statements.open(request.statement, key.principal)
        origin_head, origin = await self._selected(key, source)
        chosen = Reference(source.tenant, source.adapter, number=origin.revision.number)
        digest = origin.revision.digest
        made = Made(reference.name, digest, origin.revision.base, digest, key.principal, None)
        statement = self._statements.close(offered, made)
        new = self._desk.new_head(reference, key)
        revision = msgspec.structs.replace(
            origin.revision, number=1, created_by=key.principal, created_at_ms=wall_ms(),
            parent=digest, note="",
        )  # fmt: skip
        await self._check_base(request.alias, revision.base)
        await self._desk.gatekeeper.check(reference, None, revision, request.alias)
        place = object_key(new.adapter_id, 1, secrets.token_hex(8), secrets.token_hex(8))
        target = PackPlace(place, new.tenant_id, new.adapter_id, 1, revision.base)
        stored = StoredRevision(revision, place)

        async def begin(now: AdapterHead | None) -> Change:
            access.check_push(key, reference.name, now)
            if now is not None:
                raise NameTaken(reference.name)
            # Copying takes its time; what was revoked or retired meanwhile is not to be had any more.
            await self._selected(key, chosen)
            await self._check_base(request.alias, revision.base)
            await self._desk.gatekeeper.check(reference, None, revision, request.alias)
            return Change("branched", with_revision(new, stored, request.alias), f"from {chosen}", stored, statement)

        async with self._quotas.room(reference, target, revision.pack_bytes):
            await self._staging.copy_pack(PackPlace.of(origin_head, origin), revision, target)
            begun = info(await self._desk.change(reference, key, request.idempotency_key, begin), key)
        return with_warnings(begun, await self._admission.warnings(revision.base))

    async def _check_base(self, alias: str | None, base: Fingerprint) -> None:
        if alias is None:
            await self._admission.check_push(base, None)
        else:
            await self._admission.check_alias(None, alias, base)

    async def _selected(self, key: KeyHead, source: Reference) -> tuple[AdapterHead, StoredRevision]:
        head = access.check_use(key, await self._desk.registry.head(source))
        return head, await self._desk.registry.select(head, source)
