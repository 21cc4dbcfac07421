"""What an engine does with one workload, measured in rounds: throughput, decode steps, floors, loads."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.breakdown import Breakdown
from bench.ceilings import PackedProducts, copy_gb_s, memcpy_ms
from bench.rig import Rig, Run
from octavo_shared.manifest import ModuleShape
from octavo_shared.pack import digest_of, read_header
from octavo_shared.references import PackKey
from octavo_worker.engine.engine import EngineLimits

_NUM_LOADS = 8
_NUM_REPEATS = 10

Samples = dict[str, list[float]]
"""One value per round under each name."""


@dataclass(frozen=True)
class Case:
    """A batch: prompt i is answered with adapter i, or the base alone. ``residents`` are all that is loaded.

    All answers follow the JSON ``schema``, if there is one.
    """

    name: str
    prompts: Sequence[tuple[int, ...]]
    keys: Sequence[PackKey | None]
    residents: Sequence[PackKey]
    schema: str = ""


def case_of(
    name: str, prompts: Sequence[tuple[int, ...]], keys: Sequence[PackKey], residents: Sequence[PackKey] = ()
) -> Case:
    """Return the case in which prompt i has adapter ``keys[i]``, in turn where there are fewer; none: the base."""
    used = [keys[i % len(keys)] if keys else None for i in range(len(prompts))]
    return Case(name, prompts, used, residents or keys)


def products_of(rig: Rig, seed: int) -> PackedProducts:
    """Return the base's products."""
    base = rig.base
    head = base.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    shape = ModuleShape(head.in_features, head.out_features) if head is not None else None
    return PackedProducts(base.manifest.modules, shape, base.dtype, seed)


