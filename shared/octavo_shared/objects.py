"""Object storage: one S3 bucket behind the ``minio`` SDK, whose calls block and so run in a bounded pool."""

import asyncio
import io
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import BinaryIO, TypeVar

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from octavo_shared.config import StoreSettings
from octavo_shared.errors import DependencyUnavailable

_THREADS_MAX = 8
_CONNECT_TIMEOUT_S = 2.0
_READ_TIMEOUT_S = 20.0
_PART_BYTES = 8 * 1024 * 1024

T = TypeVar("T")


class ObjectMissing(Exception):
    """No object has this key."""


class ObjectTooLarge(Exception):
    """The object has more bytes than its reader takes; nothing of it is returned."""

    def __init__(self, key: str, bytes_max: int) -> None:
        super().__init__(f"the object {key} has more than {bytes_max} bytes")
        self.bytes_max = bytes_max


class ObjectStore:
    """Reads and writes whole objects. Keys are ours (ids and digests), never a user's names."""

    def __init__(self, settings: StoreSettings) -> None:
        self._bucket = settings.s3_bucket
        self._pool = ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="s3")
        self._client = Minio(
            settings.s3_endpoint,
            access_key=settings.s3_access_key or None,
            secret_key=settings.s3_secret_key or None,
            secure=settings.s3_is_tls,
            region="us-east-1",
            http_client=urllib3.PoolManager(
                maxsize=_THREADS_MAX,
                timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=_READ_TIMEOUT_S),
                retries=urllib3.Retry(total=1, connect=1, read=0, backoff_factor=0.1),
            ),
        )

    async def ensure_bucket(self) -> None:
        """Make the bucket if it is not there; idempotent."""

        def make() -> None:
            if self._client.bucket_exists(self._bucket):
                return
            try:
                self._client.make_bucket(self._bucket)
            except S3Error as error:
                # Services start together, so another one may have been a moment faster.
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

        await self._call(make)

    async def read(self, key: str, bytes_max: int) -> bytes:
        """Return the object's bytes, never more than ``bytes_max`` of them.

        Raises ``ObjectMissing``, ``ObjectTooLarge`` before more was read, or ``DependencyUnavailable``.
        """

        def read() -> bytes:
            response = self._client.get_object(self._bucket, key)
            try:
                data = bytes(response.read(bytes_max + 1))
                # One call may return less than there is; nothing is left after the last one.
                while len(data) <= bytes_max and (more := response.read(bytes_max + 1 - len(data))):
                    data += more
            finally:
                response.close()
                response.release_conn()
            if len(data) > bytes_max:
                raise ObjectTooLarge(key, bytes_max)
            return data

        return await self._call(read)

    async def write(self, key: str, data: bytes) -> None:
        """Store ``data`` under ``key``, in one visible step."""
        await self._call(lambda: self._client.put_object(self._bucket, key, io.BytesIO(data), len(data)))

    async def write_stream(self, key: str, stream: BinaryIO) -> None:
        """Store what a blocking ``stream`` yields, in parts, without holding it all in memory."""
        await self._call(lambda: self._client.put_object(self._bucket, key, stream, length=-1, part_size=_PART_BYTES))

    async def delete(self, key: str) -> None:
        """Remove the object; a missing one is fine."""
        await self._call(lambda: self._client.remove_object(self._bucket, key))

    async def keys(self, prefix: str, min_age_s: float = 0.0, num_max: int = 10_000, after: str = "") -> list[str]:
        """Return up to ``num_max`` keys that begin with ``prefix``, come behind ``after`` and are ``min_age_s`` old."""

        def names() -> Iterator[str]:
            newest = datetime.now(UTC) - timedelta(seconds=min_age_s)
            for found in self._client.list_objects(self._bucket, prefix, recursive=True, start_after=after or None):
                if found.object_name and (min_age_s == 0 or (found.last_modified and found.last_modified < newest)):
                    yield found.object_name

        return await self._call(lambda: list(itertools.islice(names(), num_max)))

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject"):
                raise ObjectMissing(error.object_name or "") from error
            raise DependencyUnavailable("object storage") from error
        except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
            raise DependencyUnavailable("object storage") from error

    def close(self) -> None:
        """Stop the threads; calls in flight end on their own timeouts."""
        self._pool.shutdown(wait=False, cancel_futures=True)
