"""``octavo signer``: the keys that statements are signed with. The private ones never leave their files."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from octavo_cli.options import Gateway, Key
from octavo_cli.provenance_client import ProvenanceClient
from octavo_cli.registry_commands import console, table
from octavo_cli.signing_key import VARIABLE, make_key, read_public_key
from octavo_shared.messages.signers import SignerInfo

signer_app = typer.Typer(no_args_is_help=True, help="Keys that provenance and evaluations are signed with.")

Principal = Annotated[str, typer.Option(help="user@tenant, as an admin; default: oneself")]


@signer_app.command("new")
def new(file: Annotated[Path, typer.Argument(help="file to write the private key to", dir_okay=False)]) -> None:
    """Make a signing key (Ed25519) in a file that only you can read; print its public key."""
    public_key = make_key(file).public_key
    typer.echo(public_key.pem, nl=False)
    typer.echo(f"key {public_key.key_id}: `octavo signer add {file}`, then push with --signing-key or {VARIABLE}",
               err=True)  # fmt: skip


@signer_app.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="the key's file, or its public key in PEM form", exists=True,
                                         dir_okay=False)],
    gateway: Gateway,
    key: Key,
) -> None:  # fmt: skip
    """Register a signing key as yours, for good; only its public key is sent."""
    with ProvenanceClient(gateway, key) as client:
        made = client.add_signer(read_public_key(file).pem)
    typer.echo(f"{made.key_id} signs for {made.principal}")


@signer_app.command("list")
def list_signers(gateway: Gateway, key: Key, principal: Principal = "") -> None:
    """List signing keys, the oldest first."""
    shown = table("key", "principal", "registered", "revoked")
    with ProvenanceClient(gateway, key) as client:
        for one in client.signers(principal):
            shown.add_row(one.key_id, one.principal, _date(one.registered_at_ms), _revoked(one))
    console().print(shown)


@signer_app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="as `octavo signer list` shows it")],
    gateway: Gateway,
    key: Key,
    principal: Principal = "",
) -> None:
    """End a signing key, for ever; what it signed before stays good."""
    with ProvenanceClient(gateway, key) as client:
        ended = client.revoke_signer(key_id, principal)
    typer.echo(f"{ended.key_id} signs no more for {ended.principal}")


def _revoked(one: SignerInfo) -> str:
    return "" if one.revoked_at_ms is None else _date(one.revoked_at_ms)


def _date(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(" ", "seconds")