@dataclass
class Profile:
    """Measures ``cases`` in rounds, each round in another order, so that no case always follows the same one.

    There must be cases named ``base``, whose floor is measured right behind it, and ``mixed``. ``spare`` are adapters
    to load, used by no case that is measured at the same time.
    """

    rig: Rig
    products: PackedProducts
    cases: Sequence[Case]
    spare: Sequence[PackKey]
    num_new_tokens: int
    samples: Samples = field(default_factory=dict)

    def warm_up(self) -> dict[str, Run]:
        """Run every case once, uncounted, and return the runs by name."""
        return {case.name: self._run(case) for case in self.cases}

    def measure(self, round_number: int, report: Callable[[str], None] = lambda line: None) -> None:
        """Add one value to every name of ``samples``."""
        first = round_number % len(self.cases)
        for case in (*self.cases[first:], *self.cases[:first]):
            report(case.name)
            run = self._run(case)
            self.add(f"{case.name}_tok_s", run.tokens_per_s)
            self.add(f"{case.name}_step_ms", float(np.median(run.decode_ms)))
            if case.name == "base":
                self._floor(case)
        report("where a step goes")
        for case in self.cases:
            if case.name in ("base", "mixed"):
                self._break_down(case)
        report("ceilings and loads")
        self._ceilings()
        self._loads()
        self._derive()

    def add(self, name: str, value: float) -> None:
        """Note one round's value."""
        self.samples.setdefault(name, []).append(value)

    def _run(self, case: Case) -> Run:
        self.rig.make_resident(case.residents)
        return self.rig.run(case.prompts, case.keys, self.num_new_tokens)

    def _break_down(self, case: Case) -> None:
        found = Breakdown(len(case.prompts))
        with found.watching():
            self._run(case)
        for part, part_ms in found.median_ms().items():
            self.add(f"{case.name}_{part}_ms", part_ms)

    def _floor(self, case: Case) -> None:
        floor_ms = self.products.pass_ms(len(case.prompts), _NUM_REPEATS, with_head=True)
        self.add("decode_floor_ms", floor_ms)
        self.add("decode_over_floor", self.samples["base_step_ms"][-1] / floor_ms)

    def _ceilings(self) -> None:
        num_rows = len(self.cases[0].prompts)
        self.add("ceiling_gflops", self.products.best_gflops(num_rows, _NUM_REPEATS))
        self.add("ceiling_gb_s", copy_gb_s(_NUM_REPEATS))

    def _derive(self) -> None:
        """Note what follows from this round's values: rates, and what the floors would allow."""
        now = {name: values[-1] for name, values in self.samples.items()}
        base, mixed = (next(case for case in self.cases if case.name == name) for name in ("base", "mixed"))
        num_rows, num_tokens = len(base.prompts), self.num_new_tokens
        num_prompt_tokens = sum(map(len, base.prompts))
        adapter_bytes = sum(self._adapter_bytes(key) for key in set(mixed.keys) if key is not None)
        # Half of the answer is there in the middle of a run.
        kv_tokens = num_prompt_tokens + num_rows * num_tokens / 2
        shape, item_bytes = self.rig.base.kv_shape, self.rig.base.dtype.itemsize
        kv_bytes = kv_tokens * shape.token_elements * item_bytes
        read_bytes = self.products.num_elements * item_bytes + adapter_bytes + kv_bytes
        self.add("decode_step_ms", now["base_step_ms"])
        self.add("achieved_gflops", self.products.gflop(num_rows, with_head=True) / now["base_step_ms"] * 1e3)
        self.add("achieved_gb_s", read_bytes / now["mixed_step_ms"] / 1e6)
        self.add("mixed_over_base", now["mixed_tok_s"] / now["base_tok_s"])
        # Nothing but one read of every adapter added to the base's own step, at the speed of a copy.
        adapters_ms = adapter_bytes / now["ceiling_gb_s"] / 1e6
        self.add("mixed_over_base_bound", now["base_step_ms"] / (now["base_step_ms"] + adapters_ms))
        # Nothing but products: the prompts in full chunks, then one decode step per token after the first.
        chunk_rows = EngineLimits().num_step_tokens_max
        chunk_ms = self.products.pass_ms(chunk_rows, _NUM_REPEATS, with_head=False)
        num_steps = num_tokens - 1
        ideal_ms = num_prompt_tokens / chunk_rows * chunk_ms + num_steps * now["decode_floor_ms"]
        self.add("base_bound_tok_s", num_rows * num_tokens / ideal_ms * 1e3)
        self.add("mixed_bound_tok_s", num_rows * num_tokens / (ideal_ms + num_steps * adapters_ms) * 1e3)

    def _adapter_bytes(self, key: PackKey) -> int:
        modules = self.rig.packs[key].header.modules
        num_elements = sum(m.rank * (m.in_features + m.out_features) for m in modules)
        return num_elements * self.rig.base.dtype.itemsize

    def _loads(self) -> None:
        """Time loads of warm packs, and copies of their bytes; every time to memory that no cache has.

        As the loader does, each is verified right before, so a load and its copy both find the source near.
        """
        packs = [self.rig.packs[key] for key in self.spare[:_NUM_LOADS]]
        self.rig.make_resident([])
        targets = [np.ones(len(pack.data), dtype=np.uint8) for pack in packs]
        verify_ms, install_ms, copy_ms = [], [], []
        for pack, target in zip(packs, targets, strict=True):
            started = time.perf_counter()
            digest_of(pack.data)
            read_header(pack.data)
            verified = time.perf_counter()
            self.rig.engine.install(pack.key, memoryview(pack.data), pack.header)
            install_ms.append((time.perf_counter() - verified) * 1e3)
            verify_ms.append((verified - started) * 1e3)
            copy_ms.append(memcpy_ms(pack.data, target))
        for name, times_ms in (("load_ms", install_ms), ("load_verify_ms", verify_ms), ("memcpy_ms", copy_ms)):
            self.add(name, float(np.median(times_ms)))
        self.add("load_over_memcpy", self.samples["load_ms"][-1] / self.samples["memcpy_ms"][-1])
