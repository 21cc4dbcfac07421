"""Who may do what. Pure: a key's record and a head in, an answer or an error out."""

from octavo_identity.records import AdapterHead, KeyHead
from octavo_shared.errors import AdapterNotFound, NotPermitted
from octavo_shared.messages.identity import Role


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


def check_issue_key(key: KeyHead, tenant: str, role: Role) -> None:
    """Admins issue any key; a tenant's owners issue keys of their tenant, but never an admin's."""
    if key.role is Role.ADMIN:
        return
    if key.role is not Role.OWNER or key.tenant != tenant or role is Role.ADMIN:
        raise NotPermitted("issue this key")


def may_revoke_key(key: KeyHead, other: KeyHead) -> bool:
    """Admins revoke any key, owners those of their tenant."""
    return key.role is Role.ADMIN or (key.role is Role.OWNER and key.tenant == other.tenant)
