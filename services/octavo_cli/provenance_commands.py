"""``octavo provenance``: how a revision came to be, who signed that, and whether the signatures hold."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from octavo_cli.answers import ClientError
from octavo_cli.lineage_graph import GraphForm, draw
from octavo_cli.options import Gateway, Key, ReferenceArgument
from octavo_cli.provenance_client import ProvenanceClient
from octavo_cli.registry_commands import console
from octavo_cli.statement_checks import keys_of, look_at, problems_of
from octavo_shared import dsse, provenance
from octavo_shared.dsse import PublicKey
from octavo_shared.ledger_statements import first_difference
from octavo_shared.messages.provenance import Provenance, StatementSigner
from octavo_shared.messages.signers import REGISTRY_PRINCIPAL
from octavo_shared.provenance import Statement
from octavo_shared.references import parse_reference


def show_provenance(
    reference: ReferenceArgument,
    gateway: Gateway,
    key: Key,
    is_json: Annotated[bool, typer.Option("--json", help="the signed envelope alone, for other tools")] = False,
    keys: Annotated[Path | None, typer.Option(help="directory to write the signers' public keys to, in PEM form",
                                              file_okay=False)] = None,
    graph: Annotated[GraphForm | None, typer.Option(help="draw the adapter's descent instead")] = None,
) -> None:  # fmt: skip
    """Show how a revision came to be and who signed that; signatures are verified here."""
    if is_json and graph is not None:
        raise ClientError("usage", "--json shows one revision and --graph draws all: choose one", 0)
    with ProvenanceClient(gateway, key) as client:
        if graph is not None:
            lineage = client.lineage(parse_reference(reference, "adapter").name)
            typer.echo(draw(lineage, graph), nl=False)
            if not lineage.is_whole:
                typer.echo("there are older ones", err=True)
            return
        found = client.provenance(reference)
    if found.envelope is None:
        raise ClientError("no_statement", f"{found.name}@{found.number} has no statement", 0)
    if keys is not None:
        _write_keys(found.signers, keys)
    if is_json:
        typer.echo(dsse.encode(found.envelope))
    else:
        show(found)
    if wrong := problems(found):
        raise ClientError("not_verified", "; ".join(wrong), 0)


def problems(found: Provenance) -> list[str]:
    """Return what does not hold of a revision's statement; see ``problems_of``."""
    assert found.envelope is not None
    true = {"subject.name": found.name, "subject.digest": str(found.digest), "predicate.pushedBy": found.actor}
    return problems_of(found.envelope, found.signers, found.actor, lambda payload: first_difference(payload, true))


def show(found: Provenance) -> None:
    """Print what a revision's statement says, and of each signature whether it verifies."""
    assert found.envelope is not None
    typer.echo(f"{found.name}@{found.number}  {found.digest}  {found.state}")
    for what, told in _told(_statement(found)):
        _line(what, told)
    whose = {one.key_id: one for one in found.signers}
    for seen in look_at(found.envelope, keys_of(found.signers)):
        told = f"does NOT verify ({seen.problem})" if seen.problem else "verifies"
        _line("signed by", f"{_whose(whose.get(seen.key_id))}, key {seen.key_id}: {told}")
    if not any(one.principal == found.actor for one in found.signers):
        _line("", f"not signed by {found.actor}: the registry alone says this, from what it knows itself")


def _told(statement: Statement) -> list[tuple[str, str]]:
    said = statement.predicate
    lines = [
        (f"{said.making} by", said.pushed_by),
        ("at", said.at.astimezone().isoformat(" ", "seconds")),
        ("parent", str(said.parent.digest) if said.parent else "none"),
        ("base", str(said.base.digest)),
    ]
    if said.data is not None:
        lines.append(("data", f"{said.data.digest}, {said.data.rows} rows"))
    if said.trainer is not None:
        lines.append(("trainer", f"{said.trainer.name} {said.trainer.version}"))
    if said.code is not None:
        lines.append(("code", f"{said.code.uri} at {said.code.revision}"))
    if said.hyperparameters:
        lines.append(("settings", ", ".join(f"{name} {value}" for name, value in said.hyperparameters.items())))
    return lines


def _whose(signer: StatementSigner | None) -> str:
    if signer is None:
        return "nobody known"
    who = "the registry" if signer.principal == REGISTRY_PRINCIPAL else signer.principal
    if signer.revoked_at_ms is None:
        return who
    when = datetime.fromtimestamp(signer.revoked_at_ms / 1000).astimezone().isoformat(" ", "seconds")
    return f"{who} (a key that was revoked {when})"


def _line(what: str, told: str) -> None:
    # A statement holds whatever its pusher wrote: nothing in it may steer a terminal.
    told = "".join(character if character.isprintable() else "?" for character in told)
    console().print(f"  {what:12}{told}", soft_wrap=True, highlight=False, markup=False)


def _statement(found: Provenance) -> Statement:
    assert found.envelope is not None
    return provenance.parse(found.envelope.data)


def _write_keys(signers: tuple[StatementSigner, ...], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for one in signers:
        # By the id that the signature names, which is made here: what a server says goes into no path.
        path = folder / f"{PublicKey.parse(one.public_key).key_id}.pem"
        path.write_text(one.public_key)
        typer.echo(f"wrote {path}, the key of {one.principal}", err=True)
