import asyncio
import threading

import msgspec
import pytest

from octavo_identity.building import Built, build, read_back
from octavo_identity.staging import Staging
from octavo_shared.errors import AdapterRefused, InvalidRequest, UploadTooLarge
from octavo_shared.manifest import BaseManifest
from octavo_shared.messages.pushing import Commit
from octavo_shared.messages.requests import Credential
from octavo_shared.objects import ObjectMissing, ObjectStore, ObjectTooLarge
from octavo_shared.pack import digest_of
from octavo_shared.seal import seal, staging_context
from support.adapters import TINY_BASE, TINY_FINGERPRINT, config_json, tiny_weights
from support.keys import MemoryKeys, key_for

ORDER = Commit(
    credential=Credential("a" * 16, bytes(32)),
    idempotency_key="1",
    adapter="home/diary",
    upload_id="upload",
    served_base=TINY_FINGERPRINT,
)


def staged(name: str, content: bytes) -> bytes:
    return seal(content, key_for("upload"), staging_context("upload", name))


class MemoryStore(ObjectStore):
    """Holds the tiny base and one upload."""

    def __init__(self, config: bytes | None = None) -> None:
        self.num_uploads_read = 0
        folder = f"bases/{TINY_FINGERPRINT.removeprefix('sha256:')}"
        self.objects = {
            f"{folder}/manifest.json": msgspec.json.encode(TINY_BASE),
            f"{folder}/tokenizer.json": b"{}",
            "staging/upload/adapter_config.json": staged("adapter_config.json", config or config_json()),
            "staging/upload/adapter_model.safetensors": staged("adapter_model.safetensors", tiny_weights()),
        }

    async def read(self, key: str, bytes_max: int) -> bytes:
        if key not in self.objects:
            raise ObjectMissing(key)
        if len(self.objects[key]) > bytes_max:
            raise ObjectTooLarge(key, bytes_max)
        self.num_uploads_read += key.endswith("model.safetensors")
        return self.objects[key]


class SlowBuild:
    """Builds when it may, and counts."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.num_begun = 0

    def __call__(self, config: bytes, weights: bytes, base: BaseManifest, dtype: str | None) -> Built:
        self.num_begun += 1
        assert self.may_go_on.wait(20)
        return read_back(build(config, weights, base, dtype))


async def test_a_build_whose_caller_gave_up_keeps_its_slot_until_it_ends() -> None:
    slow, store = SlowBuild(), MemoryStore()
    staging = Staging(store, MemoryKeys(["upload"]), slow)
    try:
        impatient = [asyncio.create_task(staging.build(ORDER)) for _ in range(2)]
        async with asyncio.timeout(10):
            while slow.num_begun < 2:
                await asyncio.sleep(0.01)
        for task in impatient:
            task.cancel()
        await asyncio.wait(impatient)
        assert all(task.cancelled() for task in impatient)
        third = asyncio.create_task(staging.build(ORDER))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(third), 0.2)
        # Neither a thread nor the memory for what it would work on.
        assert (slow.num_begun, store.num_uploads_read) == (2, 2)
        slow.may_go_on.set()
        built = await asyncio.wait_for(third, 10)
        assert built.digest == digest_of(built.pack)
        assert slow.num_begun == 3
    finally:
        slow.may_go_on.set()
        staging.close()


async def test_a_build_that_fails_gives_its_slot_back() -> None:
    refused, incomplete = MemoryStore(config_json(use_dora=True)), MemoryStore()
    del incomplete.objects["staging/upload/adapter_config.json"]
    for store, expected in [(refused, AdapterRefused), (incomplete, InvalidRequest)]:
        staging = Staging(store, MemoryKeys(["upload"]))
        for _ in range(5):
            with pytest.raises(expected):
                await asyncio.wait_for(staging.build(ORDER), 10)
        staging.close()


async def test_a_staged_file_beyond_the_limit_is_not_read() -> None:
    num_bytes = len(tiny_weights())
    staging = Staging(MemoryStore(), MemoryKeys(["upload"]), upload_bytes_max=num_bytes)
    assert (await staging.build(ORDER)).digest
    staging.close()
    staging = Staging(MemoryStore(), MemoryKeys(["upload"]), upload_bytes_max=num_bytes - 1)
    with pytest.raises(UploadTooLarge, match=f"{num_bytes - 1} bytes"):
        await staging.build(ORDER)
    staging.close()
