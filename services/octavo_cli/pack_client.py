"""The gateway's client for the bytes of adapters: two files up, a pack down."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from octavo_cli.answers import Download, as_client_errors, check
from octavo_cli.connection import PACK_TIMEOUT_S, Connection, adapter_path, revision_query, with_query
from octavo_shared.envelopes import Envelope
from octavo_shared.messages.adapters import AdapterInfo
from octavo_shared.messages.importing import ImportOutcome, ImportReport
from octavo_shared.messages.pushing import UploadBegun
from octavo_shared.references import SERVING, parse_reference

_PIECE_BYTES = 256 * 1024
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


class PackClient(Connection):
    """Pushes and pulls."""

    def push(
        self,
        adapter: str,
        config: Path,
        weights: Path,
        *,
        base: str | None = None,
        dtype: str | None = None,
        note: str = "",
        alias: str | None = SERVING,
        progress: Progress = lambda done, total: None,
    ) -> AdapterInfo:
        """Upload two files and make them the next revision of ``adapter``, which ``alias`` names; returns its head."""
        name = parse_reference(adapter, "adapter").name
        upload = self.stage(name, config, weights, progress)
        return self.commit(name, upload, base=base, dtype=dtype, note=note, alias=alias)

    def stage(
        self, adapter: str, config: Path, weights: Path, progress: Progress = lambda done, total: None
    ) -> UploadBegun:
        """Upload two files, to be committed to ``adapter``."""
        upload = self.begin_upload(adapter)
        self.send(upload, config, weights, progress)
        return upload

    def begin_upload(self, adapter: str, base: str | None = None) -> UploadBegun:
        """Get a place for two files, and what is known of their push: by whom, on which parent and base."""
        return self._call("POST", "/v1/uploads", UploadBegun, {"adapter": adapter, "base": base})

    def send(
        self, upload: UploadBegun, config: Path, weights: Path, progress: Progress = lambda done, total: None
    ) -> None:
        """Upload two files."""
        files = ((_CONFIG, config), (_WEIGHTS, weights))
        sizes_bytes = [path.stat().st_size for _, path in files]
        total_bytes, before_bytes = sum(sizes_bytes), 0
        for (file_name, path), size_bytes in zip(files, sizes_bytes, strict=True):
            self._send_file(f"/v1/uploads/{upload.upload_id}/{file_name}", path, before_bytes, total_bytes, progress)
            before_bytes += size_bytes

    def commit(
        self,
        adapter: str,
        upload: UploadBegun,
        *,
        base: str | None,
        dtype: str | None,
        note: str,
        alias: str | None,
        statement: Envelope | None = None,
    ) -> AdapterInfo:
        """Make what was uploaded the next revision of ``adapter``."""
        body: dict[str, object] = {"upload_id": upload.upload_id, "note": note, "alias": alias}
        body |= {name: value for name, value in (("base", base), ("dtype", dtype)) if value is not None}
        if statement is not None:
            body["statement"] = msgspec.to_builtins(statement)
        return self._call("POST", f"{adapter_path(adapter)}/revisions", AdapterInfo, body, timeout_s=PACK_TIMEOUT_S)

    def register(self, items: Sequence[dict[str, object]]) -> tuple[ImportOutcome, ...]:
        """Make staged uploads revisions of their adapters, all at once; see the route ``/v1/import``."""
        body = {"items": list(items)}
        return self._call("POST", "/v1/import", ImportReport, body, timeout_s=PACK_TIMEOUT_S).outcomes

    def pull(self, reference: str, progress: Progress = lambda done, total: None) -> Download:
        """Download the pack of ``tenant/adapter``, ``…@12``, ``…@sha256:…`` or ``…:alias``."""
        parsed = parse_reference(reference, "adapter")
        url = with_query(f"{adapter_path(parsed.name)}/pack", revision_query(parsed))
        with as_client_errors(), self._http.stream("GET", url) as response:
            check(response)
            total_bytes = int(response.headers.get("content-length", "0"))
            pack = bytearray()
            for piece in response.iter_bytes(_PIECE_BYTES):
                pack += piece
                progress(len(pack), total_bytes)
            said = response.headers
            return Download(
                bytes(pack),
                int(said.get("octavo-revision", "0")),
                said.get("octavo-digest", ""),
                said.get("octavo-base", ""),
                said.get("octavo-base-name", ""),
            )

    def _send_file(self, url: str, path: Path, before_bytes: int, total_bytes: int, progress: Progress) -> None:
        def pieces() -> Iterator[bytes]:
            done_bytes = before_bytes
            with path.open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    yield piece
                    done_bytes += len(piece)
                    progress(done_bytes, total_bytes)

        with as_client_errors():
            size = str(path.stat().st_size)
            check(self._http.put(url, content=pieces(), headers={"Content-Length": size}))
