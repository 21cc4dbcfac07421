"""The prefix cache: pages are found by their owner alone, never reclaimed in use, and none is ever lost."""

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_shared.references import AdapterId, Digest, TenantId
from octavo_worker.adapters.pages import Arena, PageUse
from octavo_worker.engine.prefix_cache import PrefixCache, extend, root_of

PAGE_TOKENS = 4
ALICE, BOB = TenantId("alice"), TenantId("bob")
DIARY = (AdapterId("diary"), Digest("sha256:1"))


def chain_of(tokens: list[int], tenant: TenantId = ALICE, key: tuple[AdapterId, Digest] | None = None) -> list[bytes]:
    chain = [root_of(tenant, key, 0)]
    extend(chain, tokens, len(tokens) // PAGE_TOKENS, PAGE_TOKENS)
    return chain[1:]


def test_a_page_is_known_by_tenant_revision_and_all_tokens_before_it() -> None:
    tokens = list(range(8))
    same = chain_of(tokens)
    others = [
        chain_of(tokens, BOB),
        chain_of(tokens, ALICE, DIARY),
        chain_of(tokens, ALICE, (DIARY[0], Digest("sha256:2"))),
        chain_of([9, *tokens[1:]]),
    ]
    assert chain_of([*tokens, 5]) == same
    assert len({digest for chain in [same, *others] for digest in chain}) == 10
    assert chain_of([*tokens[:4], 9, 9, 9, 9])[0] == same[0]


def test_the_longest_known_beginning_is_found_and_stays_while_it_is_used() -> None:
    arena = Arena(1, 6, torch.float32)
    cache, chain = PrefixCache(arena), chain_of(list(range(12)))
    pages = arena.alloc(3, PageUse.KV)
    assert [cache.keep(digest, page, None) for digest, page in zip(chain, pages, strict=True)] == pages
    assert cache.keep(chain[0], 5, None) == pages[0], "it is known already"
    cache.release(chain[:1])
    assert cache.num_found([*chain[:2], b"unknown", chain[2]]) == [1, 2, 0, 1]
    assert cache.attach([*chain[:2], b"unknown"]) is None, "all or none"
    assert cache.attach(chain[:2]) == pages[:2]
    cache.release(chain)
    assert cache.num_reclaimable == 1
    assert cache.reclaim(9) == 1
    assert arena.num_free == 4
    cache.release(chain[:2])
    assert cache.reclaim(1) == 1
    assert cache.num_found(chain) == [1, 0, 0], "the last page of a beginning goes first"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_no_page_is_lost_or_reclaimed_in_use(seed: int) -> None:
    draw = random.Random(seed)
    arena = Arena(1, 24, torch.float32)
    cache = PrefixCache(arena)
    held: list[tuple[list[bytes], list[int]]] = []
    for _ in range(200):
        action = draw.random()
        if action < 0.5:
            chain = chain_of([draw.randrange(2) for _ in range(PAGE_TOKENS * draw.randint(1, 4))])
            num_known = sum(found == place for place, found in enumerate(cache.num_found(chain), start=1))
            pages = cache.attach(chain[:num_known])
            assert pages is not None
            missing = len(chain) - len(pages)
            if arena.num_free < missing:
                cache.reclaim(missing - arena.num_free)
            if arena.num_free < missing:
                cache.release(chain[: len(pages)])
                continue
            fresh = arena.alloc(missing, PageUse.KV)
            shared = len(pages)
            for digest, page in zip(chain[shared:], fresh, strict=True):
                pages.append(cache.keep(digest, page, None))
                if pages[-1] != page:
                    # Its own copy; whoever was first is found from now on.
                    arena.free([page], PageUse.KV)
            held.append((chain, pages))
        elif action < 0.8 and held:
            chain, pages = held.pop(draw.randrange(len(held)))
            cache.release(chain)
        else:
            cache.reclaim(draw.randint(0, 3))
        for chain, pages in held:
            again = cache.attach(chain)
            assert again == pages, "a page in use changed its place"
            cache.release(chain)
        arena.check_integrity()
        assert cache.num_pages == arena.num_used(PageUse.KV)
    for chain, _ in held:
        cache.release(chain)
    assert cache.num_reclaimable == cache.num_pages
    cache.reclaim(24)
    assert arena.num_free == 24
