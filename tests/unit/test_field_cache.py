"""The cache of field keys: what is in it is right, what was forgotten is gone, and it is bounded."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from octavo_identity.field_cache import FIELD_KEYS_MAX, FieldCache
from octavo_shared.references import AdapterId

steps = st.lists(st.tuples(st.sampled_from(["put", "put_other", "absent", "forget", "get", "all"]), st.integers(0, 60)))


def adapter(number: int) -> AdapterId:
    return AdapterId(f"{number:032x}")


def key_of(number: int, text: str = "") -> bytes:
    return hashlib.sha256(f"{number}{text}".encode()).digest()


@given(steps, st.sampled_from([1, 3, 16, 64]))
def test_it_never_answers_with_what_was_not_put_last(made: list[tuple[str, int]], num_max: int) -> None:
    cache, put = FieldCache(num_max), dict[int, bytes | None]()
    for what, number in made:
        if what in ("put", "put_other"):
            put[number] = cache.put(adapter(number), key_of(number, what))
        elif what == "absent":
            cache.keep_absent(adapter(number))
            put[number] = None
        elif what == "forget":
            cache.forget(adapter(number))
            put.pop(number, None)
        elif what == "all":
            cache.forget_all()
            put.clear()
        known = [one for one in range(61) if cache.knows(adapter(one))]
        assert put.keys() >= {*known}
        assert len(cache) == len(known) <= num_max
        assert what not in ("put", "put_other", "absent") or number in known
        assert all(cache.get(adapter(one)) == put[one] for one in known)
        assert all(cache.get(adapter(one)) is None for one in range(61) if one not in known)


def test_the_latest_used_of_a_set_stay() -> None:
    cache = FieldCache(16)
    for number in range(16):
        cache.put(adapter(number), key_of(number))
    assert cache.get(adapter(0)) == key_of(0)
    for number in range(16, 31):
        cache.put(adapter(number), key_of(number))
    assert [number for number in range(31) if cache.knows(adapter(number))] == [0, *range(16, 31)]


def test_a_key_is_not_found_in_the_middle_of_others() -> None:
    cache = FieldCache(2)
    name = hashlib.blake2b(adapter(5).encode(), digest_size=16).digest()
    cache.put(adapter(1), name + bytes(16))
    cache.put(adapter(2), bytes(16) + name)
    assert not cache.knows(adapter(5))
    cache.put(adapter(5), key_of(5))
    assert cache.get(adapter(5)) == key_of(5)


def test_nothing_of_a_key_is_left_where_it_was_forgotten() -> None:
    cache = FieldCache()
    for number in range(100):
        cache.put(adapter(number), key_of(number))
    for number in range(0, 100, 2):
        cache.forget(adapter(number))
    for number in range(100):
        assert (cache._table.find(key_of(number)) >= 0) == bool(number % 2)


def test_most_of_a_million_have_room() -> None:
    cache = FieldCache(FIELD_KEYS_MAX // 64)
    num_put = 1_000_000 // 64
    for number in range(num_put):
        cache.put(adapter(number), key_of(number))
    assert len(cache) > 0.99 * num_put
