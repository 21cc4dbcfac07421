"""Reading objects from a real S3 server, never more of one than its reader takes."""

from collections.abc import AsyncIterator

import pytest

from octavo_shared.config import StoreSettings
from octavo_shared.manifest import MANIFEST_BYTES_MAX, ManifestConflict, publish_base
from octavo_shared.objects import ObjectMissing, ObjectStore, ObjectTooLarge
from support.adapters import TINY_BASE


@pytest.fixture
async def store(store_settings: StoreSettings) -> AsyncIterator[ObjectStore]:
    store = ObjectStore(store_settings)
    await store.ensure_bucket()
    yield store
    store.close()


@pytest.mark.parametrize("num_bytes", [0, 1, 3 * 1024 * 1024 + 7])
async def test_an_object_is_read_whole_up_to_the_bound_and_not_at_all_beyond(
    store: ObjectStore, num_bytes: int
) -> None:
    data = bytes(index % 251 for index in range(num_bytes))
    await store.write("a", data)
    assert await store.read("a", num_bytes) == data
    assert await store.read("a", num_bytes + 1) == data
    if num_bytes:
        with pytest.raises(ObjectTooLarge, match=f"a has more than {num_bytes - 1} bytes"):
            await store.read("a", num_bytes - 1)
    # The connection that was left in the middle is not used again.
    assert await store.read("a", num_bytes) == data


async def test_a_missing_object_is_missing_whatever_the_bound(store: ObjectStore) -> None:
    with pytest.raises(ObjectMissing):
        await store.read("a", 0)


async def test_a_manifest_that_is_too_large_is_none(store: ObjectStore) -> None:
    key = f"bases/{TINY_BASE.fingerprint.removeprefix('sha256:')}/manifest.json"
    await store.write(key, b" " * (MANIFEST_BYTES_MAX + 1))
    with pytest.raises(ManifestConflict, match="is not a base manifest"):
        await publish_base(store, TINY_BASE, b"{}")
