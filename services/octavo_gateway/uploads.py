"""Files of a push on their way to S3 staging, and packs on their way back: bounded in size and in number."""

import asyncio
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator
from typing import BinaryIO, cast

from octavo_shared.errors import AdapterUnavailable, InvalidRequest, Overloaded, UploadTooLarge
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.objects import ObjectMissing, ObjectStore

FILE_NAMES = ("adapter_config.json", "adapter_model.safetensors")

_CONFIG_BYTES_MAX = 1024 * 1024
_MEMORY_BYTES_MAX = 1024 * 1024
_TRANSFERS_MAX = 4
_RETRY_AFTER_S = 5
_CHUNK_TIMEOUT_S = 30.0
_UPLOAD_ID = re.compile(r"[A-Za-z0-9_-]{8,128}\Z")


class Transfers:
    """Moves large bodies; more at a time than ``_TRANSFERS_MAX`` are refused, not queued."""

    def __init__(self, store: ObjectStore, upload_bytes_max: int) -> None:
        self._store = store
        self._upload_bytes_max = upload_bytes_max
        self._num_running = 0

    def limit_bytes(self, file_name: str) -> int:
        """Return how large this file of an upload may be."""
        return min(_CONFIG_BYTES_MAX, self._upload_bytes_max) if file_name == FILE_NAMES[0] else self._upload_bytes_max

    async def upload(self, upload_id: str, file_name: str, body: AsyncIterator[bytes], declared_bytes: int) -> int:
        """Stage one file and return its size; raises ``UploadTooLarge`` before more than the limit was read."""
        if _UPLOAD_ID.match(upload_id) is None:
            raise InvalidRequest("upload_id", "is not of the form that POST /v1/uploads returns")
        if file_name not in FILE_NAMES:
            raise InvalidRequest("file", f"must be one of {', '.join(FILE_NAMES)}")
        limit_bytes = self.limit_bytes(file_name)
        if declared_bytes > limit_bytes:
            raise UploadTooLarge(limit_bytes=limit_bytes)
        self._enter()
        try:
            # On disk past a megabyte: S3 is read from by a blocking client at its own pace.
            with tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES_MAX) as spool:
                size_bytes = await _spool(body, cast(BinaryIO, spool), limit_bytes)
                spool.seek(0)
                await self._store.write_stream(f"staging/{upload_id}/{file_name}", cast(BinaryIO, spool))
            return size_bytes
        finally:
            self._num_running -= 1

    async def pack(self, adapter: AdapterHandle) -> bytes:
        """Return a revision's pack, verified against its digest on the bytes that are returned."""
        self._enter()
        try:
            data = await self._store.read(adapter.object_key)
        except ObjectMissing as error:
            raise AdapterUnavailable("its pack is not in object storage") from error
        finally:
            self._num_running -= 1
        digest = await asyncio.to_thread(lambda: "sha256:" + hashlib.sha256(data).hexdigest())
        if digest != adapter.digest:
            raise AdapterUnavailable("the stored pack does not match its digest")
        return data

    def _enter(self) -> None:
        if self._num_running >= _TRANSFERS_MAX:
            raise Overloaded(retry_after_s=_RETRY_AFTER_S)
        self._num_running += 1


async def _spool(body: AsyncIterator[bytes], spool: BinaryIO, limit_bytes: int) -> int:
    size_bytes = 0
    while True:
        try:
            async with asyncio.timeout(_CHUNK_TIMEOUT_S):
                chunk = await anext(body, None)
        except TimeoutError:
            raise InvalidRequest("body", f"stopped arriving for {_CHUNK_TIMEOUT_S:.0f} s") from None
        if chunk is None:
            return size_bytes
        size_bytes += len(chunk)
        if size_bytes > limit_bytes:
            raise UploadTooLarge(limit_bytes=limit_bytes)
        await asyncio.to_thread(spool.write, chunk)
