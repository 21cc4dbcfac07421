"""What is left after a run, read from the stores themselves: the ledger, its signed roots, the packs, the logs."""

import asyncio
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chaos.deployment import Deployment
from chaos.faults import leader_of, step_down
from chaos.findings import finding_of, what_is_wrong
from chaos.history import GONE, LedgerEntry, Snapshot
from octavo_identity.data_keys import DataKeys
from octavo_identity.event_form import Opener
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids, load_secret
from octavo_identity.records import AdapterHead, ErasedHead, RegistryEvent, StoredRevision
from octavo_identity.staging import PackPlace
from octavo_shared import dsse
from octavo_shared.bus import Bus
from octavo_shared.checkpoint import Signer
from octavo_shared.errors import AdapterErased, AdapterUnavailable
from octavo_shared.merkle import Tree
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.objects import ObjectMissing, ObjectStore, ObjectTooLarge
from octavo_shared.pack import digest_of
from octavo_shared.references import AdapterId
from octavo_shared.seal import SealBroken, open_sealed, sealed_size
from octavo_shared.subjects import CHECKPOINT_STREAM

_TOGETHER = 128
_PACKS_TOGETHER = 8
_LEADER_TRIES_MAX = 12
_BAD_EVENTS = re.compile(
    r"ledger_contradicted|projection_rebuilt|projection_damaged|projection_deleted|handler_failed|Traceback"
)


@dataclass
class Aftermath:
    """``ledger`` by adapter name. ``problems`` are sentences: whatever is in them should not be."""

    ledger: Mapping[str, Sequence[LedgerEntry]]
    num_events: int = 0
    num_checkpoints: int = 0
    num_packs: int = 0
    num_erased: int = 0
    num_evaluations: int = 0
    leaders: list[str] = field(default_factory=list)
    """The servers whose copy of the stream was read as its leader, and was the same."""
    problems: list[str] = field(default_factory=list)


async def look(deployment: Deployment, operator: Bus, keys: DataKeys, evaluator: dsse.PublicKey) -> Aftermath:
    """Read everything and compare it; the deployment must be healthy. ``keys`` open also what was erased.

    All evaluations were signed by ``evaluator``.
    """
    heads = HeadStore(operator, len(deployment.nats.servers), keys)
    events = await _all_events(heads)
    found = Aftermath({}, len(events))
    opened = _opened(events, await heads.opener(events), found)
    found.ledger = _ledger_of(opened)
    registry = dsse.Signer(Ids(load_secret(deployment.identity_dir(0))).provenance_seed()).public_key
    _check_evaluations(opened, (evaluator, registry), found)
    tree = _tree_of(events)
    await _compare_replicas(deployment, operator, heads, tree, found)
    await _check_roots(deployment, operator, tree, found)
    await _check_packs(deployment, keys, [event for event, _ in opened], found)
    _read_logs(deployment, found)
    return found


async def _all_events(heads: HeadStore) -> list[LedgerEvent]:
    last = (await heads.state()).last_sequence
    events: list[LedgerEvent] = []
    for first in range(1, last + 1, _TOGETHER):
        events += await heads.read_range(first, min(last, first + _TOGETHER - 1))
    return events


def _opened(events: Sequence[LedgerEvent], opener: Opener, found: Aftermath) -> list[tuple[RegistryEvent, int]]:
    """Return all events with their sequences."""
    opened = []
    for stored in events:
        event = opener.open(stored)
        if event is None:
            found.problems.append(f"event {stored.sequence} of what was erased does not open with any key of the run")
        else:
            opened.append((event, stored.sequence))
    return opened


def _ledger_of(events: Sequence[tuple[RegistryEvent, int]]) -> dict[str, list[LedgerEntry]]:
    ledger: dict[str, list[LedgerEntry]] = {}
    names: dict[AdapterId, str] = {}
    for event, sequence in events:
        head = event.head
        if isinstance(head, AdapterHead):
            names[head.adapter_id] = head.name
            recorded = finding_of(event.evaluation) if event.evaluation is not None else None
            findings = tuple(finding_of(one) for one in head.evaluations)
            entry = LedgerEntry(
                sequence, event.previous_sequence, head.writes[-1], _snapshot_of(head), recorded, findings
            )
            ledger.setdefault(head.name, []).append(entry)
        elif isinstance(head, ErasedHead) and not head.receipt and head.adapter_id in names:
            # The event that it is done, which has the receipt, is nobody's write.
            entry = LedgerEntry(sequence, event.previous_sequence, head.write, GONE)
            ledger.setdefault(names[head.adapter_id], []).append(entry)
    return ledger


def _check_evaluations(
    events: Sequence[tuple[RegistryEvent, int]], keys: tuple[dsse.PublicKey, ...], found: Aftermath
) -> None:
    """Hold each evaluation to its statement, and the statement to whoever signed it."""
    for event, sequence in events:
        if event.evaluation is None:
            continue
        assert isinstance(event.head, AdapterHead), "only adapters are evaluated"
        if wrong := what_is_wrong(event.statement, event.head.name, event.evaluation, keys):
            found.problems.append(f"event {sequence} holds an evaluation without its signed statement: {wrong}")
        found.num_evaluations += 1


