"""The end of a benchmark: tables for people, every target beside its floor, and one JSON line."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

_PIPED_WIDTH = 160
_BUSY_LOAD = 0.5


@dataclass(frozen=True)
class Spread:
    """The middle of a measurement's values, and where a fifth of them lies below and above."""

    p20: float
    median: float
    p80: float


def spread_of(values: Sequence[float]) -> Spread:
    """Return the spread of one value per round."""
    p20, median, p80 = (float(q) for q in np.quantile(values, (0.2, 0.5, 0.8)))
    return Spread(p20, median, p80)


@dataclass(frozen=True)
class Target:
    """What a value must be; ``least`` and ``most`` are the bounds. ``floor`` says what the machine itself allows."""

    name: str
    value: float
    floor: str
    least: float | None = None
    most: float | None = None

    @property
    def is_ok(self) -> bool:
        """Whether the value lies within the bounds; one that is not a number does not."""
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def bound(self) -> str:
        """The bounds as text."""
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"


def console() -> Console:
    """Return where tables go. In a pipe they keep their width, so that no number is folded."""
    found = Console(markup=False, emoji=False, highlight=False)
    if found.is_terminal:
        return found
    return Console(markup=False, emoji=False, highlight=False, width=_PIPED_WIDTH)


def print_spreads(out: Console, title: str, spreads: Mapping[str, Spread], notes: Mapping[str, str]) -> None:
    """Print one row per measurement."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("median", "p20", "p80"):
        table.add_column(name, justify="right")
    table.add_column("beside")
    for name, spread in spreads.items():
        cells = (f"{value:.4g}" for value in (spread.median, spread.p20, spread.p80))
        table.add_row(name, *cells, notes.get(name, ""))
    out.print(table)


def print_rows(out: Console, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column names the rows."""
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def print_targets(out: Console, targets: Sequence[Target]) -> None:
    """Print one row per target."""
    table = Table(title="targets", title_justify="left")
    for name in ("", "value", "target", "floor", "verdict"):
        table.add_column(name, justify="right" if name == "value" else "left")
    for target in targets:
        table.add_row(
            target.name, f"{target.value:.3g}", target.bound, target.floor, "ok" if target.is_ok else "MISSED"
        )
    out.print(table)


def targets_json(targets: Sequence[Target]) -> dict[str, object]:
    """Return the targets as the JSON line shows them."""
    return {
        target.name: {
            "value": _rounded(target.value),
            "target": target.bound,
            "ok": target.is_ok,
            "floor": target.floor,
        }
        for target in targets
    }


def spreads_json(spreads: Mapping[str, Spread]) -> dict[str, object]:
    """Return medians under their names, and all spreads under ``spread`` as [p20, median, p80]."""
    return {
        **{name: _rounded(spread.median) for name, spread in spreads.items()},
        "spread": {
            name: [_rounded(value) for value in (spread.p20, spread.median, spread.p80)]
            for name, spread in spreads.items()
        },
    }


def machine_json(packages: Sequence[str]) -> dict[str, object]:
    """Return where and with what a run was made. ``load_average`` above a half at its start makes it suspect."""
    return {
        "commit": _commit(),
        "device": f"{_cpu_model()}, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def warn_if_busy(out: Console) -> None:
    """Say so when something else runs on this machine."""
    if (load := os.getloadavg()[0]) > _BUSY_LOAD:
        out.print(f"This machine was busy before the start (load average {load:.1f}): do not quote what follows.")


def json_line(fields: Mapping[str, object]) -> str:
    """Return ``fields`` as one line of JSON."""
    return json.dumps(fields, ensure_ascii=False, allow_nan=False)


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """Return the commit that is checked out, marked when files differ from it; empty outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
