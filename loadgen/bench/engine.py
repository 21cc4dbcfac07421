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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from bench import golden, report
from bench.cli_numbers import positive
from bench.pairs import SCHEMA, Pair
from bench.peft_load import peft_load_ms
from bench.pressure import Pressure
from bench.profile import Profile, Samples, case_of, products_of
from bench.report import Spread, Target, spread_of
from bench.rig import Rig, arena_bytes, kernels_used
from bench.targets import targets_of
from bench.workload import Workload, chat_prompts, write_adapters
from octavo_worker.model.base import load_base
from octavo_worker.prepare_base import default_folder, prepare_base

_PACKAGES = ("octavo", "torch", "transformers", "peft")
_RANKS = (1, 2, 4, 8, 16, 32, 64, 1)
"""Their mean is 16: so many requests with these ranks have the summed rank of as many with rank 16."""
_LOADS_PER_S = 4.0
_NUM_PEFT_LOADS = 6


@dataclass(frozen=True)
class _Plan:
    """How much is measured. The default is the workload that the targets are set for."""

    workload: Workload
    num_rounds: int
    num_registered: int = 1000
    num_loaded: int = 200
    num_turns: int = 4
    num_pressure_tokens: int = 96
    num_golden_tokens: int = 32
    num_alone: int = 4


@dataclass
class _Bench:
    """What was set up for the rounds."""

    profile: Profile
    pressure: Pressure
    guided: Pair
    loaded: Pair
    peft_load_ms: list[float]
    verdict: golden.Verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench-engine", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--quick", action="store_true", help="4 requests, 1 round: does it run, is it right")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    plan = _Plan(Workload(seed=given.seed), max(1, given.rounds))
    if given.quick:
        plan = _Plan(
            Workload(4, 4, seed=given.seed), 1, 24, 12, num_turns=1, num_pressure_tokens=8, num_golden_tokens=8
        )
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
        "num_registered": plan.num_registered,
        "num_loaded": plan.num_loaded,
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
    copies = rig.add_copies(keys, plan.num_registered - len(rig.packs))
    few, many = prompts[:num], prompts
    cases = (
        case_of("base", few, []),
        case_of("one_adapter", few, keys[:1]),
        case_of(f"mixed_{num // 4}", few, keys[: num // 4]),
        case_of("mixed", few, keys[:num]),
        case_of("mixed_ranks", few, mixed_keys),
        case_of(f"base_{2 * num}_requests", many, []),
        case_of(f"mixed_{2 * num}", many, keys),
    )
    profile = Profile(rig, products_of(rig, workload.seed), cases, keys[num:], workload.num_new_tokens)
    spare = [rig.packs[key] for key in keys[num:]]
    mixed_case = cases[3]
    pressure = Pressure(rig, mixed_case, spare, plan.num_pressure_tokens, _LOADS_PER_S)
    guided_case = replace(mixed_case, name="schema", schema=SCHEMA)
    many_case = replace(mixed_case, name="among_many", residents=(*keys[:num], *copies[: plan.num_loaded - num]))
    guided, loaded = (
        Pair(rig, mixed_case, other, workload.num_new_tokens, plan.num_turns) for other in (guided_case, many_case)
    )

    progress.print("gate: float32 against transformers and PEFT")
    verdict = golden.check_float32(base_folder, prompts[0], uniform[:2], plan.num_golden_tokens)
    if verdict.is_golden:
        progress.print("gate: bf16 alone against bf16 in a crowd; this warms up, too")
        runs = profile.warm_up()
        for pair in (guided, loaded):
            pair.warm_up()
        rig.make_resident(keys[:num])
        verdict = golden.check_alone(rig, few, mixed_case.keys, runs["mixed"].tokens, plan.num_alone)
    peft_ms: list[float] = []
    if verdict.is_golden:
        progress.print("loads of PEFT")
        peft_ms = peft_load_ms(base_folder, uniform[:_NUM_PEFT_LOADS])
    return _Bench(profile, pressure, guided, loaded, peft_ms, verdict)


def _measure(plan: _Plan, bench: _Bench, progress: Console) -> None:
    for number in range(plan.num_rounds):
        where = f"round {number + 1} of {plan.num_rounds}"
        bench.profile.measure(number, functools.partial(progress.print, f"{where}:"))
        progress.print(f"{where}: steps with and without loads in the background")
        bench.pressure.measure(number)
        progress.print(f"{where}: with and without a schema, with many and with few loaded")
        bench.guided.measure(number)
        bench.loaded.measure(number)


def _show(out: Console, plan: _Plan, bench: _Bench, fields: dict[str, object]) -> list[Target]:
    """Print the tables and the JSON line; returns the targets."""
    samples, num = bench.profile.samples, plan.workload.num_requests
    _compare_cases(samples, bench.guided, bench.loaded)
    samples["peft_load_ms"] = bench.peft_load_ms
    spreads = {name: spread_of(samples[name]) for name in sorted(samples, key=_place)}
    p99 = {name: float(np.quantile(steps, 0.99)) for name, steps in _pressure_steps(bench.pressure).items()}
    median = {name: spread.median for name, spread in spreads.items()}
    targets = [*targets_of(median, p99, max(_RANKS) / plan.workload.rank), _many_loaded(plan, median)]
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


def _compare_cases(samples: Samples, guided: Pair, loaded: Pair) -> None:
    """Add the ratios between cases, each within its round."""
    base, uniform = (np.array(samples[f"{name}_step_ms"]) for name in ("base", "mixed"))
    ranks = np.array(samples["mixed_ranks_step_ms"])
    # What adapters add to the base's step, not the whole step, which would hide a difference.
    samples["ranks_over_summed"] = list((ranks - base) / (uniform - base))
    few_ms, many_ms = (loaded.step_ms[case.name] for case in (loaded.plain, loaded.other))
    samples["few_loaded_step_ms"], samples["many_loaded_step_ms"] = few_ms, many_ms
    samples["many_loaded_over_few"] = list(np.array(many_ms) / few_ms)
    free, schema = (guided.tokens_per_s[case.name] for case in (guided.plain, guided.other))
    samples["free_tok_s"], samples["schema_tok_s"] = free, schema
    samples["schema_over_free"] = list(np.array(schema) / free)


def _many_loaded(plan: _Plan, median: dict[str, float]) -> Target:
    few, loaded, registered = plan.workload.num_requests, plan.num_loaded, plan.num_registered
    return Target(
        "many_loaded_over_few",
        median["many_loaded_over_few"],
        f"1: {loaded} of {registered:,} registered are loaded, against {few}; the same batch",
        least=0.95,
        most=1.05,
    )


def _notes(spreads: dict[str, Spread]) -> dict[str, str]:
    def beside(name: str, text: str) -> str:
        return f"{text} {spreads[name].median:.4g}"

    return {
        "base_tok_s": beside("base_bound_tok_s", "with nothing but its products"),
        "mixed_tok_s": beside("mixed_bound_tok_s", "with that and one read of all adapters per step"),
        "decode_step_ms": beside("decode_floor_ms", "its packed products"),
        "achieved_gflops": beside("ceiling_gflops", "the fastest product at as many rows"),
        "achieved_gb_s": beside("ceiling_gb_s", "a copy"),
        "load_ms": f"{beside('memcpy_ms', 'memcpy')}, {beside('peft_load_ms', 'load_adapter of PEFT')}",
        "many_loaded_step_ms": "copies among the registered packs share their bytes in host memory, not on the device",
        "schema_tok_s": beside("free_tok_s", "without"),
        "load_verify_ms": "SHA-256 and header, before the load",
    }


if __name__ == "__main__":
    sys.exit(main())
