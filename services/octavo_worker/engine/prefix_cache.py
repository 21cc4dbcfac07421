"""Pages of keys and values that outlive their sequence: found again by whoever begins with the same tokens.

A page is known by a chain of digests: tenant, adapter and its digest, layer group, then all tokens up to the page's
end. So nobody finds another tenant's pages, and a new revision never finds those of an old one. Only whole pages are
kept, and whoever finds them never writes to them.
"""

import hashlib
import itertools
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from octavo_shared.references import AdapterId, PackKey, TenantId
from octavo_worker.adapters.pages import Arena, PageUse

_DIGEST_BYTES = 16

PageDigest = bytes


def root_of(tenant_id: TenantId, adapter_key: PackKey | None, group: int) -> PageDigest:
    """Return where the chain of a tenant's sequences with one revision begins, in layer group number ``group``."""
    scope = (str(group), tenant_id, *(adapter_key or ()))
    return hashlib.blake2b("\0".join(scope).encode(), digest_size=_DIGEST_BYTES).digest()


def extend(chain: list[PageDigest], tokens: Sequence[int], num_pages: int, page_tokens: int) -> None:
    """Append the digests of pages up to ``num_pages`` to ``chain``, whose first element is the root."""
    for index in range(len(chain) - 1, num_pages):
        content = array("q", tokens[index * page_tokens : (index + 1) * page_tokens]).tobytes()
        chain.append(hashlib.blake2b(content, key=chain[-1], digest_size=_DIGEST_BYTES).digest())


@dataclass
class _Kept:
    page: int
    num_users: int
    owner: AdapterId | None


class PrefixCache:
    """Which pages hold what. Used by the engine's thread; ``reclaim`` also by whoever needs pages for an adapter.

    Pages that are in use are never reclaimed. Of the others the one that was let go of longest ago goes first, and of
    one sequence its last page first: what is left is still a beginning.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._lock = threading.Lock()
        self._kept: dict[PageDigest, _Kept] = {}
        self._idle: OrderedDict[PageDigest, None] = OrderedDict()

    @property
    def num_reclaimable(self) -> int:
        """Pages that nobody uses."""
        with self._lock:
            return len(self._idle)

    @property
    def num_pages(self) -> int:
        """All pages that are kept, in use or not."""
        with self._lock:
            return len(self._kept)

    def num_found(self, digests: Sequence[PageDigest]) -> list[int]:
        """Return for each place in ``digests`` how many known pages follow each other up to there, itself included."""
        counts, count = [], 0
        with self._lock:
            for digest in digests:
                count = count + 1 if digest in self._kept else 0
                counts.append(count)
        return counts

    def attach(self, digests: Sequence[PageDigest]) -> list[int] | None:
        """Return the pages of ``digests``, in use until ``release``; None, and nothing done, when one is unknown."""
        with self._lock:
            if not all(digest in self._kept for digest in digests):
                return None
            return [self._use(digest) for digest in digests]

    def keep(self, digest: PageDigest, page: int, owner: AdapterId | None) -> int:
        """Take ``page``, which its sequence goes on using; or return another that holds the same already, to be used
        instead, and leave ``page`` to the sequence. ``owner`` is the adapter that it was computed with."""
        with self._lock:
            self._kept.setdefault(digest, _Kept(page, 0, owner))
            return self._use(digest)

    def release(self, digests: Sequence[PageDigest]) -> None:
        """Take back one use of each of these pages, given from a sequence's first to its last."""
        with self._lock:
            for digest in reversed(digests):
                kept = self._kept[digest]
                assert kept.num_users > 0, "a page was released more often than it was used"
                kept.num_users -= 1
                if kept.num_users == 0:
                    self._idle[digest] = None

    def reclaim(self, num_pages: int) -> int:
        """Give up to ``num_pages`` idle pages back to the arena; returns how many."""
        with self._lock:
            pages = self._take_idle(list(itertools.islice(self._idle, num_pages)))
        if pages:
            self._arena.free(pages, PageUse.KV)
        return len(pages)

    def forget(self, owner: AdapterId) -> None:
        """Give all pages back that were computed with an adapter; those that somebody still uses are left alone."""
        with self._lock:
            pages = self._take_idle([digest for digest in self._idle if self._kept[digest].owner == owner])
        if pages:
            self._arena.free(pages, PageUse.KV)

    def _take_idle(self, digests: Sequence[PageDigest]) -> list[int]:
        """Forget idle pages, which are the caller's to free."""
        for digest in digests:
            del self._idle[digest]
        return [self._kept.pop(digest).page for digest in digests]

    def _use(self, digest: PageDigest) -> int:
        kept = self._kept[digest]
        self._idle.pop(digest, None)
        kept.num_users += 1
        return kept.page
