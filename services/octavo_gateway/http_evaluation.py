"""Evaluations and gates over HTTP. Thin clients of identity."""

from typing import Any

import msgspec
from litestar import delete, get, post, put
from litestar.params import FromPath, FromQuery

from octavo_gateway.http_queries import MaybeCount
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
from octavo_gateway.registry_bodies import Number
from octavo_shared.envelopes import Envelope
from octavo_shared.messages.evaluation import (
    SIGNED_EVALUATIONS_MAX,
    Evaluate,
    Evaluation,
    EvaluationList,
    Gate,
    Gates,
    GetGate,
    ListEvaluations,
    Rule,
    Score,
    SetGate,
)
from octavo_shared.references import Digest, Fingerprint, check_name

_LIMIT = 100


class EvaluationBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``revision``: a number or a digest. ``base``: the one that the answers came from.

    ``statement``: all this in a DSSE envelope that the evaluator signed.
    """

    revision: Number | str
    suite: str
    suite_digest: Digest
    scores: tuple[Score, ...]
    base: Fingerprint
    statement: Envelope | None = None


class GateBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rules: tuple[Rule, ...]
    evaluators: tuple[str, ...] = ()


class EvaluationRoutes:
    """Routes under one adapter or one tenant; ``handlers`` are given to Litestar."""

    def __init__(self, identity: IdentityClient) -> None:
        self._identity = identity

    def handlers(self) -> list[Any]:
        return [*self._evaluations(), *self._adapter_gate(), *self._tenant_gate()]

    def _evaluations(self) -> list[Any]:
        @post("/v1/adapters/{tenant:str}/{name:str}/evaluations", status_code=200,
              operation_class=operation_with(EvaluationBody))  # fmt: skip
        async def evaluate(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> Evaluation:
            """Record what a suite's run gave."""
            credential = caller_of(request)
            body = await body_of(request, EvaluationBody)
            order = Evaluate(
                credential=credential,
                idempotency_key=idempotency_key_of(request),
                reference=revision_reference(tenant, name, str(body.revision)),
                suite=body.suite,
                suite_digest=body.suite_digest,
                scores=body.scores,
                base=body.base,
                statement=body.statement,
            )
            return await self._identity.call(order, Evaluation)

        @get("/v1/adapters/{tenant:str}/{name:str}/evaluations")
        async def evaluations(
            request: AnyRequest,
            tenant: FromPath[str],
            name: FromPath[str],
            revision: FromQuery[str | None] = None,
            limit: MaybeCount = None,
            statements: FromQuery[bool] = False,
        ) -> EvaluationList:
            """Show a revision and its evaluations, newest first; without a revision, of what is served.

            With `statements`, as they were signed, and with the keys that signed them.
            """
            if limit is None:
                limit = SIGNED_EVALUATIONS_MAX if statements else _LIMIT
            order = ListEvaluations(
                credential=caller_of(request), reference=revision_reference(tenant, name, revision), num_max=limit,
                with_statements=statements,
            )  # fmt: skip
            return await self._identity.call(order, EvaluationList)

        return [evaluate, evaluations]

    def _adapter_gate(self) -> list[Any]:
        @get("/v1/adapters/{tenant:str}/{name:str}/gate")
        async def adapter_gate(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> Gates:
            """Show the gates that apply to an adapter."""
            return await self._get(request, adapter_name(tenant, name))

        @put("/v1/adapters/{tenant:str}/{name:str}/gate", status_code=200, operation_class=operation_with(GateBody))
        async def set_adapter_gate(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> Gates:
            """Replace an adapter's gate."""
            return await self._set(request, adapter_name(tenant, name), await _gate_of(request))

        @delete("/v1/adapters/{tenant:str}/{name:str}/gate", status_code=200)
        async def clear_adapter_gate(request: AnyRequest, tenant: FromPath[str], name: FromPath[str]) -> Gates:
            """Remove an adapter's gate."""
            return await self._set(request, adapter_name(tenant, name), None)

        return [adapter_gate, set_adapter_gate, clear_adapter_gate]

    def _tenant_gate(self) -> list[Any]:
        @get("/v1/tenants/{tenant:str}/gate")
        async def tenant_gate(request: AnyRequest, tenant: FromPath[str]) -> Gates:
            """Show the gate of all adapters of a tenant."""
            return await self._get(request, check_name(tenant, "tenant"))

        @put("/v1/tenants/{tenant:str}/gate", status_code=200, operation_class=operation_with(GateBody))
        async def set_tenant_gate(request: AnyRequest, tenant: FromPath[str]) -> Gates:
            """Replace a tenant's gate (admin)."""
            return await self._set(request, check_name(tenant, "tenant"), await _gate_of(request))

        @delete("/v1/tenants/{tenant:str}/gate", status_code=200)
        async def clear_tenant_gate(request: AnyRequest, tenant: FromPath[str]) -> Gates:
            """Remove a tenant's gate (admin)."""
            return await self._set(request, check_name(tenant, "tenant"), None)

        return [tenant_gate, set_tenant_gate, clear_tenant_gate]

    async def _get(self, request: AnyRequest, target: str) -> Gates:
        return await self._identity.call(GetGate(credential=caller_of(request), target=target), Gates)

    async def _set(self, request: AnyRequest, target: str, gate: Gate | None) -> Gates:
        order = SetGate(
            credential=caller_of(request), idempotency_key=idempotency_key_of(request), target=target, gate=gate
        )
        return await self._identity.call(order, Gates)


async def _gate_of(request: AnyRequest) -> Gate:
    body = await body_of(request, GateBody)
    return Gate(body.rules, body.evaluators)
