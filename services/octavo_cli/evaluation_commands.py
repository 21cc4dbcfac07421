"""The commands that say how good a revision is, and how good it must be to be served."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from octavo_cli.answers import ClientError
from octavo_cli.evaluation_client import EvaluationClient
from octavo_cli.options import Gateway, Key, ReferenceArgument
from octavo_cli.scoring import scores_of
from octavo_cli.signed_push import check_registered
from octavo_cli.signing_key import SigningKey, read_key
from octavo_cli.statement_checks import problems_of
from octavo_cli.suite import Suite, load_suite, suite_digest, suite_name
from octavo_cli.suite_run import run_file, run_suite
from octavo_shared import dsse, evaluation_statement
from octavo_shared.clock import wall_ms
from octavo_shared.dsse import Envelope, Signer
from octavo_shared.ledger_statements import evaluation_difference
from octavo_shared.messages.evaluation import (
    Evaluation,
    EvaluationEntry,
    EvaluationList,
    Gate,
    Metric,
    Rule,
    Score,
    rule_summary,
)
from octavo_shared.references import DIGEST_PATTERN, Digest

_SHORT_DIGEST = slice(len("sha256:"), len("sha256:") + 12)
_PIPED_WIDTH = 1_000
_RULE_FORM = "must have the form METRIC:SUITE:NUMBER, where SUITE is a suite's file or name@sha256:…"


def evaluate(
    reference: ReferenceArgument,
    gateway: Gateway,
    key: Key,
    suite: Annotated[Path, typer.Option(help="a file of one JSON object per line", exists=True, dir_okay=False)],
    name: Annotated[str | None, typer.Option(help="the suite's name; default: the file's, without its ending")] = None,
    at_once: Annotated[int, typer.Option(min=1, max=64, help="how many items are asked at the same time")] = 4,
    signing_key: SigningKey = None,
) -> None:
    """Run a suite on a revision, through the gateway, and record its scores, signed if there is a key."""
    loaded = load_suite(suite, name)
    signer = read_key(signing_key) if signing_key is not None else None
    with EvaluationClient(gateway, key) as client:
        if signer is not None:
            check_registered(client, signer)
        view = client.evaluations(reference)
        file = run_file(gateway, key, view, loaded)
        try:
            with _progress() as bar:
                task = bar.add_task(f"{loaded.name} on {view.name}@{view.revision.number}", total=len(loaded.items))
                results = run_suite(
                    client, view, loaded, file, at_once, lambda num_done: bar.update(task, completed=num_done)
                )
            scores = scores_of(results)
            if not scores:
                raise ClientError("no_score", "no item of the suite could be scored", 0)
            statement = None
            if signer is not None:
                statement = _signed(view, loaded, scores, client.whoami().principal, signer)
            made = client.evaluate(
                f"{view.name}@{view.revision.number}", loaded.name, loaded.digest, scores, view.revision.base,
                file.write, statement,
            )  # fmt: skip
            file.discard()
        finally:
            file.close()
    typer.echo(f"{view.name}@{made.number}  {made.suite}  {made.suite_digest}")
    for line in _scores_of(made):
        typer.echo(line)


def evaluations(
    reference: ReferenceArgument,
    gateway: Gateway,
    key: Key,
    is_json: Annotated[bool, typer.Option("--json", help="all that is recorded")] = False,
    is_verified: Annotated[bool, typer.Option("--verify", help="verify here what was signed")] = False,
) -> None:
    """Show a revision's state and its evaluations, newest first."""
    with EvaluationClient(gateway, key) as client:
        view = client.evaluations(reference, with_statements=is_verified)
    wrong = {entry.sequence: _problems(view.name, entry) for entry in view.evaluations} if is_verified else {}
    if is_json:
        typer.echo(msgspec.json.encode(view).decode())
    else:
        _show(view, wrong, is_verified)
    bad = [f"evaluation {sequence}: {'; '.join(problems)}" for sequence, problems in wrong.items() if problems]
    if bad:
        raise ClientError("not_verified", ". ".join(bad), 0)


def _show(view: EvaluationList, wrong: Mapping[int, list[str]], is_verified: bool) -> None:
    typer.echo(f"{view.name}@{view.revision.number}  {view.revision.digest}  {view.state}")
    table = Table(box=None, header_style="bold")
    for column in ("when", "suite", "digest", "scores", "evaluator", "sequence", "signed by"):
        table.add_column(column, overflow="fold")
    for entry in view.evaluations:
        made = entry.evaluation
        when = datetime.fromtimestamp(made.at_ms / 1000).astimezone().isoformat(" ", "seconds")
        scores = ", ".join(_scores_of(made))
        signed = "evaluator, registry" if made.is_signed else "registry"
        if is_verified:
            signed += ": does NOT verify" if wrong[entry.sequence] else ": verified"
        table.add_row(
            when, made.suite, made.suite_digest[_SHORT_DIGEST], scores, made.evaluator, str(entry.sequence), signed
        )  # fmt: skip
    console = Console()
    (console if console.is_terminal else Console(width=_PIPED_WIDTH)).print(table)
    if not view.is_whole:
        typer.echo("there are older ones", err=True)


