"""How the command line is told where the gateway is and who asks."""

from dataclasses import dataclass
from typing import Annotated

import typer

Gateway = Annotated[
    str,
    typer.Option(
        "--gateway",
        envvar="OCTAVO_GATEWAY_URL",
        help="default: http://127.0.0.1:8080",
        show_default=False,
        default_factory=lambda: "http://127.0.0.1:8080",
    ),
]
Key = Annotated[
    str, typer.Option("--key", envvar="OCTAVO_KEY", help="an API key", show_default=False, default_factory=str)
]
Adapter = Annotated[str, typer.Argument(help="tenant/adapter")]
ReferenceArgument = Annotated[str, typer.Argument(help="tenant/adapter, …@12, …@sha256:… or …:alias")]


@dataclass(frozen=True)
class Target:
    """A gateway's URL and the key to use there."""

    gateway: str
    key: str
