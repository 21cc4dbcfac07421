"""Takes over what is in the stream into the view's file."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo_identity.catalogue import Catalogue, Position
from octavo_identity.copying import COPIED_MAX
from octavo_identity.event_form import Forgotten, Opener
from octavo_identity.heads import HeadStore
from octavo_identity.records import ErasedHead
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.references import AdapterId

APPLIED_MAX = 4 * COPIED_MAX
"""In one transaction: of pages that many of them change, each is written once."""


@dataclass(frozen=True)
class Copied:
    """Events as they are stored, and what opens them."""

    stored: Sequence[LedgerEvent]
    opener: Opener


@dataclass(frozen=True)
class Applied:
    """The leaf hashes of events, the adapters of whose erasure they told, and the field keys that they opened with."""

    leaves: Sequence[bytes]
    erased: Sequence[AdapterId]
    keys: Mapping[AdapterId, bytes]


async def copy_events(heads: HeadStore, first: int, until: int) -> Copied:
    """Return the events from sequence ``first`` to ``until``, ``APPLIED_MAX`` at most."""
    assert until - first < APPLIED_MAX
    stored: list[LedgerEvent] = []
    for begin in range(first, until + 1, COPIED_MAX):
        stored += await heads.copy_range(begin, min(begin + COPIED_MAX - 1, until))
    return Copied(stored, await heads.opener(stored))


def apply_events(catalogue: Catalogue, copied: Copied, position: Position) -> Applied:
    """Take over events up to ``position``, all or none of them; blocks.

    An event that no key opens any more is of an adapter that was erased: that it was is all it tells. A damaged one
    tells nothing. Both have a leaf all the same, from which the ledger sees the damage.
    """
    leaves = [(one.sequence, one.leaf_hash()) for one in copied.stored]
    events, forgotten = [], []
    for one in copied.stored:
        with contextlib.suppress(DependencyUnavailable):
            if (event := copied.opener.open(one)) is not None:
                events.append((event, one.sequence))
            else:
                forgotten.append(Forgotten.of(one))
    catalogue.apply(events, position, leaves, forgotten)
    erased = {event.head.adapter_id for event, _ in events if isinstance(event.head, ErasedHead)}
    keys = {adapter_id: key for adapter_id, key in copied.opener.keys.items() if key is not None}
    return Applied([leaf for _, leaf in leaves], [*erased], keys)