def gate(
    target: Annotated[str, typer.Argument(help="tenant/adapter, or a tenant for all its adapters")],
    gateway: Gateway,
    key: Key,
    require: Annotated[
        list[str] | None,
        typer.Option(help="METRIC:SUITE:THRESHOLD, as in exact:facts.jsonl:0.8; a perplexity is at most so much"),
    ] = None,
    max_regression: Annotated[
        list[str] | None,
        typer.Option(help="METRIC:SUITE:DELTA, as in exact:facts.jsonl:0.02: worse than what is served by at most"),
    ] = None,
    evaluator: Annotated[list[str] | None, typer.Option(help="user@tenant; only evaluations by these count")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="remove the gate")] = False,
) -> None:
    """Say what a revision must score before it is served; without options, show the gates."""
    wanted = bool(require or max_regression)
    if (clear and (wanted or evaluator)) or (evaluator and not wanted):
        raise ClientError("usage", "give rules, or --clear alone, or nothing to see the gates", 0)
    with EvaluationClient(gateway, key) as client:
        if clear:
            gates = client.clear_gate(target)
        elif wanted:
            rules = rules_of(require or [], max_regression or [])
            gates = client.set_gate(target, Gate(rules, tuple(evaluator or ())))
        else:
            gates = client.gates(target)
    for whose, one in ((gates.target, gates.adapter), (gates.target.partition("/")[0], gates.tenant)):
        if one is None:
            continue
        for rule in one.rules:
            typer.echo(f"{whose}: {rule_summary(rule)}  {rule.suite_digest}")
        if one.evaluators:
            typer.echo(f"{whose}: evaluated by {' or '.join(one.evaluators)}")
    if gates.adapter is None and gates.tenant is None:
        typer.echo(f"{target} has no gate")


def rules_of(require: list[str], max_regression: list[str]) -> tuple[Rule, ...]:
    """Return the rules that these options mean: one for each metric of a suite, in the order in which they came."""
    rules: dict[tuple[Metric, Digest], Rule] = {}
    for option, field, texts in (
        ("--require", "threshold", require), ("--max-regression", "regression_max", max_regression)
    ):  # fmt: skip
        for text in texts:
            metric, name, digest, number = _parsed(option, text)
            rule = rules.get((metric, digest), Rule(metric, name, digest))
            if getattr(rule, field) is not None:
                raise ClientError("usage", f"{option} names {metric} of {name} twice", 0)
            rules[metric, digest] = msgspec.structs.replace(rule, **{field: number})
    return tuple(rules.values())


def _parsed(option: str, text: str) -> tuple[Metric, str, Digest, float]:
    metric, _, rest = text.partition(":")
    suite, _, number = rest.rpartition(":")
    try:
        found = Metric(metric), float(number)
    except ValueError:
        raise ClientError("usage", f"{option} {_RULE_FORM}: '{text}'", 0) from None
    name, _, digest = suite.partition("@")
    if DIGEST_PATTERN.match(digest):
        return found[0], name, Digest(digest), found[1]
    path = Path(suite)
    if not path.is_file():
        raise ClientError("usage", f"{option} {_RULE_FORM}: there is no file '{suite}'", 0)
    return found[0], suite_name(path), suite_digest(path), found[1]


def _scores_of(made: Evaluation) -> list[str]:
    return [f"{score.metric} {score.value:.4g} of {score.num_items}" for score in made.scores]


def _signed(view: EvaluationList, suite: Suite, scores: tuple[Score, ...], evaluator: str, signer: Signer) -> Envelope:
    """Return what the evaluator says, signed."""
    revision = view.revision
    made = Evaluation(
        revision.number, revision.digest, revision.base, suite.name, suite.digest, scores, evaluator, wall_ms()
    )
    return dsse.sign(dsse.STATEMENT_TYPE, evaluation_statement.build(view.name, made), signer)


def _problems(adapter: str, entry: EvaluationEntry) -> list[str]:
    made = entry.evaluation
    if entry.envelope is None:
        return ["it has no statement"]
    problems = problems_of(
        entry.envelope, entry.signers, made.evaluator, lambda payload: evaluation_difference(payload, adapter, made)
    )
    if made.is_signed != any(one.principal == made.evaluator for one in entry.signers):
        problems.append("it is not signed by whom it says")
    return problems


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
