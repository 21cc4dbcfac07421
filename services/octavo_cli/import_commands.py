"""``octavo import``: many adapters, with a progress bar; the same command again goes on where it stopped."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from octavo_cli.answers import ClientError
from octavo_cli.import_source import Source, chunks_of, sources_of
from octavo_cli.options import Gateway, Key
from octavo_cli.provenance_client import ProvenanceClient
from octavo_cli.registry_commands import adapter_files
from octavo_cli.signed_push import Pushed, Signing, check_registered, read_facts
from octavo_cli.signing_key import VARIABLE, SigningKey, read_key
from octavo_shared.dsse import Signer
from octavo_shared.errors import OctavoError
from octavo_shared.messages.importing import ImportOutcome, ImportState

_UPLOADS_MAX = 3
"""At the same time: a gateway takes four transfers, and refuses what is more."""
Item = dict[str, object]


@dataclass
class Importer:
    """Imports chunk by chunk and counts what became of the adapters; ``say`` is told what was refused."""

    client: ProvenanceClient
    say: Callable[[str], None]
    signer: Signer | None = None
    counts: Counter[ImportState] = field(default_factory=Counter)
    _warned: set[str] = field(default_factory=set)

    def take(self, chunk: list[Source], pool: ThreadPoolExecutor) -> None:
        """Import a chunk. What is wrong with one adapter is said and counted; other failures are raised."""
        found = list(zip(chunk, pool.map(self._look, chunk), strict=True))
        asked = [(source, item) for source, item in found if item is not None]
        wanted = self._settle(asked)
        staged = [(source, item) for source, item in pool.map(self._stage, wanted) if item is not None]
        assert not self._settle(staged), "what was staged is added or refused"

    def _settle(self, items: list[tuple[Source, Item]]) -> list[tuple[Source, Item]]:
        """Register ``items``, count what is settled with that and return the others."""
        if not items:
            return []
        outcomes = self.client.register([item for _, item in items])
        for outcome in outcomes:
            if outcome.state is not ImportState.WANTED:
                self._count(outcome)
        paired = zip(items, outcomes, strict=True)
        return [pair for pair, outcome in paired if outcome.state is ImportState.WANTED]

    def _count(self, outcome: ImportOutcome) -> None:
        self.counts[outcome.state] += 1
        for warning in outcome.warnings:
            # Of thousands that sit on one base it is said once.
            if warning not in self._warned:
                self._warned.add(warning)
                self.say(f"warning: {warning}")
        if outcome.refusal is not None:
            self.say(f"{outcome.adapter}: {outcome.refusal.message} ({outcome.refusal.code})")

    def _look(self, source: Source) -> Item | None:
        try:
            return source.item()
        except (ClientError, OSError) as error:
            self._refuse(source, str(error))
            return None

    def _stage(self, one: tuple[Source, Item]) -> tuple[Source, Item | None]:
        source, item = one
        try:
            return source, item | self._upload(source)
        except OctavoError as error:
            # What keeps it from being signed is found here, before anything of it is sent.
            self._refuse(source, f"{error.message} ({error.code})")
            return source, None
        except OSError as error:
            self._refuse(source, str(error))
            return source, None
        except ClientError as error:
            # Whatever the gateway says of this adapter is its own affair. Without an answer nothing else goes either.
            if not 400 <= error.status < 500 or error.status in (401, 429):
                raise
            self._refuse(source, f"{error.message} ({error.code})")
            return source, None

    def _upload(self, source: Source) -> Item:
        """Upload an adapter, and sign for it when there is a key; returns what that adds to its item."""
        line, files = source.line, adapter_files(source.folder)
        if self.signer is None:
            return {"upload_id": self.client.stage(line.adapter, *files).upload_id}
        signing = Signing(self.signer, read_facts(source.facts))
        upload = self.client.begin_upload(line.adapter, source.base)
        statement = Pushed(line.adapter, *files, source.base, line.dtype, signing).sign(upload)
        self.client.send(upload, *files)
        return {"upload_id": upload.upload_id, "statement": msgspec.to_builtins(statement)}

    def _refuse(self, source: Source, problem: str) -> None:
        self.counts[ImportState.REFUSED] += 1
        self.say(f"{source.line.adapter}: {problem}")


def import_adapters(
    path: Annotated[Path, typer.Argument(help="a directory of PEFT directories, or a manifest", exists=True)],
    gateway: Gateway,
    key: Key,
    tenant: Annotated[str, typer.Option(help="whose adapters they become where no manifest says it")] = "",
    signing_key: SigningKey = None,
) -> None:
    """Register many adapters; the same command again does only what is left.

    A manifest is a file of lines {"adapter": "tenant/name", "path": "…", "note": "…", "tags": […]}; in a directory it
    is called MANIFEST.jsonl.
    """
    sources = sources_of(path, tenant)
    signer = read_key(signing_key) if signing_key is not None else None
    if signer is None and any(source.facts for source in sources):
        raise ClientError("usage", f"the manifest names provenance, which is signed: name a key by {VARIABLE}", 0)
    console = Console(stderr=True)
    columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        ProvenanceClient(gateway, key) as client,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        if signer is not None:
            check_registered(client, signer)
        importer = Importer(
            client, lambda text: console.print(text, soft_wrap=True, highlight=False, markup=False), signer
        )  # fmt: skip
        task = bar.add_task("importing", total=len(sources))
        with ThreadPoolExecutor(_UPLOADS_MAX, thread_name_prefix="import") as pool:
            try:
                for chunk in chunks_of(sources):
                    importer.take(chunk, pool)
                    bar.update(task, completed=importer.counts.total())
            except ClientError as error:
                done = f"{importer.counts.total()} of {len(sources)} are done; run the same command again to go on"
                raise ClientError(error.code, f"{error.message}; {done}", error.status) from error
    counts = importer.counts
    typer.echo(
        f"{counts[ImportState.ADDED]} imported, {counts[ImportState.PRESENT]} were there already, "
        f"{counts[ImportState.REFUSED]} refused"
    )
    if counts[ImportState.REFUSED]:
        raise typer.Exit(1)
