"""``octavo demo``: the ten steps in order, and an end that leaves nothing behind."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import psutil

from octavo_cli.answers import ClientError
from octavo_cli.demo.receiver import TraceReceiver
from octavo_cli.demo.screen import CheckFailed, Screen
from octavo_cli.demo.steps import DemoSteps
from octavo_cli.local_base import prepared_base
from octavo_cli.processes import StartFailed
from octavo_cli.stopping import until_told
from octavo_cli.supervisor import FleetPlan, LocalFleet

_INTERRUPTED = 130


def run_demo() -> int:
    """Run the demo; returns 0 only if every check held, 130 when it was interrupted."""
    screen = Screen()
    folder = Path(tempfile.mkdtemp(prefix="octavo-demo-"))
    try:
        asyncio.run(until_told(_run(screen, folder)))
        screen.step(10, "everything is stopped")
        left = psutil.Process().children(recursive=True)
        screen.check(not left, "no process is left behind")
    except (CheckFailed, StartFailed, ClientError, RuntimeError) as failure:
        screen.console.print(f"\n[red]the demo failed:[/red] {failure}\nlogs are in {folder}", highlight=False)
        return 1
    except asyncio.CancelledError:
        screen.console.print("\ninterrupted; everything is stopped")
        shutil.rmtree(folder, ignore_errors=True)
        return _INTERRUPTED
    shutil.rmtree(folder, ignore_errors=True)
    screen.summary()
    return 0


async def _run(screen: Screen, folder: Path) -> None:
    screen.step(1, "starting NATS, S3, identity, residency manager, worker and gateway")
    base_dir = await prepared_base(screen.say)
    receiver = TraceReceiver()
    plan = FleetPlan(folder, base_dir, environ={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint})
    async with receiver.serving(), LocalFleet(plan, screen.say) as fleet:
        names = ["gateway", "identity", "residency", "worker-1"]
        is_running = all(fleet.processes[name].is_running for name in names)
        screen.check(is_running, "four services run as processes of their own, each found ready by its probe")
        demo = DemoSteps(screen, fleet, receiver, base_dir)
        await demo.run()
