"""A whole fleet as tests use it: people with keys and adapters, streams that note every event, and the fleet's view."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np

from octavo_cli.client import Client
from octavo_cli.supervisor import LocalFleet
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.credentials import read_credentials
from octavo_shared.messages.fleet import View, ViewCommand
from octavo_shared.messages.keys import Role
from octavo_shared.pack import PEFT_PREFIX
from octavo_shared.permissions import BusRole
from octavo_shared.safetensors_form import RawTensor, write_tensors
from support.adapters import raw

CHAT = "/v1/chat/completions"
QUESTION = "Tell me a long story about a lighthouse and the sea."
SETTLE_S = 60.0
NUM_LAYERS = 30
SHAPES = {"self_attn.q_proj": (576, 576), "self_attn.v_proj": (576, 192), "mlp.down_proj": (1536, 576)}
"""(in, out) features of some modules of SmolLM2-135M."""

T = TypeVar("T")


@dataclass(frozen=True)
class Person:
    """Somebody with a tenant, an owner's key and one pushed adapter."""

    name: str
    key: str
    folder: Path
    digest: str

    @property
    def adapter(self) -> str:
        return f"{self.name}/diary"


@dataclass
class Stream:
    """One streamed answer, filled while it comes."""

    pieces: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    is_done: bool = False
    usage: dict[str, Any] = field(default_factory=dict)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when some text has come."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass
class Live:
    """A running fleet, the people in it, and an HTTP client of its gateway."""

    fleet: LocalFleet
    http: httpx.AsyncClient
    people: dict[str, Person]
    base: str
    base_name: str

    @property
    def alice(self) -> Person:
        return self.people["alice"]

    @property
    def bob(self) -> Person:
        return self.people["bob"]

    async def ask(self, model: str, key: str, max_tokens: int = 8, **fields: Any) -> httpx.Response:
        """Return the response to one question that is not streamed; greedy unless ``fields`` say otherwise."""
        return await self.http.post(CHAT, json=body(model, max_tokens, **fields), headers=bearer(key))

    async def read(self, stream: Stream, model: str, key: str, max_tokens: int) -> Stream:
        """Fill ``stream`` with one greedy answer to the end of the connection and return it."""
        content = body(model, max_tokens, stream=True, stream_options={"include_usage": True})
        async with self.http.stream("POST", CHAT, json=content, headers=bearer(key)) as response:
            assert response.status_code == 200, await response.aread()
            stream.headers = dict(response.headers)
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    stream.is_done = True
                elif line.startswith("data: "):
                    _note(stream, json.loads(line.removeprefix("data: ")))
        return stream

    async def command(self, key: str, work: Callable[[Client], T]) -> T:
        """Do ``work`` with the command line's own client, as ``key``."""

        def run() -> T:
            with Client(self.fleet.gateway_url, key) as client:
                return work(client)

        return await asyncio.to_thread(run)

    async def view(self) -> View:
        """Return what the residency manager knows, asked over NATS: it is there when no gateway is."""
        # Only gateways may ask it.
        gateway = read_credentials(BusRole.GATEWAY, str(self.fleet.seed_file(BusRole.GATEWAY)))
        async with Bus(self.fleet.nats_url, "test", connect_timeout_s=5.0, credentials=gateway) as bus:
            return await bus.request(subjects.residency("view"), ViewCommand(), View, 5.0)

    async def running_on(self) -> str:
        """Return the worker that has a running sequence, once there is one."""

        async def busy() -> list[str]:
            return [worker.worker_id for worker in (await self.view()).workers if worker.num_running]

        await until(busy, "no worker runs a sequence")
        return (await busy())[0]

    async def idle(self) -> None:
        """Return once no worker runs or queues anything."""

        async def is_idle() -> bool:
            return all(worker.num_running == worker.num_waiting == 0 for worker in (await self.view()).workers)

        await until(is_idle, "a worker still generates")

    async def workers(self, num: int) -> list[str]:
        """Return the names of ``num`` live workers, starting and stopping some where need be."""
        names = [name for name in self.fleet.processes if name.startswith("worker")]
        live = [name for name in names if self.fleet.processes[name].is_running]
        for name in live[num:]:
            await self.fleet.stop_process(name)
        for name in [name for name in names if name not in live][: max(0, num - len(live))]:
            await self.fleet.restart(name)
            live.append(name)
        while len(live) < num:
            live.append(await self.fleet.add_worker())
        live = live[:num]

        async def is_known() -> bool:
            return {worker.worker_id for worker in (await self.view()).workers} == set(live)

        await until(is_known, f"the manager does not see exactly {live}")
        return live


async def until(condition: Callable[[], Awaitable[object]], problem: str, timeout_s: float = SETTLE_S) -> None:
    """Return once ``condition()`` is true; what it raises counts as not yet. Fails with ``problem``."""
    last = "false"
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    if await condition():
                        return
                    last = "false"
                except (Exception, ExceptionGroup) as error:
                    last = repr(error)
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{problem} after {timeout_s:.0f} s; at last: {last}") from None


def body(model: str, max_tokens: int, **fields: Any) -> dict[str, Any]:
    """Return the JSON of one greedy question."""
    messages = [{"role": "user", "content": QUESTION}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **fields}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _note(stream: Stream, chunk: dict[str, Any]) -> None:
    stream.error = chunk.get("error", stream.error)
    stream.usage = chunk.get("usage") or stream.usage
    for choice in chunk.get("choices", []):
        if text := choice["delta"].get("content"):
            stream.pieces.append(text)
            stream.began.set()


def adapter_tensors(seed: int, rank: int = 8) -> dict[str, RawTensor]:
    """Return PEFT tensors for all layers of SmolLM2-135M, strong enough to change what it says."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(NUM_LAYERS):
        for name, (num_in, num_out) in SHAPES.items():
            module = f"{PEFT_PREFIX}model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = raw(random.normal(size=(rank, num_in)) * 0.05)
            tensors[f"{module}.lora_B.weight"] = raw(random.normal(size=(num_out, rank)) * 0.05)
    return tensors


def adapter_config(rank: int = 8, **fields: object) -> dict[str, object]:
    """Return the ``adapter_config.json`` of ``adapter_tensors``, with ``fields`` on top."""
    targets = sorted(name.split(".")[1] for name in SHAPES)
    config: dict[str, object] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    return config | {"target_modules": targets, "bias": "none"} | fields


def write_live_adapter(folder: Path, seed: int, rank: int = 8) -> Path:
    """Write a random PEFT directory for SmolLM2-135M and return it."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config(rank)))
    (folder / "adapter_model.safetensors").write_bytes(write_tensors(adapter_tensors(seed, rank), {"format": "pt"}))
    return folder


def make_person(fleet: LocalFleet, name: str, folder: Path, seed: int) -> Person:
    """Create a tenant, an owner's key and a pushed adapter; blocking."""
    with Client(fleet.gateway_url, fleet.admin_key) as admin:
        admin.create_tenant(name)
        key = admin.create_key(name, name, Role.OWNER).key
    write_live_adapter(folder, seed)
    with Client(fleet.gateway_url, key) as owner:
        info = owner.push(f"{name}/diary", folder / "adapter_config.json", folder / "adapter_model.safetensors")
    return Person(name, key, folder, info.latest.digest)
