"""What a client makes of the ledger's proofs. Pure: it trusts a public key and what it has seen, and no server."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from octavo_cli.answers import ClientError
from octavo_shared import decoding
from octavo_shared.checkpoint import Checkpoint, CheckpointRefused, Verifier
from octavo_shared.ledger_statements import RevisionEvent
from octavo_shared.merkle import Tree, is_consistent, is_included
from octavo_shared.messages.ledger import AuditPage, LedgerEvent, RevisionProof, SignedRoot
from octavo_shared.references import Reference
from octavo_shared.sealed_event import EventNotOpened, open_event


class NotProven(ClientError):
    """Something in the ledger, or in what is said of it, does not hold. The message says what."""

    def __init__(self, problem: str) -> None:
        super().__init__("not_proven", problem, 0)


@dataclass(frozen=True)
class Trusted:
    """What verification starts from: the ledger's public key, and the newest checkpoint seen under it, if any."""

    verifier: Verifier
    seen: Checkpoint | None = None


def check_root(signed: SignedRoot, trusted: Trusted) -> Checkpoint:
    """Return the checkpoint if the trusted key signed it and it goes on from the one that was seen."""
    try:
        checkpoint = trusted.verifier.open(signed.checkpoint)
    except CheckpointRefused as error:
        raise NotProven(str(error)) from None
    seen = trusted.seen
    if seen is None:
        return checkpoint
    if checkpoint.size < seen.size:
        raise NotProven(f"the ledger has become shorter: {checkpoint.size} events, and {seen.size} were signed before")
    if not is_consistent(seen.size, seen.root, checkpoint.size, checkpoint.root, signed.consistency):
        raise NotProven(f"the ledger was rewritten: its first {seen.size} events are not those that were signed before")
    return checkpoint


def check_revision(proof: RevisionProof, reference: Reference, trusted: Trusted) -> tuple[RevisionEvent, Checkpoint]:
    """Return the proven event of the revision that ``reference`` names, and the checkpoint; raises ``NotProven``."""
    checkpoint = check_root(proof.signed, trusted)
    stored = proof.event
    if not is_included(
        stored.leaf_hash(), stored.sequence - 1, checkpoint.size, proof.inclusion, checkpoint.root
    ):  # fmt: skip
        raise NotProven(f"event {stored.sequence} does not lead to the signed root")
    try:
        event = decoding.from_msgpack(open_event(stored, proof.event_key), RevisionEvent)
    except EventNotOpened as error:
        raise NotProven(f"event {stored.sequence} is in the ledger, but is not what is shown: {error}") from None
    except msgspec.MsgspecError:
        raise NotProven(f"event {stored.sequence} is in the ledger, but makes no revision") from None
    revision = event.revision.revision
    if event.head.name != reference.name or not stored.subject.endswith(f".{event.head.adapter_id}"):
        raise NotProven(f"event {stored.sequence} is in the ledger, but not of {reference.name}")
    wanted = (reference.number or proof.number, reference.digest or proof.digest)
    if (revision.number, revision.digest) != wanted or wanted != (proof.number, proof.digest):
        raise NotProven(
            f"event {stored.sequence} is in the ledger, but made revision {revision.number} with {revision.digest}, "
            f"and not {proof.number} with {proof.digest}"
        )
    return event, checkpoint


Each = Callable[[LedgerEvent, bool], None]
"""Is given each event that is what it was, opened, in their order, and whether all before it were shown. That they lead
to the signed root is known only at the end."""


class Auditor:
    """Recomputes the root of a whole ledger, page by page, and says where it first differs from what was signed."""

    def __init__(self, trusted: Trusted, each: Each = lambda event, is_all_shown: None) -> None:
        self._trusted = trusted
        self._each = each
        self._tree = Tree()
        self._remembered = Tree()
        self._first_bad: tuple[int, str] | None = None
        self.checkpoint: Checkpoint | None = None
        self.num_withheld = 0
        self.num_sealed = 0
        """Events that came without a key that opens them."""

    @property
    def next_sequence(self) -> int:
        return self._remembered.size + 1

    @property
    def is_done(self) -> bool:
        return self.checkpoint is not None and self._remembered.size >= self.checkpoint.size

    def take(self, page: AuditPage) -> None:
        """Take the page that begins at ``next_sequence``; raises ``NotProven`` when nothing can follow from it.

        The checkpoint of the first page is what is audited; later ones may cover events that came meanwhile.
        """
        if self.checkpoint is None:
            self.checkpoint = check_root(page.signed, self._trusted)
        if not page.leaf_hashes:
            raise NotProven(f"nothing was shown of event {self.next_sequence}")
        by_sequence = {event.sequence: event for event in page.events}
        keys = {event.sequence: key for event, key in zip(page.events, page.event_keys, strict=False)}
        withheld = set(page.withheld)
        for leaf_hash in page.leaf_hashes:
            sequence = self.next_sequence
            if sequence > self.checkpoint.size:
                break
            self._remembered.append(leaf_hash)
            event = by_sequence.get(sequence)
            if event is None and sequence in withheld:
                # What it says is not for this reader; that it is where it was, its leaf hash proves.
                self.num_withheld += 1
                self._tree.append(leaf_hash)
            elif event is None:
                self._note(sequence, "is missing")
            elif (found := event.leaf_hash()) != leaf_hash:
                self._note(sequence, "is not what it was")
                self._tree.append(found)
            else:
                self._tree.append(found)
                self._open(event, keys.get(sequence, b""))

    def _open(self, event: LedgerEvent, key: bytes) -> None:
        try:
            opened = msgspec.structs.replace(event, data=open_event(event, key))
        except EventNotOpened:
            self.num_sealed += 1
            return
        self._each(opened, self.num_withheld == 0)

    def finish(self) -> Checkpoint:
        """Return the checkpoint if all events lead to its root; raises ``NotProven``, which names the first bad one.

        Which one that is only identity's own leaf hashes tell, and only if they lead to the signed root themselves.
        """
        assert self.checkpoint is not None
        assert self.is_done
        checkpoint = self.checkpoint
        if self._tree.size == checkpoint.size and self._tree.root(checkpoint.size) == checkpoint.root:
            return checkpoint
        if self._first_bad is not None and self._remembered.root(checkpoint.size) == checkpoint.root:
            sequence, problem = self._first_bad
            raise NotProven(f"event {sequence} {problem}; all events before it are as they were signed")
        raise NotProven(f"the {checkpoint.size} events of the ledger do not lead to the signed root")

    def _note(self, sequence: int, problem: str) -> None:
        if self._first_bad is None:
            self._first_bad = sequence, problem
