"""One fleet for all system tests: real servers, the real base, every service a process of its own."""

import asyncio
from collections.abc import AsyncIterator, Generator

import httpx
import psutil
import pytest
import pytest_asyncio

from octavo_cli.supervisor import FleetPlan, LocalFleet
from octavo_worker.prepare_base import default_folder, prepare_base
from support.live import Live, make_person

_PEOPLE = {"alice": 11, "bob": 22}
"""Name and the seed of the person's adapter."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure how the fleet's processes are, and what those that have ended said last."""
    report = yield
    if report.failed and isinstance(live := item.funcargs.get("live"), Live):
        for name, process in live.fleet.processes.items():
            report.sections.append((f"{name}, {process.state}", "" if process.is_running else process.log_tail()))
    return report


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """A fleet with one worker and two people. Tests that break it bring it back themselves."""
    base_dir = await asyncio.to_thread(prepare_base, default_folder())
    folder = tmp_path_factory.mktemp("fleet")
    fleet = LocalFleet(FleetPlan(folder / "data", base_dir))
    # Other fixtures of the session keep servers of their own, which are still to run when this fleet has ended.
    others = set(psutil.Process().children(recursive=True))
    async with fleet:
        children = set(psutil.Process().children(recursive=True)) - others
        people = {
            name: await asyncio.to_thread(make_person, fleet, name, folder / name, seed)
            for name, seed in _PEOPLE.items()
        }
        timeout = httpx.Timeout(120.0, connect=5.0)
        async with httpx.AsyncClient(base_url=fleet.gateway_url, timeout=timeout, trust_env=False) as http:
            whole = Live(fleet, http, people, base="", base_name="")
            worker = (await whole.view()).workers[0]
            whole.base, whole.base_name = worker.base, worker.base_name
            yield whole
    assert not [child for child in children if child.is_running()], "the fleet left a process behind"
