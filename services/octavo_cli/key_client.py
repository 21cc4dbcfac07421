"""The gateway's client for tenants and their API keys."""

from collections.abc import Iterator, Sequence

from octavo_cli.answers import NewKey
from octavo_cli.connection import Connection, path_part
from octavo_shared.messages.keys import KEYS_PAGE_MAX, KeyInfo, KeyIssued, KeyList, Role, Scope
from octavo_shared.messages.tenants import TenantCreated


class KeyClient(Connection):
    """Makes, renews, shows and ends keys."""

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
        return self._call("POST", f"/v1/tenants/{path_part(tenant)}/keys", NewKey, body)

    def rotate_key(self, key_id: str, overlap_s: int, lifetime_s: int | None = None) -> NewKey:
        body: dict[str, object] = {"overlap_s": overlap_s, "lifetime_s": lifetime_s}
        return self._call("POST", f"/v1/keys/{path_part(key_id)}/rotate", NewKey, body)

    def keys(self, principal: str = "") -> Iterator[KeyInfo]:
        """Yield one's own keys, or those of ``principal``, a page at a time."""
        for page in self._pages("/v1/keys", KeyList, {"limit": KEYS_PAGE_MAX, "principal": principal}):
            yield from page.keys

    def whoami(self) -> KeyInfo:
        """Return what the key in use is."""
        return self._call("GET", "/v1/key", KeyInfo)

    def revoke_key(self, key_id: str) -> KeyIssued:
        return self._call("DELETE", f"/v1/keys/{path_part(key_id)}", KeyIssued)
