"""The benchmark of the registry: its short form runs to a complete JSON line, and it notices what is not as it says."""

import asyncio
import json
import struct
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import cast

import pytest

from bench.million import sampling
from bench.million.blocks import block_starts
from bench.million.client import Client
from bench.million.run import Plan, Result, Sized
from bench.million.sampling import Pick, Times, Warmed
from bench.million.summary import Summary
from support.leftovers import check_nothing_is_left, environment

NUM_ADAPTERS = 3_000
FIELDS = {
    "register_per_s",
    "resolve_p50_ms",
    "resolve_p99_ms",
    "resolve_p99_ratio_1m_over_1k",
    "resolve_cold_p50_ms",
    "resolve_cold_p99_ms",
    "server_bytes_per_adapter",
    "disk_bytes",
    "restart_ready_s",
    "rebuild_s",
    "rebuild_resolve_p99_ms",
}
TARGETS = {
    "register_per_s",
    "resolve_p99_ratio",
    "resolve_cold_p99_ms",
    "restart_ready_s",
    "rebuild_s",
    "failed_during_rebuild",
}


def test_the_short_form_ends_with_a_complete_json_line_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.registry", "--adapters", str(NUM_ADAPTERS), "--seconds", "0.5"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["adapters"] == NUM_ADAPTERS
    assert [one["adapters"] for one in line["sizes"]] == [1_000, NUM_ADAPTERS]
    assert {name for name in FIELDS if not line[name] > 0} == set()
    assert set(line["targets"]) == TARGETS
    # What a registration costs is more than what a bare server and a bare signature take.
    assert all(one["register_us"][part] > 0 for one in line["sizes"] for part in ("registrars", "nats-server"))
    turns = line["resolve_in_turns"]
    assert turns["few"]["num"] > 10 < turns["many"]["num"]
    assert line["resolve_p99_ratio_1m_over_1k"] == pytest.approx(
        turns["many"]["p99_ms"] / turns["few"]["p99_ms"], rel=0.01
    )
    floor, together = line["floor"], line["sizes"][-1]["register_us"]
    assert 0 < floor["server_us"] + floor["client_us"] + floor["sign_us"] < sum(together.values())
    assert floor["pairs_per_s"] > 0
    assert (line["is_short"], line["shared_pack"], line["rebuild_failed"]) == (True, True, 0)
    assert {"commit", "device", "versions", "seed", "left_out"} <= line.keys()
    check_nothing_is_left(tmp_path)


def sized(num_adapters: int, warm_ms: float, cold_ms: float, register_s: float) -> Sized:
    warm, cold = Times([warm_ms] * 100), Times([cold_ms] * 100)
    return Sized(num_adapters, num_adapters, register_s, 1.0, warm, cold, 2_000, 3_000, 4_000)


@pytest.mark.parametrize(
    ("missed", "changed"),
    [
        (set(), {}),
        ({"register_per_s"}, {"register_s": 200.0}),
        ({"resolve_p99_ratio"}, {"warm_ms": 1.3}),
        ({"resolve_cold_p99_ms"}, {"cold_ms": 16.0}),
        ({"restart_ready_s"}, {"restart_s": 11.0}),
        ({"rebuild_s"}, {"rebuild_s": 301.0}),
        ({"failed_during_rebuild"}, {"num_failed": 1}),
    ],
)
def test_each_target_is_missed_by_its_own_measurement(missed: set[str], changed: dict[str, float]) -> None:
    given = {"register_s": 100.0, "warm_ms": 1.1, "cold_ms": 14.0, "restart_s": 9.0, "rebuild_s": 200.0} | changed
    largest = sized(1_000_000, 9.0, given["cold_ms"], given["register_s"])
    few, many = Times([1.0] * 100), Times([given["warm_ms"]] * 100)
    busy = Times([5.0], int(given.get("num_failed", 0)))
    result = Result((sized(1_000, 1.0, 1.0, 0.1), largest), few, many, 1_000, 1, 1, given["restart_s"], 0.1,
                    given["rebuild_s"], busy, Times([9.0]))  # fmt: skip
    targets = Summary(Plan.of(1_000_000, 0, 10.0), result).targets
    assert {target.name for target in targets if not target.is_ok} == missed


def test_blocks_begin_where_their_files_say_and_files_of_another_form_are_no_blocks(tmp_path: Path) -> None:
    folder = tmp_path / "jetstream" / "$G" / "streams" / "SOME" / "msgs"
    folder.mkdir(parents=True)
    for name, first in (("1", 1), ("2", 50), ("10", 99)):
        (folder / f"{name}.blk").write_bytes(struct.pack("<IQ", 40, first) + bytes(28))
    (folder / "11.blk").write_bytes(b"")
    assert block_starts(tmp_path, "SOME") == [1, 50, 99]
    (folder / "2.blk").write_bytes(struct.pack("<IQ", 40, 500) + bytes(28))
    with pytest.raises(ValueError, match="do not begin with"):
        block_starts(tmp_path, "SOME")


class Answering:
    """Notes what is resolved, and when it is whose turn."""

    def __init__(self, turns: list[str], name: str) -> None:
        self.numbers = list[int]()
        self._turns = turns
        self._name = name

    async def resolve(self, number: int) -> None:
        self.numbers.append(number)
        if not self._turns or self._turns[-1] != self._name:
            self._turns.append(self._name)
        await asyncio.sleep(0)


async def test_registries_are_asked_in_turns_and_kept_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_KEPT_S", 0.06)
    monkeypatch.setattr(sampling, "_TURN_S", 0.02)
    turns = list[str]()
    few, many = Answering(turns, "few"), Answering(turns, "many")
    picked = 1_000_000
    registries = [Warmed(cast(Client, one), [Pick(0, picked)], 10) for one in (few, many)]
    found = await sampling.warm(registries, 0.2, Random(0))
    assert len(turns) >= 16
    for one, times in zip((few, many), found, strict=True):
        assert one.numbers.count(picked) >= 3
        # Neither what was picked nor what warms up is timed.
        assert len(times.ms) == len(one.numbers) - one.numbers.count(picked) - sampling._NUM_WARM_UPS
        assert {*one.numbers} - {picked} == {*range(10)}
