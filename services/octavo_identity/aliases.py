"""Which revision an alias names. Pure: a head in, a head out.

Every head that is made here stays bounded: it holds the newest revisions, those that an alias names, and a short trail
of what each alias named before.
"""

import hashlib

import msgspec

from octavo_identity import ranges
from octavo_identity.evaluations import bounded
from octavo_identity.gating import RELEASED_BY
from octavo_identity.records import REVISIONS_IN_HEAD_MAX, AdapterHead, StoredRevision
from octavo_shared.errors import InvalidRequest
from octavo_shared.references import CANARY, SERVING

ALIASES_MAX = 32
TRAIL_MAX = 8


def alias_for(head: AdapterHead, principal: str) -> str:
    """Return the alias that a reference without a revision means for ``principal``.

    The canary sticks: a principal stays with it while its share does not shrink, whoever else comes or goes, and each
    adapter draws other principals.
    """
    if CANARY in head.aliases:
        drawn = hashlib.sha256(f"{head.adapter_id}\0{principal}".encode()).digest()
        if int.from_bytes(drawn[:8]) % 100 < head.canary_percent:
            return CANARY
    return SERVING


def with_revision(head: AdapterHead, stored: StoredRevision, alias: str | None = SERVING) -> AdapterHead:
    """Return ``head`` with one more revision, which ``alias`` names, if there is one."""
    revisions = (*head.revisions, stored)
    added = msgspec.structs.replace(head, num_revisions=stored.revision.number, revisions=revisions)
    return _bounded(added) if alias is None else moved(added, alias, stored)


def moved(head: AdapterHead, alias: str, target: StoredRevision) -> AdapterHead:
    """Return ``head`` with ``alias`` naming ``target``; what it named until now is what a rollback goes back to."""
    before, trail = head.aliases.get(alias), head.trails.get(alias, ())
    if before is not None and before != target.revision.number:
        trail = (*trail, before)[-TRAIL_MAX:]
    return _naming(head, alias, target, trail)


def moved_back(head: AdapterHead, alias: str, target: StoredRevision) -> AdapterHead:
    """Return ``head`` with ``alias`` naming ``target`` and a trail that ends before it: the next rollback goes on."""
    number, trail = target.revision.number, head.trails.get(alias, ())
    latest = len(trail) - 1 - trail[::-1].index(number) if number in trail else 0
    return _naming(head, alias, target, trail[:latest])


def without(head: AdapterHead, alias: str) -> AdapterHead:
    """Return ``head`` without ``alias``, and without a canary's share when it was the canary."""
    return msgspec.structs.replace(
        head,
        aliases={name: number for name, number in head.aliases.items() if name != alias},
        trails={name: trail for name, trail in head.trails.items() if name != alias},
        canary_percent=0 if alias == CANARY else head.canary_percent,
    )


def _naming(head: AdapterHead, alias: str, target: StoredRevision, trail: tuple[int, ...]) -> AdapterHead:
    aliases = head.aliases | {alias: target.revision.number}
    if len(aliases) > ALIASES_MAX:
        raise InvalidRequest("alias", f"would be more than the {ALIASES_MAX} that an adapter may have")
    trails = {name: numbers for name, numbers in head.trails.items() if name != alias} | (
        {alias: trail} if trail else {}
    )
    revisions = head.revisions if target in head.revisions else (target, *head.revisions)
    released = bounded(ranges.added(head.released, aliases[alias])) if alias in RELEASED_BY else head.released
    return _bounded(
        msgspec.structs.replace(head, aliases=aliases, trails=trails, revisions=revisions, released=released)
    )


def _bounded(head: AdapterHead) -> AdapterHead:
    if len(head.revisions) == 1:
        return head
    oldest_kept = head.num_revisions - REVISIONS_IN_HEAD_MAX
    named = set(head.aliases.values())
    kept = [old for old in head.revisions if old.revision.number > oldest_kept or old.revision.number in named]
    kept.sort(key=lambda stored: stored.revision.number)
    return msgspec.structs.replace(head, revisions=tuple(kept))
