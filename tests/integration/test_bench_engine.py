"""The benchmark of the engine: its short form runs to a complete JSON line, and its gate lets nothing wrong through."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.contest import Contest
from bench.drivers.messages import Job
from bench.golden import check_float32
from bench.rival import Variant
from bench.variants import Family
from bench.workload import chat_prompts, write_adapters
from octavo_worker.model.base import load_base
from octavo_worker.prepare_base import default_folder, prepare_base

FIELDS = {
    "base_tok_s",
    "one_adapter_tok_s",
    "mixed_tok_s",
    "mixed_over_base",
    "decode_step_ms",
    "decode_floor_ms",
    "load_over_memcpy",
    "free_tok_s",
    "schema_tok_s",
    "schema_over_free",
    "few_loaded_step_ms",
    "many_loaded_step_ms",
    "peft_load_ms",
    "base_products_ms",
    "base_between_ms",
    "mixed_layers_ms",
    "achieved_gflops",
    "ceiling_gflops",
    "achieved_gb_s",
    "ceiling_gb_s",
}
TARGETS = {
    "mixed_over_base",
    "decode_over_floor",
    "ranks_over_summed",
    "many_loaded_over_few",
    "schema_over_free",
    "loading_over_quiet_p99",
    "load_over_memcpy",
}
NUM_TOKENS = 8
FAKE_RIVAL = """
import os, sys
from bench.drivers.driver import Rival, claim_output, serve
from bench.drivers.messages import Measured, Ready

class Fake(Rival):
    def describe(self): return Ready({"fake": "1"}, {"pid": str(os.getpid())})
    def prepare(self, job): pass
    def generate(self, job): return tuple((7,) * job.num_new_tokens for _ in job.prompts)
    def load(self, adapter): return 1.5
    def profile(self, command): return Measured({"load_ms": (2.5,) * command.num_rounds})

output = claim_output()
print("what libraries print is no reply")
serve(Fake(), output)
"""


def test_the_short_form_ends_with_a_complete_json_line() -> None:
    prepare_base(default_folder())
    # Threads that wait must not spin: the other tests use the same cores.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.engine", "--quick"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["golden"] is True
    assert {name for name in FIELDS if not line[name] > 0} == set()
    assert set(line["targets"]) == TARGETS
    assert all({"value", "target", "ok"} <= target.keys() for target in line["targets"].values())
    assert {"over_peft", "over_vllm", "base_over_vllm_base", "commit", "device", "versions", "seed"} <= line.keys()
    assert line["seed"] == 0
    assert line["versions"]["torch"]


def test_the_gate_refuses_an_engine_that_serves_each_row_the_other_ones_adapter(tmp_path: Path) -> None:
    # The engine and PEFT load the same two adapters the other way round; the short form above is the right way.
    base = prepare_base(default_folder())
    adapters = write_adapters(tmp_path / "peft", load_base(base).manifest.modules, [16, 16], seed=0)
    prompt = chat_prompts(base, 1, seed=0)[0]
    verdict = check_float32(base, prompt, adapters, NUM_TOKENS, reference=adapters[::-1])
    assert not verdict.is_golden
    assert "row 1 differs" in verdict.problem


def test_a_rival_that_cannot_start_is_named_and_the_others_compete(tmp_path: Path) -> None:
    def family(name: str, *code: str) -> Family:
        variants = [Variant(f"{name} {i}", (sys.executable, "-c", text), {}) for i, text in enumerate(code)]
        return Family(name, variants, ("base", "mixed"), "mixed")

    job = Job(((1, 2), (3,)), (None, "some"), num_new_tokens=3)
    contest = Contest({"base": job, "mixed": job}, ["spare"], tmp_path, report=lambda line: None)
    absent = "raise SystemExit('vllm is not installed')"
    families = [family("octavo", FAKE_RIVAL), family("vllm", absent, absent), family("peft", absent, FAKE_RIVAL)]
    measured = contest.hold(families, num_rounds=3, seed=0)

    assert measured.values == {"load_ms": (2.5, 2.5, 2.5)}
    assert contest.missing.keys() == {"vllm"}
    assert "vllm is not installed" in contest.missing["vllm"]
    assert contest.chosen == {"octavo": "octavo 0", "peft": "peft 1"}
    assert contest.answers["peft", "mixed"] == ((7, 7, 7), (7, 7, 7))
    assert {pair: len(rates) for pair, rates in contest.seconds.items()} == {
        (rival, job): 3 for rival in ("octavo", "peft") for job in ("base", "mixed")
    }
    for ready in contest.ready.values():
        assert not Path(f"/proc/{ready.settings['pid']}").exists(), "a rival outlived the contest"