def _snapshot_of(head: AdapterHead) -> Snapshot:
    newest = max(head.revisions, key=lambda stored: stored.revision.number)
    return Snapshot(head.num_revisions, newest.revision.digest, head.aliases, head.tags, head.grants, head.retired)


def _tree_of(events: Sequence[LedgerEvent]) -> Tree:
    tree = Tree()
    for event in events:
        tree.append(event.leaf_hash())
    return tree


async def _compare_replicas(
    deployment: Deployment, operator: Bus, heads: HeadStore, tree: Tree, found: Aftermath
) -> None:
    """Let each server lead in turn, and read the whole stream from it."""
    found.leaders.append(await leader_of(operator))
    for server in deployment.nats.servers:
        if server.name in found.leaders:
            continue
        for _ in range(_LEADER_TRIES_MAX):
            if await leader_of(operator) == server.name:
                break
            await step_down(operator, preferred=server.name)
            await asyncio.sleep(0.5)
        leader = await leader_of(operator)
        own = _tree_of(await _all_events(heads))
        if own.size != tree.size or own.root(own.size) != tree.root(tree.size):
            found.problems.append(f"{leader} has another copy of the stream: {own.size} events of {tree.size}")
        elif leader not in found.leaders:
            found.leaders.append(leader)


async def _check_roots(deployment: Deployment, operator: Bus, tree: Tree, found: Aftermath) -> None:
    """Hold the stream to every root that was ever signed over it: none of those events is lost or another one."""
    jetstream = operator.client.jetstream()
    verifier = Signer(Ids(load_secret(deployment.identity_dir(0))).ledger_seed()).verifier
    state = (await jetstream.stream_info(CHECKPOINT_STREAM)).state
    size = 0
    for sequence in range(state.first_seq, state.last_seq + 1):
        note = (await jetstream.get_msg(CHECKPOINT_STREAM, seq=sequence)).data or b""
        checkpoint = verifier.open(note.decode())
        found.num_checkpoints += 1
        if checkpoint.size <= size:
            found.problems.append(f"checkpoint {sequence} of {checkpoint.size} events follows one of {size}")
        size = checkpoint.size
        if size > tree.size or not hmac.compare_digest(tree.root(size), checkpoint.root):
            found.problems.append(f"checkpoint {sequence} was signed over other events than the first {size}")


async def _check_packs(
    deployment: Deployment, keys: DataKeys, known: Sequence[RegistryEvent], found: Aftermath
) -> None:
    """Open the pack of every revision with its adapter's data key, and compare its digest; what was erased has none."""
    store = ObjectStore(deployment.settings)
    slots = asyncio.Semaphore(_PACKS_TOGETHER)

    async def check(head: AdapterHead, stored: StoredRevision) -> None:
        place = PackPlace.of(head, stored)
        try:
            async with slots:
                key = await keys.read(head.adapter_id)
                sealed = await store.read(place.object_key, sealed_size(stored.revision.pack_bytes))
                pack = bytes(open_sealed(sealed, key, place.context))
        except (ObjectMissing, ObjectTooLarge, SealBroken, AdapterUnavailable, AdapterErased) as error:
            found.problems.append(f"the pack {place.object_key} of a revision cannot be had: {error!r}")
            return
        if digest_of(pack) != stored.revision.digest:
            found.problems.append(f"the pack {place.object_key} has another digest than its revision")
        found.num_packs += 1

    async def check_gone(adapter_id: AdapterId) -> None:
        async with slots:
            left = await store.keys(f"packs/{adapter_id}/", num_max=1)
            has_key = await _has_key(keys, adapter_id)
        if left or has_key:
            found.problems.append(f"of {adapter_id}, which was erased, {'a pack' if left else 'the data key'} is left")
        found.num_erased += 1

    erasures = [event.head for event in known if isinstance(event.head, ErasedHead)]
    erased = {head.adapter_id for head in erasures}
    try:
        await asyncio.gather(
            *(
                check(event.head, event.revision)
                for event in known
                if event.revision is not None
                and isinstance(event.head, AdapterHead)
                and event.head.adapter_id not in erased
            ),
            # Those without a receipt are under way: an identity that is gone began them, and another one will end them.
            *(check_gone(head.adapter_id) for head in erasures if head.receipt),
        )
    finally:
        store.close()


async def _has_key(keys: DataKeys, adapter_id: AdapterId) -> bool:
    try:
        await keys.read(adapter_id)
    except AdapterErased:
        return False
    return True


def _read_logs(deployment: Deployment, found: Aftermath) -> None:
    """Report what identity itself found wrong."""
    for number in range(len(deployment.identities)):
        for line in deployment.identity_log(number).read_text(errors="replace").splitlines():
            if _BAD_EVENTS.search(line):
                found.problems.append(f"identity-{number + 1} says: {line.strip()}")
