"""The real thing: ``octavo-worker`` and ``octavo-residency`` as processes, on the real base, NATS and S3."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, MambaConfig, MambaForCausalLM

from octavo_cli.processes import Process, answers_http, free_port
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.config import StoreSettings
from octavo_shared.lora_config import LoraConfig
from octavo_shared.manifest import BaseManifest, fetch_base
from octavo_shared.messages.fleet import Demand, EvictCommand, EvictReport, View, ViewCommand
from octavo_shared.messages.generation import AdapterHandle, Finished, FinishReason, Sampling, Started, Tier
from octavo_shared.objects import ObjectStore
from octavo_shared.pack import PEFT_PREFIX, build_pack
from octavo_shared.references import WorkerId
from octavo_shared.safetensors_form import RawTensor
from octavo_worker.prepare_base import default_folder, prepare_base
from support.adapters import raw
from support.engines import TINY_LLAMA, save_base
from support.keys import KeyDesk, sealed_for
from support.worker_rig import Caller, handle_of

READY_S = 120.0
W = WorkerId("w1")


@pytest.fixture(scope="module")
def base_folder() -> Path:
    return prepare_base(default_folder())


def _environ(store: StoreSettings, port: int, **fields: str) -> dict[str, str]:
    ours = {
        "OCTAVO_NATS_URL": store.nats_url,
        "OCTAVO_HTTP_PORT": str(port),
        **fields,
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")} | ours


@contextlib.asynccontextmanager
async def _process(module: str, folder: Path, environ: dict[str, str]) -> AsyncIterator[Process]:
    port = int(environ["OCTAVO_HTTP_PORT"])
    command = [sys.executable, "-c", f"from {module}.service import main; main()"]
    process = Process(module, command, folder / f"{module}.log", environ)
    await process.start()
    try:
        await process.wait_ready(lambda: answers_http("127.0.0.1", port, "/readyz"), READY_S)
        yield process
    finally:
        await process.stop(30)


def _worker_environ(store: StoreSettings, folder: Path, base_folder: Path) -> dict[str, str]:
    return _environ(
        store,
        free_port(),
        OCTAVO_S3_ENDPOINT=store.s3_endpoint,
        OCTAVO_S3_ACCESS_KEY=store.s3_access_key,
        OCTAVO_S3_SECRET_KEY=store.s3_secret_key,
        OCTAVO_S3_BUCKET=store.s3_bucket,
        OCTAVO_WORKER_ID=W,
        OCTAVO_BASE_DIR=str(base_folder),
        OCTAVO_CACHE_DIR=str(folder / "cache"),
        OCTAVO_ARENA_BYTES=str(256 * 2**20),
    )


def _pack(manifest: BaseManifest) -> bytes:
    """A rank-8 adapter on every query projection, large enough to change the answer."""
    random = np.random.default_rng(1)
    tensors: dict[str, RawTensor] = {}
    for name, shape in manifest.modules.items():
        if name.endswith("q_proj"):
            tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = raw(random.normal(size=(8, shape.in_features)) * 0.2)
            tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = raw(random.normal(size=(shape.out_features, 8)) * 0.2)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=("q_proj",))
    return build_pack(config, tensors, manifest.fingerprint, None)


async def test_real_worker_serves_base_and_adapter_and_stops_in_order(
    store_settings: StoreSettings, tmp_path: Path, base_folder: Path
) -> None:
    store = ObjectStore(store_settings)
    residency = _environ(store_settings, free_port())
    worker = _worker_environ(store_settings, tmp_path, base_folder)
    async with (
        _process("octavo_residency", tmp_path, residency),
        _process("octavo_worker", tmp_path, worker) as process,
        Bus(store_settings.nats_url, "caller") as bus,
    ):
        view = await bus.request(subjects.residency("view"), ViewCommand(), View, timeout_s=10)
        (heartbeat,) = view.workers
        published = await fetch_base(store, heartbeat.base)
        assert published is not None
        manifest, tokenizer_json = published
        tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        prompt = tuple(tokenizer.encode("The capital of France is").ids)
        pack = _pack(manifest)
        adapter = handle_of(pack, base=manifest.fingerprint)
        await store.write(adapter.object_key, sealed_for(adapter, pack))
        await KeyDesk(bus).start()
        caller = Caller(bus, W)
        sampling = Sampling(max_tokens=8, seed=0, temperature=0.0, stop_token_ids=manifest.stop_token_ids)

        async def ask(handle: AdapterHandle | None) -> tuple[Started, list[int]]:
            if handle is not None:
                await bus.publish(subjects.DEMAND, Demand(handle, W, "r"))
            answer = await caller.ask(handle, base=manifest.fingerprint, prompt=prompt, sampling=sampling)
            assert isinstance(answer.last, Finished), answer.last
            assert answer.finished.num_completion_tokens == len(answer.tokens)
            return answer.started, answer.tokens

        _, plain = await ask(None)
        assert "Paris" in tokenizer.decode(plain)
        cold, adapted = await ask(adapter)
        assert cold.tier is Tier.COLD
        assert adapted != plain
        warm, again = await ask(adapter)
        assert (warm.tier, again) == (Tier.RESIDENT, adapted)
        report = await bus.request(subjects.residency("evict"), EvictCommand(adapter), EvictReport, timeout_s=10)
        assert report == EvictReport((W,), ())
        back, same = await ask(adapter)
        assert (back.tier, same) == (Tier.COLD, adapted)
        assert back.timings.load_ms > 0

        # Told to stop, it finishes what runs.
        long = msgspec.structs.replace(sampling, max_tokens=20, stop_token_ids=())
        talk = await caller.send(base=manifest.fingerprint, prompt=prompt, sampling=long)
        assert isinstance(await talk.next(), Started)
        process.kill(signal.SIGTERM)
        assert (await talk.until_end()).finished.reason is FinishReason.LENGTH
    store.close()


async def _refusal(environ: dict[str, str]) -> str:
    """Run a worker that has to refuse at start; returns what it says."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from octavo_worker.service import main; main()",
        env=environ,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(READY_S):
            _, said = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode == 2
    return said.decode()


async def test_a_base_that_cannot_be_served_is_refused_in_one_line(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=97, hidden_size=64, num_hidden_layers=2, state_size=8, max_position_embeddings=64)
    folder = save_base(MambaForCausalLM(config), tmp_path / "base")
    said = await _refusal(_worker_environ(StoreSettings(), tmp_path, folder) | {"OCTAVO_HTTP_PORT": "0"})
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith(f"worker: OCTAVO_BASE_DIR={str(folder)!r} cannot be served: architecture 'mamba'")


async def test_an_arena_that_holds_no_page_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = save_base(LlamaForCausalLM(TINY_LLAMA), tmp_path / "base")
    environ = _worker_environ(StoreSettings(), tmp_path, folder)
    said = await _refusal(environ | {"OCTAVO_HTTP_PORT": "0", "OCTAVO_ARENA_BYTES": "1000"})
    assert said.splitlines()[-1].startswith("worker: OCTAVO_ARENA_BYTES=1000 is invalid: an arena needs pages")
    assert "Traceback" not in said
