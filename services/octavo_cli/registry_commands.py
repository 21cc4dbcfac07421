"""The commands that move adapters and show what there is."""

import json
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table

from octavo_cli.answers import ClientError
from octavo_cli.base_client import BaseClient
from octavo_cli.client import Client
from octavo_cli.options import Target
from octavo_cli.provenance_client import ProvenanceClient
from octavo_cli.signed_push import Pushed, Signing, check_registered
from octavo_shared.bases import base_label
from octavo_shared.messages.adapters import AdapterInfo
from octavo_shared.messages.fleet import TierUse
from octavo_shared.pack import digest_of, unpack
from octavo_shared.references import CANARY, SERVING, parse_reference

_MIB = 1024 * 1024
_BASE_NOTE = "octavo.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PIPED_WIDTH = 1_000
_SHORT_DIGEST = slice(len("sha256:"), len("sha256:") + 12)
"""Enough of a digest to tell revisions apart in a table; ``push`` and ``ask`` show all of it."""


class Wanted(NamedTuple):
    """What a push asks for beside the files; None: not said (``alias``: a draft)."""

    base: str | None = None
    dtype: str | None = None
    note: str = ""
    alias: str | None = SERVING


def push(target: Target, adapter: str, folder: Path, wanted: Wanted, signing: Signing | None) -> None:
    """Upload the PEFT directory ``folder`` and print the revision it became."""
    config, weights = adapter_files(folder)
    declared = wanted.base if wanted.base is not None else noted_base(folder)
    wanted = wanted._replace(base=declared)
    with ProvenanceClient(target.gateway, target.key) as client, _progress() as bar:
        if signing is not None:
            check_registered(client, signing.signer)
        task = bar.add_task("pushing", total=None)

        def advance(done: int, total: int) -> None:
            _advance(bar, task, done, total)

        if signing is None:
            info = client.push(adapter, config, weights, **wanted._asdict(), progress=advance)
        else:
            name = parse_reference(adapter, "adapter").name
            pushed = Pushed(name, config, weights, declared, wanted.dtype, signing)
            info = client.push_signed(adapter, config, weights, pushed.sign, **wanted._asdict(), progress=advance)
    latest = info.latest
    Console().print(
        f"{info.name}@{latest.number}  {latest.digest}  rank {latest.rank_max}, {latest.num_modules} modules, "
        f"{latest.dtype}, {latest.pack_bytes / _MIB:.2f} MiB" + (", signed" if signing else ""),
        soft_wrap=True,
        highlight=False,
    )
    warn(info)


def warn(info: AdapterInfo) -> None:
    """Say beside the output what the writer should know though it was done."""
    for warning in info.warnings:
        typer.echo(f"warning: {warning}", err=True)


def adapter_files(folder: Path) -> tuple[Path, Path]:
    """Return the configuration and the weights in a PEFT directory; raises ``ClientError`` when one is not there."""
    config = folder / "adapter_config.json"
    # Pickled weights are sent as they are: it is the server that names what is wrong with them.
    weights = next((path for name in _WEIGHTS if (path := folder / name).is_file()), None)
    if not config.is_file() or weights is None:
        raise ClientError("not_an_adapter", f"{folder} does not hold adapter_config.json and {_WEIGHTS[0]}", 0)
    return config, weights


def pull(target: Target, reference: str, folder: Path) -> None:
    """Write the revision that ``reference`` names into ``folder`` as a PEFT directory."""
    with Client(target.gateway, target.key) as client, _progress() as bar:
        task = bar.add_task("pulling", total=None)
        got = client.pull(reference, lambda done, total: _advance(bar, task, done, total))
    if digest_of(got.pack) != got.digest:
        raise ClientError("digest_mismatch", "what arrived does not have the digest that the gateway named", 0)
    unpack(got.pack, folder, got.base_name)
    (folder / _BASE_NOTE).write_text(json.dumps({"base": got.base}) + "\n")
    Console().print(f"revision {got.revision}  {got.digest}  in {folder}", soft_wrap=True, highlight=False)


