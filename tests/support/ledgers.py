"""A small ledger made by hand: events as the registry writes them, their tree, its key, and honest answers."""

from collections.abc import Sequence

import msgspec

from octavo_identity.audit_round import AuditRound, Passed
from octavo_identity.event_form import Opener, decode_event, encode_event
from octavo_identity.records import AdapterHead, KeyHead, RegistryEvent, StoredRevision, object_key
from octavo_shared import subjects
from octavo_shared.checkpoint import Signer
from octavo_shared.merkle import Tree
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.keys import Role
from octavo_shared.messages.ledger import AuditPage, LedgerEvent, RevisionProof, SignedRoot
from octavo_shared.references import AdapterId, Digest, TenantId
from octavo_shared.sealed_event import event_key
from support.adapters import TINY_FINGERPRINT

SIGNER = Signer(bytes([7]) * 32)
FIELDS = bytes([8]) * 32
"""The field key of all adapters here."""


def adapter_id_of(name: str) -> AdapterId:
    return AdapterId(name.encode().hex().rjust(32, "0")[-32:])


def pushed(sequence: int, name: str, number: int, place: str = "") -> LedgerEvent:
    """The event of a push by alice@home, by default in its own ``place``; its digest holds its sequence."""
    adapter_id = adapter_id_of(name)
    revision = Revision(number, Digest(f"sha256:{sequence:064x}"), TINY_FINGERPRINT, 1, 4, 2, "F32", "alice@home", 1)
    stored = StoredRevision(revision, object_key(adapter_id, number, "aa", "bb"))
    head = AdapterHead(adapter_id, TenantId("t"), name, "alice@home", number, (stored,), {"serving": number})
    event = RegistryEvent("revision_added", "alice@home", 1_700_000_000_000, 0, head, "", stored)
    subject = subjects.adapter_head("s0", "t", adapter_id_of(place or name))
    return LedgerEvent(sequence, subject, encode_event(subject, event, {adapter_id: FIELDS}))


def key_issued(sequence: int) -> LedgerEvent:
    key = KeyHead(f"{sequence:016x}", bytes(32), "alice@home", "home", Role.OWNER)
    event = RegistryEvent("key_issued", "identity", 1, 0, key)
    return LedgerEvent(sequence, subjects.key_head(key.key_id), msgspec.msgpack.encode(event))


def small_ledger(num_events: int) -> list[LedgerEvent]:
    """Events of three kinds of subjects, in turn; that of ``home/diary``'s revision ``n`` is at sequence ``3n``."""
    events = []
    for sequence in range(1, num_events + 1):
        number, kind = divmod(sequence, 3)
        if kind == 1:
            events.append(key_issued(sequence))
        elif kind == 2:
            events.append(pushed(sequence, "home/notes", number + 1))
        else:
            events.append(pushed(sequence, "home/diary", number))
    return events


def tree_of(events: Sequence[LedgerEvent]) -> Tree:
    tree = Tree()
    for event in events:
        tree.append(event.leaf_hash())
    return tree


def signed_root(events: Sequence[LedgerEvent], old_size: int = 0) -> SignedRoot:
    tree = tree_of(events)
    note = SIGNER.sign(tree.size, tree.root(tree.size))
    return SignedRoot(note, str(SIGNER.verifier), tree.consistency_proof(old_size, tree.size))


def notes_of(events: Sequence[LedgerEvent], sizes: Sequence[int]) -> list[str]:
    """The checkpoints that were signed when the ledger had each of ``sizes`` events."""
    tree = tree_of(events)
    return [SIGNER.sign(size, tree.root(size)) for size in sizes]


def audit(
    events: Sequence[LedgerEvent | None],
    notes: Sequence[str | None],
    remembered: Tree | None,
    passed: Passed | None = None,
    until: int | None = None,
) -> Passed:
    """Let the background audit go over what is left of events and checkpoints, or over the first ``until`` events."""
    one = AuditRound(SIGNER.verifier, passed)
    for sequence, note in enumerate(notes[one.next_checkpoint - 1 :], one.next_checkpoint):
        one.take_checkpoint(sequence, note)
    one.take_events(events[one.position : until], remembered)
    return one.passed


def proof_of(events: Sequence[LedgerEvent], sequence: int, old_size: int = 0) -> RevisionProof:
    """What an honest identity says of the revision that the event at ``sequence`` made."""
    event = events[sequence - 1]
    made = decode_event(event, FIELDS)
    assert made.revision is not None
    assert isinstance(made.head, AdapterHead)
    revision = made.revision.revision
    inclusion = tree_of(events).inclusion_proof(sequence - 1, len(events))
    return RevisionProof(
        made.head.name, revision.number, revision.digest, event, inclusion, signed_root(events, old_size),
        event_key=event_key(event, FIELDS),
    )  # fmt: skip


def page_of(
    events: Sequence[LedgerEvent], signed: SignedRoot, remembered: Sequence[LedgerEvent], first: int, num_max: int
) -> AuditPage:
    """A page of ``events``, beside the leaf hashes of what they were when they were new."""
    last = min(first + num_max - 1, len(remembered))
    leaf_hashes = tuple(event.leaf_hash() for event in remembered[first - 1 : last])
    shown = tuple(event for event in events if first <= event.sequence <= last)
    opener = Opener({adapter_id_of(name): FIELDS for name in ("home/diary", "home/notes")})
    return AuditPage(shown, leaf_hashes, signed, event_keys=tuple(opener.key_of(event) for event in shown))
