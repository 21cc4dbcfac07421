"""What the demo shows: steps with their checks, progress bars, answers side by side."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from octavo_cli.answers import Answer

_COLUMN_WIDTH = 44


class CheckFailed(Exception):
    """Something that the demo promises did not hold."""


class Screen:
    """Prints for people; a log without a terminal gets plain lines."""

    def __init__(self) -> None:
        self.console = Console()
        self._checks: list[tuple[str, str]] = []
        self._step = ""
        self._began = time.monotonic()

    def step(self, number: int, title: str) -> None:
        self._step = f"{number}. {title}"
        self.console.print(f"\n[bold]{self._step}[/bold]")

    def say(self, line: str) -> None:
        # Digests and folders are copied from here: long lines wrap in the terminal, never by a line end of ours.
        self.console.print(f"   {line}", highlight=False, markup=False, soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        self.console.print(what)

    def check(self, holds: bool, claim: str) -> None:
        """Record that ``claim`` holds; raises ``CheckFailed`` when it does not."""
        if not holds:
            self.console.print(f"   [red]✗ {claim}[/red]")
            raise CheckFailed(f"step {self._step}: expected: {claim}")
        self._checks.append((self._step, claim))
        self.console.print(f"   [green]✓[/green] {claim}", highlight=False)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Yield a progress display for bars."""
        columns = (TextColumn("   {task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            yield progress

    @contextmanager
    def side_by_side(self, texts: Mapping[str, list[str]]) -> Iterator[None]:
        """Show growing texts in columns while the block runs, and as they ended afterwards."""

        def columns() -> Columns:
            return Columns([Panel("".join(text), title=name, width=_COLUMN_WIDTH) for name, text in texts.items()])

        if not self.console.is_terminal:
            yield
            self.console.print(columns())
            return
        with Live(get_renderable=columns, console=self.console, refresh_per_second=12):
            yield

    def answers(self, answers: Mapping[str, Answer]) -> None:
        """Show where each answer came from and how fast."""
        table = Table("model", "revision", "digest", "tier", "TTFT", "tokens/s")
        for name, answer in answers.items():
            table.add_row(
                name,
                str(answer.revision or "-"),
                (answer.digest or "-").removeprefix("sha256:")[:12],
                answer.tier,
                f"{answer.ttft_ms:.0f} ms",
                f"{answer.tokens_per_s:.1f}",
            )
        self.console.print(table)

    def summary(self) -> None:
        """Show all that was checked."""
        table = Table("step", "held", title=f"all checks held, {time.monotonic() - self._began:.0f} s")
        last = ""
        for step, claim in self._checks:
            if step != last:
                table.add_section()
            table.add_row(step if step != last else "", claim)
            last = step
        self.console.print(table)
