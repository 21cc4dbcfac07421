"""``octavo transfer``: give an adapter to another owner."""

from typing import Annotated

import typer

from octavo_cli.client import Client
from octavo_cli.options import Adapter, Gateway, Key


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
