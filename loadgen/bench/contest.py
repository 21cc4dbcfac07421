"""A contest: every rival in its fastest setting, taking turns with the same jobs, one at a time."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.drivers.messages import Job, Measured, Profile, Ready
from bench.rival import Rival, RivalFailed, Variant, started
from bench.variants import Family

_NUM_LOADS = 3

OURS = "octavo"
"""The family that must take part."""


@dataclass
class Contest:
    """What is known so far. Rivals and jobs go by name; ``missing`` says why somebody takes no part."""

    jobs: Mapping[str, Job]
    spare: Sequence[str]
    logs: Path
    report: Callable[[str], None]
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[tuple[str, str], tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    load_ms: dict[str, list[float]] = field(default_factory=dict)
    tried_tok_s: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    ready: dict[str, Ready] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def tokens_per_s(self, rival: str, job: str) -> list[float]:
        """Return one value per round; none where the rival is missing."""
        return [self._rate(self.jobs[job], seconds) for seconds in self.seconds.get((rival, job), [])]

    def hold(self, families: Sequence[Family], num_rounds: int, seed: int) -> Measured:
        """Run the rounds; returns what our own engine measured of itself after them.

        Raises ``RivalFailed`` when our own engine fails, or anybody else after having begun.
        """
        with contextlib.ExitStack() as stack:
            rivals: dict[str, Rival] = {}
            for family in families:
                try:
                    rivals[family.name] = stack.enter_context(self._fastest(family))
                except RivalFailed as problem:
                    if family.name == OURS:
                        raise
                    self.missing[family.name] = str(problem)
                    self.report(f"{family.name} takes no part: {problem}")
            present = [family for family in families if family.name in rivals]
            for number in range(num_rounds):
                # Each round begins with another one, and with another job: nobody always runs behind the same one.
                first = number % len(present)
                for family in (*present[first:], *present[:first]):
                    self.report(f"round {number + 1} of {num_rounds}: {family.name}")
                    self._round(family, rivals[family.name], number)
            for family in present:
                if "mixed" in family.jobs:
                    self._loads(family.name, rivals[family.name])
            return self._profile(rivals[OURS], num_rounds, seed)

    def _round(self, family: Family, rival: Rival, number: int) -> None:
        first = number % len(family.jobs)
        with rival.turn():
            for name in (*family.jobs[first:], *family.jobs[:first]):
                answers = rival.answer(self.jobs[name])
                self.seconds[family.name, name].append(answers.seconds)
                self.answers[family.name, name] = answers.tokens

    def _loads(self, name: str, rival: Rival) -> None:
        with rival.turn():
            self.load_ms[name] = [rival.load_ms(adapter) for adapter in self.spare[:_NUM_LOADS]]

    def _profile(self, rival: Rival, num_rounds: int, seed: int) -> Measured:
        self.report("decode steps, floors and ceilings of our own engine")
        command = Profile(self.jobs["base"], self.jobs["mixed"], tuple(self.spare), num_rounds, seed)
        with rival.turn():
            measured = rival.ask(command)
        if not isinstance(measured, Measured):
            raise RivalFailed(f"{rival.variant.name} replied {measured}")
        return measured

    @contextlib.contextmanager
    def _fastest(self, family: Family) -> Iterator[Rival]:
        """Start the family's fastest variant; it is warm, and stopped until its turn."""
        best = self._choose(family)
        self.report(f"starting {best.name}")
        with started(best, self._log(best)) as rival:
            for name in family.jobs:
                rival.answer(self.jobs[name])
            self.chosen[family.name], self.ready[family.name] = best.name, rival.ready
            rival.pause()
            yield rival

    def _choose(self, family: Family) -> Variant:
        if len(family.variants) == 1:
            return family.variants[0]
        job = self.jobs[family.deciding_job]
        tried: dict[str, float] = {}
        problem = RivalFailed(f"{family.name} has no variant")
        for variant in family.variants:
            self.report(f"trying {variant.name}")
            try:
                with started(variant, self._log(variant)) as rival:
                    rival.answer(job)
                    tried[variant.name] = self._rate(job, rival.answer(job).seconds)
            except RivalFailed as failed:
                problem = failed
        if not tried:
            raise problem
        self.tried_tok_s |= tried
        return max((variant for variant in family.variants if variant.name in tried), key=lambda v: tried[v.name])

    def _rate(self, job: Job, seconds: float) -> float:
        return len(job.prompts) * job.num_new_tokens / seconds

    def _log(self, variant: Variant) -> Path:
        return self.logs / f"{variant.name.replace(' ', '-')}.log"
