"""What state a revision is in. Pure, and told from the head alone, however old the revision is."""

import msgspec

from octavo_identity.ranges import added, contains
from octavo_identity.records import AdapterHead
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.adapters import RevisionState

RETIRED_RANGES_MAX = 256


def is_retired(head: AdapterHead, number: int) -> bool:
    """Tell whether revision ``number`` may never be served again."""
    return contains(head.retired, number)


def state_of(head: AdapterHead, number: int) -> RevisionState:
    """Return the state of revision ``number``."""
    if is_retired(head, number):
        return RevisionState.RETIRED
    if number in head.aliases.values():
        return RevisionState.SERVING
    return RevisionState.EVALUATED if contains(head.evaluated, number) else RevisionState.DRAFT


def with_retired(head: AdapterHead, number: int) -> AdapterHead:
    """Return ``head`` with revision ``number`` retired; neighbours are one range, of which a head holds so many."""
    ranges = added(head.retired, number)
    if len(ranges) > RETIRED_RANGES_MAX:
        problem = f"would be range {RETIRED_RANGES_MAX + 1} of retired ones; retire one beside a retired one first"
        raise InvalidRequest("revision", problem)
    return msgspec.structs.replace(head, retired=ranges)
