"""``octavo bases``: which bases there are, what sits on them, and what must be trained again."""

from datetime import datetime
from typing import Annotated

import typer

from octavo_cli.base_client import BaseClient
from octavo_cli.options import Gateway, Key
from octavo_cli.registry_commands import console, table
from octavo_shared.messages.bases import BaseInfo, BaseState

base_app = typer.Typer(invoke_without_command=True, help="Bases, and what sits on which.")

Tenant = Annotated[str, typer.Option(help="only of this tenant (admin, auditor)")]
BaseArgument = Annotated[str, typer.Argument(help="name@digits, a name that is the only one, or a fingerprint")]


@base_app.callback()
def show(context: typer.Context, gateway: Gateway, key: Key, tenant: Tenant = "") -> None:
    """List the bases; counts are those of one's own tenant, with the admin key of all."""
    if context.invoked_subcommand is not None:
        return
    rows = table("base", "state", "adapters", "serving", "to retrain", "served", "since")
    with BaseClient(gateway, key) as client:
        for info in client.bases(tenant):
            to_retrain = 0 if info.state is BaseState.CURRENT else info.num_serving
            since = datetime.fromtimestamp(info.registered_at_ms / 1000).astimezone().isoformat(" ", "minutes")
            rows.add_row(
                info.label, _state(info), _count(info.num_adapters), _count(info.num_serving), _count(to_retrain),
                {True: "yes", False: "no", None: "?"}[info.is_served], since,
            )  # fmt: skip
    console().print(rows)


@base_app.command("outdated")
def outdated(
    gateway: Gateway,
    key: Key,
    base: Annotated[str, typer.Argument(help="only on this base; default: on all that are not current")] = "",
    tenant: Tenant = "",
) -> None:
    """List the served revisions that must be trained again, with what there is instead."""
    rows = table("revision", "owner", "aliases", "base", "state", "train for", "latest")
    with BaseClient(gateway, key) as client:
        for one in client.outdated(base, tenant):
            latest = f"{one.latest} on {one.latest_base}: promote it" if one.is_retrained else str(one.latest)
            rows.add_row(
                f"{one.adapter}@{one.number}", one.owner, ", ".join(one.aliases), one.base, one.state,
                one.successor, latest,
            )  # fmt: skip
    console().print(rows)


@base_app.command("supersede")
def supersede(
    old: BaseArgument,
    new: Annotated[str, typer.Argument(help="the base to train for instead")],
    gateway: Gateway,
    key: Key,
) -> None:
    """Say that adapters on OLD are to be trained for NEW from now on; nothing stops being served (admin)."""
    with BaseClient(gateway, key) as client:
        typer.echo(_said(client.supersede_base(old, new)))


@base_app.command("retire")
def retire(base: BaseArgument, gateway: Gateway, key: Key) -> None:
    """Let nothing new be put on a base: no push, no branch, no alias (admin)."""
    with BaseClient(gateway, key) as client:
        typer.echo(_said(client.retire_base(base)))


@base_app.command("restore")
def restore(base: BaseArgument, gateway: Gateway, key: Key) -> None:
    """Make a base current again (admin)."""
    with BaseClient(gateway, key) as client:
        typer.echo(_said(client.restore_base(base)))


def _said(info: BaseInfo) -> str:
    return f"{info.label} is {_state(info)}"


def _state(info: BaseInfo) -> str:
    return f"{info.state} by {info.successor}" if info.state is BaseState.SUPERSEDED else str(info.state)


def _count(num: int | None) -> str:
    return "?" if num is None else str(num)
