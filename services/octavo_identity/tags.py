"""Tags of an adapter, by which it is found. Pure: a head in, a head out."""

from collections.abc import Iterable

import msgspec

from octavo_identity.records import AdapterHead
from octavo_shared.errors import InvalidRequest
from octavo_shared.references import check_name

TAGS_MAX = 16


def check_tags(tags: Iterable[str]) -> None:
    """Raise ``InvalidRequest`` for what can be no tag."""
    for tag in tags:
        check_name(tag, "tag")


def with_tags(head: AdapterHead, add: Iterable[str], remove: Iterable[str] = ()) -> AdapterHead:
    """Return ``head`` with tags added and removed; raises ``InvalidRequest`` when they would be too many."""
    tags = tuple(sorted({*head.tags, *add} - {*remove}))
    if tags == head.tags:
        return head
    if len(tags) > TAGS_MAX:
        raise InvalidRequest("tag", f"would be more than the {TAGS_MAX} that an adapter may have")
    return msgspec.structs.replace(head, tags=tags)
