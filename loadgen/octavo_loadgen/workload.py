"""From a scenario to its arrivals: a pure function of the scenario and its seed.

Times, adapters and prompts are drawn from streams of their own, so that changing who is asked for
does not change when.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count, repeat
from random import Random

from octavo_loadgen.scenario import Adapter, Popularity, PopularityKind, Prompt, Scenario
from octavo_shared.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked, and with which API key."""

    model: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request, ``at_s`` seconds after the start of the run."""

    index: int
    at_s: float
    target: Target
    prompt: Prompt
    max_tokens: int
    seed: int


def targets_of(adapters: Sequence[Adapter], environ: Mapping[str, str]) -> tuple[Target, ...]:
    """Return every adapter by name with its key; raises ``InvalidRequest`` when a key's variable is not set."""
    found = []
    for index, adapter in enumerate(adapters):
        key = adapter.key
        if key.startswith("$"):
            key = environ.get(adapter.key[1:], "")
        if not key or not key.isascii() or not key.isprintable():
            # The value itself is a secret; only the variable's name may be shown.
            source = f"environment variable {adapter.key[1:]}" if adapter.key.startswith("$") else "value"
            raise InvalidRequest(f"adapters[{index}].key", f"has no usable key: {source} is missing or not plain text")
        if adapter.num == 1:
            found.append(Target(adapter.model, key))
        else:
            found.extend(Target(adapter.model.replace("{i}", str(i)), key) for i in range(adapter.num))
    return tuple(found)


def arrivals_of(scenario: Scenario, targets: Sequence[Target]) -> Iterator[Arrival]:
    """Return the arrivals in order of time; the same scenario, targets and seed give the same ones.

    What takes long with many targets is done here and not at the first arrival, which would then be late.
    """
    chosen = _choices(scenario.popularity, targets, Random(f"{scenario.seed}/adapter"))
    return _arrivals(scenario, chosen)


def _arrivals(scenario: Scenario, chosen: Iterator[Target]) -> Iterator[Arrival]:
    times, prompts, lengths, seeds = (
        Random(f"{scenario.seed}/{what}") for what in ("time", "prompt", "length", "seed")
    )
    weights = list(accumulate(prompt.weight for prompt in scenario.prompts))
    at_s, index = times.expovariate(scenario.load.rate_per_s), 0
    while at_s < scenario.load.duration_s:
        prompt = prompts.choices(scenario.prompts, cum_weights=weights)[0]
        max_tokens = lengths.randint(*prompt.max_tokens_range)
        yield Arrival(index, at_s, next(chosen), prompt, max_tokens, seeds.getrandbits(31))
        at_s += times.expovariate(scenario.load.rate_per_s)
        index += 1


def _choices(popularity: Popularity, targets: Sequence[Target], random: Random) -> Iterator[Target]:
    match popularity.kind:
        case PopularityKind.IDENTICAL:
            return repeat(targets[0])
        case PopularityKind.UNIFORM:
            return (random.choice(targets) for _ in count())
        case PopularityKind.ZIPF:
            weights = list(accumulate((k + 1) ** -popularity.exponent for k in range(len(targets))))
            return (random.choices(targets, cum_weights=weights)[0] for _ in count())
        case PopularityKind.DISTINCT:
            return _rounds(list(targets), random)


def _rounds(pool: list[Target], random: Random) -> Iterator[Target]:
    """Yield all of ``pool`` in random order, then again in another; each draw takes the same short time."""
    while True:
        for last in reversed(range(len(pool))):
            pick = random.randrange(last + 1)
            pool[pick], pool[last] = pool[last], pool[pick]
            yield pool[last]
