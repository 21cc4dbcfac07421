"""Who else may do what with an adapter: the roles that its owner grants."""

from enum import StrEnum

from octavo_shared.messages.requests import Write


class GrantRole(StrEnum):
    """What a principal is granted on one adapter. The owner has all of it and grants it."""

    USER = "user"
    """Generates with it, pulls it, branches from it."""
    EDITOR = "editor"
    """Also pushes revisions, moves aliases, tags and evaluates."""
    AUDITOR = "auditor"
    """Sees its history, its proofs and who may do what. Does not use it."""


class Grant(Write, frozen=True, kw_only=True):
    """Let ``principal`` (``user@tenant`` or ``*@tenant``) have ``role`` on the adapter, in place of any other one.

    One that has it already leaves no trace: a repeated key of such a request is a new one. So it is with ``Revoke``.
    """

    adapter: str
    principal: str
    role: GrantRole = GrantRole.USER


class Transfer(Write, frozen=True, kw_only=True):
    """Make ``owner``, a principal of the adapter's tenant who has a key, the adapter's owner."""

    adapter: str
    owner: str


class Revoke(Write, frozen=True, kw_only=True):
    """Take every role of ``principal`` on the adapter back."""

    adapter: str
    principal: str
