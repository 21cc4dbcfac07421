"""The commands that say which revisions of an adapter are served, and under which tags it is found."""

from typing import Annotated

import typer

from octavo_cli.answers import ClientError
from octavo_cli.client import Client
from octavo_cli.evaluation_client import EvaluationClient
from octavo_cli.options import Adapter, Gateway, Key, ReferenceArgument
from octavo_cli.registry_commands import aliases_of, warn
from octavo_cli.signed_push import check_registered, sign_branch
from octavo_cli.signing_key import SigningKey, read_key


def promote(
    reference: ReferenceArgument,
    gateway: Gateway,
    key: Key,
    alias: Annotated[str, typer.Option(help="serving, stable, canary or a name of your own")] = "serving",
    share: Annotated[int | None, typer.Option(min=0, max=100, help="percent of principals for the canary")] = None,
    expect: Annotated[int | None, typer.Option(min=0, help="only if the alias names this revision; 0: none")] = None,
) -> None:
    """Let an alias name a revision; the next request gets it."""
    with Client(gateway, key) as client:
        info = client.promote(reference, alias, share, expect)
    typer.echo(f"{info.name}: {aliases_of(info)}")
    warn(info)


def rollback(
    adapter: Adapter,
    gateway: Gateway,
    key: Key,
    revision: Annotated[int | None, typer.Option(min=1, help="default: what the alias named before")] = None,
    alias: str = "serving",
) -> None:
    """Move an alias back to an earlier revision."""
    with Client(gateway, key) as client:
        info = client.rollback(adapter, revision, alias)
    typer.echo(f"{info.name}:{alias} is revision {info.aliases[alias]}")
    warn(info)


def unalias(adapter: Adapter, alias: str, gateway: Gateway, key: Key) -> None:
    """Remove an alias; its revision stays."""
    with Client(gateway, key) as client:
        info = client.unalias(adapter, alias)
    typer.echo(f"{info.name}: {aliases_of(info)}")


def retire(revision: Annotated[str, typer.Argument(help="tenant/adapter@12")], gateway: Gateway, key: Key) -> None:
    """Never serve a revision again; there is no way back."""
    with Client(gateway, key) as client:
        client.retire(revision)
    typer.echo(f"{revision} is retired")


def branch(
    source: ReferenceArgument,
    adapter: Annotated[str, typer.Argument(help="the new one, tenant/adapter")],
    gateway: Gateway,
    key: Key,
    no_serve: Annotated[bool, typer.Option("--no-serve", help="leave it a draft: no alias moves")] = False,
    signing_key: SigningKey = None,
) -> None:
    """Make a new adapter from a revision of one that this key may use."""
    signer = read_key(signing_key) if signing_key is not None else None
    with EvaluationClient(gateway, key) as client:
        statement = None
        if signer is not None:
            check_registered(client, signer)
            view = client.evaluations(source)
            # Pinned: what is signed is what is branched, also when another revision is served a moment later.
            source = f"{view.name}@{view.revision.number}"
            statement = sign_branch(view.revision, adapter, client.whoami().principal, signer)
        info = client.branch(source, adapter, None if no_serve else "serving", statement)
    typer.echo(f"{info.name}@{info.latest.number}  {info.latest.digest}")
    warn(info)


def tag(
    adapter: Adapter,
    changes: Annotated[list[str], typer.Argument(help="+work adds a tag, -draft removes one")],
    gateway: Gateway,
    key: Key,
) -> None:
    """Add and remove an adapter's tags."""
    if wrong := [change for change in changes if change[:1] not in ("+", "-")]:
        raise ClientError("bad_tag", f"'{wrong[0]}' must begin with + or -", 0)
    add, remove = ([change[1:] for change in changes if change[0] == sign] for sign in "+-")
    with Client(gateway, key) as client:
        info = client.tag(adapter, add, remove)
    typer.echo(f"{info.name}: {', '.join(info.tags) or 'no tags'}")
