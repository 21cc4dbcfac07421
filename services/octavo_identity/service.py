"""The identity process: verbs on NATS, the projection, the ledger and the sweeper beside them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry.trace import SpanKind

from octavo_identity.admission import Admission
from octavo_identity.auditing import Auditing
from octavo_identity.auditor import Auditor
from octavo_identity.base_verbs import BaseVerbs
from octavo_identity.beginning import Beginning
from octavo_identity.branching import Branching
from octavo_identity.checkpoints import Checkpoints
from octavo_identity.claims import Claims
from octavo_identity.data_keys import DataKeys
from octavo_identity.deployment import check_secret
from octavo_identity.desk import Desk
from octavo_identity.erasing import Erasing
from octavo_identity.evaluating import Evaluating
from octavo_identity.even_answers import even
from octavo_identity.fleet import Fleet, Heard
from octavo_identity.gate_verbs import GateVerbs
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids, load_secret, read_secret
from octavo_identity.importing import Importing
from octavo_identity.in_flight import InFlight
from octavo_identity.key_provider import VaultPlace
from octavo_identity.key_source import KeySource
from octavo_identity.keyring import Keyring
from octavo_identity.keys import ensure_admin_key
from octavo_identity.ledger import Ledger
from octavo_identity.metering import Metering
from octavo_identity.projection import Projection
from octavo_identity.promoting import Promoting
from octavo_identity.provenance_verbs import ProvenanceVerbs
from octavo_identity.proving import Proving
from octavo_identity.pushing import Pushing
from octavo_identity.quota_keeper import QuotaKeeper
from octavo_identity.quota_verbs import QuotaVerbs
from octavo_identity.settings import IdentitySettings
from octavo_identity.signer_verbs import SignerVerbs
from octavo_identity.signers import Signers
from octavo_identity.staging import Staging
from octavo_identity.statements import Statements
from octavo_identity.sweeper import Sweeper
from octavo_identity.tenancy import Tenancy
from octavo_identity.transferring import Transferring
from octavo_identity.unwrapping import Unwrapping
from octavo_identity.usage_stream import UsageStream
from octavo_identity.usage_verbs import UsageVerbs
from octavo_identity.verbs import Verbs
from octavo_identity.view_maker import ViewMaker
from octavo_shared import dsse, subjects
from octavo_shared.bus import Bus, Handler
from octavo_shared.checkpoint import Signer
from octavo_shared.credentials import read_credentials
from octavo_shared.errors import DeadlineExceeded, DependencyUnavailable
from octavo_shared.messages.auditing import AuditState
from octavo_shared.messages.identity import SLOW_VERBS, VERBS
from octavo_shared.objects import ObjectStore
from octavo_shared.permissions import BusRole
from octavo_shared.service import probes, run_service
from octavo_shared.tasks import end
from octavo_shared.telemetry import log, tracer

_BUDGET_MS = 4_500
_COMMIT_BUDGET_MS = 110_000
_RETRY_S = 0.5
_START_ATTEMPTS_MAX = 240


async def serve(settings: IdentitySettings, stop: asyncio.Event) -> None:
    """Run until ``stop`` is set; raises ``ConfigError`` when a secret is damaged, or another stream's."""
    ids = Ids(load_secret(settings.identity_dir))
    credentials = read_credentials(BusRole.IDENTITY, settings.nats_seed_file)
    key_file = settings.ledger_key_file
    signer = Signer(read_secret(key_file, "a seed of the ledger's key") if key_file else ids.ledger_seed())
    key_file = settings.provenance_key_file
    own_seed = read_secret(key_file, "a seed of the key for statements") if key_file else ids.provenance_seed()
    source = _key_source(settings, ids)
    provider = source.provider()
    store = ObjectStore(settings)
    staging: Staging | None = None
    projection: Projection | None = None
    try:
        view_file = settings.identity_dir / "projection.sqlite"
        projection = Projection(view_file, ViewMaker(view_file, settings.nats_url, settings.nats_seed_file, source))
        # After a crash of everything NATS has a registry to recover: what needs none is done meanwhile.
        projection.begin()
        async with Bus(settings.nats_url, "identity", credentials=credentials) as bus:
            following = projection

            def is_ready() -> bool:
                return bus.is_connected and following.is_caught_up

            async with probes(settings, is_ready):
                keys = DataKeys(bus, settings.num_replicas, provider)
                heads = HeadStore(bus, settings.num_replicas, keys)
                await _retry(heads.ensure_stream)
                await _retry(lambda: check_secret(heads, ids, settings.identity_dir))
                checkpoints = Checkpoints(bus, settings.num_replicas)
                await _retry(checkpoints.ensure_stream)
                await _retry(keys.ensure_stream)
                usage = UsageStream(bus, settings.num_replicas)
                await _retry(usage.ensure_stream)
                claims = Claims(bus, settings.num_replicas)
                await _retry(claims.ensure_stream)
                await _retry(store.ensure_bucket)
                if (path := settings.admin_key_file) is not None:
                    await _retry(lambda: ensure_admin_key(heads, path))
                signers = Signers(heads, ids, dsse.Signer(own_seed))
                await _retry(signers.ensure_registry)
                desk = Desk(heads, ids, projection)
                staging = Staging(store, keys, upload_bytes_max=settings.upload_bytes_max)
                statements = Statements(signers)
                metering = Metering(heads, usage, projection)
                quotas = QuotaKeeper(desk, metering, claims)
                fleet, in_flight = Fleet(), InFlight()
                admission = Admission(desk.bases, store, fleet)
                pushing = Pushing(desk, staging, keys, statements, admission, quotas, settings.upload_bytes_max)
                await bus.serve(subjects.HEARTBEAT, Heard, fleet.heard)
                erasing = Erasing(desk, bus, store, keys, fleet, dsse.Signer(ids.receipt_seed()))
                ledger = Ledger(heads, projection, checkpoints, signer)
                rate = settings.audit_events_per_s
                audited = (heads, projection, checkpoints, signer.verifier, signers)
                auditor = Auditor(*audited, rate, in_flight.gap) if rate else None
                auditing = Auditing(desk, bus, auditor)
                await bus.serve(subjects.AUDITED, AuditState, auditing.heard)
                handlers = _handlers(
                    Verbs(desk, metering.exhausted),
                    pushing,
                    Importing(desk, Beginning(desk, staging, statements, admission), pushing, quotas),
                    Promoting(desk, admission),
                    Branching(desk, staging, statements, admission, quotas),
                    BaseVerbs(desk, admission, fleet),
                    Transferring(desk),
                    Tenancy(desk),
                    Proving(desk, ledger, signers),
                    auditing,
                    Keyring(desk),
                    SignerVerbs(desk, signers),
                    ProvenanceVerbs(desk, signers),
                    Evaluating(desk, signers, statements),
                    GateVerbs(desk),
                    Unwrapping(keys, desk.tickets),
                    UsageVerbs(desk, metering),
                    QuotaVerbs(desk),
                    erasing,
                )
                side_tasks = [
                    asyncio.create_task(projection.follow(heads), name="projection"),
                    asyncio.create_task(metering.follow(), name="metering"),
                    asyncio.create_task(ledger.run(), name="ledger"),
                    asyncio.create_task(Sweeper(store, heads, projection, keys).run(), name="sweeper"),
                    asyncio.create_task(erasing.run(), name="erasing"),
                    asyncio.create_task(admission.run(), name="bases"),
                ]
                if auditor is not None:
                    side_tasks.append(asyncio.create_task(auditor.run(), name="auditor"))
                    side_tasks.append(asyncio.create_task(auditing.run(auditor), name="auditing"))
                for verb, (kind, _) in VERBS.items():
                    handler = _bounded(verb, handlers[verb], in_flight)
                    await bus.serve(subjects.identity(verb), kind, handler, subjects.IDENTITY_QUEUE)
                log.info("identity_started")
                await _wait(stop, side_tasks)
    finally:
        if projection is not None:
            projection.close()
        if staging is not None:
            staging.close()
        store.close()
        provider.close()


