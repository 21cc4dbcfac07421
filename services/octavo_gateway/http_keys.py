"""API keys over HTTP: issue, rotate, revoke, list. Secrets are made here, and only their hashes go on."""

import uuid
from typing import Annotated, Any

import msgspec
from litestar import delete, get, post
from litestar.params import FromPath, FromQuery

from octavo_gateway.credentials import new_key
from octavo_gateway.http_queries import Count
from octavo_gateway.http_request import AnyRequest, body_of, caller_of, idempotency_key_of
from octavo_gateway.http_schema import operation_with
from octavo_gateway.identity_client import IdentityClient
from octavo_shared.messages.keys import (
    LIFETIME_S_MAX,
    OVERLAP_S,
    OVERLAP_S_MAX,
    IssueKey,
    KeyInfo,
    KeyIssued,
    KeyList,
    ListKeys,
    RevokeKey,
    Role,
    RotateKey,
    Scope,
    Whoami,
)
from octavo_shared.references import check_name

Lifetime = Annotated[int, msgspec.Meta(ge=1, le=LIFETIME_S_MAX)]


class KeyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``scopes`` empty: all; ``adapters`` empty: all; ``lifetime_s`` null: as long as the key that issues it."""

    user: str
    role: Role = Role.USER
    scopes: tuple[Scope, ...] = ()
    adapters: str = ""
    lifetime_s: Lifetime | None = None
    label: str = ""


class RotateBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``overlap_s``: how long the old key still lives. ``lifetime_s`` null: until the old one would have expired."""

    overlap_s: Annotated[int, msgspec.Meta(ge=0, le=OVERLAP_S_MAX)] = OVERLAP_S
    lifetime_s: Lifetime | None = None


class KeyReply(msgspec.Struct, frozen=True):
    """A fresh key. ``key`` is shown once and kept nowhere."""

    key: str
    key_id: str
    principal: str
    role: Role
    scopes: tuple[Scope, ...]
    adapters: str
    expires_at_ms: int
    label: str


class KeyRoutes:
    """Routes under ``/v1/keys``; ``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient) -> None:
        self._identity = identity

    def handlers(self) -> list[Any]:
        return [*self._making(), *self._others()]

    def _making(self) -> list[Any]:
        # A secret is in one answer and nowhere else, so a request that is repeated makes another key.
        @post("/v1/tenants/{tenant:str}/keys", status_code=200, operation_class=operation_with(KeyBody))
        async def issue_key(request: AnyRequest, tenant: FromPath[str]) -> KeyReply:
            """Issue a key. Its text is in this answer and nowhere else, so a repeated request makes another one."""
            credential = caller_of(request)
            body = await body_of(request, KeyBody)
            text, fresh = new_key()
            order = IssueKey(
                credential=credential,
                idempotency_key=uuid.uuid4().hex,
                tenant=check_name(tenant, "tenant"),
                user=check_name(body.user, "user"),
                role=body.role,
                key_id=fresh.key_id,
                secret_sha256=fresh.secret_sha256,
                scopes=body.scopes,
                adapters=body.adapters,
                lifetime_s=body.lifetime_s,
                label=body.label,
            )
            return _reply(text, await self._identity.call(order, KeyIssued))

        @post("/v1/keys/{key_id:str}/rotate", status_code=200, operation_class=operation_with(RotateBody))
        async def rotate_key(request: AnyRequest, key_id: FromPath[str]) -> KeyReply:
            """Issue a key in place of another one, which expires after an overlap."""
            credential = caller_of(request)
            body = await body_of(request, RotateBody)
            text, fresh = new_key()
            order = RotateKey(
                credential=credential,
                idempotency_key=uuid.uuid4().hex,
                key_id=key_id,
                new_key_id=fresh.key_id,
                secret_sha256=fresh.secret_sha256,
                overlap_s=body.overlap_s,
                lifetime_s=body.lifetime_s,
            )
            return _reply(text, await self._identity.call(order, KeyIssued))

        return [issue_key, rotate_key]

    def _others(self) -> list[Any]:
        @delete("/v1/keys/{key_id:str}", status_code=200)
        async def revoke_key(request: AnyRequest, key_id: FromPath[str]) -> KeyIssued:
            """Revoke a key."""
            order = RevokeKey(credential=caller_of(request), idempotency_key=idempotency_key_of(request), key_id=key_id)
            return await self._identity.call(order, KeyIssued)

        @get("/v1/keys")
        async def list_keys(
            request: AnyRequest, principal: FromQuery[str] = "", after: FromQuery[str] = "", limit: Count = 100
        ) -> KeyList:
            """List one's own keys, or those of a principal or a tenant, without their secrets."""
            order = ListKeys(credential=caller_of(request), principal=principal, after=after, num_max=limit)
            return await self._identity.call(order, KeyList)

        @get("/v1/key")
        async def whoami(request: AnyRequest) -> KeyInfo:
            """Say what the key in use is."""
            return await self._identity.call(Whoami(credential=caller_of(request)), KeyInfo)

        return [revoke_key, list_keys, whoami]


def _reply(text: str, issued: KeyIssued) -> KeyReply:
    return KeyReply(
        text, issued.key_id, issued.principal, issued.role, issued.scopes, issued.adapters, issued.expires_at_ms,
        issued.label,
    )  # fmt: skip
