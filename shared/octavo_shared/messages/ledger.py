"""What identity shows of the ledger: events as they are stored, and what proves them.

The ledger is one Merkle tree over the registry stream: the event at sequence ``n`` is leaf ``n - 1``.
"""

import msgspec

from octavo_shared.merkle import hash_leaf
from octavo_shared.messages.requests import Request
from octavo_shared.references import Digest

AUDIT_EVENTS_MAX = 128
_SUBJECT_BYTES_MAX = 0xFFFF


class LedgerEvent(msgspec.Struct, frozen=True):
    """One event of the registry stream, byte for byte."""

    sequence: int
    subject: str
    data: bytes

    def leaf_hash(self) -> bytes:
        """Return the hash of its leaf: the length of the subject in two bytes, big-endian, the subject, the data.

        The subject is in it so that an event that was moved to another adapter is another leaf, and its length so that
        nothing can be shifted between the two.
        """
        subject = self.subject.encode()
        assert len(subject) <= _SUBJECT_BYTES_MAX, "NATS has shorter subjects"
        return hash_leaf(len(subject).to_bytes(2, "big") + subject + self.data)


class SignedRoot(msgspec.Struct, frozen=True):
    """The newest checkpoint, the public key that it should be checked against, and why it follows from an older one.

    ``consistency`` leads from the size that was asked for to the checkpoint's; it is empty where there is nothing to
    prove or no proof.
    """

    checkpoint: str
    public_key: str
    consistency: tuple[bytes, ...] = ()


class SignerProof(msgspec.Struct, frozen=True):
    """The event that left the signing keys of ``principal`` as they were, and the path from it to the same root."""

    principal: str
    event: LedgerEvent
    inclusion: tuple[bytes, ...]


class Prove(Request, frozen=True, kw_only=True):
    """Ask for the event that made the revision ``reference``, and for what proves that it is in the ledger.

    ``old_size`` is the size of the newest checkpoint that the caller has seen (0: none).
    """

    reference: str
    old_size: int = 0


class RevisionProof(msgspec.Struct, frozen=True):
    """The event that made a revision, the path from it to the checkpoint's root, and what identity says that it is.

    ``signers`` prove whose the keys were that signed its statement, when it came into the ledger.
    ``event_key`` opens this event and no other (see ``sealed_event``); it is empty where the event is in the clear.
    """

    name: str
    number: int
    digest: Digest
    event: LedgerEvent
    inclusion: tuple[bytes, ...]
    signed: SignedRoot
    signers: tuple[SignerProof, ...] = ()
    event_key: bytes = b""


class Audit(Request, frozen=True, kw_only=True):
    """Ask for ``num_max`` or fewer events of all tenants, from sequence ``first`` on; ``old_size`` as in ``Prove``."""

    first: int
    num_max: int = AUDIT_EVENTS_MAX
    old_size: int = 0


class AuditPage(msgspec.Struct, frozen=True):
    """Events from one sequence on, and the leaf hashes that identity took of them when they were new.

    An event that the stream has lost is left out; its leaf hash is not. So is one that is not for the reader, whose
    sequence is in ``withheld``. ``event_keys`` are those of ``events``, as in ``RevisionProof``; that of an erased
    adapter is empty, too.
    """

    events: tuple[LedgerEvent, ...]
    leaf_hashes: tuple[bytes, ...]
    signed: SignedRoot
    withheld: tuple[int, ...] = ()
    event_keys: tuple[bytes, ...] = ()
