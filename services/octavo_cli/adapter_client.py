"""The gateway's client for adapters: which there are, what is served of them, who may do what, and their end."""

from collections.abc import Iterator, Sequence

import msgspec

from octavo_cli.answers import Erasure
from octavo_cli.connection import PACK_TIMEOUT_S, Connection, adapter_path, path_part
from octavo_shared.envelopes import Envelope
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.adapters import AdapterInfo, AdapterList
from octavo_shared.messages.fleet import EvictReport
from octavo_shared.messages.grants import GrantRole
from octavo_shared.messages.history import HistoryEntry, HistoryList
from octavo_shared.references import SERVING, parse_reference

_PAGE_MAX = 1_000


class AdapterClient(Connection):
    """``adapter`` is ``tenant/adapter``. Writes return the adapter's new head."""

    def adapters(self, **wanted: str) -> Iterator[AdapterInfo]:
        """Yield every adapter that this key may use, by name, a page at a time.

        ``wanted`` narrows them: tenant, owner, base, state, tag, prefix.
        """
        for page in self._pages("/v1/adapters", AdapterList, {"limit": _PAGE_MAX, **wanted}):
            yield from page.adapters

    def history(self, adapter: str) -> tuple[HistoryEntry, ...]:
        """Return what happened to ``adapter``, newest first."""
        return self._call("GET", f"{adapter_path(adapter)}/history", HistoryList).entries

    def promote(
        self, reference: str, alias: str = SERVING, share: int | None = None, expect: int | None = None
    ) -> AdapterInfo:
        """Let ``alias`` name the revision that ``reference`` names."""
        parsed = parse_reference(reference, "revision")
        if parsed.selector is None:
            raise InvalidRequest("revision", "must be named: by number, digest or alias")
        body: dict[str, object] = {"revision": parsed.selector, "alias": alias}
        body |= {name: value for name, value in (("share", share), ("expect", expect)) if value is not None}
        return self._call("POST", f"{adapter_path(parsed.name)}/promote", AdapterInfo, body)

    def rollback(self, adapter: str, revision: int | None = None, alias: str = SERVING) -> AdapterInfo:
        """Move ``alias`` to revision number ``revision`` (None: to what it named before)."""
        body: dict[str, object] = {"alias": alias} | ({} if revision is None else {"revision": revision})
        return self._call("POST", f"{adapter_path(adapter)}/rollback", AdapterInfo, body)

    def unalias(self, adapter: str, alias: str) -> AdapterInfo:
        return self._call("DELETE", f"{adapter_path(adapter)}/aliases/{path_part(alias)}", AdapterInfo)

    def retire(self, reference: str) -> AdapterInfo:
        """Never serve ``tenant/adapter@12`` again."""
        parsed = parse_reference(reference, "revision")
        if parsed.number is None:
            raise InvalidRequest("revision", "must be named by its number")
        return self._call("POST", f"{adapter_path(parsed.name)}/retire", AdapterInfo, {"revision": parsed.number})

    def branch(
        self, source: str, adapter: str, alias: str | None = SERVING, statement: Envelope | None = None
    ) -> AdapterInfo:
        """Make the new ``adapter`` from the revision that ``source`` names."""
        body: dict[str, object] = {"source": source, "alias": alias}
        if statement is not None:
            body["statement"] = msgspec.to_builtins(statement)
        return self._call("POST", f"{adapter_path(adapter)}/branch", AdapterInfo, body, timeout_s=PACK_TIMEOUT_S)

    def tag(self, adapter: str, add: Sequence[str], remove: Sequence[str]) -> AdapterInfo:
        body = {"add": list(add), "remove": list(remove)}
        return self._call("POST", f"{adapter_path(adapter)}/tags", AdapterInfo, body)

    def grant(self, adapter: str, principal: str, role: GrantRole = GrantRole.USER) -> AdapterInfo:
        body = {"principal": principal, "role": role}
        return self._call("POST", f"{adapter_path(adapter)}/grants", AdapterInfo, body)

    def revoke(self, adapter: str, principal: str) -> AdapterInfo:
        return self._call("DELETE", f"{adapter_path(adapter)}/grants/{path_part(principal)}", AdapterInfo)

    def transfer(self, adapter: str, owner: str) -> AdapterInfo:
        return self._call("POST", f"{adapter_path(adapter)}/transfer", AdapterInfo, {"owner": owner})

    def evict(self, adapter: str, tier: str = "cold") -> EvictReport:
        """Drop the copies above ``tier`` on every worker; revisions stay."""
        return self._call("POST", f"{adapter_path(adapter)}/evict", EvictReport, {"tier": tier})

    def erase(self, adapter: str) -> Erasure:
        """Destroy an adapter for ever."""
        return self._call("DELETE", adapter_path(adapter), Erasure, timeout_s=PACK_TIMEOUT_S)
