"""What a reference names now, for whoever asks."""

import msgspec

from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.messages.keys import Role
from octavo_shared.messages.requests import Request
from octavo_shared.messages.usage import QuotaUse


class Resolve(Request, frozen=True, kw_only=True):
    """``reference`` None asks for the base alone, which every key may use that is not narrowed to something else."""

    reference: str | None = None


class Resolution(msgspec.Struct, frozen=True):
    """Who asks (``principal``, ``tenant_id``, ``role``) and, if there was a reference, what it names now."""

    principal: str
    tenant: str
    tenant_id: str
    role: Role
    adapter: AdapterHandle | None = None
    exhausted: QuotaUse | None = None
    """The quota of tokens of who asks, once it is used up: then nothing may be generated for them."""


class Locate(Request, frozen=True, kw_only=True):
    """Ask where an adapter's bytes are, without the right to use it: for its owner and for administrators."""

    reference: str
