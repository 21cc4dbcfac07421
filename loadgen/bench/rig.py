"""An engine on a bench: packs in host memory, chosen adapters resident, batches run to their end and timed."""

import itertools
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo_kernels.native import load_native
from octavo_shared.lora_config import parse_lora_config
from octavo_shared.messages.generation import Sampling
from octavo_shared.pack import PackHeader, build_pack, digest_of, read_header
from octavo_shared.references import AdapterId, PackKey, TenantId
from octavo_shared.safetensors_form import read_tensors
from octavo_worker.engine.engine import Engine, EngineLimits, new_arena
from octavo_worker.engine.sequence import SequenceFailed, SequenceRequest, StepEvent, TokensDecoded
from octavo_worker.model.base import BaseModel

_KV_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class Run:
    """One batch of prompts from the first step to the last token; ``tokens[i]`` answers prompt i.

    ``decode_ms`` has the steps in which every prompt got one more token and no prompt was read: the decode steps of
    the full batch.
    """

    seconds: float
    tokens: tuple[tuple[int, ...], ...]
    decode_ms: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all prompts per second."""
        return sum(len(answer) for answer in self.tokens) / self.seconds


@dataclass(frozen=True)
class WarmPack:
    """A pack in host memory, as the warm tier holds it."""

    key: PackKey
    data: bytes
    header: PackHeader


def arena_bytes(base: BaseModel, rank: int, num_adapters: int) -> int:
    """Return the size of an arena for so many adapters of all modules, beside enough keys and values."""
    elements = rank * sum(shape.in_features + shape.out_features for shape in base.manifest.modules.values())
    # A page's slack comes on top of what the rows take.
    num_elements = num_adapters * (elements + base.kv_shape.page_elements)
    return num_elements * base.dtype.itemsize + _KV_BYTES


def kernels_used() -> str:
    """Return which kernels compute here: without a compiler it is plain torch, several times slower."""
    return "compiled" if load_native() is not None else "plain torch"


class Rig:
    """One engine with an arena of ``arena_bytes``; belongs to one thread, like its engine."""

    def __init__(self, base: BaseModel, arena_bytes: int, num_requests_max: int) -> None:
        self.base = base
        self.engine = Engine(base, new_arena(base, arena_bytes), EngineLimits(num_running_max=num_requests_max))
        self.packs: dict[PackKey, WarmPack] = {}
        self._run_numbers = itertools.count()

    def add(self, folder: Path) -> PackKey:
        """Make the pack of a PEFT directory and keep it in host memory; it is not resident yet."""
        config = parse_lora_config(json.loads((folder / "adapter_config.json").read_bytes()))
        _, tensors, _ = read_tensors((folder / "adapter_model.safetensors").read_bytes())
        pack = build_pack(config, tensors, self.base.fingerprint, None)
        return self._keep(folder.name, pack, read_header(pack))

    def add_copies(self, keys: Sequence[PackKey], num_copies: int) -> tuple[PackKey, ...]:
        """Return ``num_copies`` more adapters with the bytes of ``keys`` in turn; they share host memory with those."""
        originals = itertools.islice(itertools.cycle(keys), num_copies)
        return tuple(
            self._keep(f"copy-{number}", self.packs[key].data, self.packs[key].header)
            for number, key in enumerate(originals)
        )

    def make_resident(self, keys: Collection[PackKey]) -> None:
        """Have exactly ``keys`` resident."""
        here = {key for key, _, _ in self.engine.residency()}
        for key in here.difference(keys):
            self.engine.evict(key)
        for key in keys:
            if key not in here:
                pack = self.packs[key]
                self.engine.install(key, memoryview(pack.data), pack.header)

    def run(
        self,
        prompts: Sequence[tuple[int, ...]],
        keys: Sequence[PackKey | None],
        num_new_tokens: int,
        schema: str = "",
    ) -> Run:
        """Answer all ``prompts`` at once, greedily, ``keys[i]`` being the resident adapter of prompt i.

        ``schema`` is the JSON schema that all answers follow, so far as they get.
        """
        number = next(self._run_numbers)
        for i, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
            # Each request is another tenant's, so that no prompt is found in a prefix cache.
            tenant = TenantId(f"bench-{number}-{i}")
            sampling = Sampling(max_tokens=num_new_tokens, seed=0, temperature=0.0, schema=schema)
            self.engine.submit(SequenceRequest(f"{number}-{i}", 1, tenant, prompt, (), sampling, key))
        answers: list[list[int]] = [[] for _ in prompts]
        decode_ms = []
        started = time.perf_counter()
        while self.engine.wait_for_work(0):
            step_started = time.perf_counter()
            events = self.engine.step()
            step_ms = (time.perf_counter() - step_started) * 1e3
            if is_full_decode(events, len(prompts)):
                decode_ms.append(step_ms)
            for event in events:
                if isinstance(event, TokensDecoded):
                    answers[int(event.request_id.partition("-")[2])] += event.tokens
                elif isinstance(event, SequenceFailed):
                    raise RuntimeError(f"a request failed: {event.refusal}")
        seconds = time.perf_counter() - started
        if any(len(answer) != num_new_tokens for answer in answers):
            raise RuntimeError("a request ended early")
        return Run(seconds, tuple(map(tuple, answers)), tuple(decode_ms))

    def _keep(self, name: str, pack: bytes, header: PackHeader) -> PackKey:
        key: PackKey = (AdapterId(name), digest_of(pack))
        self.packs[key] = WarmPack(key, pack, header)
        return key


def is_full_decode(events: Sequence[StepEvent], num_requests: int) -> bool:
    """Tell whether a step gave every request one more token and read no prompt."""
    decoded = [event for event in events if isinstance(event, TokensDecoded)]
    return len(decoded) == num_requests and all(event.first_index > 0 for event in decoded)
