"""A gateway's side of identity: what it asks, with the key of whoever owns what it asks about."""

import secrets
from typing import TypeVar

import msgspec

from bench.million.population import Population
from chaos.calls import key_credential
from octavo_cli.verification import NotProven, Trusted, check_revision
from octavo_shared import dsse, provenance, subjects
from octavo_shared.bus import Bus
from octavo_shared.checkpoint import CheckpointRefused, Verifier
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.adapters import AdapterInfo
from octavo_shared.messages.keys import IssueKey, KeyIssued, Role
from octavo_shared.messages.ledger import Prove, RevisionProof
from octavo_shared.messages.lifecycle import Tag
from octavo_shared.messages.provenance import GetProvenance, Provenance
from octavo_shared.messages.resolving import Resolution, Resolve
from octavo_shared.messages.tenants import CreateTenant, TenantCreated
from octavo_shared.references import Digest, parse_reference

_TIMEOUT_S = 10.0

T = TypeVar("T", bound=msgspec.Struct)


class WrongAnswer(Exception):
    """Identity answered something else than what was registered. The message says about which adapter."""


class Client:
    """One connection. Raises what identity refuses with, ``DependencyUnavailable`` and ``WrongAnswer``."""

    def __init__(self, bus: Bus, population: Population, digest: Digest) -> None:
        self._bus = bus
        self._population = population
        self._digest = digest

    async def set_up(self, admin_key: str) -> None:
        """Make the population's tenants, and a key for the owner in each."""
        admin = key_credential(admin_key)
        for number in range(self._population.num_tenants):
            tenant, key = self._population.tenant(number), self._population.credential(number)
            create = CreateTenant(credential=admin, idempotency_key=tenant, tenant=tenant)
            await self._ask("create_tenant", create, TenantCreated)
            issue = IssueKey(
                credential=admin, idempotency_key=tenant, tenant=tenant, user="owner", role=Role.OWNER,
                key_id=key.key_id, secret_sha256=key.secret_sha256,
            )  # fmt: skip
            await self._ask("issue_key", issue, KeyIssued)

    async def resolve(self, number: int) -> None:
        """Resolve an adapter as a request for it would, and hold the answer against what was registered."""
        name, key = self._population.adapter(number), self._population.credential_of(number)
        found = await self._ask("resolve", Resolve(credential=key, reference=name), Resolution)
        if found.adapter is None or (found.adapter.revision, found.adapter.digest) != (1, self._digest):
            raise WrongAnswer(f"{name} was resolved to {found.adapter}")

    async def tag(self, number: int) -> None:
        """Write to an adapter: one event."""
        name, key = self._population.adapter(number), self._population.credential_of(number)
        tag = Tag(credential=key, idempotency_key=secrets.token_hex(8), adapter=name, add=("tagged",))
        await self._ask("tag", tag, AdapterInfo)

    async def check_ledger(self, number: int) -> None:
        """Hold an adapter's event against the ledger's signed root, and its statement against the registry's key."""
        name, key = self._population.adapter(number), self._population.credential_of(number)
        revision = parse_reference(f"{name}@1")
        proof = await self._ask("prove", Prove(credential=key, reference=str(revision)), RevisionProof)
        stated = await self._ask("provenance", GetProvenance(credential=key, reference=str(revision)), Provenance)
        try:
            check_revision(proof, revision, Trusted(Verifier.parse(proof.signed.public_key)))
            _check_statement(name, self._digest, stated)
        except (NotProven, CheckpointRefused, InvalidRequest) as error:
            raise WrongAnswer(f"{name}: {error}") from error

    async def _ask(self, verb: str, request: msgspec.Struct, reply: type[T]) -> T:
        return await self._bus.request(subjects.identity(verb), request, reply, _TIMEOUT_S, "identity")


def _check_statement(name: str, digest: Digest, stated: Provenance) -> None:
    if stated.envelope is None:
        raise WrongAnswer(f"{name} has no statement")
    dsse.verify(stated.envelope, [dsse.PublicKey.parse(one.public_key) for one in stated.signers if one.is_valid])
    (subject,) = provenance.parse(stated.envelope.data).subject
    if subject.name != name or stated.digest != digest:
        raise WrongAnswer(f"{name} has a statement of {subject.name}, and its digest is {stated.digest}")
