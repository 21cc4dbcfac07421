"""Benchmark of the engine alone: many adapters beside the base, every target beside its floor.

    python -m bench.engine [--rounds N] [--quick] [--seed N]

First a gate: float32 tokens must be those of transformers and PEFT, and bf16 tokens the same alone and in a crowd.
Then rounds in which all cases alternate. The last line is one line of JSON. Exit code 1 when the gate fails or a
target is missed; --quick (a few seconds, no claim to precision) fails for the gate only.
"""

import argparse
import functools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from bench import golden, report
from bench.pressure import Pressure
from bench.profile import Profile, Samples, case_of, products_of
from bench.report import Spread, Target, spread_of
from bench.rig import Rig, arena_bytes, kernels_used
from bench.workload import Workload, chat_prompts, write_adapters
from octavo_worker.model.base import load_base
from octavo_worker.prepare_base import default_folder, prepare_base

_PACKAGES = ("octavo", "torch", "transformers", "peft")
_RANKS = (1, 2, 4, 8, 16, 32, 64, 1)
"""Their mean is 16: so many requests with these ranks have the summed rank of as many with rank 16."""
_LOADS_PER_S = 4.0


@dataclass(frozen=True)
class _Plan:
    """How much is measured. The default is the workload that the targets are set for."""

    workload: Workload
    num_rounds: int
    num_loaded: int = 200
    num_pressure_tokens: int = 96
    num_golden_tokens: int = 32
    num_alone: int = 4


@dataclass
class _Bench:
    """What was set up for the rounds."""

    profile: Profile
    pressure: Pressure
    verdict: golden.Verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench-engine", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="4 requests, 1 round: does it run, is it right")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    plan = _Plan(Workload(seed=given.seed), max(1, given.rounds))
    if given.quick:
        plan = _Plan(Workload(4, 4, seed=given.seed), 1, num_loaded=12, num_pressure_tokens=8, num_golden_tokens=8)
    out, progress = report.console(), Console(stderr=True, markup=False, emoji=False, highlight=False)
    machine = report.machine_json(_PACKAGES)
    report.warn_if_busy(out)
    with tempfile.TemporaryDirectory(prefix="octavo-bench-") as folder:
        bench = _set_up(plan, Path(folder), progress)
    fields = {
        "bench": "engine",
        "golden": bench.verdict.is_golden,
        "problem": bench.verdict.problem,
        "seed": given.seed,
        "is_quick": given.quick,
        "num_rounds": plan.num_rounds,
        "num_requests": plan.workload.num_requests,
        "threads": torch.get_num_threads(),
        "kernels": kernels_used(),
        **machine,
    }
    if not bench.verdict.is_golden:
        out.print(f"The gate failed, so nothing was measured: {bench.verdict.problem}.")
        print(report.json_line({**fields, "targets": {}}), flush=True)
        return 1
    _measure(plan, bench, progress)
    targets = _show(out, plan, bench, fields)
    return 0 if given.quick or all(target.is_ok for target in targets) else 1


