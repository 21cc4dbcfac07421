"""Who may do what. Pure: a key's record and a head in, an answer or an error out."""

from octavo_identity.records import AdapterHead, KeyHead
from octavo_shared.errors import AdapterNotFound, NotPermitted
from octavo_shared.messages.identity import Role

_RANK = {Role.USER: 0, Role.OWNER: 1, Role.ADMIN: 2}


def may_use(key: KeyHead, head: AdapterHead) -> bool:
    """Owners use what they own, others what they or their whole tenant were granted. Admins get no way in."""
    return key.principal == head.owner or key.principal in head.grants or f"*@{key.tenant}" in head.grants


def check_use(key: KeyHead, head: AdapterHead | None) -> AdapterHead:
    """Return ``head``; not there and not yours are one answer."""
    if head is None or not may_use(key, head):
        raise AdapterNotFound
    return head


def check_own(key: KeyHead, head: AdapterHead | None) -> AdapterHead:
    """Return ``head`` to its owner. Users who may know of it get a plain no, others the one answer."""
    head = check_use(key, head)
    if key.principal != head.owner:
        raise NotPermitted("change this adapter")
    return head


def check_locate(key: KeyHead, head: AdapterHead | None) -> AdapterHead:
    return _check_own_or_admin(key, head, "evict this adapter")


def check_verify(key: KeyHead, head: AdapterHead | None) -> AdapterHead:
    """Return ``head`` to its owner and to admins: events hold who else may use the adapter, which users do not see."""
    return _check_own_or_admin(key, head, "verify this adapter")


def _check_own_or_admin(key: KeyHead, head: AdapterHead | None, action: str) -> AdapterHead:
    """Return ``head`` to its owner and to admins, who need no right to use it. Users get a plain no."""
    if head is not None and key.role is Role.ADMIN:
        return head
    head = check_use(key, head)
    if key.principal != head.owner:
        raise NotPermitted(action)
    return head


def check_push(key: KeyHead, tenant: str, head: AdapterHead | None) -> None:
    """Owners push to adapters of their tenant, admins to those of any, that are new or their own.

    Pushing where another principal's adapter is gets the same answer as using it.
    """
    if key.role is not Role.ADMIN:
        if key.tenant != tenant:
            raise AdapterNotFound
        if key.role is not Role.OWNER:
            raise NotPermitted("push adapters")
    if head is not None:
        check_own(key, head)


def check_admin(key: KeyHead, action: str) -> None:
    if key.role is not Role.ADMIN:
        raise NotPermitted(action)


def check_issue_key(key: KeyHead, principal: str, role: Role) -> None:
    """Admins issue any key. Others issue keys for themselves only: a key for another principal is that principal."""
    if key.role is not Role.ADMIN and (key.principal != principal or _RANK[role] > _RANK[key.role]):
        raise NotPermitted("issue this key")


def may_revoke_key(key: KeyHead, other: KeyHead) -> bool:
    """Admins revoke any key, others their own ones that may do no more than ``key`` itself."""
    return key.role is Role.ADMIN or (key.principal == other.principal and _RANK[other.role] <= _RANK[key.role])


def check_tenant(key: KeyHead, tenant: str, action: str) -> None:
    """Let those of a tenant and admins see what is the tenant's; whether it exists makes no difference to others."""
    if key.tenant != tenant and key.role is not Role.ADMIN:
        raise NotPermitted(action)
