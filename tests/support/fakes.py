"""A hand-written stand-in for a worker on the real bus, and a tiny real base."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

import msgspec
from nats.aio.msg import Msg
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from octavo_shared import subjects
from octavo_shared.bus import Bus, encode
from octavo_shared.errors import OctavoError
from octavo_shared.manifest import BaseManifest
from octavo_shared.messages.fleet import (
    Heartbeat,
    Placed,
    TierUse,
    WorkerState,
)
from octavo_shared.messages.generation import (
    Busy,
    Cancel,
    Failed,
    Finished,
    FinishReason,
    Generate,
    GenerationEvent,
    Started,
    Tier,
    Timings,
    TokenChunk,
)
from octavo_shared.references import Digest, Fingerprint, WorkerId

HEARTBEAT_S = 0.1
BASE = Fingerprint("sha256:" + "ba5e" * 16)
BASE_NAME = "tiny-base"
CONTEXT_TOKENS = 2048
END_TOKEN = "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' -}}\n{% endif %}"
)


def tiny_tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer whose rarer characters span several tokens, and which adds a BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["hello world, the answer is forty two and the rest is silence"] * 4,
        trainers.BpeTrainer(
            vocab_size=320,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=["<s>", "<|im_start|>", END_TOKEN],
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def tiny_manifest(tokenizer: Tokenizer, base: Fingerprint = BASE, name: str = BASE_NAME) -> BaseManifest:
    """Return the manifest of a base that has a template and a tokenizer and no weights."""
    return BaseManifest(
        name=name,
        fingerprint=base,
        context_tokens=CONTEXT_TOKENS,
        dtype="float32",
        chat_template=TEMPLATE,
        bos_token="<s>",
        eos_token=END_TOKEN,
        stop_token_ids=(tokenizer.token_to_id(END_TOKEN),),
        modules={},
        num_layers=1,
    )


class Exchange:
    """One ``Generate`` as the fake worker sees it, and its side of the protocol."""

    def __init__(self, worker: "FakeWorker", message: Msg, generate: Generate) -> None:
        self.worker = worker
        self.generate = generate
        self._reply = message.reply
        self.is_cancelled = asyncio.Event()

    async def send(self, event: GenerationEvent) -> None:
        await self.worker.bus.client.publish(self._reply, encode(event))

    async def busy(self) -> None:
        await self.send(Busy(self.generate.request_id, self.generate.attempt, "full"))

    async def failed(self, error: OctavoError) -> None:
        await self.send(Failed(self.generate.request_id, self.generate.attempt, error.refusal()))

    async def started(self, tier: Tier = Tier.WARM, digest: Digest | None = None) -> None:
        adapter = self.generate.adapter
        await self.send(
            Started(
                self.generate.request_id,
                self.generate.attempt,
                worker_id=self.worker.worker_id,
                base=self.generate.base,
                tier=tier if adapter else Tier.BASE,
                revision=adapter.revision if adapter else None,
                digest=digest or (adapter.digest if adapter else None),
                timings=Timings(load_ms=3.0),
            )
        )

    async def tokens(self, first_index: int, tokens: list[int], attempt: int | None = None) -> None:
        attempt = self.generate.attempt if attempt is None else attempt
        await self.send(TokenChunk(self.generate.request_id, attempt, first_index, tuple(tokens)))

    async def finished(self, num_tokens: int, reason: FinishReason = FinishReason.STOP) -> None:
        await self.send(
            Finished(
                self.generate.request_id,
                self.generate.attempt,
                reason,
                num_prompt_tokens=len(self.generate.prompt),
                num_completion_tokens=num_tokens,
                timings=Timings(load_ms=3.0, prefill_ms=5.0),
            )
        )

    async def scored(self, logprobs: list[float]) -> None:
        """Say how likely the prompt's tokens are, but for the first."""
        await self.started()
        await self.send(
            Finished(
                self.generate.request_id,
                self.generate.attempt,
                FinishReason.LENGTH,
                num_prompt_tokens=len(self.generate.prompt),
                num_completion_tokens=0,
                prompt_logprobs=struct.pack(f"<{len(logprobs)}f", *logprobs),
            )
        )

    async def answer(self, tokens: list[int]) -> None:
        """Serve the whole answer, token by token, after what an earlier attempt has delivered."""
        tokens = tokens[: self.generate.sampling.max_tokens]
        await self.started()
        for index in range(len(self.generate.forced), len(tokens)):
            await self.tokens(index, [tokens[index]])
        is_cut = len(tokens) == self.generate.sampling.max_tokens
        await self.finished(len(tokens), FinishReason.LENGTH if is_cut else FinishReason.STOP)


Script = Callable[[Exchange], Awaitable[None]]


class FakeWorker:
    """Answers ``Generate`` with a script and sends heartbeats until ``die`` or ``drain``."""

    def __init__(self, bus: Bus, worker_id: str, script: Script, placed: tuple[Placed, ...] = ()) -> None:
        self.bus = bus
        self.worker_id = WorkerId(worker_id)
        self.script = script
        self.placed = placed
        self.base = BASE
        self.state = WorkerState.READY
        self.epoch = 1
        self.base = BASE
        self.num_running = 0
        self.context_tokens = 0
        self.received: list[Generate] = []
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self._exchanges: list[Exchange] = []
        self._sequence = 0
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.bus.subscribe(subjects.worker(self.worker_id, "generate"), self._on_generate)
        await self.bus.serve(subjects.worker(self.worker_id, "cancel"), Cancel, self._on_cancel)
        self._beating = asyncio.create_task(self._beat_forever())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """Fall silent, as a killed process does."""
        if self._beating is not None:
            self._beating.cancel()
        for exchange in self._exchanges:
            exchange.is_cancelled.set()

    async def beat(self) -> None:
        """Send one heartbeat now."""
        self._sequence += 1
        use = TierUse(0, 1)
        heartbeat = Heartbeat(
            worker_id=self.worker_id,
            epoch=self.epoch,
            sequence=self._sequence,
            state=self.state,
            base=self.base,
            base_name=BASE_NAME,
            num_running=self.num_running,
            num_waiting=0,
            num_running_max=8,
            num_pages_free=1,
            num_pages=1,
            page_bytes=1,
            resident=use,
            warm=use,
            local=use,
            placed=self.placed,
            is_snapshot=True,
            context_tokens=self.context_tokens,
        )
        await self.bus.publish(subjects.HEARTBEAT, heartbeat)

    async def _beat_forever(self) -> None:
        while True:
            with contextlib.suppress(OctavoError):
                await self.beat()
            await asyncio.sleep(HEARTBEAT_S)

    async def _on_generate(self, message: Msg) -> None:
        generate = msgspec.msgpack.decode(message.data, type=Generate)
        self.received.append(generate)
        exchange = Exchange(self, message, generate)
        self._exchanges.append(exchange)
        await self.script(exchange)

    async def _on_cancel(self, cancel: Cancel) -> None:
        self.cancelled.put_nowait(cancel.request_id)
        for exchange in self._exchanges:
            if exchange.generate.request_id == cancel.request_id:
                exchange.is_cancelled.set()


async def chunks_of(lines: AsyncIterator[str]) -> list[str]:
    """Return the data of every server-sent event, in order."""
    return [line.removeprefix("data: ") async for line in lines if line.startswith("data: ")]