def list_adapters(target: Target, wanted: dict[str, str]) -> None:
    """Print the adapters of this key that are ``wanted``; sizes and state are those of the latest revision."""
    rows = table(
        "adapter", "owner", "aliases", "revisions", "state", "base", "rank", "MiB", "digest", "tags", "granted to"
    )  # fmt: skip
    with BaseClient(target.gateway, target.key) as client:
        labels = client.base_labels()
        for info in client.adapters(**wanted):
            latest = info.latest
            rows.add_row(
                info.name, info.owner, aliases_of(info), str(info.num_revisions), info.state,
                labels.get(latest.base, latest.base), str(latest.rank_max), f"{latest.pack_bytes / _MIB:.2f}",
                latest.digest[_SHORT_DIGEST], ", ".join(info.tags), granted_to(info),
            )  # fmt: skip
    console().print(rows)


def history(target: Target, adapter: str) -> None:
    """Print what happened to ``adapter``, newest first."""
    rows = table("when", "what", "who", "revision", "base", "detail", "sequence")
    with BaseClient(target.gateway, target.key) as client:
        labels = client.base_labels()
        for entry in client.history(adapter):
            when = datetime.fromtimestamp(entry.at_ms / 1000).astimezone().isoformat(" ", "seconds")
            revision = f"{entry.revision.number} ({entry.state})" if entry.revision else ""
            base = labels.get(entry.revision.base, entry.revision.base) if entry.revision else ""
            rows.add_row(when, entry.kind, entry.actor, revision, base, entry.detail, str(entry.sequence))
    console().print(rows)


def aliases_of(info: AdapterInfo) -> str:
    """Return an adapter's aliases in one line, with the canary's share."""
    shares = {CANARY: f" at {info.canary_percent}%"}
    return ", ".join(f"{alias} {number}{shares.get(alias, '')}" for alias, number in sorted(info.aliases.items()))


def granted_to(info: AdapterInfo) -> str:
    """Return in one line who else has a role on an adapter; without one said they use it."""
    roles = dict.fromkeys(info.grants, "") | dict.fromkeys(info.editors, " (editor)")
    roles |= dict.fromkeys(info.auditors, " (auditor)")
    return ", ".join(f"{who}{role}" for who, role in sorted(roles.items()))


def fleet(target: Target) -> None:
    """Print each worker with its load and tiers."""
    rows = table("worker", "state", "base", "running", "waiting", "free pages", "resident", "warm", "local")
    with Client(target.gateway, target.key) as client:
        view = client.fleet()
    for worker in view.workers:
        rows.add_row(
            worker.worker_id, worker.state, base_label(worker.base_name, worker.base),
            str(worker.num_running), str(worker.num_waiting), f"{worker.num_pages_free} of {worker.num_pages}",
            *map(_use, (worker.resident, worker.warm, worker.local)),
        )  # fmt: skip
    out = console()
    out.print(rows)
    out.print(f"ordered so far: {view.num_prefetches_ordered} prefetches, {view.num_evicts_ordered} evictions")


def table(*columns: str) -> Table:
    """Return a table whose cells are folded where the terminal ends."""
    made = Table(box=None, header_style="bold")
    for column in columns:
        # Names are folded, never cut: a cut one could not be copied.
        made.add_column(column, overflow="fold")
    return made


def console() -> Console:
    """A console as wide as the terminal; a pipe or a file has no width, so rows there are never folded."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=_PIPED_WIDTH)


def _use(tier: TierUse) -> str:
    return f"{tier.used_bytes / _MIB:.1f} of {tier.budget_bytes / _MIB:.0f} MiB"


def noted_base(folder: Path) -> str | None:
    """Return the base that a PEFT directory was pulled for, if it says so."""
    note = folder / _BASE_NOTE
    if not note.is_file():
        return None
    try:
        base = json.loads(note.read_text())["base"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str):
        raise ClientError("bad_note", f'{note} must hold {{"base": "sha256:…"}}', 0)
    return base


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _advance(bar: Progress, task: TaskID, done_bytes: int, total_bytes: int) -> None:
    bar.update(task, completed=done_bytes, total=total_bytes or None)
