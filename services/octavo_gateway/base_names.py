"""What bases are called that this gateway may never have had a worker of, from their manifests: for errors only."""

import asyncio

import msgspec

from octavo_shared.bases import base_label
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.manifest import fetch_manifest
from octavo_shared.objects import ObjectStore, ObjectTooLarge
from octavo_shared.references import Fingerprint

_NAMES_MAX = 64
_FETCH_TIMEOUT_S = 2.0


class BaseNames:
    """Remembers some names, so that asking for an adapter again and again does not read object storage each time."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._names: dict[Fingerprint, str] = {}

    async def label(self, base: Fingerprint) -> str:
        """Return the label of a base, without its name where that cannot be had at once."""
        if base not in self._names:
            try:
                async with asyncio.timeout(_FETCH_TIMEOUT_S):
                    manifest = await fetch_manifest(self._store, base)
            except (DependencyUnavailable, TimeoutError, msgspec.MsgspecError, ObjectTooLarge):
                return base_label("", base)
            while len(self._names) >= _NAMES_MAX:
                del self._names[next(iter(self._names))]
            self._names[base] = manifest.name if manifest else ""
        return base_label(self._names[base], base)
