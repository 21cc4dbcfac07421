"""What all verbs share: who asks, which adapter is meant, and how a head is shown."""

from collections.abc import Sequence
from functools import partial

import msgspec

from octavo_identity import access
from octavo_identity.bases import Bases
from octavo_identity.gatekeeper import Gatekeeper
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids
from octavo_identity.keys import authenticate
from octavo_identity.places import Place
from octavo_identity.projection import Projection
from octavo_identity.records import AdapterHead, KeyHead, TenantHead
from octavo_identity.registry import Append, Check, Make, Registry, no_check
from octavo_identity.rights import Right, rights
from octavo_identity.states import state_of
from octavo_identity.tickets import Tickets
from octavo_shared import subjects
from octavo_shared.errors import AdapterNotFound, InvalidRequest
from octavo_shared.messages.adapters import AdapterInfo
from octavo_shared.messages.keys import Role
from octavo_shared.messages.requests import Credential
from octavo_shared.messages.usage import Quotas
from octavo_shared.references import Reference, parse_reference

_IDEMPOTENCY_KEY_LENGTH_MAX = 256


class Desk:
    """The parts that every verb works with. Holds no state of its own."""

    def __init__(self, heads: HeadStore, ids: Ids, projection: Projection, append: Append | None = None) -> None:
        self.heads = heads
        self.ids = ids
        self.projection = projection
        self.registry = Registry(heads, ids, projection, append=append)
        self.bases = Bases(heads)
        self.gatekeeper = Gatekeeper(heads, ids)
        self.tickets = Tickets(ids.ticket_key())

    def appending_with(self, append: Append) -> "Desk":
        """Return a desk like this one whose changes of adapters are appended with ``append``."""
        return Desk(self.heads, self.ids, self.projection, append)

    async def authenticate(self, credential: Credential) -> KeyHead:
        """Return who asks; raises ``Unauthenticated``."""
        return await authenticate(self.heads, credential)

    def tenant_subject(self, tenant: str) -> str:
        """Return the registry subject of a tenant."""
        tenant_id = self.ids.tenant(tenant)
        return subjects.tenant_head(self.ids.shard(tenant_id), tenant_id)

    async def tenant(self, tenant: str) -> TenantHead | None:
        """Return the tenant as the leader has it; None: it was not created."""
        found = await self.heads.read(self.tenant_subject(tenant))
        return found[0].head if found and isinstance(found[0].head, TenantHead) else None

    async def has_tenant(self, tenant: str) -> bool:
        """Tell whether the tenant was created."""
        return await self.tenant(tenant) is not None

    async def quotas_of(self, tenant: str) -> Quotas | None:
        """Return the tenant's quotas as the leader has them; None: it was never given any."""
        found = await self.tenant(tenant)
        return found.quotas if found else None

    async def head_to_push(self, key: KeyHead, reference: Reference) -> AdapterHead | None:
        """Return the head of an adapter that ``key`` may push to, None for one that it may begin."""
        head = await self.registry.head(reference)
        access.check_push(key, reference.name, head)
        if key.role is Role.ADMIN and not await self.has_tenant(reference.tenant):
            raise AdapterNotFound
        return head

    def new_head(self, reference: Reference, key: KeyHead) -> AdapterHead:
        """Return the head of an adapter that ``key`` begins, without a revision yet. The name was just read."""
        return head_at(self.registry.places.now(reference), reference, key)

    async def change(
        self, reference: Reference, key: KeyHead, write: str, make: Make, *, is_for_strangers: bool = False
    ) -> AdapterHead:
        """Change an adapter's head (see ``Registry.change``) and let the caller's next listing wait for it.

        A repeated write is answered to those who still see the adapter, or else, where it ``is_for_strangers``, as long
        as the head remembers it: to look for what it has forgotten would tell by time that there is something.
        """
        check_idempotency_key(write)
        check_repeat: Check = no_check if is_for_strangers else partial(access.check_see, key)
        head, sequence = await self.registry.change(
            reference, key.principal, write, make, check_repeat, is_deep=not is_for_strangers
        )
        self.projection.expect(sequence)
        return head


def head_at(place: Place, reference: Reference, key: KeyHead) -> AdapterHead:
    """Return the head of an adapter that ``key`` begins at ``place``, without a revision yet."""
    return AdapterHead(place.adapter_id, place.tenant_id, reference.name, key.principal, 0, (), {})


def adapter_reference(text: str) -> Reference:
    """Return the adapter that ``tenant/name`` means; raises ``InvalidRequest`` for anything else."""
    reference = parse_reference(text, "adapter")
    if reference.name != text:
        raise InvalidRequest("adapter", "must name an adapter, not one of its revisions")
    return reference


def check_idempotency_key(write: str) -> None:
    """Raise ``InvalidRequest`` for what a write cannot be known again by."""
    if not 1 <= len(write) <= _IDEMPOTENCY_KEY_LENGTH_MAX:
        raise InvalidRequest("idempotency_key", f"must have 1 to {_IDEMPOTENCY_KEY_LENGTH_MAX} characters")


def info(head: AdapterHead, key: KeyHead) -> AdapterInfo:
    """Return a head as ``key`` may see it: who else may use it is for its owner and its auditors."""
    newest = max(head.revisions, key=lambda stored: stored.revision.number)
    found = rights(key, head)
    # An admin, who sees a whole tenant, need not be one to whom the pusher's words were addressed.
    latest = newest.revision if Right.SEE in found else msgspec.structs.replace(newest.revision, note="")
    roles = (head.grants, head.editors, head.auditors) if Right.SEE | Right.AUDIT in found else ((), (), ())
    return AdapterInfo(
        head.name, head.adapter_id, head.owner, head.aliases, latest, roles[0], head.num_revisions,
        state_of(head, newest.revision.number), head.canary_percent, head.tags, head.retired, roles[1], roles[2],
    )  # fmt: skip


def with_warnings(told: AdapterInfo, warnings: Sequence[str]) -> AdapterInfo:
    return msgspec.structs.replace(told, warnings=tuple(warnings)) if warnings else told
