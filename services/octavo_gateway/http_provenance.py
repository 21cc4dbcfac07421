"""How revisions came to be, over HTTP, and the keys that statements are signed with. Thin clients of identity."""

from typing import Any

from litestar import delete, get, post
from litestar.params import FromPath, FromQuery

from octavo_gateway.http_queries import Count
from octavo_gateway.http_request import (
    AnyRequest,
    adapter_name,
    body_of,
    caller_of,
    idempotency_key_of,
    revision_reference,
)
from octavo_gateway.http_schema import operation_with
from octavo_gateway.identity_client import IdentityClient
from octavo_gateway.registry_bodies import SignerBody
from octavo_shared.messages.provenance import LINEAGE_MAX, GetLineage, GetProvenance, Lineage, Provenance
from octavo_shared.messages.signers import ListSigners, RegisterSigner, RevokeSigner, SignerInfo, SignerList


class ProvenanceRoutes:
    """Routes that show what was signed, and those that say by whom; ``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient) -> None:
        self._identity = identity

    def handlers(self) -> list[Any]:
        return [*self._statements(), *self._signers()]

    def _statements(self) -> list[Any]:
        @get("/v1/adapters/{tenant:str}/{name:str}/provenance")
        async def provenance(
            request: AnyRequest, tenant: FromPath[str], name: FromPath[str], revision: FromQuery[str | None] = None
        ) -> Provenance:
            """Show how a revision came to be, in a signed DSSE envelope, and the keys of its signers."""
            order = GetProvenance(
                credential=caller_of(request), reference=revision_reference(tenant, name, revision)
            )  # fmt: skip
            return await self._identity.call(order, Provenance)

        @get("/v1/adapters/{tenant:str}/{name:str}/lineage")
        async def lineage(
            request: AnyRequest, tenant: FromPath[str], name: FromPath[str], limit: Count = LINEAGE_MAX
        ) -> Lineage:
            """Show which revisions the adapter's descend from, also in other adapters that this key may see."""
            order = GetLineage(credential=caller_of(request), adapter=adapter_name(tenant, name), num_max=limit)
            return await self._identity.call(order, Lineage)

        return [provenance, lineage]

    def _signers(self) -> list[Any]:
        @get("/v1/signers")
        async def list_signers(request: AnyRequest, principal: FromQuery[str] = "") -> SignerList:
            """List the caller's signing keys; to an admin, somebody's."""
            order = ListSigners(credential=caller_of(request), principal=principal)
            return await self._identity.call(order, SignerList)

        @post("/v1/signers", status_code=200, operation_class=operation_with(SignerBody))
        async def register_signer(request: AnyRequest) -> SignerInfo:
            """Register a public key (Ed25519, PEM) that the caller signs with."""
            credential = caller_of(request)
            body = await body_of(request, SignerBody)
            order = RegisterSigner(
                credential=credential, idempotency_key=idempotency_key_of(request), public_key=body.public_key
            )
            return await self._identity.call(order, SignerInfo)

        @delete("/v1/signers/{key_id:str}", status_code=200)
        async def revoke_signer(
            request: AnyRequest, key_id: FromPath[str], principal: FromQuery[str] = ""
        ) -> SignerInfo:
            """End a signing key; what it signed before stays verifiable."""
            order = RevokeSigner(
                credential=caller_of(request),
                idempotency_key=idempotency_key_of(request),
                key_id=key_id,
                principal=principal,
            )
            return await self._identity.call(order, SignerInfo)

        return [list_signers, register_signer, revoke_signer]
