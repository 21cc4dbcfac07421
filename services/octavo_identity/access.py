"""Who may do what. Pure: a key's record and a head in, an answer or an error out.

Who may not even see an adapter gets the one answer, as if it were not there; who sees it gets a plain no.
"""

from octavo_identity.records import AdapterHead, KeyHead
from octavo_identity.rights import Right, covers, rights, scopes_of
from octavo_shared.errors import AdapterNotFound, NotPermitted
from octavo_shared.messages.keys import Role, Scope

_ROLES_OF = {
    Role.ADMIN: frozenset(Role),
    Role.OWNER: frozenset({Role.OWNER, Role.USER}),
    Role.USER: frozenset({Role.USER}),
    Role.AUDITOR: frozenset({Role.AUDITOR}),
}
"""Role → those that do no more. An auditor sees a whole tenant, so it is not less than an owner."""


def may(key: KeyHead, head: AdapterHead, right: Right) -> bool:
    """Tell whether ``key`` has ``right`` on the adapter."""
    return right in rights(key, head)


def may_use(key: KeyHead, head: AdapterHead) -> bool:
    """Owners use what they own, others what they or their whole tenant were granted. Admins get no way in."""
    return may(key, head, Right.USE)


def check_see(key: KeyHead, head: AdapterHead | None) -> AdapterHead:
    """Return ``head`` to all who have a role on the adapter; not there and not yours are one answer."""
    return _check(key, head, Right.SEE, "see this adapter")


def check_use(key: KeyHead, head: AdapterHead | None) -> AdapterHead:
    """Return ``head`` to its owner, editors and users; not there and not yours are one answer."""
    return _check(key, head, Right.USE, "use this adapter")


def check_edit(key: KeyHead, head: AdapterHead | None) -> AdapterHead:
    """Return ``head`` to its owner and editors. Others who may know of it get a plain no, the rest the one answer."""
    return _check(key, head, Right.EDIT, "change this adapter")


def check_own(key: KeyHead, head: AdapterHead | None) -> AdapterHead:
    """Return ``head`` to its owner. Others who may know of it get a plain no, the rest the one answer."""
    return _check(key, head, Right.OWN, "do what the owner of this adapter does")


def check_locate(key: KeyHead, head: AdapterHead | None) -> AdapterHead:
    """Return ``head`` to its owner and to admins, who need no right to use it."""
    return _check(key, head, Right.LOCATE, "evict this adapter")


def check_verify(key: KeyHead, head: AdapterHead | None) -> AdapterHead:
    """Return ``head`` to its owner, its auditors and admins: events hold who may use it, which others do not see."""
    return _check(key, head, Right.AUDIT, "verify this adapter")


def check_erase(key: KeyHead, head: AdapterHead | None) -> AdapterHead:
    """Return ``head`` to its owner and to admins, who need no right to use it."""
    return _check(key, head, Right.LOCATE, "erase this adapter")


def check_transfer(key: KeyHead, head: AdapterHead | None) -> AdapterHead:
    """Return ``head`` to its owner and to admins, who need no right to use it."""
    return _check(key, head, Right.LOCATE, "transfer this adapter")


def _check(key: KeyHead, head: AdapterHead | None, right: Right, action: str) -> AdapterHead:
    found = rights(key, head) if head is not None else Right.NONE
    if head is not None and right in found:
        return head
    if Right.SEE in found:
        raise NotPermitted(action)
    raise AdapterNotFound


def check_push(key: KeyHead, name: str, head: AdapterHead | None) -> None:
    """Let editors push to what is there, and owners of the tenant, or admins, begin what is new.

    Pushing where another principal's adapter is gets the same answer as using it: whatever is asked of the key alone
    is asked first, so that only those who may begin adapters learn that a name is taken.
    """
    if head is not None and may(key, head, Right.SEE):
        check_edit(key, head)
        return
    tenant = name.partition("/")[0]
    if not covers(key.adapters, name) or (key.role is not Role.ADMIN and key.tenant != tenant):
        raise AdapterNotFound
    if key.role not in (Role.OWNER, Role.ADMIN) or Scope.PUSH not in scopes_of(key):
        raise NotPermitted("push adapters")
    if head is not None:
        raise AdapterNotFound


