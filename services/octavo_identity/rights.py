"""What a key may do with an adapter. Pure: what its principal was granted, narrowed to what the key is for."""

from collections.abc import Iterable
from enum import Flag, auto

from octavo_identity.records import AdapterHead, KeyHead
from octavo_shared.messages.grants import GrantRole
from octavo_shared.messages.keys import Role, Scope


class Right(Flag):
    NONE = 0
    SEE = auto()
    """Know that it is there: its head and its history."""
    USE = auto()
    """Generate with it, pull it, branch from it."""
    EDIT = auto()
    """Push revisions, move aliases, tag, evaluate."""
    AUDIT = auto()
    """See proofs, and who may do what."""
    LOCATE = auto()
    """Learn where its bytes are, and order them away."""
    OWN = auto()
    """Say who may do what; retire and erase, for which there is no way back."""


ALL = ~Right.NONE
OF_GRANT = {
    GrantRole.USER: Right.SEE | Right.USE,
    GrantRole.EDITOR: Right.SEE | Right.USE | Right.EDIT,
    GrantRole.AUDITOR: Right.SEE | Right.AUDIT,
}
OF_SCOPE = {
    Scope.USE: Right.SEE | Right.USE,
    Scope.PUSH: Right.SEE | Right.EDIT,
    Scope.MANAGE: Right.SEE | Right.LOCATE | Right.OWN,
    Scope.AUDIT: Right.SEE | Right.AUDIT,
}
_SCOPES = tuple(Scope)
_SCOPES_OF_AUDITORS = (Scope.MANAGE, Scope.AUDIT)
_OF_AUDITORS = Right.SEE | Right.AUDIT
_OF_ADMINS = Right.AUDIT | Right.LOCATE


def scopes_of(key: KeyHead) -> tuple[Scope, ...]:
    """Return what the key is for; one that was not narrowed is for everything that its role is for."""
    of_role = _SCOPES_OF_AUDITORS if key.role is Role.AUDITOR else _SCOPES
    return tuple(scope for scope in of_role if scope in key.scopes) if key.scopes else of_role


def covers(adapters: str, other: str) -> bool:
    """Tell whether a key for ``adapters`` is for ``other``, which is an adapter or what another key is for."""
    if not adapters or adapters == other:
        return True
    # What 'alice/d*' means begins with 'alice/d', and the star is part of no name.
    return adapters.endswith("*") and other.startswith(adapters[:-1])


def grant_role(head: AdapterHead, principal: str) -> GrantRole | None:
    """Return what ``principal``, as it is written, was granted."""
    if principal in head.grants:
        return GrantRole.EDITOR if principal in head.editors else GrantRole.USER
    return GrantRole.AUDITOR if principal in head.auditors else None


def rights(key: KeyHead, head: AdapterHead) -> Right:
    """Return what ``key`` may do with the adapter: what the principal may, as far as the key is for it."""
    if not covers(key.adapters, head.name):
        return Right.NONE
    found = _of_principal(key, head) | _of_key_role(key, head)
    if key.role is Role.AUDITOR:
        found &= _OF_AUDITORS
    return found & _either(OF_SCOPE[scope] for scope in scopes_of(key))


def _of_principal(key: KeyHead, head: AdapterHead) -> Right:
    if key.principal == head.owner:
        return ALL
    roles = (grant_role(head, name) for name in (key.principal, f"*@{key.tenant}"))
    return _either(OF_GRANT[role] for role in roles if role is not None)


def _of_key_role(key: KeyHead, head: AdapterHead) -> Right:
    if key.role is Role.ADMIN:
        return _OF_ADMINS
    is_auditor = key.role is Role.AUDITOR and head.name.startswith(f"{key.tenant}/")
    return _OF_AUDITORS if is_auditor else Right.NONE


def _either(found: Iterable[Right]) -> Right:
    total = Right.NONE
    for one in found:
        total |= one
    return total
