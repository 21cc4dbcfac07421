"""Erasing an adapter over HTTP: a thin client of identity."""

from typing import Any

import msgspec
from litestar import delete
from litestar.params import FromPath

from octavo_gateway.http_request import AnyRequest, adapter_name, caller_of, idempotency_key_of
from octavo_gateway.identity_client import IdentityClient
from octavo_shared import dsse
from octavo_shared.messages.privacy import Erase, Erased
from octavo_shared.references import AdapterId


class ErasureReply(msgspec.Struct, frozen=True):
    """``receipt`` is a DSSE envelope, and ``public_key`` the PEM of the key that signed it."""

    adapter_id: AdapterId
    receipt: dsse.Envelope
    public_key: str


class ErasureRoutes:
    """``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient) -> None:
        self._identity = identity

    def handlers(self) -> list[Any]:
        @delete("/v1/adapters/{tenant:str}/{name:str}", status_code=200)
        async def erase(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> ErasureReply:
            """Destroy an adapter with all its revisions, keys and copies, for ever, and return the signed receipt."""
            order = Erase(
                credential=caller_of(request),
                idempotency_key=idempotency_key_of(request),
                adapter=adapter_name(tenant, name),
            )
            erased = await self._identity.call(order, Erased)
            return ErasureReply(erased.adapter_id, dsse.decode(erased.receipt), erased.public_key)

        return [erase]
