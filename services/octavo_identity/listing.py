"""Pages of adapters for whoever may see them: found in the view of the registry, confirmed by the leader."""

import asyncio
from collections.abc import Sequence

from octavo_identity import access
from octavo_identity.desk import Desk
from octavo_identity.records import AdapterHead, KeyHead
from octavo_identity.rights import Right, covers
from octavo_identity.search import Search
from octavo_shared.errors import InvalidRequest
from octavo_shared.references import parse_reference

PAGE_MAX = 1_000
_ROUNDS_MAX = 8
_CONFIRMATIONS_MAX = 16


def check_limit(num_max: int) -> None:
    if not 1 <= num_max <= PAGE_MAX:
        raise InvalidRequest("limit", f"must be 1 to {PAGE_MAX}")


class Listing:
    """Finds heads by name. Sees the writes that went through this replica."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(
        self, key: KeyHead, search: Search, after: str, num_max: int, *, is_overview: bool
    ) -> tuple[list[AdapterHead], str]:
        """Return heads that match, by name after ``after``, and what the next page comes after (empty: none).

        They are those that ``key`` has a role on, or in an overview anybody's. Raises ``DependencyUnavailable`` while
        the view of the registry is not whole.
        """
        await self._desk.projection.read_own_writes()
        reader = None if is_overview else key
        found: list[AdapterHead] = []
        following: str | None = after
        # One round, and another one where rights were taken back that the view still holds, or where little matches.
        for _ in range(_ROUNDS_MAX):
            assert following is not None
            page = await self._desk.projection.find(search, reader, following, num_max - len(found))
            if reader is None:
                found += [head for head in page.heads if covers(key.adapters, head.name)]
            else:
                found += await self._confirmed(reader, search, page.heads)
            following = page.next_after
            if following is None or len(found) == num_max:
                break
        return found, following or ""

    async def _confirmed(self, key: KeyHead, search: Search, seen: Sequence[AdapterHead]) -> Sequence[AdapterHead]:
        """Return the heads that ``key`` may see; those of others as the leader has them now, if it still may."""
        slots = asyncio.Semaphore(_CONFIRMATIONS_MAX)

        async def confirm(head: AdapterHead) -> AdapterHead | None:
            if head.owner == key.principal:
                return head if access.may(key, head, Right.SEE) else None
            async with slots:
                now = await self._desk.registry.head(parse_reference(head.name))
            return now if now is not None and access.may(key, now, Right.SEE) and search.matches(now) else None

        confirmed = await asyncio.gather(*(confirm(head) for head in seen))
        return [head for head in confirmed if head is not None]
