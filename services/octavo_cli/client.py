"""The gateway's HTTP client: what the command line, the demo and the system tests speak through."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote, urlencode

import httpx
import msgspec

from octavo_cli.answers import (
    Answer,
    ClientError,
    Download,
    Erasure,
    Models,
    NewKey,
    as_client_errors,
    check,
    read_chunk,
    read_head,
)
from octavo_shared.envelopes import Envelope
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.adapters import AdapterInfo, AdapterList
from octavo_shared.messages.auditing import AuditReport
from octavo_shared.messages.fleet import EvictReport, View
from octavo_shared.messages.grants import GrantRole
from octavo_shared.messages.history import HistoryEntry, HistoryList
from octavo_shared.messages.importing import ImportOutcome, ImportReport
from octavo_shared.messages.keys import KEYS_PAGE_MAX, KeyInfo, KeyIssued, KeyList, Role, Scope
from octavo_shared.messages.ledger import AuditPage, RevisionProof
from octavo_shared.messages.pushing import UploadBegun
from octavo_shared.messages.tenants import TenantCreated
from octavo_shared.references import parse_reference

_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_COMMIT_TIMEOUT_S = 180.0
_PIECE_BYTES = 256 * 1024
_PAGE = 1_000
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


class Client:
    """One connection to a gateway with one key. A context manager; every failure is a ``ClientError``."""

    def __init__(self, url: str, key: str) -> None:
        if not (key.isascii() and key.isprintable() and key.strip()):
            raise ClientError("no_key", "a key is wanted, as the gateway gave it out: 'oct_…'", 0)
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=_TIMEOUT, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def create_tenant(self, tenant: str) -> TenantCreated:
        return self._call("POST", "/v1/tenants", TenantCreated, {"tenant": tenant})

    def create_key(
        self,
        tenant: str,
        user: str,
        role: Role = Role.USER,
        *,
        scopes: Sequence[Scope] = (),
        adapters: str = "",
        lifetime_s: int | None = None,
        label: str = "",
    ) -> NewKey:
        body: dict[str, object] = {"user": user, "role": role, "scopes": list(scopes), "adapters": adapters,
                                   "lifetime_s": lifetime_s, "label": label}  # fmt: skip
        return self._call("POST", f"/v1/tenants/{_part(tenant)}/keys", NewKey, body)

    def rotate_key(self, key_id: str, overlap_s: int, lifetime_s: int | None = None) -> NewKey:
        body: dict[str, object] = {"overlap_s": overlap_s, "lifetime_s": lifetime_s}
        return self._call("POST", f"/v1/keys/{_part(key_id)}/rotate", NewKey, body)

    def keys(self, principal: str = "") -> Iterator[KeyInfo]:
        """Yield one's own keys, or those of ``principal``, a page at a time."""
        after = ""
        while True:
            query = urlencode({"limit": KEYS_PAGE_MAX, "after": after, "principal": principal})
            page = self._call("GET", f"/v1/keys?{query}", KeyList)
            yield from page.keys
            if not (after := page.next_after):
                return

    def whoami(self) -> KeyInfo:
        """Return what the key in use is."""
        return self._call("GET", "/v1/key", KeyInfo)

    def revoke_key(self, key_id: str) -> KeyIssued:
        return self._call("DELETE", f"/v1/keys/{_part(key_id)}", KeyIssued)

    def models(self) -> list[str]:
        """Return the names that may be asked: the bases and this key's adapters."""
        return [model.id for model in self._call("GET", "/v1/models", Models).data]

    def adapters(self, **wanted: str) -> Iterator[AdapterInfo]:
        """Yield every adapter that this key may use, by name, a page at a time.

        ``wanted`` narrows them: tenant, owner, base, state, tag, prefix.
        """
        after = ""
        while True:
            query = urlencode({"limit": _PAGE, "after": after} | wanted)
            page = self._call("GET", f"/v1/adapters?{query}", AdapterList)
            yield from page.adapters
            if not (after := page.next_after):
                return

    def history(self, adapter: str) -> tuple[HistoryEntry, ...]:
        """Return what happened to ``adapter``, newest first."""
        return self._call("GET", f"{_path(adapter)}/history", HistoryList).entries

    def prove(self, reference: str, old_size: int = 0) -> RevisionProof:
        """Return what proves a revision, and that the ledger goes on from its first ``old_size`` events."""
        parsed = parse_reference(reference, "adapter")
        chosen = parsed.number or parsed.digest or parsed.alias
        revision = f"&revision={quote(str(chosen), safe='')}" if chosen else ""
        return self._call("GET", f"{_path(parsed.name)}/proof?old_size={old_size}{revision}", RevisionProof)

    def audit(self, first: int, old_size: int = 0) -> AuditPage:
        """Return a page of all events, from sequence ``first`` on (admin)."""
        return self._call("GET", f"/v1/ledger/events?first={first}&old_size={old_size}", AuditPage)

    def audit_state(self) -> AuditReport:
        """Return what the background audits of the ledger have found (admin, auditor)."""
        return self._call("GET", "/v1/ledger/audit", AuditReport)

    def rollback(self, adapter: str, revision: int | None = None, alias: str = "serving") -> AdapterInfo:
        body: dict[str, object] = {"alias": alias} | ({} if revision is None else {"revision": revision})
        return self._call("POST", f"{_path(adapter)}/rollback", AdapterInfo, body)

    def promote(
        self, reference: str, alias: str = "serving", share: int | None = None, expect: int | None = None
    ) -> AdapterInfo:
        """Let ``alias`` name the revision that ``reference`` names."""
        parsed = parse_reference(reference, "revision")
        chosen = parsed.number or parsed.digest or parsed.alias
        if chosen is None:
            raise InvalidRequest("revision", "must be named: by number, digest or alias")
        body: dict[str, object] = {"revision": chosen, "alias": alias}
        body |= {name: value for name, value in (("share", share), ("expect", expect)) if value is not None}
        return self._call("POST", f"{_path(parsed.name)}/promote", AdapterInfo, body)

    def unalias(self, adapter: str, alias: str) -> AdapterInfo:
        return self._call("DELETE", f"{_path(adapter)}/aliases/{_part(alias)}", AdapterInfo)

    def retire(self, reference: str) -> AdapterInfo:
        """Never serve ``tenant/adapter@12`` again."""
        parsed = parse_reference(reference, "revision")
        if parsed.number is None:
            raise InvalidRequest("revision", "must be named by its number")
        return self._call("POST", f"{_path(parsed.name)}/retire", AdapterInfo, {"revision": parsed.number})

    def erase(self, adapter: str) -> Erasure:
        """Destroy an adapter for ever."""
        return self._call("DELETE", _path(adapter), Erasure, timeout_s=_COMMIT_TIMEOUT_S)

    def branch(
        self, source: str, adapter: str, alias: str | None = "serving", statement: Envelope | None = None
    ) -> AdapterInfo:
        body: dict[str, object] = {"source": source, "alias": alias}
        if statement is not None:
            body["statement"] = msgspec.to_builtins(statement)
        return self._call("POST", f"{_path(adapter)}/branch", AdapterInfo, body, timeout_s=_COMMIT_TIMEOUT_S)

    def tag(self, adapter: str, add: Sequence[str], remove: Sequence[str]) -> AdapterInfo:
        return self._call("POST", f"{_path(adapter)}/tags", AdapterInfo, {"add": list(add), "remove": list(remove)})

    def grant(self, adapter: str, principal: str, role: GrantRole = GrantRole.USER) -> AdapterInfo:
        return self._call("POST", f"{_path(adapter)}/grants", AdapterInfo, {"principal": principal, "role": role})

    def revoke(self, adapter: str, principal: str) -> AdapterInfo:
        return self._call("DELETE", f"{_path(adapter)}/grants/{_part(principal)}", AdapterInfo)

    def transfer(self, adapter: str, owner: str) -> AdapterInfo:
        return self._call("POST", f"{_path(adapter)}/transfer", AdapterInfo, {"owner": owner})

    def evict(self, adapter: str, tier: str = "cold") -> EvictReport:
        return self._call("POST", f"{_path(adapter)}/evict", EvictReport, {"tier": tier})

    def fleet(self) -> View:
        return self._call("GET", "/v1/fleet", View)

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

    def register(self, items: Sequence[dict[str, object]]) -> tuple[ImportOutcome, ...]:
        """Make staged uploads revisions of their adapters, all at once; see the route ``/v1/import``."""
        body: dict[str, object] = {"items": list(items)}
        return self._call("POST", "/v1/import", ImportReport, body, timeout_s=_COMMIT_TIMEOUT_S).outcomes

    def push(
        self,
        adapter: str,
        config: Path,
        weights: Path,
        *,
        base: str | None = None,
        dtype: str | None = None,
        note: str = "",
        alias: str | None = "serving",
        progress: Progress = lambda done, total: None,
    ) -> AdapterInfo:
        """Upload two files and make them the next revision of ``adapter``, which ``alias`` names; returns its head."""
        name = parse_reference(adapter, "adapter").name
        upload = self.stage(name, config, weights, progress)
        return self.commit(name, upload, base=base, dtype=dtype, note=note, alias=alias)

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
        return self._call("POST", f"{_path(adapter)}/revisions", AdapterInfo, body, timeout_s=_COMMIT_TIMEOUT_S)

    def pull(self, reference: str, progress: Progress = lambda done, total: None) -> Download:
        """Download the pack of ``tenant/adapter``, ``…@12``, ``…@sha256:…`` or ``…:alias``."""
        parsed = parse_reference(reference, "adapter")
        chosen = parsed.number or parsed.digest or parsed.alias
        url = f"{_path(parsed.name)}/pack" + (f"?revision={quote(str(chosen), safe='')}" if chosen else "")
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

    def ask(
        self, model: str, prompt: str, answer: Answer, *, max_tokens: int, temperature: float, seed: int | None = None
    ) -> Iterator[str]:
        """Yield the pieces of the answer to one user message and fill ``answer`` on the way."""
        body: dict[str, object] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body |= {} if seed is None else {"seed": seed}
        began = time.monotonic()
        with as_client_errors(), self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            check(response)
            read_head(response.headers, answer)
            has_text = is_done = False
            for line in response.iter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    is_done = True
                    break
                for text in read_chunk(line.removeprefix("data: "), answer):
                    if not has_text:
                        answer.ttft_ms, has_text = (time.monotonic() - began) * 1000, True
                    yield text
            if not is_done:
                raise ClientError("connection_lost", "the gateway closed the stream before its end", 0)
            answer.total_ms = (time.monotonic() - began) * 1000

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

    def _call(
        self,
        method: str,
        url: str,
        kind: type[T],
        body: dict[str, object] | None = None,
        timeout_s: float | None = None,
    ) -> T:
        headers = {} if method == "GET" else {"Idempotency-Key": uuid.uuid4().hex}
        timeout = _TIMEOUT if timeout_s is None else httpx.Timeout(timeout_s, connect=5.0)
        with as_client_errors():
            response = self._http.request(method, url, json=body, headers=headers, timeout=timeout)
            check(response)
            return msgspec.json.decode(response.content, type=kind)


def _part(text: str) -> str:
    return quote(text, safe="@")


def _path(adapter: str) -> str:
    return f"/v1/adapters/{parse_reference(adapter, 'adapter').name}"
