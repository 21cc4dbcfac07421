"""The commands that tell what was used, and how much may be."""

from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from octavo_cli.answers import ClientError
from octavo_cli.options import Gateway, Key
from octavo_cli.usage_client import UsageClient
from octavo_shared.messages.usage import KEPT_DAYS, DayUsage, Quota, Quotas, Usage

_PIPED_WIDTH = 1_000
Limit = Annotated[str | None, typer.Option(help="a number, or 'none'", show_default=False)]


def usage(
    gateway: Gateway,
    key: Key,
    adapter: Annotated[str | None, typer.Argument(help="tenant/adapter; default: all of a tenant")] = None,
    tenant: Annotated[str, typer.Option(help="default: the one of the key")] = "",
    days: Annotated[int, typer.Option(min=1, max=KEPT_DAYS, help="how many, today included, in UTC")] = 30,
    is_json: Annotated[bool, typer.Option("--json", help="as the gateway tells it")] = False,
) -> None:
    """Show requests, tokens and pushes of each day, and what is stored."""
    if adapter is not None and tenant:
        raise ClientError("usage", "name an adapter or a tenant", 0)
    with UsageClient(gateway, key) as client:
        told = client.usage(adapter or tenant, days)
    if is_json:
        typer.echo(msgspec.json.encode(told).decode())
        return
    _show(told)


def quota(
    tenant: Annotated[str, typer.Argument(help="whose limits")],
    gateway: Gateway,
    key: Key,
    tokens_per_day: Limit = None,
    pushes_per_day: Limit = None,
    storage_bytes: Limit = None,
    adapters: Limit = None,
) -> None:
    """Limit what a tenant may use (admin); without options, show its limits and what is used of them."""
    options = {
        Quota.TOKENS_PER_DAY: tokens_per_day,
        Quota.PUSHES_PER_DAY: pushes_per_day,
        Quota.STORAGE_BYTES: storage_bytes,
        Quota.ADAPTERS: adapters,
    }
    limits: dict[str, object] = {name: _limit(name, text) for name, text in options.items() if text is not None}
    with UsageClient(gateway, key) as client:
        if limits:
            client.set_quotas(tenant, limits)
        told = client.usage(tenant, 1)
    _show_quotas(told)


def _limit(name: Quota, text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal():
        raise ClientError("usage", f"--{name.replace('_', '-')} must be a number or 'none'", 0)
    return int(text)


def _show_quotas(told: Usage) -> None:
    today = told.days[0] if told.days else DayUsage("", 0, 0, 0, 0)
    used = {
        Quota.TOKENS_PER_DAY: today.num_prompt_tokens + today.num_completion_tokens,
        Quota.PUSHES_PER_DAY: today.num_pushes,
        Quota.STORAGE_BYTES: told.pack_bytes,
        Quota.ADAPTERS: told.num_adapters,
    }
    quotas = told.quotas or Quotas()
    for name, num_used in used.items():
        limit = getattr(quotas, name)
        typer.echo(f"{name}: {num_used:,} of {'any number' if limit is None else f'{limit:,}'}")


def _show(told: Usage) -> None:
    table = Table(box=None, header_style="bold", title_justify="left")
    for column in ("day (UTC)", "requests", "prompt tokens", "completion tokens", "pushes"):
        table.add_column(column, justify="left" if column.startswith("day") else "right")
    for day in told.days:
        table.add_row(day.day, *_numbers(day))
    if len(told.days) > 1:
        table.add_row("all", *_numbers(_sum(told.days)))
    console = Console()
    (console if console.is_terminal else Console(width=_PIPED_WIDTH)).print(table)
    adapters = "" if "/" in told.target else f"{told.num_adapters:,} adapters, "
    typer.echo(f"{told.target}: {adapters}{told.pack_bytes:,} bytes of packs")


def _sum(days: tuple[DayUsage, ...]) -> DayUsage:
    return DayUsage(
        "",
        sum(day.num_requests for day in days),
        sum(day.num_prompt_tokens for day in days),
        sum(day.num_completion_tokens for day in days),
        sum(day.num_pushes for day in days),
    )


def _numbers(day: DayUsage) -> list[str]:
    numbers = (day.num_requests, day.num_prompt_tokens, day.num_completion_tokens, day.num_pushes)
    return [f"{number:,}" for number in numbers]
