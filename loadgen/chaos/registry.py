"""``make chaos-registry``: writes to a replicated registry while its parts are killed, and checks every answer.

Three clustered nats-servers (R3, ``sync_interval: always``), two identity replicas and an object store, all real, on
loopback; 8 writers; faults of one part or of several at once. Then the history of all calls is held against the ledger
that is left (``chaos/checker.py``), the ledger against its signed roots and each server's copy, and every pack against
its digest. A missed target makes the command fail; the last line on stdout is JSON.
"""

import argparse
import asyncio
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

from rich.console import Console

from bench import report
from bench.cli_numbers import positive
from bench.stoppable import STOPPED, run_stoppable
from chaos.checker import check
from chaos.faults import DECK, FaultKind, Pace, Together
from chaos.recovery import recoveries
from chaos.run import Plan, run
from chaos.summary import Summary
from octavo_shared.telemetry import start_telemetry

STALE_MAX_S = 12.0
"""How long an isolated leader of nats-server may believe that it still leads: it looks every 10 s whether it hears from
a majority, and an answer may be on its way for a while."""
_SHORT = ((FaultKind.LEADER_CHANGED,), (FaultKind.NATS_PARTITIONED, FaultKind.IDENTITY_KILLED))
_SHORT_PACE = Pace(held_s=(0.5, 1.0), store_held_s=(0.1, 0.2), calm_s=(0.3, 0.6))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    plan = _plan(options)
    out, progress = report.console(), Console(stderr=True, markup=False, emoji=False, highlight=False)
    provider = start_telemetry("chaos", "error")
    folder = Path(tempfile.mkdtemp(prefix="octavo-chaos-"))
    try:
        result = run_stoppable(run(plan, folder, progress.print))
    except asyncio.CancelledError:
        progress.print("stopped; nothing runs any more")
        return STOPPED
    finally:
        if options.keep:
            progress.print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        if provider is not None:
            provider.shutdown()
    verdict = check(result.history, STALE_MAX_S)
    summary = Summary(plan, result, verdict, recoveries(result.faults, result.record.acknowledged))
    summary.print(out)
    return 0 if all(target.is_ok for target in summary.targets) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos.registry", description="Faults under a registry in use.")
    parser.add_argument("--operations", type=positive, default=50_000, help="to be acknowledged (default: %(default)s)")
    parser.add_argument("--faults", type=positive, default=32, help="at least (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)), help="(default: a fresh one)")
    parser.add_argument("--short", action="store_true", help="some hundred operations, three quick faults")
    parser.add_argument("--keep", action="store_true", help="leave the run's folder with all data and logs")
    return parser.parse_args(arguments)


def _plan(options: argparse.Namespace) -> Plan:
    if options.short:
        return Plan(options.seed, 400, _SHORT, num_adapters=20, pace=_SHORT_PACE, limit_s=60.0)
    random = Random(f"{options.seed} deck")
    rounds = itertools.chain.from_iterable(random.sample(DECK, len(DECK)) for _ in itertools.count())
    chosen: list[Together] = []
    while sum(map(len, chosen)) < options.faults:
        chosen.append(next(rounds))
    return Plan(options.seed, options.operations, chosen)


if __name__ == "__main__":
    sys.exit(main())
