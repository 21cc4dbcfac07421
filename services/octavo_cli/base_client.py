"""The gateway's client for bases."""

from collections.abc import Iterator
from urllib.parse import quote

from octavo_cli.client import Client
from octavo_shared.messages.bases import OUTDATED_PAGE_MAX, BaseInfo, BaseList, OutdatedList, OutdatedRevision
from octavo_shared.references import Fingerprint


class BaseClient(Client):
    """``base`` is a label, a name that one base alone has, or a fingerprint."""

    def bases(self, tenant: str = "") -> tuple[BaseInfo, ...]:
        """Return all bases, the oldest first, with counts of one's own tenant, of ``tenant``, or to an admin of all."""
        return self._call("GET", "/v1/bases", BaseList, query={"tenant": tenant}).bases

    def base_labels(self) -> dict[Fingerprint, str]:
        """Return what each base is called."""
        return {info.fingerprint: info.label for info in self.bases()}

    def outdated(self, base: str = "", tenant: str = "") -> Iterator[OutdatedRevision]:
        """Yield every served revision that must be trained again, by adapter, a page at a time."""
        query = {"base": base, "tenant": tenant, "limit": OUTDATED_PAGE_MAX}
        for page in self._pages("/v1/bases/outdated", OutdatedList, query):
            yield from page.revisions

    def supersede_base(self, base: str, by: str) -> BaseInfo:
        return self._call("POST", f"{_path(base)}/supersede", BaseInfo, {"by": by})

    def retire_base(self, base: str) -> BaseInfo:
        return self._call("POST", f"{_path(base)}/retire", BaseInfo)

    def restore_base(self, base: str) -> BaseInfo:
        return self._call("POST", f"{_path(base)}/restore", BaseInfo)


def _path(base: str) -> str:
    return f"/v1/bases/{quote(base, safe='@:')}"
