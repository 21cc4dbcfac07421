"""What a provider of tenant keys is made of: plain values, which also go to other processes of identity's own."""

import msgspec

from octavo_identity.key_provider import FileKeyProvider, KeyProvider, VaultPlace


class KeySource(msgspec.Struct, frozen=True):
    """``vault``, or else a ``root``."""

    root: bytes = b""
    vault: VaultPlace | None = None

    def provider(self) -> KeyProvider:
        if self.vault is not None:
            # Its client takes a while to import, and most deployments have no Vault.
            from octavo_identity.vault_provider import VaultKeyProvider

            return VaultKeyProvider(self.vault)
        return FileKeyProvider(self.root)
