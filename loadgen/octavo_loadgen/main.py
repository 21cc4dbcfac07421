"""``octavo-loadgen run SCENARIO.toml``: sends the scenario's load, then prints tables and one JSON line.

Exit codes: 0 the run kept the scenario's objectives, 1 it did not, 2 it could not begin, 130 it was interrupted.
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from octavo_loadgen.client import open_client
from octavo_loadgen.driver import Progress, Run, drive
from octavo_loadgen.metrics import summary_of
from octavo_loadgen.report import json_line, print_tables, report_of
from octavo_loadgen.scenario import Scenario, read_scenario, with_addresses
from octavo_loadgen.workload import Target, arrivals_of, targets_of
from octavo_shared.config import ConfigError
from octavo_shared.errors import DependencyUnavailable, InvalidRequest
from octavo_shared.telemetry import start_telemetry

_OK, _MISSED, _REFUSED, _INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(_run(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="octavo-loadgen", description="Open-loop load for Octavo.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run one scenario; the last line on stdout is JSON")
    run.add_argument("scenario", type=Path, metavar="SCENARIO.toml")
    run.add_argument("--gateway-url", default="", help="instead of the scenario's or OCTAVO_GATEWAY_URL")
    run.add_argument("--nats-url", default="", help="instead of the scenario's or OCTAVO_NATS_URL")
    run.add_argument("--seed", type=int, default=None, help="instead of the scenario's")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    # Warnings of the bus go to stderr as logs; stdout holds the tables and the JSON line.
    provider = start_telemetry("loadgen", "warning")
    try:
        scenario = with_addresses(read_scenario(options.scenario), os.environ, options.gateway_url, options.nats_url)
        if options.seed is not None:
            scenario = msgspec.structs.replace(scenario, seed=options.seed)
        targets = targets_of(scenario.adapters, os.environ)
        sha256 = hashlib.sha256(options.scenario.read_bytes()).hexdigest()
        run = asyncio.run(_drive(scenario, targets))
    except (InvalidRequest, DependencyUnavailable) as error:
        print(f"octavo-loadgen: {error.message}", file=sys.stderr)
        return _REFUSED
    except ConfigError as error:
        print(f"octavo-loadgen: {error}", file=sys.stderr)
        return _REFUSED
    finally:
        if provider is not None:
            provider.shutdown()
    summary = summary_of(run.timelines, run.ended_ms - run.began_ms, scenario.objectives)
    report = report_of(scenario, sha256, len(targets), summary, is_interrupted=run.is_interrupted)
    print_tables(Console(markup=False, emoji=False, highlight=False), report)
    print(json_line(report), flush=True)
    if run.is_interrupted:
        return _INTERRUPTED
    return _OK if report.is_ok else _MISSED


async def _drive(scenario: Scenario, targets: Sequence[Target]) -> Run:
    stop = asyncio.Event()
    for kind in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(kind, stop.set)
    async with open_client(scenario) as client:
        with _shown(scenario.load.duration_s) as show:
            return await drive(arrivals_of(scenario, targets), client, scenario.load, stop, show)


@contextlib.contextmanager
def _shown(duration_s: float) -> Iterator[Callable[[Progress], None]]:
    """Yield what draws the progress on stderr, where it is a terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("waiting for the first arrival", total=duration_s)

        def show(progress: Progress) -> None:
            text = f"{progress.num_arrived} arrived, {progress.num_in_flight} in flight"
            bar.update(task, completed=progress.elapsed_s, description=text)

        yield show


if __name__ == "__main__":
    main()
