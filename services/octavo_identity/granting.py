"""Which roles an adapter grants. Pure: a head in, a head out."""

import msgspec

from octavo_identity.records import AdapterHead
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.grants import GrantRole

_GRANTS_MAX = 256


def with_grant(head: AdapterHead, principal: str, role: GrantRole) -> AdapterHead:
    """Return ``head`` with ``role`` for ``principal`` instead of what it had; raises ``InvalidRequest`` when full."""
    bare = without_grant(head, principal)
    if role is GrantRole.AUDITOR:
        new = msgspec.structs.replace(bare, auditors=_with(bare.auditors, principal))
    else:
        new = msgspec.structs.replace(bare, grants=_with(bare.grants, principal))
    if role is GrantRole.EDITOR:
        new = msgspec.structs.replace(new, editors=_with(new.editors, principal))
    if len(new.grants) + len(new.auditors) > _GRANTS_MAX:
        raise InvalidRequest("principal", f"would be more than the {_GRANTS_MAX} that an adapter may have")
    return new


def without_grant(head: AdapterHead, principal: str) -> AdapterHead:
    """Return ``head`` without a role for ``principal``."""
    return msgspec.structs.replace(
        head,
        grants=_without(head.grants, principal),
        editors=_without(head.editors, principal),
        auditors=_without(head.auditors, principal),
    )


def _with(principals: tuple[str, ...], principal: str) -> tuple[str, ...]:
    return tuple(sorted({*principals, principal}))


def _without(principals: tuple[str, ...], principal: str) -> tuple[str, ...]:
    return tuple(who for who in principals if who != principal)
