"""What a client accepts of the ledger: everything that is true, and nothing that is one bit beside it."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from octavo_cli.answers import ClientError
from octavo_cli.trust import TrustFile
from octavo_cli.verification import Auditor, NotProven, Trusted, check_revision
from octavo_shared.checkpoint import Checkpoint, Signer
from octavo_shared.messages.ledger import LedgerEvent, RevisionProof, SignedRoot
from octavo_shared.references import parse_reference
from support.ledgers import SIGNER, page_of, proof_of, pushed, signed_root, small_ledger, tree_of

T = TypeVar("T", bound=msgspec.Struct)

EVENTS = small_ledger(50)
DIARY = parse_reference("home/diary@4")
SEQUENCE = 12
"""Of revision 4 of home/diary."""
OLD_SIZE = 20
SEEN = Checkpoint("octavo/registry", OLD_SIZE, tree_of(EVENTS).root(OLD_SIZE))
TRUSTED = Trusted(SIGNER.verifier, SEEN)
PROOF = proof_of(EVENTS, SEQUENCE, OLD_SIZE)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flipped_text(text: str, bit: int) -> str:
    return flipped(text.encode(), bit).decode(errors="replace")


def flipped_one(hashes: tuple[bytes, ...], bit: int) -> tuple[bytes, ...]:
    position, bit = divmod(bit, 256)
    return (*hashes[:position], flipped(hashes[position], bit), *hashes[position + 1 :])


PLACES: dict[str, tuple[int, Callable[[RevisionProof, int], RevisionProof]]] = {
    "event": (
        len(PROOF.event.data) * 8,
        lambda proof, bit: replaced(proof, event=replaced(proof.event, data=flipped(proof.event.data, bit))),
    ),
    "subject": (
        len(PROOF.event.subject) * 8,
        lambda proof, bit: replaced(proof, event=replaced(proof.event, subject=flipped_text(proof.event.subject, bit))),
    ),
    "sequence": (
        16,
        lambda proof, bit: replaced(proof, event=replaced(proof.event, sequence=proof.event.sequence ^ (1 << bit))),
    ),
    "inclusion": (
        len(PROOF.inclusion) * 256,
        lambda proof, bit: replaced(proof, inclusion=flipped_one(proof.inclusion, bit)),
    ),
    "checkpoint": (
        len(PROOF.signed.checkpoint.encode()) * 8,
        lambda proof, bit: resigned(proof, checkpoint=flipped_text(proof.signed.checkpoint, bit)),
    ),
    "consistency": (
        len(PROOF.signed.consistency) * 256,
        lambda proof, bit: resigned(proof, consistency=flipped_one(proof.signed.consistency, bit)),
    ),
    "event key": (256, lambda proof, bit: replaced(proof, event_key=flipped(proof.event_key, bit))),
    "number": (8, lambda proof, bit: replaced(proof, number=proof.number ^ (1 << bit))),
    "digest": (71 * 8, lambda proof, bit: replaced(proof, digest=flipped_text(proof.digest, bit))),
}


def replaced(struct: T, **fields: object) -> T:
    return msgspec.structs.replace(struct, **fields)


def resigned(proof: RevisionProof, **fields: object) -> RevisionProof:
    return replaced(proof, signed=replaced(proof.signed, **fields))


def test_an_honest_proof_holds_and_tells_what_it_proves() -> None:
    event, checkpoint = check_revision(PROOF, DIARY, TRUSTED)
    assert (event.revision.revision.number, event.revision.revision.digest) == (4, f"sha256:{SEQUENCE:064x}")
    assert (event.actor, checkpoint.size) == ("alice@home", 50)
    for text in ("home/diary", f"home/diary@sha256:{SEQUENCE:064x}", "home/diary:serving"):
        check_revision(PROOF, parse_reference(text), Trusted(SIGNER.verifier))


def test_of_a_thousand_flipped_bits_in_events_proofs_and_checkpoints_all_are_detected() -> None:
    chosen = random.Random(20_261_124)
    for _ in range(1_000):
        place = chosen.choice(list(PLACES))
        num_bits, flip = PLACES[place]
        bit = chosen.randrange(num_bits)
        print(f"bit {bit} of the {place}")
        with pytest.raises(NotProven):
            check_revision(flip(PROOF, bit), DIARY, TRUSTED)


@pytest.mark.parametrize(
    ("reference", "sequence"),
    [("home/diary@5", SEQUENCE), ("home/notes@4", SEQUENCE), (f"home/diary@sha256:{1:064x}", SEQUENCE)],
)
def test_the_proof_of_another_revision_is_none(reference: str, sequence: int) -> None:
    with pytest.raises(NotProven, match=f"event {sequence} is in the ledger, but"):
        check_revision(proof_of(EVENTS, sequence, OLD_SIZE), parse_reference(reference), TRUSTED)


def test_an_event_that_makes_no_revision_proves_none() -> None:
    tree = tree_of(EVENTS)
    proof = replaced(PROOF, event=EVENTS[0], inclusion=tree.inclusion_proof(0, 50))
    with pytest.raises(NotProven, match="makes no revision"):
        check_revision(proof, DIARY, TRUSTED)


def test_an_event_on_another_adapters_subject_proves_nothing() -> None:
    moved = [*EVENTS]
    moved[SEQUENCE - 1] = pushed(SEQUENCE, "home/diary", 4, place="home/notes")
    with pytest.raises(NotProven, match="not of home/diary"):
        check_revision(proof_of(moved, SEQUENCE), DIARY, Trusted(SIGNER.verifier))


def test_another_key_proves_nothing() -> None:
    other = Trusted(Signer(bytes(32)).verifier, None)
    with pytest.raises(NotProven, match="not signed by"):
        check_revision(PROOF, DIARY, other)


def test_a_rewritten_and_a_shortened_log_are_noticed_although_they_are_signed() -> None:
    rewritten = [pushed(1, "home/evil", 1), *EVENTS[1:]]
    with pytest.raises(NotProven, match="rewritten"):
        check_revision(proof_of(rewritten, SEQUENCE, OLD_SIZE), DIARY, TRUSTED)
    with pytest.raises(NotProven, match="shorter"):
        check_revision(proof_of(EVENTS[: OLD_SIZE - 1], SEQUENCE), DIARY, TRUSTED)


def audited(
    events: Sequence[LedgerEvent], signed: SignedRoot | None = None, remembered: Sequence[LedgerEvent] = EVENTS
) -> Checkpoint:
    """Audit ``events``, page by page, of a ledger whose events were ``remembered`` and signed when they were new."""
    auditor = Auditor(TRUSTED)
    while not auditor.is_done:
        page = page_of(events, signed or signed_root(EVENTS, OLD_SIZE), remembered, auditor.next_sequence, 7)
        auditor.take(page)
    return auditor.finish()


def test_an_audit_of_a_sound_ledger_ends_at_its_root() -> None:
    assert audited(EVENTS).size == 50


def test_an_audit_opens_what_comes_with_its_key_and_counts_the_rest() -> None:
    seen: list[LedgerEvent] = []
    auditor = Auditor(TRUSTED, lambda event, is_all_shown: seen.append(event))
    while not auditor.is_done:
        page = page_of(EVENTS, signed_root(EVENTS, OLD_SIZE), EVENTS, auditor.next_sequence, 7)
        keys = [b"" if event.sequence == 12 else key for event, key in zip(page.events, page.event_keys, strict=True)]
        # One is another event's.
        keys = [bytes(32) if event.sequence == 15 else key for event, key in zip(page.events, keys, strict=True)]
        auditor.take(replaced(page, event_keys=tuple(keys)))
    assert auditor.finish().size == 50
    assert auditor.num_sealed == 2
    assert [event.sequence for event in seen] == [number for number in range(1, 51) if number not in (12, 15)]
    names = {msgspec.msgpack.decode(event.data)["head"].get("name") for event in seen}
    assert names == {None, "home/diary", "home/notes"}


def test_an_audit_names_the_first_event_that_is_not_what_it_was() -> None:
    chosen = random.Random(20_261_125)
    for _ in range(200):
        index, later = sorted(chosen.sample(range(50), 2))
        bad = [*EVENTS]
        for place in (index, later):
            data = bad[place].data
            bad[place] = replaced(bad[place], data=flipped(data, chosen.randrange(len(data) * 8)))
        with pytest.raises(NotProven, match=rf"event {index + 1} is not what it was"):
            audited(bad)


@pytest.mark.parametrize("index", [0, 6, 7, 30, 49])
def test_an_audit_names_a_lost_event(index: int) -> None:
    with pytest.raises(NotProven, match=f"event {index + 1} is missing"):
        audited(EVENTS[:index] + EVENTS[index + 1 :])


@pytest.mark.parametrize("index", [0, 5, 6, 48])
def test_an_audit_notices_two_events_that_changed_places(index: int) -> None:
    moved = [*EVENTS]
    moved[index] = replaced(EVENTS[index + 1], sequence=index + 1)
    moved[index + 1] = replaced(EVENTS[index], sequence=index + 2)
    with pytest.raises(NotProven, match=f"event {index + 1} is not what it was"):
        audited(moved)


def test_an_audit_is_not_taken_in_by_leaf_hashes_that_were_changed_too() -> None:
    bad = [*EVENTS]
    bad[9] = replaced(bad[9], data=flipped(bad[9].data, 100))
    with pytest.raises(NotProven, match="do not lead to the signed root"):
        audited(bad, remembered=bad)


def test_an_audit_names_no_event_on_the_word_of_leaf_hashes_that_were_not_signed() -> None:
    bad, remembered = [*EVENTS], [*EVENTS]
    bad[9] = replaced(bad[9], data=flipped(bad[9].data, 100))
    remembered[3] = replaced(remembered[3], data=b"never seen")
    with pytest.raises(NotProven, match="do not lead to the signed root"):
        audited(bad, remembered=remembered)


def test_an_audit_ends_when_nothing_is_shown() -> None:
    with pytest.raises(NotProven, match="nothing was shown of event 1"):
        Auditor(TRUSTED).take(page_of([], signed_root(EVENTS, OLD_SIZE), [], 1, 7))


def test_the_first_key_is_pinned_and_the_newest_checkpoint_remembered(tmp_path: Path) -> None:
    told, note = str(SIGNER.verifier), signed_root(EVENTS).checkpoint
    file = TrustFile("http://one:1", tmp_path)
    assert (file.is_pinned, file.seen_size) == (False, 0)
    trusted = file.trusted(told, None)
    assert trusted == Trusted(SIGNER.verifier)
    file.remember(trusted.verifier, note)
    again = TrustFile("http://one:1/", tmp_path)
    assert (again.is_pinned, again.seen_size) == (True, 50)
    assert again.trusted(told, told).seen == SIGNER.verifier.open(note)
    assert not TrustFile("http://two:1", tmp_path).is_pinned
    other = str(Signer(bytes(32)).verifier)
    for told_now, given in [(other, None), (other, other), (told, other)]:
        with pytest.raises(NotProven, match="pinned in"):
            again.trusted(told_now, given)
    with pytest.raises(NotProven, match="not by"):
        TrustFile("http://two:1", tmp_path).trusted(told, other)


def test_a_damaged_file_of_what_was_seen_is_named(tmp_path: Path) -> None:
    file = TrustFile("http://one:1", tmp_path)
    file.remember(SIGNER.verifier, signed_root(EVENTS).checkpoint)
    file.path.write_text(file.path.read_text().replace("\n50\n", "\n40\n"))
    with pytest.raises(ClientError, match="restore or delete it"):
        TrustFile("http://one:1", tmp_path)
