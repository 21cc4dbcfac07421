"""Arrivals: the same by seed, at the rate and with the popularity that the scenario says."""

from collections import Counter
from itertools import pairwise
from statistics import fmean, pstdev

import pytest

from octavo_loadgen.scenario import Adapter, Load, Popularity, PopularityKind, Prompt, Scenario
from octavo_loadgen.workload import Arrival, arrivals_of, targets_of

NUM_ADAPTERS = 100


def arrivals(
    kind: PopularityKind = PopularityKind.UNIFORM, seed: int = 1, exponent: float = 1.0, rate_per_s: float = 100.0
) -> list[Arrival]:
    scenario = Scenario(
        name="t",
        load=Load(rate_per_s=rate_per_s, duration_s=200.0),
        adapters=(Adapter(model="t/a{i}", key="k", num=NUM_ADAPTERS),),
        prompts=(Prompt(text="short", max_tokens=4, weight=3.0), Prompt(text="long", max_tokens=(10, 20))),
        popularity=Popularity(kind=kind, exponent=exponent),
        seed=seed,
    )
    return list(arrivals_of(scenario, targets_of(scenario.adapters, {})))


@pytest.mark.parametrize("kind", PopularityKind)
def test_same_seed_gives_the_same_arrivals_and_another_seed_others(kind: PopularityKind) -> None:
    first = arrivals(kind, seed=5, rate_per_s=5.0)
    assert first == arrivals(kind, seed=5, rate_per_s=5.0)
    assert first != arrivals(kind, seed=6, rate_per_s=5.0)


def test_first_arrivals_of_a_seed_stay_what_they_were() -> None:
    found = [(round(arrival.at_s, 6), arrival.target.model, arrival.max_tokens) for arrival in arrivals(seed=1)[:3]]
    assert found == [(0.014971, "t/a89", 4), (0.015879, "t/a42", 14), (0.025799, "t/a18", 4)]


def test_popularity_changes_who_is_asked_and_not_when_or_what() -> None:
    def rest(found: list[Arrival]) -> list[tuple[float, Prompt, int, int]]:
        return [(arrival.at_s, arrival.prompt, arrival.max_tokens, arrival.seed) for arrival in found]

    assert rest(arrivals(PopularityKind.ZIPF)) == rest(arrivals(PopularityKind.IDENTICAL))


def test_arrivals_are_poisson_at_the_rate() -> None:
    times = [arrival.at_s for arrival in arrivals()]
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert times[0] > 0.0
    assert times[-1] < 200.0
    gaps = [later - earlier for earlier, later in pairwise(times)]
    # An exponential distribution's deviation is its mean; a regular clock's would be zero.
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(1.0, abs=0.05)


def test_zipf_is_as_skewed_as_its_exponent() -> None:
    found = arrivals(PopularityKind.ZIPF)
    counts = Counter(arrival.target.model for arrival in found)
    harmonic = sum(1 / k for k in range(1, NUM_ADAPTERS + 1))
    assert counts["t/a0"] / len(found) == pytest.approx(1 / harmonic, rel=0.05)
    assert counts["t/a0"] / counts["t/a9"] == pytest.approx(10.0, rel=0.2)


def test_zipf_of_exponent_zero_is_uniform() -> None:
    for kind in (PopularityKind.ZIPF, PopularityKind.UNIFORM):
        counts = Counter(arrival.target.model for arrival in arrivals(kind, exponent=0.0))
        assert len(counts) == NUM_ADAPTERS
        assert max(counts.values()) < 1.5 * min(counts.values())


def test_identical_asks_only_for_the_first() -> None:
    assert {arrival.target.model for arrival in arrivals(PopularityKind.IDENTICAL)} == {"t/a0"}


def test_distinct_repeats_nobody_before_all_others_came() -> None:
    models = [arrival.target.model for arrival in arrivals(PopularityKind.DISTINCT, rate_per_s=5.0)]
    rounds = [models[start : start + NUM_ADAPTERS] for start in range(0, len(models), NUM_ADAPTERS)]
    assert len(rounds) > 5
    assert all(len(set(one)) == len(one) for one in rounds)


def test_prompts_follow_their_weights_and_lengths_their_range() -> None:
    found = arrivals()
    counts = Counter(arrival.prompt.text for arrival in found)
    assert counts["short"] / len(found) == pytest.approx(0.75, abs=0.02)
    assert {arrival.max_tokens for arrival in found if arrival.prompt.text == "long"} == set(range(10, 21))
    assert {arrival.max_tokens for arrival in found if arrival.prompt.text == "short"} == {4}
