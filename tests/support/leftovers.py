"""What a command that starts servers may leave behind when it has ended: nothing."""

import os
from pathlib import Path

import psutil


def environment(folder: Path) -> dict[str, str]:
    """Return this environment without settings, with ``folder`` for temporary files."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
    return inherited | {"TMPDIR": str(folder)}


def check_nothing_is_left(folder: Path) -> None:
    """Fail when a folder of a command that ran with ``environment(folder)`` is there, or a process that knows it."""
    assert list(folder.glob("octavo-*")) == []
    for process in psutil.process_iter(["cmdline", "environ"]):
        told = [*(process.info["cmdline"] or []), *(process.info["environ"] or {}).values()]
        assert not [text for text in told if f"{folder}/octavo-" in text], process.info["cmdline"]
