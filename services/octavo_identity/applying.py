"""Takes over what is in the stream into the view's file."""

import contextlib
from collections.abc import Sequence

from octavo_identity.catalogue import Catalogue, Position
from octavo_identity.copying import COPIED_MAX
from octavo_identity.heads import HeadStore, event_of
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.ledger import LedgerEvent

APPLIED_MAX = 4 * COPIED_MAX
"""In one transaction: of pages that many of them change, each is written once."""


async def copy_events(heads: HeadStore, first: int, until: int) -> list[LedgerEvent]:
    """Return the events from sequence ``first`` to ``until``, ``APPLIED_MAX`` at most."""
    assert until - first < APPLIED_MAX
    stored: list[LedgerEvent] = []
    for begin in range(first, until + 1, COPIED_MAX):
        stored += await heads.copy_range(begin, min(begin + COPIED_MAX - 1, until))
    return stored


def apply_events(catalogue: Catalogue, stored: Sequence[LedgerEvent], position: Position) -> list[bytes]:
    """Take over events up to ``position``, all or none of them, and return their leaf hashes; blocks."""
    leaves = [(one.sequence, one.leaf_hash()) for one in stored]
    events = []
    for one in stored:
        # A damaged event tells nothing. It has a leaf all the same, from which the ledger sees the damage.
        with contextlib.suppress(DependencyUnavailable):
            events.append((event_of(one), one.sequence))
    catalogue.apply(events, position, leaves)
    return [leaf for _, leaf in leaves]
