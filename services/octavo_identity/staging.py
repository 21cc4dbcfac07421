"""From staged files to a stored pack."""

import asyncio
from dataclasses import dataclass

from octavo_identity.validator import check_base, validate
from octavo_shared.errors import BaseMismatch, DependencyUnavailable, InvalidRequest
from octavo_shared.manifest import BaseManifest, fetch_base
from octavo_shared.messages.identity import Commit
from octavo_shared.objects import ObjectMissing, ObjectStore
from octavo_shared.pack import PackHeader, build_pack, digest_of, read_header
from octavo_shared.references import Digest, Fingerprint
from octavo_shared.telemetry import log

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_BUILDS_MAX = 2


@dataclass(frozen=True)
class Built:
    """A pack that was validated and not stored yet."""

    pack: bytes
    header: PackHeader
    digest: Digest


class Staging:
    """Reads uploads, validates them and stores packs. Building is bounded: a build holds an adapter in memory."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._slots = asyncio.Semaphore(_BUILDS_MAX)
        self._bases: dict[Fingerprint, BaseManifest] = {}

    async def build(self, commit: Commit) -> Built:
        """Return the pack of what was staged for ``commit``; nothing is stored yet.

        Raises ``BaseMismatch``, ``AdapterRefused``, or ``InvalidRequest`` when a file was not uploaded.
        """
        check_base(commit.declared_base, commit.served_base)
        if commit.dtype not in (None, "bf16"):
            raise InvalidRequest("dtype", "must be 'bf16' or left out")
        base = await self._base(commit.served_base)
        async with self._slots:
            folder = f"staging/{commit.upload_id}"
            try:
                config = await self._store.read(f"{folder}/{CONFIG_FILE}")
                weights = await self._store.read(f"{folder}/{WEIGHTS_FILE}")
            except ObjectMissing as missing:
                raise InvalidRequest(
                    "upload_id", f"names an upload without both {CONFIG_FILE} and {WEIGHTS_FILE}"
                ) from missing
            return await asyncio.to_thread(_build, config, weights, base, commit.dtype)

    async def _base(self, fingerprint: Fingerprint) -> BaseManifest:
        if fingerprint not in self._bases:
            found = await fetch_base(self._store, fingerprint)
            if found is None:
                raise BaseMismatch(adapter_base=fingerprint, served_base="none that is published")
            self._bases[fingerprint] = found[0]
        return self._bases[fingerprint]

    async def store_pack(self, object_key: str, pack: bytes) -> None:
        """Store the pack under a key that is written once."""
        await self._store.write(object_key, pack)

    async def discard(self, upload_id: str) -> None:
        """Delete what was staged; what cannot be deleted now is swept later."""
        try:
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                await self._store.delete(f"staging/{upload_id}/{name}")
        except DependencyUnavailable:
            log.warning("staging_not_discarded")


def _build(config: bytes, weights: bytes, base: BaseManifest, dtype: str | None) -> Built:
    valid = validate(config, weights, base)
    pack = build_pack(valid.config, valid.tensors, base.fingerprint, dtype)
    # Read back as a worker will: what cannot be read is never committed.
    return Built(pack, read_header(pack), digest_of(pack))
