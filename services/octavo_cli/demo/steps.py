"""What the demo does with a running fleet: steps 2 to 9, each of which checks what it claims."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.progress import TaskID
from rich.table import Table

from octavo_cli.answers import Answer, ClientError
from octavo_cli.client import Client
from octavo_cli.demo.command import run_octavo
from octavo_cli.demo.nats_ask import ask_over_nats
from octavo_cli.demo.receiver import TraceReceiver
from octavo_cli.demo.screen import Screen
from octavo_cli.demo.training import train
from octavo_cli.demo.tree import trace_tree
from octavo_cli.supervisor import LocalFleet
from octavo_shared.messages.keys import Role
from octavo_shared.permissions import BusRole

QUESTION = "What did you do this afternoon?"
_MAX_TOKENS = 48
_PEOPLE = ("alice", "bob")
_SPANS = {"chat", "identity.resolve", "residency.place", "worker.generate", "worker.load_adapter", "s3.read", "prefill",
          "decode"}  # fmt: skip
_TRACE_S = 10.0

T = TypeVar("T")


class DemoSteps:
    """The steps share the people's keys and the cold answer, whose trace is shown last."""

    def __init__(self, screen: Screen, fleet: LocalFleet, receiver: TraceReceiver, base_dir: Path) -> None:
        self._screen = screen
        self._fleet = fleet
        self._receiver = receiver
        self._base_dir = base_dir
        self._keys: dict[str, str] = {}
        self._base_name = ""
        self._cold = Answer()
        self._cold_text = ""

    async def run(self) -> None:
        await self._base()
        folders = await self._train()
        await self._push(folders)
        await self._ask_together()
        await self._ask_cold()
        await self._ask_foreign()
        await self._ask_over_nats()
        await self._show_trace()

    def _adapter(self, person: str) -> str:
        return f"{person}/diary"

    async def _with(self, key: str, work: Callable[[Client], T]) -> T:
        """Do blocking ``work`` with a client of its own, on a thread."""

        def run() -> T:
            with Client(self._fleet.gateway_url, key) as client:
                return work(client)

        return await asyncio.to_thread(run)

    async def _octavo(self, person: str, *words: str) -> str:
        """Run the command line as ``person`` would, show it and what it printed, and return that."""
        self._screen.say(f"$ octavo {' '.join(words)}")
        said = await run_octavo(self._fleet.gateway_url, self._keys[person], words)
        self._screen.say(said.strip())
        return said

    async def _base(self) -> None:
        self._screen.step(2, "the frozen base")
        view = await self._with(self._fleet.admin_key, Client.fleet)
        worker = view.workers[0]
        self._base_name = worker.base_name
        self._screen.say(f"{worker.base_name}, fingerprint {worker.base}")
        self._screen.check(worker.base.startswith("sha256:"), "the base is prepared, fingerprinted and published")

    async def _train(self) -> dict[str, Path]:
        self._screen.step(3, "two people's adapters, trained with PEFT on conversations of theirs")
        folders = {}
        with self._screen.progress() as progress:
            for person in _PEOPLE:
                bar = progress.add_task(f"training {person}", total=1)
                began = time.monotonic()

                def advance(step: int, steps: int, bar: TaskID = bar) -> None:
                    progress.update(bar, completed=step, total=steps)

                folders[person] = await train(person, self._base_dir, advance)
                progress.update(bar, description=f"{person}, {time.monotonic() - began:.0f} s")
        for person, folder in folders.items():
            self._screen.check((folder / "adapter_model.safetensors").exists(), f"{person}'s adapter is trained")
        return folders

    async def _push(self, folders: dict[str, Path]) -> None:
        self._screen.step(4, "each person pushes their adapter with their own key")
        for person, folder in folders.items():

            def make_key(admin: Client, person: str = person) -> str:
                admin.create_tenant(person)
                return admin.create_key(person, person, Role.OWNER).key

            self._keys[person] = await self._with(self._fleet.admin_key, make_key)
            await self._octavo(person, "push", self._adapter(person), str(folder))
            found = await self._with(self._keys[person], lambda client: list(client.adapters()))
            owners = {info.name: info.owner for info in found}
            self._screen.check(
                owners == {self._adapter(person): f"{person}@{person}"},
                f"{self._adapter(person)} belongs to {person}@{person}",
            )

    async def _ask(self, model: str, key: str, pieces: list[str], answer: Answer) -> tuple[float, float]:
        """Stream one answer into ``pieces``; returns when its first and its last text came."""
        times: list[float] = []

        def stream(client: Client) -> None:
            for piece in client.ask(model, QUESTION, answer, max_tokens=_MAX_TOKENS, temperature=0.0):
                times.append(time.monotonic())
                pieces.append(piece)

        await self._with(key, stream)
        return (times[0], times[-1]) if times else (0.0, 0.0)

    async def _ask_together(self) -> None:
        self._screen.step(5, f"one question to the base, alice and bob at the same moment: {QUESTION!r}")
        asked = {self._base_name: self._keys["alice"]} | {self._adapter(who): self._keys[who] for who in _PEOPLE}
        texts: dict[str, list[str]] = {model: [] for model in asked}
        answers = {model: Answer() for model in asked}
        with self._screen.side_by_side(texts):
            spans = await asyncio.gather(
                *(self._ask(model, key, texts[model], answers[model]) for model, key in asked.items())
            )
        self._screen.answers(answers)
        whole = ["".join(text) for text in texts.values()]
        overlap_s = min(end for _, end in spans) - max(begin for begin, _ in spans)
        self._screen.check(overlap_s > 0, f"the three streams ran in one batch ({overlap_s * 1000:.0f} ms together)")
        self._screen.check(len(set(whole)) == len(whole) and all(whole), "the three answers differ")
        digests = {answers[self._adapter(who)].digest for who in _PEOPLE}
        self._screen.check(
            len(digests) == len(_PEOPLE) and answers[self._base_name].digest is None,
            "each answer names the revision and digest that computed it",
        )

    async def _ask_cold(self) -> None:
        self._screen.step(6, "alice's adapter is evicted to cold by the residency manager, then asked again")
        said = await self._octavo("alice", "evict", self._adapter("alice"), "--tier", "cold")
        self._screen.check("evicted on: worker-1; in use on: none" in said, "its worker dropped every copy")
        pieces: list[str] = []
        await self._ask(self._adapter("alice"), self._keys["alice"], pieces, self._cold)
        self._cold_text = "".join(pieces)
        self._screen.check(self._cold.tier == "cold", "it was found cold, in S3 only")
        timings = self._cold.timings
        table = Table("cold-start TTFT", "queue and load", "load", "of it: S3", "digest", "pages", "prefill")
        parts = (timings.queued_ms, timings.load_ms, timings.fetch_ms, timings.verify_ms, timings.copy_ms)
        table.add_row(*(f"{ms:.1f} ms" for ms in (self._cold.ttft_ms, *parts, timings.prefill_ms)))
        self._screen.show(table)
        self._screen.check(timings.fetch_ms > 0 and timings.load_ms > 0, "the worker says where the time went")

    async def _ask_foreign(self) -> None:
        self._screen.step(7, "bob asks for alice's adapter, and for one that does not exist")
        refusals = []
        for model in (self._adapter("alice"), "alice/nothing", "nobody/nothing"):
            try:
                await self._ask(model, self._keys["bob"], [], Answer())
            except ClientError as error:
                refusals.append((error.status, error.code, error.message))
        self._screen.say(f"{refusals[0] if refusals else 'not refused'}")
        self._screen.check(
            len(refusals) == 3 and len(set(refusals)) == 1 and refusals[0][0] == 404,
            "all three answers are the same 404",
        )
        models = await self._with(self._keys["bob"], Client.models)
        self._screen.check(self._adapter("alice") not in models, "bob's list does not show it either")

    async def _ask_over_nats(self) -> None:
        self._screen.step(8, "the same JSON, published straight to the NATS subject, by a client that may do only that")
        body = {
            "model": self._adapter("alice"),
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": _MAX_TOKENS,
            "temperature": 0.0,
            "stream": True,
        }
        seed_file = self._fleet.seed_file(BusRole.CLIENT)
        text, num_chunks = await ask_over_nats(self._fleet.nats_url, seed_file, self._keys["alice"], body)
        self._screen.say(text.strip().replace("\n", " / "))
        self._screen.check(text == self._cold_text, f"{num_chunks} chunks carried the same text as over HTTP")

    async def _show_trace(self) -> None:
        self._screen.step(9, "the trace of the cold request, as the services exported it")
        spans = await self._receiver.wait_for(self._cold.trace_id, _SPANS, _TRACE_S)
        self._screen.show(trace_tree(spans))
        names = {span.operation for span in spans}
        missing = sorted(_SPANS - names)
        self._screen.check(not missing, "it holds every part of the way" + (f", but {missing}" if missing else ""))
        services = {span.service for span in spans}
        self._screen.check(len(services) == 4, "four processes share one trace id")
