"""What a run leaves behind: a table for people, then one JSON line."""

import os
import platform
from importlib.metadata import version

import msgspec
from rich.console import Console
from rich.table import Table

from octavo_loadgen.metrics import Quantiles, Summary
from octavo_loadgen.scenario import Objectives, Scenario


class Report(msgspec.Struct, frozen=True):
    """The JSON line. ``is_ok``: the run was whole, measured something and kept the scenario's two shares."""

    scenario: str
    scenario_sha256: str
    seed: int
    transport: str
    popularity: str
    rate_per_s: float
    num_adapters: int
    is_ok: bool
    is_interrupted: bool
    summary: Summary
    objectives: Objectives
    octavo_version: str
    python_version: str
    machine: str
    num_cores: int


def report_of(scenario: Scenario, sha256: str, num_adapters: int, summary: Summary, *, is_interrupted: bool) -> Report:
    """Return the report of one run on this machine."""
    objectives = scenario.objectives
    is_ok = (
        not is_interrupted
        and summary.num_requests > 0
        and summary.errors_share <= objectives.errors_share_max
        and summary.goodput_share >= objectives.goodput_share_min
    )
    return Report(
        scenario=scenario.name,
        scenario_sha256=sha256,
        seed=scenario.seed,
        transport=scenario.transport,
        popularity=scenario.popularity.kind,
        rate_per_s=scenario.load.rate_per_s,
        num_adapters=num_adapters,
        is_ok=is_ok,
        is_interrupted=is_interrupted,
        summary=summary,
        objectives=objectives,
        octavo_version=version("octavo"),
        python_version=platform.python_version(),
        machine=platform.machine(),
        num_cores=os.cpu_count() or 0,
    )


def json_line(report: Report) -> str:
    """Return ``report`` as one line of JSON, without the line's end."""
    return msgspec.json.encode(report).decode()


def print_tables(console: Console, report: Report) -> None:
    """Print the latencies and the counts. Error codes come from a server: the console must not read markup."""
    summary = report.summary
    latencies = Table(title=f"{report.scenario}: milliseconds from the scheduled arrival", title_justify="left")
    latencies.add_column("")
    for name in ("p50", "p95", "p99", "max", "num"):
        latencies.add_column(name, justify="right")
    rows = (
        ("TTFT", summary.ttft_ms),
        ("TTFT without cold starts", summary.ttft_without_cold_ms),
        ("cold-start TTFT", summary.cold_start_ttft_ms),
        ("TPOT", summary.tpot_ms),
        ("ITL (num: gaps)", summary.itl_ms),
        ("end to end", summary.end_to_end_ms),
        ("client's send lag", summary.send_lag_ms),
    )
    for name, quantiles in rows:
        latencies.add_row(name, *_cells(quantiles))
    console.print(latencies)

    counts = Table(show_header=False)
    counts.add_row("arrivals", f"{summary.num_requests} in {summary.measured_s:.1f} s")
    counts.add_row("throughput", f"{summary.requests_per_s:.2f} requests/s, {summary.tokens_per_s:.1f} tokens/s")
    counts.add_row("goodput", f"{summary.goodput_per_s:.2f} requests/s, {summary.goodput_share:.1%} of arrivals")
    counts.add_row("tiers", _listed(summary.tiers))
    counts.add_row("errors", _listed(summary.errors))
    counts.add_row("verdict", _verdict(report))
    console.print(counts)


def _cells(quantiles: Quantiles) -> list[str]:
    values = (quantiles.p50, quantiles.p95, quantiles.p99, quantiles.max)
    return [*("-" if value is None else f"{value:.1f}" for value in values), str(quantiles.num)]


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {num}" for name, num in counts.items()) or "none"


def _verdict(report: Report) -> str:
    if report.is_interrupted:
        return "interrupted"
    if not report.summary.num_requests:
        return "nothing was measured"
    return "ok" if report.is_ok else "too many errors or too little goodput"