def _set_up(plan: _Plan, folder: Path, progress: Console) -> _Bench:
    """Write the adapters, load the base, pass the gate and warm up."""
    workload, num = plan.workload, plan.workload.num_requests
    progress.print("preparing the base and the adapters")
    base_folder = prepare_base(default_folder())
    base = load_base(base_folder)
    modules = base.manifest.modules
    prompts = chat_prompts(base_folder, 2 * num, workload.seed)
    uniform = write_adapters(folder / "uniform", modules, [workload.rank] * 2 * num, workload.seed)
    ranks = [_RANKS[i % len(_RANKS)] for i in range(num)]
    mixed = write_adapters(folder / "mixed", modules, ranks, workload.seed + 1)

    rig = Rig(base, arena_bytes(base, workload.rank, max(plan.num_loaded, 2 * num)), 2 * num)
    keys = [rig.add(path) for path in uniform]
    mixed_keys = [rig.add(path) for path in mixed]
    copies = rig.add_copies(keys, plan.num_loaded - num)
    few, many = prompts[:num], prompts
    cases = (
        case_of("base", few, []),
        case_of("one_adapter", few, keys[:1]),
        case_of(f"mixed_{num // 4}", few, keys[: num // 4]),
        case_of("mixed", few, keys[:num]),
        case_of("mixed_ranks", few, mixed_keys),
        case_of("mixed_among_many", few, keys[:num], (*keys[:num], *copies)),
        case_of(f"base_{2 * num}_requests", many, []),
        case_of(f"mixed_{2 * num}", many, keys),
    )
    profile = Profile(rig, products_of(rig, workload.seed), cases, keys[num:], workload.num_new_tokens)
    spare = [rig.packs[key] for key in keys[num:]]
    pressure = Pressure(rig, cases[3], spare, plan.num_pressure_tokens, _LOADS_PER_S)

    progress.print("gate: float32 against transformers and PEFT")
    verdict = golden.check_float32(base_folder, prompts[0], uniform[:2], plan.num_golden_tokens)
    if verdict.is_golden:
        progress.print("gate: bf16 alone against bf16 in a crowd; this warms up, too")
        runs = profile.warm_up()
        rig.make_resident(keys[:num])
        verdict = golden.check_alone(rig, few, cases[3].keys, runs["mixed"].tokens, plan.num_alone)
    return _Bench(profile, pressure, verdict)


def _measure(plan: _Plan, bench: _Bench, progress: Console) -> None:
    for number in range(plan.num_rounds):
        where = f"round {number + 1} of {plan.num_rounds}"
        bench.profile.measure(number, functools.partial(progress.print, f"{where}:"))
        progress.print(f"{where}: steps with and without loads in the background")
        bench.pressure.measure(number)


def _show(out: Console, plan: _Plan, bench: _Bench, fields: dict[str, object]) -> list[Target]:
    """Print the tables and the JSON line; returns the targets."""
    samples, num = bench.profile.samples, plan.workload.num_requests
    _compare_cases(samples)
    spreads = {name: spread_of(samples[name]) for name in sorted(samples, key=_place)}
    p99 = {name: float(np.quantile(steps, 0.99)) for name, steps in _pressure_steps(bench.pressure).items()}
    targets = _targets(plan, spreads, p99)
    report.print_spreads(out, f"{num} requests at once, {plan.num_rounds} rounds", spreads, _notes(spreads))
    report.print_targets(out, targets)
    by_adapters = {
        "1": "one_adapter_tok_s",
        **{str(count): f"mixed_{count}_tok_s" for count in (num // 4, 2 * num)},
        str(num): "mixed_tok_s",
    }
    line = {
        **fields,
        **report.spreads_json(spreads),
        "mixed_tok_s_by_adapters": {
            count: round(spreads[by_adapters[count]].median, 2) for count in sorted(by_adapters, key=int)
        },
        "step_p99_ms": round(p99["quiet"], 3),
        "loading_step_p99_ms": round(p99["loading"], 3),
        "loads_per_s": round(len(bench.pressure.load_ms) / bench.pressure.loading_s, 2),
        "load_under_load_ms": round(float(np.median(bench.pressure.load_ms)), 2),
        # Only bench-peers knows these.
        **dict.fromkeys(("over_peft", "over_vllm", "base_over_vllm_base")),
        "targets": report.targets_json(targets),
    }
    print(report.json_line(line), flush=True)
    return targets


def _place(name: str) -> int:
    """Return where in the table a measurement stands: like beside like."""
    return next((place for place, ending in enumerate(("_tok_s", "_step_ms")) if name.endswith(ending)), 2)


def _pressure_steps(pressure: Pressure) -> dict[str, list[float]]:
    return {"quiet": pressure.quiet_ms, "loading": pressure.loading_ms}


def _compare_cases(samples: Samples) -> None:
    """Add the ratios between cases, each within its round."""
    base, uniform = (np.array(samples[f"{name}_step_ms"]) for name in ("base", "mixed"))
    ranks, many = (np.array(samples[f"{name}_step_ms"]) for name in ("mixed_ranks", "mixed_among_many"))
    # What adapters add to the base's step, not the whole step, which would hide a difference.
    samples["ranks_over_summed"] = list((ranks - base) / (uniform - base))
    samples["many_loaded_over_few"] = list(many / uniform)


def _targets(plan: _Plan, spreads: dict[str, Spread], p99: dict[str, float]) -> list[Target]:
    num = plan.workload.num_requests
    median = {name: spread.median for name, spread in spreads.items()}
    return [
        Target("mixed_over_base", median["mixed_over_base"], _mixed_floor(median), least=0.75),
        Target("decode_over_floor", median["decode_over_floor"], _decode_floor(median), most=1.5),
        Target(
            "ranks_over_summed",
            median["ranks_over_summed"],
            f"1 at the summed rank; the largest rank for all would be {max(_RANKS) / plan.workload.rank:g}",
            least=0.85,
            most=1.15,
        ),
        Target(
            "many_loaded_over_few",
            median["many_loaded_over_few"],
            f"1: {plan.num_loaded} loaded against {num}, the same batch",
            least=0.95,
            most=1.05,
        ),
        Target("loading_over_quiet_p99", p99["loading"] / p99["quiet"], f"1: {p99['quiet']:.1f} ms", most=1.3),
        Target("load_over_memcpy", median["load_over_memcpy"], _memcpy_floor(median), most=2.0),
    ]


def _mixed_floor(median: dict[str, float]) -> str:
    return f"at most {median['mixed_over_base_bound']:.2f}: the base's step and one read of all adapters"


def _decode_floor(median: dict[str, float]) -> str:
    return f"1: {median['decode_floor_ms']:.1f} ms of packed products"


def _memcpy_floor(median: dict[str, float]) -> str:
    return f"1: {median['memcpy_ms']:.2f} ms of memcpy"


def _notes(spreads: dict[str, Spread]) -> dict[str, str]:
    def beside(name: str, text: str) -> str:
        return f"{text} {spreads[name].median:.4g}"

    return {
        "base_tok_s": beside("base_bound_tok_s", "with nothing but its products"),
        "mixed_tok_s": beside("mixed_bound_tok_s", "with that and one read of all adapters per step"),
        "decode_step_ms": beside("decode_floor_ms", "its packed products"),
        "achieved_gflops": beside("ceiling_gflops", "the fastest product at as many rows"),
        "achieved_gb_s": beside("ceiling_gb_s", "a copy"),
        "load_ms": beside("memcpy_ms", "memcpy"),
        "load_verify_ms": "SHA-256 and header, before the load",
    }


if __name__ == "__main__":
    sys.exit(main())
