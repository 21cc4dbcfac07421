"""Files of a push on their way to S3 staging, and packs on their way back: bounded in size and in number."""

import asyncio
import contextlib
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import Any, BinaryIO, cast

from litestar import Response
from litestar.exceptions import InternalServerException
from litestar.types import Receive, Scope, Send

from octavo_shared.clock import now_ms
from octavo_shared.errors import AdapterUnavailable, InvalidRequest, Overloaded, UploadTooLarge
from octavo_shared.messages.generation import AdapterHandle
from octavo_shared.objects import ObjectMissing, ObjectStore, ObjectTooLarge
from octavo_shared.seal import SealBroken, Sealing, open_sealed, pack_context, sealed_size, staging_context

FILE_NAMES = ("adapter_config.json", "adapter_model.safetensors")

_CONFIG_BYTES_MAX = 1024 * 1024
_MEMORY_BYTES_MAX = 1024 * 1024
_TRANSFERS_MAX = 4
_RETRY_AFTER_S = 5
_CHUNK_TIMEOUT_S = 30.0
_TRANSFER_TIMEOUT_S = 900.0
"""For a whole file, however slowly it goes: 512 MiB at 5 Mbit/s."""
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

    async def upload(
        self, upload_id: str, file_name: str, body: AsyncIterator[bytes], declared_bytes: int, key: bytes
    ) -> int:
        """Stage one file, sealed under ``key``, and return its own size.

        Raises ``UploadTooLarge`` before more than the limit was read.
        """
        if _UPLOAD_ID.match(upload_id) is None:
            raise InvalidRequest("upload_id", "is not of the form that POST /v1/uploads returns")
        if file_name not in FILE_NAMES:
            raise InvalidRequest("file", f"must be one of {', '.join(FILE_NAMES)}")
        limit_bytes = self.limit_bytes(file_name)
        if declared_bytes > limit_bytes:
            raise UploadTooLarge(limit_bytes=limit_bytes)
        with self._place():
            # On disk past a megabyte: S3 is read from by a blocking client at its own pace.
            with tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES_MAX) as spool:
                sealing = Sealing(key, staging_context(upload_id, file_name))
                size_bytes = await _spool(body, cast(BinaryIO, spool), limit_bytes, sealing)
                spool.seek(0)
                await self._store.write_stream(f"staging/{upload_id}/{file_name}", cast(BinaryIO, spool))
            return size_bytes

    @contextlib.asynccontextmanager
    async def pack(self, adapter: AdapterHandle, key: bytes) -> AsyncIterator[bytes]:
        """Yield a revision's pack, opened with ``key`` and verified against its digest on these bytes.

        They count while the block runs.
        """
        with self._place():
            try:
                sealed = await self._store.read(adapter.object_key, sealed_size(adapter.pack_bytes))
            except ObjectMissing as error:
                raise AdapterUnavailable("its pack is not in object storage") from error
            except ObjectTooLarge as error:
                raise AdapterUnavailable("the stored pack was changed") from error
            try:
                data = await asyncio.to_thread(_open, adapter, sealed, key)
            except SealBroken as broken:
                raise AdapterUnavailable("the stored pack was changed") from broken
            yield data

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self._num_running >= _TRANSFERS_MAX:
            raise Overloaded(retry_after_s=_RETRY_AFTER_S)
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1


def _open(adapter: AdapterHandle, sealed: bytes, key: bytes) -> bytes:
    context = pack_context(adapter.tenant_id, adapter.adapter_id, adapter.revision, adapter.base)
    data = bytes(open_sealed(sealed, key, context))
    if "sha256:" + hashlib.sha256(data).hexdigest() != adapter.digest:
        raise AdapterUnavailable("the stored pack does not match its digest")
    return data


class PackResponse(Response[bytes]):
    """A pack on its way to its reader. ``holding`` keeps the transfer's place and ends with it, sent or not."""

    def __init__(self, data: bytes, headers: dict[str, str], holding: contextlib.AsyncExitStack) -> None:
        super().__init__(data, headers=headers, media_type="application/octet-stream")
        self._holding = holding

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> Any:
        """Return the ASGI form; Litestar only calls it."""
        response, holding = super().to_asgi_response(*args, **kwargs), self._holding

        async def send_all(scope: Scope, receive: Receive, send: Send) -> None:
            async with holding:
                # A reader that takes its time must not keep others from theirs for ever.
                async with asyncio.timeout(_TRANSFER_TIMEOUT_S):
                    await response(scope, receive, send)

        return send_all


async def _spool(body: AsyncIterator[bytes], spool: BinaryIO, limit_bytes: int, sealing: Sealing) -> int:
    """Write what arrives, sealed: not even a file without a name holds it as it came. Returns its own size."""
    size_bytes = 0
    until_ms = now_ms() + _TRANSFER_TIMEOUT_S * 1000
    while True:
        if now_ms() > until_ms:
            raise InvalidRequest("body", f"took longer than {_TRANSFER_TIMEOUT_S:.0f} s")
        try:
            async with asyncio.timeout(_CHUNK_TIMEOUT_S):
                chunk = await anext(body, None)
        except InternalServerException as error:
            # So the framework calls a client that left in the middle.
            raise InvalidRequest("body", "did not arrive whole") from error
        except TimeoutError:
            raise InvalidRequest("body", f"stopped arriving for {_CHUNK_TIMEOUT_S:.0f} s") from None
        if chunk is None:
            await asyncio.to_thread(lambda: spool.write(sealing.finish()))
            return size_bytes
        size_bytes += len(chunk)
        if size_bytes > limit_bytes:
            raise UploadTooLarge(limit_bytes=limit_bytes)
        await asyncio.to_thread(_write, spool, sealing, chunk)


def _write(spool: BinaryIO, sealing: Sealing, chunk: bytes) -> None:
    spool.write(sealing.update(chunk))
