"""What a client makes of statements in the ledger: whose keys were proven, and an audit of all of them. Pure."""

from collections.abc import Sequence

from octavo_cli.verification import NotProven
from octavo_shared.checkpoint import Checkpoint
from octavo_shared.ledger_statements import KnownKeys, StatementRefused, check_made, made_by
from octavo_shared.merkle import is_included
from octavo_shared.messages.ledger import LedgerEvent, SignerProof
from octavo_shared.messages.signers import REGISTRY_PRINCIPAL

_PROBLEMS_MAX = 20


def proven_keys(proofs: Sequence[SignerProof], before: int, checkpoint: Checkpoint) -> dict[str, KnownKeys]:
    """Return whose signing keys were registered before the event ``before``, if that is proven.

    Raises ``NotProven``.
    """
    found: dict[str, KnownKeys] = {}
    for proof in proofs:
        event = proof.event
        is_in = is_included(
            event.leaf_hash(), event.sequence - 1, checkpoint.size, proof.inclusion, checkpoint.root
        )  # fmt: skip
        if not is_in:
            raise NotProven(f"event {event.sequence}, of signing keys, does not lead to the signed root")
        known = KnownKeys.of(event)
        if known is None or known.principal != proof.principal:
            raise NotProven(f"event {event.sequence} is in the ledger, but not of {proof.principal}'s signing keys")
        if event.sequence >= before:
            raise NotProven(f"event {event.sequence}, of signing keys, came only after event {before}")
        found[known.principal] = known
    return found


class StatementAuditor:
    """Looks at all events in their order, and at each statement with the keys as they were when it came."""

    def __init__(self) -> None:
        self._keys: dict[str, KnownKeys] = {}
        self.num_by_pusher = 0
        self.num_by_registry = 0
        self.num_without = 0
        self.num_unknown = 0
        """Statements by somebody whose keys are not for this reader."""
        self.num_bad = 0
        self.problems: list[str] = []
        """Of the first bad ones."""

    def take(self, event: LedgerEvent, is_all_shown: bool) -> None:
        """Take the next event. ``is_all_shown``: none before it was withheld."""
        if (known := KnownKeys.of(event)) is not None:
            self._keys[known.principal] = known
            return
        made = made_by(event)
        if made is None:
            return
        if not is_all_shown and not {made.actor, REGISTRY_PRINCIPAL} <= self._keys.keys():
            self.num_unknown += 1
            return
        try:
            signed = check_made(made, self._keys)
        except StatementRefused as error:
            self.num_bad += 1
            if len(self.problems) < _PROBLEMS_MAX:
                self.problems.append(f"event {event.sequence}: {error}")
            return
        if not signed:
            self.num_without += 1
        elif any(one.principal == made.actor for one in signed):
            self.num_by_pusher += 1
        else:
            self.num_by_registry += 1
