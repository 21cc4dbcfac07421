"""Claims about the eviction policy, most of them for any sequence of uses."""

from hypothesis import given
from hypothesis import strategies as st

from octavo_shared.policy import FREQUENCY_MAX, EvictionPolicy, score

KEYS = st.sampled_from("abcdefgh")
USES = st.lists(st.tuples(KEYS, st.integers(1, 1000), st.floats(0, 1e4)), max_size=40)


def _policy(uses: list[tuple[str, int, float]]) -> EvictionPolicy[str]:
    policy = EvictionPolicy[str]()
    for key, size, cost in uses:
        policy.used(key, size, cost)
    return policy


@given(USES, st.sets(KEYS), st.integers(0, 10_000))
def test_pinned_is_never_chosen(uses: list[tuple[str, int, float]], pinned: set[str], needed: int) -> None:
    assert not set(_policy(uses).choose(needed, pinned)) & pinned


@given(USES, st.sets(KEYS), st.integers(1, 10_000))
def test_choice_frees_enough_or_is_everything_unpinned(
    uses: list[tuple[str, int, float]], pinned: set[str], needed: int
) -> None:
    sizes = {key: size for key, size, _ in uses}
    chosen = _policy(uses).choose(needed, pinned)
    freed = sum(sizes[key] for key in chosen)
    if freed < needed:
        assert set(chosen) == sizes.keys() - pinned
    else:
        assert freed - sizes[chosen[-1]] < needed, "one fewer would have been enough"


@given(USES, st.integers(1, 5_000))
def test_nobody_kept_scores_below_somebody_chosen(uses: list[tuple[str, int, float]], needed: int) -> None:
    policy = _policy(uses)
    chosen = policy.choose(needed)
    kept = set(policy.keys()) - set(chosen)
    if chosen and kept:
        assert max(map(policy.score_of, chosen)) <= min(map(policy.score_of, kept))


@given(st.lists(st.tuples(KEYS, st.integers(1, 1000), st.floats(0, 1e4)), min_size=1, max_size=40), st.data())
def test_floor_never_falls(uses: list[tuple[str, int, float]], data: st.DataObject) -> None:
    policy = EvictionPolicy[str]()
    floors = []
    for key, size, cost in uses:
        policy.used(key, size, cost)
        if data.draw(st.booleans()):
            for victim in policy.choose(1):
                policy.evicted(victim)
        floors.append(policy.floor)
    assert floors == sorted(floors)


@given(USES)
def test_choosing_changes_nothing(uses: list[tuple[str, int, float]]) -> None:
    policy = _policy(uses)
    assert policy.choose(500) == policy.choose(500)


@given(USES)
def test_used_bytes_is_the_sum_of_what_is_held(uses: list[tuple[str, int, float]]) -> None:
    assert _policy(uses).used_bytes == sum({key: size for key, size, _ in uses}.values())


def test_frequency_counts_no_further_than_the_cap() -> None:
    assert score(0, FREQUENCY_MAX, 10, 5) == score(0, 1_000, 10, 5)


def test_frequent_outlives_recent_of_equal_cost() -> None:
    policy = _policy([("often", 10, 5.0)] * 3 + [("once", 10, 5.0)])
    assert policy.choose(1) == ("once",)


def test_dear_per_byte_outlives_cheap_per_byte() -> None:
    policy = _policy([("small", 10, 5.0), ("large", 1000, 5.0)])
    assert policy.choose(1) == ("large",)


def test_former_favourite_ages_until_it_is_evicted() -> None:
    policy = _policy([("favourite", 10, 5.0)] * 100)
    for newcomer in range(20):
        policy.used(f"newcomer {newcomer}", 10, 5.0)
        (victim,) = policy.choose(1)
        policy.evicted(victim)
        if victim == "favourite":
            return
    raise AssertionError("the favourite of yesterday was never evicted")


def test_least_recently_used_goes_first_among_equals() -> None:
    assert _policy([("old", 10, 5.0), ("new", 10, 5.0)]).choose(1) == ("old",)


def test_dropping_ages_nobody() -> None:
    policy = _policy([("a", 10, 5.0), ("b", 10, 5.0)])
    policy.dropped("a")
    assert policy.floor == 0.0
    assert "a" not in policy
