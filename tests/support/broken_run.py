"""A pytest plugin for runs that break themselves: one cause less, and what had failed and what broke it as last lines.

pytest prints no summary then, and of a long log often only the end is kept.
"""

import gc
from collections.abc import Generator

import pytest

_LINE_LENGTH_MAX = 120
_LINES_MAX = 25
_REASON_LINES = 4
_FAILED = pytest.StashKey[list[str]]()
_BROKEN = pytest.StashKey[list[str]]()


class _Watch:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message if crash is not None else report.longreprtext
            self._config.stash[_FAILED].append(f"{report.nodeid.rpartition('/')[2]}: {' '.join(reason.split())}")

    def pytest_internalerror(self, excrepr: object) -> None:
        told = [line for line in str(excrepr).splitlines() if line.strip()]
        self._config.stash[_BROKEN].extend(told[-_REASON_LINES:])


def pytest_configure(config: pytest.Config) -> None:
    # A process of pytest-xdist reports to the one that started it, which knows of all.
    if not hasattr(config, "workerinput"):
        config.stash[_FAILED], config.stash[_BROKEN] = [], []
        config.pluginmanager.register(_Watch(config))


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.stash.get(_BROKEN, []):
        for line in (*config.stash[_FAILED][-_LINES_MAX:], *config.stash[_BROKEN]):
            print(line[:_LINE_LENGTH_MAX])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let nothing be collected while a failure is told.

    Telling it parses the source. A task that is collected meanwhile, and whose exception nobody asked for, is told of
    with a traceback, which parses, too; Python 3.11 then takes the one for a fault in the other
    (python/cpython#106905).
    """
    if call.excinfo is None:
        return (yield)
    gc.collect()
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
