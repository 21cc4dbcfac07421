"""600 of the 1,000 random bit flips that the registry has to notice: those in ledger events and checkpoints.

They are 300 in events (any of their bytes, those of the head that they carry or of what is sealed, their subjects), 100
in the sequences at which they are stored, which move them or lose them, and 200 in signed checkpoints, the newest and
older ones. Each must be noticed by all who look: ``octavo verify`` of a revision and of everything, where it is shown
what was changed, and the background audit, with what it remembers and without. Flips in packs are in ``test_seal.py``
and ``test_worker_keys.py``, those in statements in ``test_dsse.py``, ``test_ledger_statements.py``,
``test_statement_checks.py`` and ``test_identity_provenance.py``, and those in proofs in ``test_verification.py``.
"""

import random
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from octavo_cli.verification import Auditor, NotProven, Trusted, check_revision, check_root
from octavo_identity.records import RegistryEvent
from octavo_shared.merkle import Tree
from octavo_shared.messages.ledger import LedgerEvent, SignedRoot
from octavo_shared.references import parse_reference
from octavo_shared.sealed_event import StoredEvent, is_sealed
from support.ledgers import SIGNER, audit, notes_of, page_of, proof_of, signed_root, small_ledger, tree_of

NUM_EVENTS = 60
EVENTS = small_ledger(NUM_EVENTS)
SIZES = [1, 2, 3, 5, 8, 13, 21, 34, 47, NUM_EVENTS]
NOTES = notes_of(EVENTS, SIZES)
TREE = tree_of(EVENTS)
SIGNED = signed_root(EVENTS)
TRUSTED = Trusted(SIGNER.verifier)
SEED = 20_261_128


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def head_bits(event: LedgerEvent) -> range:
    """Return where the head, or what is sealed, lies in an event's bytes."""
    if is_sealed(event):
        head = msgspec.msgpack.decode(event.data, type=StoredEvent).sealed
    else:
        head = msgspec.msgpack.encode(msgspec.msgpack.decode(event.data, type=RegistryEvent).head)
    first = event.data.index(head)
    return range(first * 8, (first + len(head)) * 8)


def changed_events() -> Iterator[tuple[str, int, LedgerEvent]]:
    """Yield 300 events of which one bit is another, with what was changed and their index."""
    chosen = random.Random(SEED)
    for number in range(300):
        index = chosen.randrange(NUM_EVENTS)
        event = EVENTS[index]
        if number % 3 == 0:
            bit = chosen.randrange(len(event.subject) * 8)
            subject = flipped(event.subject.encode(), bit).decode(errors="replace")
            yield f"bit {bit} of the subject of", index, msgspec.structs.replace(event, subject=subject)
        else:
            bit = chosen.choice(head_bits(event)) if number % 3 == 1 else chosen.randrange(len(event.data) * 8)
            yield f"bit {bit} of", index, msgspec.structs.replace(event, data=flipped(event.data, bit))


def moved_events() -> Iterator[tuple[str, list[int], list[LedgerEvent | None]]]:
    """Yield 100 ledgers in which one bit of a sequence is another, and the sequences that this is about.

    The event takes the place of the one there, or changes places with it; where there is none, it is just gone.
    """
    chosen = random.Random(SEED + 1)
    for number in range(100):
        index, bit = chosen.randrange(NUM_EVENTS), chosen.randrange(6)
        other = ((index + 1) ^ (1 << bit)) - 1
        moved: list[LedgerEvent | None] = [*EVENTS]
        moved[index] = None
        places = [index + 1]
        if 0 <= other < NUM_EVENTS:
            places.append(other + 1)
            moved[other] = msgspec.structs.replace(EVENTS[index], sequence=other + 1)
            if number % 2:
                moved[index] = msgspec.structs.replace(EVENTS[other], sequence=index + 1)
        yield f"bit {bit} of the sequence {index + 1}", sorted(places), moved


def check_everything(events: Sequence[LedgerEvent | None], remembered: Sequence[LedgerEvent]) -> None:
    """Do as ``octavo verify --all`` does; ``remembered`` is what identity says of the events when they were new."""
    auditor = Auditor(TRUSTED)
    left = [event for event in events if event is not None]
    while not auditor.is_done:
        auditor.take(page_of(left, SIGNED, remembered, auditor.next_sequence, 25))
    auditor.finish()


def told_of(events: Sequence[LedgerEvent | None], remembered: Tree | None) -> list[tuple[int, int]]:
    return [(one.first, one.last) for one in audit(events, NOTES, remembered).findings]


def test_of_300_flipped_bits_in_events_all_are_detected() -> None:
    num_proofs = 0
    for what, index, bad in changed_events():
        sequence, changed = index + 1, [*EVENTS[:index], bad, *EVENTS[index + 1 :]]
        print(what, f"event {sequence}")
        with pytest.raises(NotProven, match=rf"event {sequence} is not what it was"):
            check_everything(changed, EVENTS)
        with pytest.raises(NotProven, match="do not lead to the signed root"):
            check_everything(changed, changed)
        if sequence % 3 == 0:
            # It made a revision of home/diary.
            num_proofs += 1
            proof = msgspec.structs.replace(proof_of(EVENTS, sequence), event=bad)
            with pytest.raises(NotProven, match=f"event {sequence} does not lead to the signed root"):
                check_revision(proof, parse_reference(f"home/diary@{sequence // 3}"), TRUSTED)
        assert told_of(changed, TREE) == [(sequence, sequence)]
        for remembered in (None, tree_of(changed)):
            ((first, last),) = told_of(changed, remembered)
            assert first <= sequence <= last
            assert last in SIZES
    assert num_proofs > 50


def test_of_100_flipped_bits_in_the_order_of_events_all_are_detected() -> None:
    num_swapped = 0
    for what, places, changed in moved_events():
        print(what)
        with pytest.raises(NotProven, match=rf"event {places[0]} is (missing|not what it was)"):
            check_everything(changed, EVENTS)
        assert told_of(changed, TREE) == [(place, place) for place in places]
        assert told_of(changed, None) != []
        num_swapped += None not in changed
    assert num_swapped > 20


def test_of_200_flipped_bits_in_checkpoints_all_are_detected() -> None:
    chosen = random.Random(SEED + 2)
    seen = set()
    for _ in range(200):
        index = chosen.randrange(len(NOTES))
        bit = chosen.randrange(len(NOTES[index].encode()) * 8)
        bad = flipped(NOTES[index].encode(), bit).decode(errors="replace")
        print(f"bit {bit} of checkpoint {index + 1}")
        seen.add(index)
        with pytest.raises(NotProven):
            check_root(SignedRoot(bad, str(SIGNER.verifier)), TRUSTED)
        passed = audit(EVENTS, [*NOTES[:index], bad, *NOTES[index + 1 :]], TREE)
        assert [(one.kind, one.first) for one in passed.findings] == [("checkpoint_changed", index + 1)]
    assert len(seen) == len(NOTES)