def check_stage(key: KeyHead) -> None:
    """Let keys that are for pushing stage bytes; what they may be pushed to is asked when they are."""
    if Scope.PUSH not in scopes_of(key):
        raise NotPermitted("push adapters")


def check_scope(key: KeyHead, scope: Scope, action: str) -> None:
    """Hold a request that is about no adapter to what the key is for; one for some adapters is for nothing else."""
    if key.adapters or scope not in scopes_of(key):
        raise NotPermitted(action)


def check_audit(key: KeyHead) -> None:
    """Let admins audit the whole ledger, and auditors their tenant's part of it."""
    if key.role is not Role.AUDITOR:
        check_admin(key, "audit the ledger", Scope.AUDIT)
    check_scope(key, Scope.AUDIT, "audit the ledger")


def check_admin(key: KeyHead, action: str, scope: Scope = Scope.MANAGE) -> None:
    if key.role is not Role.ADMIN:
        raise NotPermitted(action)
    check_scope(key, scope, action)


def is_admin(key: KeyHead) -> bool:
    """Tell whether ``key`` may do what admins do to any adapter."""
    return key.role is Role.ADMIN and not key.adapters and Scope.MANAGE in scopes_of(key)


def does_no_more(key: KeyHead, than: KeyHead) -> bool:
    """Tell whether whatever ``key`` may do for its principal, ``than`` may do for its own, or may have others do."""
    return (
        key.role in _ROLES_OF[than.role]
        and set(scopes_of(key)) <= set(scopes_of(than))
        and covers(than.adapters, key.adapters)
    )


def check_issue_key(key: KeyHead, new: KeyHead) -> None:
    """Admins issue keys to all. Others issue them to themselves only: a key of another principal is that principal.

    Nobody issues a key that does more than the one in use.
    """
    is_ones_own = key.principal == new.principal or key.role is Role.ADMIN
    if not (is_ones_own and Scope.MANAGE in scopes_of(key) and does_no_more(new, key)):
        raise NotPermitted("issue this key")


def may_end_key(key: KeyHead, other: KeyHead) -> bool:
    """Every key revokes or rotates itself; else admins any, and others their own that do no more than ``key``."""
    if key.key_id == other.key_id:
        return True
    is_ones_own = key.principal == other.principal and does_no_more(other, key)
    return Scope.MANAGE in scopes_of(key) and (is_ones_own or (key.role is Role.ADMIN and not key.adapters))


def check_list_keys(key: KeyHead, principal: str) -> None:
    """All see their own keys, auditors those of their tenant, admins everybody's."""
    action = "list these keys"
    if principal == key.principal:
        check_scope(key, Scope.MANAGE, action)
    elif key.role is Role.AUDITOR and principal.partition("@")[2] == key.tenant:
        check_scope(key, Scope.AUDIT, action)
    else:
        check_admin(key, action)


def check_usage(key: KeyHead, head: AdapterHead | None) -> AdapterHead:
    """Return ``head`` to its owner, its auditors and admins: how much it is used is not for those who use it."""
    return _check(key, head, Right.AUDIT, "see what this adapter was used for")


def check_tenant_usage(key: KeyHead, tenant: str) -> None:
    """Let the owners and auditors of a tenant see what it used, and admins; the others see what is theirs."""
    action = "see what this tenant used"
    if key.tenant == tenant and key.role in (Role.OWNER, Role.AUDITOR):
        check_scope(key, Scope.AUDIT, action)
    else:
        check_admin(key, action, Scope.AUDIT)


def check_tenant(key: KeyHead, tenant: str, action: str) -> None:
    """Let those of a tenant and admins see what is the tenant's; whether it exists makes no difference to others."""
    if key.tenant != tenant:
        check_admin(key, action)
