"""``octavo``: the command line. A client of the gateway like any other, and the way to run it all on one machine."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from octavo_cli import (
    audit_command,
    base_commands,
    erasure_commands,
    evaluation_commands,
    grant_commands,
    import_commands,
    key_commands,
    nats_commands,
    provenance_commands,
    registry_commands,
    revision_commands,
    usage_commands,
)
from octavo_cli.answers import Answer, ClientError
from octavo_cli.client import Client
from octavo_cli.local_commands import demo_here, up_here
from octavo_cli.options import Adapter, Gateway, Key, ReferenceArgument, Target
from octavo_cli.processes import StartFailed
from octavo_cli.registry_commands import Wanted
from octavo_cli.signed_push import signing_of
from octavo_cli.signer_commands import signer_app
from octavo_cli.signing_key import SigningKey
from octavo_cli.verify_command import verify as verify_here
from octavo_shared.config import ConfigError
from octavo_shared.errors import OctavoError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Personal adapters on one frozen base model.")
tenant_app = typer.Typer(no_args_is_help=True, help="Tenants (admin).")
older_key_app = typer.Typer(help="The older form of `keys`.")
older_key_app.command("create")(key_commands.create)
older_key_app.command("revoke")(key_commands.revoke)
app.add_typer(tenant_app, name="tenant")
app.add_typer(key_commands.key_app, name="keys")
app.add_typer(older_key_app, name="key", hidden=True)
app.add_typer(signer_app, name="signer")
app.add_typer(nats_commands.nats_app, name="nats")
app.add_typer(base_commands.base_app, name="bases")


@app.command()
def up(
    folder: Annotated[Path | None, typer.Option(help="where data and logs live; default: the cache directory")] = None,
    base: Annotated[Path | None, typer.Option(help="a Hugging Face model directory; default: SmolLM2-135M")] = None,
    workers: Annotated[int, typer.Option(min=1, max=16)] = 1,
    port: Annotated[int, typer.Option(help="the gateway's port; 0: any free one")] = 8080,
) -> None:
    """Run the whole system here until Ctrl-C."""
    asyncio.run(up_here(folder, base, workers, port))


@app.command()
def demo() -> None:
    """Show the main job on real input, checked step by step."""
    sys.exit(demo_here())


@app.command()
def push(
    adapter: Adapter,
    folder: Annotated[Path, typer.Argument(help="a PEFT directory", exists=True, file_okay=False)],
    gateway: Gateway,
    key: Key,
    base: Annotated[str | None, typer.Option(help="what it was trained on: a label, a name or a fingerprint")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16 stores the small form; default: as saved")] = None,
    note: str = "",
    alias: Annotated[str, typer.Option(help="the alias that names the new revision")] = "serving",
    no_serve: Annotated[bool, typer.Option("--no-serve", help="leave it a draft: no alias moves")] = False,
    provenance: Annotated[
        Path | None, typer.Option(help="JSON file of data, trainer, hyperparameters, code; signed", dir_okay=False)
    ] = None,
    signing_key: SigningKey = None,
) -> None:
    """Store a PEFT adapter as the next revision, and serve it unless told otherwise."""
    wanted = Wanted(base, dtype, note, None if no_serve else alias)
    signing = signing_of(signing_key, provenance)
    registry_commands.push(Target(gateway, key), adapter, folder, wanted, signing)


@app.command()
def pull(
    reference: ReferenceArgument,
    folder: Annotated[Path, typer.Argument(help="directory to write", file_okay=False)],
    gateway: Gateway,
    key: Key,
) -> None:
    """Write a revision back as a PEFT directory with bit-identical tensors."""
    registry_commands.pull(Target(gateway, key), reference, folder)


@app.command()
def ask(
    model: Annotated[str, typer.Argument(help="tenant/adapter, or a base's name")],
    prompt: str,
    gateway: Gateway,
    key: Key,
    max_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.0,
    seed: int | None = None,
) -> None:
    """Ask one question; the answer streams, then one line tells what gave it."""
    answer = Answer()
    with Client(gateway, key) as client:
        for text in client.ask(model, prompt, answer, max_tokens=max_tokens, temperature=temperature, seed=seed):
            sys.stdout.write(text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    revision = "base alone" if answer.revision is None else f"revision {answer.revision}  {answer.digest}"
    typer.echo(
        f"{revision}  tier {answer.tier}  TTFT {answer.ttft_ms:.0f} ms  {answer.tokens_per_s:.1f} tok/s", err=True
    )


@app.command("ls")
def list_adapters(
    gateway: Gateway,
    key: Key,
    tenant: Annotated[str, typer.Option(help="only of this tenant; to an admin all of them")] = "",
    owner: Annotated[str, typer.Option(help="user@tenant")] = "",
    base: Annotated[str, typer.Option(help="the latest revision's base: a label, a name or a fingerprint")] = "",
    state: Annotated[str, typer.Option(help="of the latest revision: draft, evaluated, serving or retired")] = "",
    tag: str = "",
    prefix: Annotated[str, typer.Option(help="what tenant/adapter begins with")] = "",
) -> None:
    """List the adapters that this key may use."""
    wanted = {"tenant": tenant, "owner": owner, "base": base, "state": state, "tag": tag, "prefix": prefix}
    registry_commands.list_adapters(Target(gateway, key), {name: value for name, value in wanted.items() if value})


@app.command()
def history(adapter: Adapter, gateway: Gateway, key: Key) -> None:
    """Tell what happened to an adapter, newest first."""
    registry_commands.history(Target(gateway, key), adapter)


@app.command()
def verify(
    gateway: Gateway,
    key: Key,
    reference: Annotated[str | None, typer.Argument(help="tenant/adapter, …@12, …@sha256:… or …:alias")] = None,
    is_all: Annotated[bool, typer.Option("--all", help="audit every event of the ledger (admin, auditor)")] = False,
    public_key: Annotated[str | None, typer.Option(help="the ledger's key; default: the one seen first")] = None,
) -> None:
    """Prove here that a revision is in the ledger as it was signed, and that the ledger was not rewritten."""
    verify_here(Target(gateway, key), reference, is_all, public_key)


app.command()(revision_commands.rollback)
app.command()(audit_command.audit)
app.command("import")(import_commands.import_adapters)
app.command()(revision_commands.promote)
app.command()(revision_commands.unalias)
app.command()(revision_commands.retire)
app.command()(revision_commands.branch)
app.command()(erasure_commands.erase)
app.command()(evaluation_commands.evaluate)
app.command()(evaluation_commands.evaluations)
app.command()(evaluation_commands.gate)
app.command("provenance")(provenance_commands.show_provenance)
app.command()(usage_commands.usage)
app.command()(usage_commands.quota)
# Or else what begins with a minus, here a tag to remove, would be an option.
app.command(context_settings={"ignore_unknown_options": True})(revision_commands.tag)
app.command()(grant_commands.grant)
app.command()(grant_commands.revoke)
app.command()(grant_commands.transfer)


@app.command()
def evict(
    adapter: Adapter,
    gateway: Gateway,
    key: Key,
    tier: Annotated[str, typer.Option(help="warm, local or cold")] = "cold",
) -> None:
    """Drop an adapter's copies above a tier on every worker; its revisions stay."""
    with Client(gateway, key) as client:
        report = client.evict(adapter, tier)
    typer.echo(f"evicted on: {', '.join(report.evicted) or 'none'}; in use on: {', '.join(report.pinned) or 'none'}")


@app.command()
def fleet(gateway: Gateway, key: Key) -> None:
    """Show the workers and what they hold (admin)."""
    registry_commands.fleet(Target(gateway, key))


@tenant_app.command("create")
def tenant_create(tenant: str, gateway: Gateway, key: Key) -> None:
    """Create a tenant."""
    with Client(gateway, key) as client:
        typer.echo(f"created {client.create_tenant(tenant).tenant}")


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """What a user can cause or meet ends as one sentence and exit code 1; anything else is a bug and shows itself."""
    try:
        yield
    except (ClientError, OctavoError) as error:
        sys.exit(f"octavo: {error.message} ({error.code})")
    except (StartFailed, ConfigError) as error:
        sys.exit(f"octavo: {error}")
    except OSError as error:
        sys.exit(f"octavo: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    """Entry point of ``octavo``."""
    with _one_sentence():
        app()
