"""Settings of the identity service."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from octavo_shared.config import StoreSettings
from octavo_shared.messages.pushing import UPLOAD_BYTES_MAX


class IdentitySettings(StoreSettings, frozen=True, kw_only=True):
    """``identity_dir`` holds the deployment secret and the projection; ``admin_key_file`` gets the first key.

    ``ledger_key_file`` holds the seed of the key that signs the ledger's checkpoints, as 64 hexadecimal digits; without
    it the key is derived from the deployment secret, so that all replicas have the same one. So it is with
    ``tenant_key_file``, the root of the tenant keys, which wrap data keys, and with ``provenance_key_file``, the seed
    of the key that countersigns statements.

    With ``key_provider`` "vault" tenant keys are in Vault's transit engine, mounted at ``vault_mount``; who may use it
    is told by the token in ``vault_token_file``, and whom to trust by the authorities in ``vault_ca_file``, if given.
    """

    identity_dir: Path
    admin_key_file: Path | None = None
    ledger_key_file: Path | None = None
    provenance_key_file: Path | None = None
    tenant_key_file: Path | None = None
    key_provider: Literal["file", "vault"] = "file"
    vault_url: str = ""
    vault_token_file: Path | None = None
    vault_mount: str = "transit"
    vault_ca_file: Path | None = None
    upload_bytes_max: int = UPLOAD_BYTES_MAX
    num_replicas: int = 1
    """Replicas of the registry stream: 3 in production."""
    audit_events_per_s: Annotated[int, Meta(ge=0, le=1_000)] = 100
    """How many events, and keys that open them, the background audit reads; 0: there is none. A million events of as
    many adapters take 5.6 hours at 100."""

    def __post_init__(self) -> None:
        if self.key_provider == "vault":
            if not self.vault_url.startswith(("https://", "http://")):
                raise ValueError("OCTAVO_VAULT_URL must be an http(s) URL where OCTAVO_KEY_PROVIDER is 'vault'")
            if self.vault_token_file is None:
                raise ValueError("OCTAVO_VAULT_TOKEN_FILE must be set where OCTAVO_KEY_PROVIDER is 'vault'")
            if self.tenant_key_file is not None:
                raise ValueError("OCTAVO_TENANT_KEY_FILE has no use where OCTAVO_KEY_PROVIDER is 'vault'")
        elif self.vault_url or self.vault_token_file or self.vault_ca_file:
            raise ValueError("OCTAVO_VAULT_* has no use unless OCTAVO_KEY_PROVIDER is 'vault'")
