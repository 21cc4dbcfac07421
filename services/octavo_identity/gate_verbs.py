"""Verbs on gates: those of an adapter are its owner's, and not its editors'; those of a tenant are for admins."""

import math

import msgspec

from octavo_identity import access
from octavo_identity.desk import Desk, adapter_reference
from octavo_identity.records import AdapterHead, KeyHead, TenantHead
from octavo_identity.registry import Change
from octavo_identity.tenancy import TenantChange, change_tenant
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages import evaluation as messages
from octavo_shared.messages.evaluation import Gate, Gates, Metric, Rule, gate_summary
from octavo_shared.references import DIGEST_PATTERN, PRINCIPAL_PATTERN, check_name


class GateVerbs:
    """One method per verb, of the same name."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def get_gate(self, request: messages.GetGate) -> Gates:
        """Return the gates of an adapter to those who have a role on it, or that of a tenant to those who are of it."""
        key = await self._desk.authenticate(request.credential)
        if "/" not in request.target:
            tenant = check_name(request.target, "tenant")
            access.check_tenant(key, tenant, "see the gate of this tenant")
            return Gates(tenant, tenant=await self._desk.gatekeeper.tenant_gate(tenant))
        reference = adapter_reference(request.target)
        head = access.check_see(key, await self._desk.registry.head(reference))
        return Gates(head.name, head.gate, await self._desk.gatekeeper.tenant_gate(reference.tenant))

    async def set_gate(self, request: messages.SetGate) -> Gates:
        """Replace a gate or remove it. Effective with the next promotion; what is served already stays.

        Idempotent by key, and the gate that there is already is no event.
        """
        key = await self._desk.authenticate(request.credential)
        if request.gate is not None:
            _check_gate(request.gate)
        if "/" not in request.target:
            return await self._set_tenant_gate(request, key)
        reference = adapter_reference(request.target)

        async def put(now: AdapterHead | None) -> Change | None:
            owned = access.check_own(key, now)
            if owned.gate == request.gate:
                return None
            new = msgspec.structs.replace(owned, gate=request.gate)
            return Change(_kind(request.gate), new, gate_summary(request.gate))

        head = await self._desk.change(reference, key, request.idempotency_key, put)
        return Gates(head.name, head.gate, await self._desk.gatekeeper.tenant_gate(reference.tenant))

    async def _set_tenant_gate(self, request: messages.SetGate, key: KeyHead) -> Gates:
        tenant = check_name(request.target, "tenant")
        access.check_admin(key, "set the gate of a tenant")

        def put(head: TenantHead) -> TenantChange | None:
            if head.gate == request.gate:
                return None
            new = msgspec.structs.replace(head, gate=request.gate)
            return TenantChange(_kind(request.gate), new, gate_summary(request.gate))

        head = await change_tenant(self._desk, key, tenant, request.idempotency_key, put)
        return Gates(tenant, tenant=head.gate)


def _kind(gate: Gate | None) -> str:
    return "gate_cleared" if gate is None else "gate_set"


def _check_gate(gate: Gate) -> None:
    if not 1 <= len(gate.rules) <= messages.RULES_MAX:
        raise InvalidRequest("rules", f"must be 1 to {messages.RULES_MAX}")
    if len({(rule.metric, rule.suite_digest) for rule in gate.rules}) != len(gate.rules):
        raise InvalidRequest("rules", "may name each metric of a suite once")
    for rule in gate.rules:
        _check_rule(rule)
    if len(gate.evaluators) > messages.EVALUATORS_MAX:
        raise InvalidRequest("evaluators", f"may be at most {messages.EVALUATORS_MAX}")
    for evaluator in gate.evaluators:
        if PRINCIPAL_PATTERN.match(evaluator) is None or evaluator.startswith("*"):
            raise InvalidRequest("evaluators", "must have the form user@tenant")


def _check_rule(rule: Rule) -> None:
    check_name(rule.suite, "suite")
    if DIGEST_PATTERN.match(rule.suite_digest) is None:
        raise InvalidRequest("suite_digest", "must be 'sha256:' and 64 hexadecimal digits")
    if rule.threshold is None and rule.regression_max is None:
        raise InvalidRequest("rules", "must have a threshold or a regression_max each")
    low, high = (1.0, math.inf) if rule.metric is Metric.PERPLEXITY else (0.0, 1.0)
    if rule.threshold is not None and not (math.isfinite(rule.threshold) and low <= rule.threshold <= high):
        raise InvalidRequest("threshold", f"of {rule.metric} must be from {low:g} to {high:g}")
    if rule.regression_max is not None and not (math.isfinite(rule.regression_max) and rule.regression_max >= 0):
        raise InvalidRequest("regression_max", "must be 0 or more")
