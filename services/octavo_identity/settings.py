"""Settings of the identity service."""

from pathlib import Path

from octavo_shared.config import StoreSettings


class IdentitySettings(StoreSettings, frozen=True, kw_only=True):
    """``identity_dir`` holds the deployment secret and the projection; ``admin_key_file`` gets the first key.

    ``ledger_key_file`` holds the seed of the key that signs the ledger's checkpoints, as 64 hexadecimal digits; without
    it the key is derived from the deployment secret, so that all replicas have the same one. So it is with
    ``tenant_key_file``, the root of the tenant keys, which wrap data keys, and with ``provenance_key_file``, the seed
    of the key that countersigns statements.
    """

    identity_dir: Path
    admin_key_file: Path | None = None
    ledger_key_file: Path | None = None
    provenance_key_file: Path | None = None
    tenant_key_file: Path | None = None
    upload_bytes_max: int = 512 * 1024 * 1024
    num_replicas: int = 1
    """Replicas of the registry stream: 3 in production."""
