"""Benchmark against rivals: transformers with PEFT, and vLLM on this CPU, in the same run as our own engine.

    python -m bench.peers [--rounds N] [--quick] [--seed N]

Everybody answers the same prompts with the same adapters, read from the same files. Each rival is a process of its
own; one runs while the others are stopped. Each is tried in several settings first and keeps the fastest. Outputs are
compared. The last line is one line of JSON. Exit code 1 when the gate fails, a rival is missing or a target is missed.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from bench import golden, report
from bench.agreement import Agreement, agreement_of, is_same_model
from bench.cli_numbers import positive
from bench.contest import OURS, Contest
from bench.drivers.messages import Job, Measured
from bench.report import Spread, Target, spread_of
from bench.rival import RivalFailed
from bench.variants import octavo_family, peft_family, vllm_base_family, vllm_lora_family
from bench.workload import Workload, chat_prompts, write_adapters
from octavo_worker.model.base import load_base
from octavo_worker.prepare_base import default_folder, prepare_base

_PACKAGES = ("octavo", "torch", "transformers", "peft")
_NUM_SPARE = 8
_NUM_GOLDEN_TOKENS = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench-peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--quick", action="store_true", help="4 requests, 1 round: does it run; times mean nothing")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    workload, num_rounds = Workload(seed=given.seed), max(1, given.rounds)
    if given.quick:
        workload, num_rounds = Workload(4, 4, seed=given.seed), 1
    # Rivals that are stopped would outlive us: leave by the way that ends them.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    out, progress = report.console(), Console(stderr=True, markup=False, emoji=False, highlight=False)
    fields = {
        "bench": "peers",
        "seed": given.seed,
        "is_quick": given.quick,
        "num_rounds": num_rounds,
        "num_requests": workload.num_requests,
        **report.machine_json(_PACKAGES),
    }
    report.warn_if_busy(out)
    with tempfile.TemporaryDirectory(prefix="octavo-bench-") as folder:
        try:
            contest, measured, verdict = _hold(workload, Path(folder), num_rounds, progress)
        except RivalFailed as problem:
            contest, measured, verdict = None, None, golden.Verdict(False, str(problem))
    if contest is None or measured is None:
        out.print(f"Nothing was measured: {verdict.problem}.")
        print(report.json_line({**fields, "golden": False, "problem": verdict.problem, "targets": {}}), flush=True)
        return 1
    is_right, has_met_targets = _show(out, contest, measured, fields)
    return 0 if is_right and (given.quick or has_met_targets) else 1


def _hold(
    workload: Workload, folder: Path, num_rounds: int, progress: Console
) -> tuple[Contest | None, Measured | None, golden.Verdict]:
    """Write the adapters, pass the gate and hold the contest; without one when the gate fails."""
    progress.print("preparing the base and the adapters")
    base, num = prepare_base(default_folder()), workload.num_requests
    modules = load_base(base).manifest.modules
    prompts = chat_prompts(base, num, workload.seed)
    paths = write_adapters(folder / "adapters", modules, [workload.rank] * (num + _NUM_SPARE), workload.seed)
    progress.print("gate: float32 against transformers and PEFT")
    verdict = golden.check_float32(base, prompts[0], paths[:2], _NUM_GOLDEN_TOKENS)
    if not verdict.is_golden:
        return None, None, verdict
    adapters = [str(path) for path in paths]
    jobs = {
        "base": Job(prompts, (None,) * num, workload.num_new_tokens),
        "one_adapter": Job(prompts, (adapters[0],) * num, workload.num_new_tokens),
        "mixed": Job(prompts, tuple(adapters[:num]), workload.num_new_tokens),
    }
    families = (
        octavo_family(base, workload),
        peft_family(base),
        vllm_lora_family(base, workload),
        vllm_base_family(base),
    )
    contest = Contest(jobs, adapters[num:], folder, progress.print)
    return contest, contest.hold(families, num_rounds, workload.seed), verdict


def _show(out: Console, contest: Contest, measured: Measured, fields: dict[str, object]) -> tuple[bool, bool]:
    """Print the tables and the JSON line; returns whether all rivals gave our answers, and whether targets were met."""
    rates = {
        f"{rival}_{job}_tok_s": contest.tokens_per_s(rival, job)
        for rival, job in sorted(contest.seconds, key=lambda pair: list(contest.jobs).index(pair[1]))
    }
    spreads = {name: spread_of(values) for name, values in rates.items()}
    # What the rivals were measured against stands under the names, from the same rounds.
    ours = {f"{job}_tok_s": spreads[f"{OURS}_{job}_tok_s"] for job in contest.jobs}
    own = {name: spread_of(values) for name, values in measured.values.items() if name not in ours}
    loads = {f"{rival}_load_ms": spread_of(values) for rival, values in contest.load_ms.items()}
    ratios = _ratios(contest)
    agreements = {
        f"{rival}, {job}": agreement_of(contest.answers[OURS, job], tokens)
        for (rival, job), tokens in contest.answers.items()
        if rival != OURS
    }
    chance = agreement_of(contest.answers[OURS, "mixed"], contest.answers[OURS, "base"])
    num_tokens = contest.jobs["mixed"].num_new_tokens
    differing = [name for name, found in agreements.items() if not is_same_model(found, chance, num_tokens)]
    targets = _targets(ratios, own)
    report.print_spreads(out, "tokens per second, alternating rounds", spreads | loads, _notes(contest))
    report.print_spreads(out, "our own engine, and what this machine gives", own, {})
    report.print_rows(
        out, "outputs beside ours, bf16", *_agreement_rows(agreements | {"by chance: ours, mixed and base": chance})
    )
    report.print_targets(out, targets)
    for name in differing:
        out.print(f"{name}: the answers are not ours, which rounding does not explain")
    for name, reason in contest.missing.items():
        out.print(f"{name} took no part: {reason}")
    line = {
        **fields,
        **report.spreads_json(spreads | ours | own | loads | ratios),
        **{name: None for name in _RATIOS if name not in ratios},
        "golden": not differing,
        "problem": f"the answers are not ours: {'; '.join(differing)}" if differing else "",
        "agreement": msgspec.to_builtins(agreements | {"chance": chance}),
        "rivals": {
            name: {"variant": contest.chosen[name], "versions": ready.versions, "settings": ready.settings}
            for name, ready in contest.ready.items()
        },
        "tried_tok_s": {name: round(rate, 1) for name, rate in contest.tried_tok_s.items()},
        "missing": contest.missing,
        "targets": report.targets_json(targets),
    }
    print(report.json_line(line), flush=True)
    return not differing and not contest.missing, all(target.is_ok for target in targets)


_RATIOS = {
    "over_peft": ("peft", "mixed"),
    "over_vllm": ("vllm_lora", "mixed"),
    "base_over_vllm_base": ("vllm_base", "base"),
}
"""Our tokens per second over those of a rival, by job."""


def _ratios(contest: Contest) -> dict[str, Spread]:
    """Return the ratios within each round; none where a rival is missing."""

    def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
        return spread_of([a / b for a, b in zip(ours, theirs, strict=True)])

    found = {"mixed_over_base": ratio(contest.tokens_per_s(OURS, "mixed"), contest.tokens_per_s(OURS, "base"))}
    for name, (rival, job) in _RATIOS.items():
        if theirs := contest.tokens_per_s(rival, job):
            found[name] = ratio(contest.tokens_per_s(OURS, job), theirs)
    return found


def _targets(ratios: dict[str, Spread], own: dict[str, Spread]) -> list[Target]:
    def ratio(name: str) -> float:
        return ratios[name].median if name in ratios else float("nan")

    median = {name: spread.median for name, spread in own.items()}
    mixed_floor = f"at most {median['mixed_bound_tok_s']:.0f} tokens/s: products and one read of all adapters"
    base_floor = f"at most {median['base_bound_tok_s']:.0f} tokens/s: products alone"
    step_floor = f"at most {median['mixed_over_base_bound']:.2f}: the base's step and one read of all adapters"
    return [
        Target("over_peft", ratio("over_peft"), mixed_floor, least=20),
        Target("over_vllm", ratio("over_vllm"), mixed_floor, least=8),
        Target("base_over_vllm_base", ratio("base_over_vllm_base"), base_floor, least=1.2),
        Target("mixed_over_base", ratio("mixed_over_base"), step_floor, least=0.75),
        Target("decode_over_floor", median["decode_over_floor"], f"1: {median['decode_floor_ms']:.1f} ms", most=1.5),
        Target("load_over_memcpy", median["load_over_memcpy"], f"1: {median['memcpy_ms']:.2f} ms", most=2.0),
    ]


def _notes(contest: Contest) -> dict[str, str]:
    notes = {
        f"{rival}_{job}_tok_s": contest.chosen[rival]
        for rival, job in contest.seconds
        if contest.chosen[rival] != rival
    }
    return notes | {
        f"{OURS}_load_ms": "from host memory: digest verified, header read, copied into pages",
        "peft_load_ms": "load_adapter, from a file that the system has in memory",
        "vllm_lora_load_ms": "add_lora, from a file that the system has in memory",
    }


def _agreement_rows(agreements: dict[str, Agreement]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    heads = ("", "same first token", "same answer", "tokens until they part")
    return heads, [
        (name, f"{a.first_tokens:.0%}", f"{a.whole_answers:.0%}", f"{a.mean_common_tokens:.1f}")
        for name, a in agreements.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