def _key_source(settings: IdentitySettings, ids: Ids) -> KeySource:
    token_file, ca_file, root_file = settings.vault_token_file, settings.vault_ca_file, settings.tenant_key_file
    if token_file is not None:
        ca = str(ca_file) if ca_file else ""
        return KeySource(vault=VaultPlace(settings.vault_url, str(token_file), settings.vault_mount, ca))
    return KeySource(read_secret(root_file, "the root of tenant keys") if root_file else ids.tenant_key_root())


def _handlers(*nouns: object) -> dict[str, Handler]:
    """Return the handler of each verb: the one method of that name."""
    found: dict[str, Handler] = {}
    for verb in VERBS:
        (found[verb],) = (getattr(noun, verb) for noun in nouns if hasattr(noun, verb))
    return found


def _bounded(verb: str, handler: Handler, in_flight: InFlight) -> Handler:
    """Return ``handler`` inside a span, counted, with a deadline a little shorter than its callers'."""
    budget_ms = _COMMIT_BUDGET_MS if verb in SLOW_VERBS else _BUDGET_MS

    async def handle(request: Any) -> Any:
        with in_flight.one(), tracer.start_as_current_span(f"identity.{verb}", kind=SpanKind.SERVER):
            try:
                async with asyncio.timeout(budget_ms / 1000) as deadline:
                    return await even(handler(request))
            except TimeoutError:
                if deadline.expired():
                    raise DeadlineExceeded(budget_ms) from None
                raise

    return handle


async def _retry(work: Callable[[], Awaitable[Any]]) -> None:
    """Do ``work`` once NATS and object storage are there; they may start after us."""
    for _ in range(_START_ATTEMPTS_MAX):
        try:
            await work()
        except DependencyUnavailable as error:
            log.warning("start_waits", detail=error.message)
            await asyncio.sleep(_RETRY_S)
        else:
            return
    raise DependencyUnavailable("what identity needs to start")


async def _wait(stop: asyncio.Event, side_tasks: list[asyncio.Task[None]]) -> None:
    """Wait for ``stop``; a side task that ends before it is a failure of the service."""
    waiting = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait([waiting, *side_tasks], return_when=asyncio.FIRST_COMPLETED)
    await end(waiting, *side_tasks)
    for task in side_tasks:
        if not task.cancelled():
            task.result()


def main() -> None:
    """Console script ``octavo-identity``."""
    run_service("identity", IdentitySettings, serve)


if __name__ == "__main__":
    main()
