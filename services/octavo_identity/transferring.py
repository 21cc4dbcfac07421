"""The verb that gives an adapter to another owner."""

import msgspec

from octavo_identity import access
from octavo_identity.desk import Desk, adapter_reference, info
from octavo_identity.granting import without_grant
from octavo_identity.keys import has_expired
from octavo_identity.records import AdapterHead, KeyHead
from octavo_identity.registry import Change
from octavo_shared import subjects
from octavo_shared.clock import wall_ms
from octavo_shared.errors import InvalidRequest, NotPermitted
from octavo_shared.messages.adapters import AdapterInfo
from octavo_shared.messages.grants import Transfer
from octavo_shared.messages.keys import KEYS_PAGE_MAX, Role
from octavo_shared.references import PRINCIPAL_PATTERN

_PAGES_MAX = 8


class Transferring:
    """One method, of the verb's name."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def transfer(self, request: Transfer) -> AdapterInfo:
        """Make somebody else of the adapter's tenant its owner; for its owner, and for admins.

        Whoever owned it keeps what was granted to them or to their tenant, and nothing else, from the next request on.
        Whose it is already is no event. Idempotent by key, also for an owner who sees nothing of it any more.
        Raises ``InvalidRequest`` when the new owner is not of the tenant or has no key to own anything with, and
        ``NotPermitted`` to admins who would take an adapter themselves.
        """
        key = await self._desk.authenticate(request.credential)
        owner = request.owner
        if PRINCIPAL_PATTERN.match(owner) is None or owner.startswith("*"):
            raise InvalidRequest("owner", "must have the form user@tenant")
        reference = adapter_reference(request.adapter)

        async def hand_over(now: AdapterHead | None) -> Change | None:
            head = access.check_transfer(key, now)
            if head.owner == owner:
                return None
            if key.principal == owner:
                # Only an admin comes here, whose role is no way into anybody's adapters.
                raise NotPermitted("take over an adapter")
            if owner.partition("@")[2] != reference.tenant:
                raise InvalidRequest("owner", f"must be of the adapter's tenant: user@{reference.tenant}")
            if not await self._has_key(owner):
                raise InvalidRequest("owner", f"has no key: nobody could do anything as {owner}")
            new = msgspec.structs.replace(without_grant(head, owner), owner=owner)
            return Change("transferred", new, f"{head.owner} -> {owner}")

        # Who gave it away may have lost sight of it, and learns nothing from being told again what they did.
        head = await self._desk.change(reference, key, request.idempotency_key, hand_over, is_for_strangers=True)
        return info(head, key)

    async def _has_key(self, principal: str) -> bool:
        """Tell whether somebody can act as ``principal`` now; auditors' keys do not act.

        Which keys there are is from the view of the registry, what became of them from the leader.
        """
        projection = self._desk.projection
        # Another replica may have issued it a moment ago.
        projection.expect((await self._desk.heads.state()).last_sequence)
        await projection.read_own_writes()
        after = ""
        for _ in range(_PAGES_MAX):
            key_ids = await projection.find_keys(principal, after, KEYS_PAGE_MAX)
            for key_id in reversed(key_ids):
                found = await self._desk.heads.read(subjects.key_head(key_id))
                if found is not None and _is_live(found[0].head):
                    return True
            if len(key_ids) < KEYS_PAGE_MAX:
                return False
            after = key_ids[-1]
        return False


def _is_live(head: object) -> bool:
    is_good = isinstance(head, KeyHead) and not head.is_revoked and not has_expired(head, wall_ms())
    return is_good and isinstance(head, KeyHead) and head.role is not Role.AUDITOR
