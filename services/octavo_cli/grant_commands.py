"""The commands that say who may do what with an adapter, and whose it is."""

from typing import Annotated

import typer

from octavo_cli.client import Client
from octavo_cli.options import Adapter, Gateway, Key
from octavo_cli.registry_commands import granted_to
from octavo_shared.messages.grants import GrantRole

Principal = Annotated[str, typer.Argument(help="user@tenant, or *@tenant")]


def grant(
    adapter: Adapter,
    principal: Principal,
    gateway: Gateway,
    key: Key,
    role: Annotated[GrantRole, typer.Option(help="user uses it, editor also changes it, auditor only looks")] = (
        GrantRole.USER
    ),
) -> None:
    """Let somebody have a role on an adapter, instead of any other that they had."""
    with Client(gateway, key) as client:
        info = client.grant(adapter, principal, role)
    typer.echo(f"{info.name} is granted to {granted_to(info)}")


def revoke(adapter: Adapter, principal: Principal, gateway: Gateway, key: Key) -> None:
    """Take somebody's role back."""
    with Client(gateway, key) as client:
        info = client.revoke(adapter, principal)
    typer.echo(f"{info.name} is granted to {granted_to(info) or 'nobody else'}")


def transfer(
    adapter: Adapter,
    owner: Annotated[str, typer.Argument(help="the new one: user@tenant, or user of the adapter's own tenant")],
    gateway: Gateway,
    key: Key,
) -> None:
    """Give an adapter to somebody else of its tenant; what is not granted to its old owner is lost to them."""
    tenant = adapter.partition("/")[0]
    with Client(gateway, key) as client:
        info = client.transfer(adapter, owner if "@" in owner else f"{owner}@{tenant}")
    typer.echo(f"{info.name} belongs to {info.owner}")
