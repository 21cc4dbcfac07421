"""Two cases that differ in one thing, run in turn several times within a round: drift of the machine meets both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.profile import Case
from bench.rig import Rig, Run

SCHEMA = (
    '{"type": "object", "additionalProperties": false, "properties": {'
    + ", ".join(f'"part_{number}": {{"type": "string"}}' for number in range(16))
    + '}, "required": ['
    + ", ".join(f'"part_{number}"' for number in range(16))
    + "]}"
)
"""No answer that follows it ends within 64 tokens: each part takes four or more, even one that is empty."""


@dataclass
class Pair:
    """``plain`` and ``other``, ``num_turns`` times each in a round, in the order A B B A."""

    rig: Rig
    plain: Case
    other: Case
    num_new_tokens: int
    num_turns: int
    tokens_per_s: dict[str, list[float]] = field(default_factory=dict)
    step_ms: dict[str, list[float]] = field(default_factory=dict)
    """Of each case one value per round: the median of its turns, or of all their decode steps."""

    def warm_up(self) -> None:
        """Run each case once, uncounted."""
        for case in (self.plain, self.other):
            self._run(case)

    def measure(self, round_number: int) -> None:
        """Add one round's values of both; every other round begins with the other case."""
        runs: dict[str, list[Run]] = {self.plain.name: [], self.other.name: []}
        for case in self._turns(round_number):
            runs[case.name].append(self._run(case))
        for name, turns in runs.items():
            self.tokens_per_s.setdefault(name, []).append(_median([run.tokens_per_s for run in turns]))
            self.step_ms.setdefault(name, []).append(_median([ms for run in turns for ms in run.decode_ms]))

    def _turns(self, round_number: int) -> Iterator[Case]:
        for turn in range(self.num_turns):
            pair = (self.plain, self.other)
            yield from pair if (turn + round_number) % 2 == 0 else pair[::-1]

    def _run(self, case: Case) -> Run:
        self.rig.make_resident(case.residents)
        # Every answer has all its tokens, or this raises: so tokens per second of both are of as many tokens.
        return self.rig.run(case.prompts, case.keys, self.num_new_tokens, case.schema)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))
