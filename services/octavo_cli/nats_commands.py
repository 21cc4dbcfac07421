"""``octavo nats``: who may connect to the NATS of a deployment, and what each may do there."""

from pathlib import Path
from typing import Annotated

import typer

from octavo_cli.nats_users import Seeds, authorization, deployed_workers, nkey_variable, nkey_variables

Workers = Annotated[int, typer.Option(min=0, max=10_000, help="how many: octavo-worker-0 and so on, each with a key")]

nats_app = typer.Typer(no_args_is_help=True, help="Who may do what on the NATS of a deployment.")


@nats_app.command("config")
def config(workers: Workers = 1) -> None:
    """Print the authorization block of nats-server's configuration; the server's environment holds the nkeys."""
    typer.echo(authorization(nkey_variables(deployed_workers(workers))), nl=False)


@nats_app.command("keys")
def keys(
    folder: Annotated[Path, typer.Argument(help="where the seeds are kept", file_okay=False)], workers: Workers = 1
) -> None:
    """Make the nkey seeds that are not there yet, and print the nkeys as nats-server's environment."""
    for user, nkey in Seeds(folder).nkeys(deployed_workers(workers)).items():
        typer.echo(f"{nkey_variable(user)}={nkey}")
