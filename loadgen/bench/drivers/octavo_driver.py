"""Our own engine, driven as its rivals are.

Run as ``python -m bench.drivers.octavo_driver BASE [--adapters N] [--rank R]``; see ``driver`` for the protocol.
"""

import argparse
import time
from importlib.metadata import version
from pathlib import Path

import torch

from bench.drivers.driver import Rival, claim_output, serve
from bench.drivers.messages import Job, Measured, Profile, Ready
from bench.profile import Case, products_of
from bench.profile import Profile as EngineProfile
from bench.rig import Rig, arena_bytes, kernels_used
from octavo_shared.pack import digest_of, read_header
from octavo_shared.references import PackKey
from octavo_worker.model.base import load_base


class Octavo(Rival):
    """One engine as the worker sets it up. Every request is another tenant's: no prefix is found in a cache."""

    def __init__(self, base: str, num_adapters: int, rank: int) -> None:
        loaded = load_base(Path(base))
        self._rig = Rig(loaded, arena_bytes(loaded, rank, num_adapters), 2 * num_adapters)
        self._keys: dict[str, PackKey] = {}

    def describe(self) -> Ready:
        """Return versions and settings."""
        settings = {
            "dtype": str(self._rig.base.dtype),
            "threads": str(torch.get_num_threads()),
            "kernels": kernels_used(),
        }
        return Ready({name: version(name) for name in ("octavo", "torch", "transformers")}, settings)

    def prepare(self, job: Job) -> None:
        """Make packs of the adapters that are new, and have exactly this job's resident."""
        self._rig.make_resident(self._case("job", job).residents)

    def generate(self, job: Job) -> tuple[tuple[int, ...], ...]:
        """Answer all prompts at once."""
        case = self._case("job", job)
        return self._rig.run(case.prompts, case.keys, job.num_new_tokens).tokens

    def load(self, adapter: str) -> float:
        """Return the milliseconds from a pack in host memory to its pages, its digest verified on the way."""
        key = self._key(adapter)
        pack = self._rig.packs[key]
        started = time.perf_counter()
        if digest_of(pack.data) != key[1]:
            raise ValueError("a pack in host memory does not match its digest")
        self._rig.engine.install(key, memoryview(pack.data), read_header(pack.data))
        ms = (time.perf_counter() - started) * 1e3
        self._rig.engine.evict(key)
        return ms

    def profile(self, command: Profile) -> Measured:
        """Measure decode steps, floors, ceilings and loads."""
        profile = EngineProfile(
            self._rig,
            products_of(self._rig, command.seed),
            (self._case("base", command.base), self._case("mixed", command.mixed)),
            [self._key(adapter) for adapter in command.spare],
            command.base.num_new_tokens,
        )
        profile.warm_up()
        for number in range(command.num_rounds):
            profile.measure(number)
        return Measured({name: tuple(values) for name, values in profile.samples.items()})

    def _case(self, name: str, job: Job) -> Case:
        keys = [self._key(adapter) if adapter is not None else None for adapter in job.adapters]
        return Case(name, job.prompts, keys, list(dict.fromkeys(key for key in keys if key is not None)))

    def _key(self, adapter: str) -> PackKey:
        if adapter not in self._keys:
            self._keys[adapter] = self._rig.add(Path(adapter))
        return self._keys[adapter]


def main() -> None:
    """Serve until told to close."""
    output = claim_output()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("--adapters", type=int, default=32, help="resident at once")
    parser.add_argument("--rank", type=int, default=16)
    given = parser.parse_args()
    serve(Octavo(given.base, given.adapters, given.rank), output)


if __name__ == "__main__":
    main()
