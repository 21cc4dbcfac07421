"""What is to be imported: the adapters of a directory or of a manifest."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from octavo_cli.answers import ClientError
from octavo_cli.registry_commands import adapter_files, noted_base
from octavo_shared import decoding
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.importing import IMPORT_ITEMS_MAX
from octavo_shared.references import SERVING, parse_reference

MANIFEST = "MANIFEST.jsonl"
_CHUNK_BYTES_MAX = 64 * 1024 * 1024
"""Of weights that are registered together: the registry has their packs in memory at the same time."""


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a manifest: ``path`` is a PEFT directory, relative to the manifest. ``alias`` null: a draft.

    ``provenance`` is a file, relative to the manifest, as ``octavo push --provenance`` takes it.
    """

    adapter: str
    path: str
    note: str = ""
    tags: tuple[str, ...] = ()
    alias: str | None = SERVING
    dtype: str | None = None
    base: str | None = None
    provenance: str | None = None


@dataclass(frozen=True)
class Source:
    """One adapter to import, and where its PEFT directory is."""

    line: Line
    folder: Path
    facts: Path | None = None

    @property
    def base(self) -> str | None:
        """What it was trained on, if line or directory say so."""
        return self.line.base if self.line.base is not None else noted_base(self.folder)

    def item(self) -> dict[str, object]:
        """Return the item to register, with a key that stays the same while files and line do; reads the files."""
        line, files = self.line, adapter_files(self.folder)
        item: dict[str, object] = {
            "adapter": line.adapter, "note": line.note, "tags": list(line.tags), "alias": line.alias,
            "dtype": line.dtype, "base": self.base,
        }  # fmt: skip
        told = hashlib.sha256(json.dumps(item, sort_keys=True).encode())
        for path in files:
            with path.open("rb") as file:
                told.update(hashlib.file_digest(file, "sha256").digest())
        return item | {"key": f"import-{told.hexdigest()}"}

    @property
    def size_bytes(self) -> int:
        """Size of the weights, 0 where there are none."""
        try:
            return adapter_files(self.folder)[1].stat().st_size
        except (ClientError, OSError):
            return 0


def sources_of(path: Path, tenant: str) -> list[Source]:
    """Return the adapters that ``path`` holds: a manifest, or a directory with one, or one of PEFT directories.

    Those are adapters of ``tenant`` that are called like their directories. Raises ``ClientError`` when nothing can
    be imported.
    """
    manifest = path / MANIFEST if path.is_dir() else path
    if manifest.is_file():
        near = manifest.parent
        found = [
            Source(line, near / line.path, near / line.provenance if line.provenance else None)
            for line in _lines(manifest)
        ]
    else:
        folders = sorted(config.parent for config in path.glob("*/adapter_config.json"))
        if folders and not tenant:
            raise ClientError("no_tenant", f"{path} has no {MANIFEST}: name the tenant with --tenant", 0)
        found = [Source(Line(f"{tenant}/{folder.name}", folder.name), folder) for folder in folders]
    if not found:
        raise ClientError("nothing_to_import", f"{path} holds no directory with an adapter_config.json", 0)
    names = set()
    for source in found:
        if source.line.adapter in names:
            raise ClientError("named_twice", f"'{source.line.adapter}' is named twice in {manifest}", 0)
        names.add(source.line.adapter)
    return found


def chunks_of(sources: Sequence[Source]) -> Iterator[list[Source]]:
    """Yield the sources in the order given, as many together as may be registered at once."""
    chunk: list[Source] = []
    num_bytes = 0
    for source in sources:
        size_bytes = source.size_bytes
        if chunk and (len(chunk) == IMPORT_ITEMS_MAX or num_bytes + size_bytes > _CHUNK_BYTES_MAX):
            yield chunk
            chunk, num_bytes = [], 0
        chunk.append(source)
        num_bytes += size_bytes
    if chunk:
        yield chunk


def _lines(manifest: Path) -> Iterator[Line]:
    with manifest.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                line = decoding.from_json(text, Line)
                if parse_reference(line.adapter, "adapter").name != line.adapter:
                    raise InvalidRequest("adapter", "must name an adapter, not one of its revisions")
            except (msgspec.MsgspecError, UnicodeDecodeError, InvalidRequest) as error:
                raise ClientError("bad_manifest", f"line {number} of {manifest}: {error}", 0) from None
            yield line
