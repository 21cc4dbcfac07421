"""The short form of ``make chaos-registry``: real clustered servers, real faults, every answer checked."""

import json
import os
import subprocess
import sys

SEED = 20


def test_a_replicated_registry_loses_forks_and_repeats_nothing_under_faults() -> None:
    command = [sys.executable, "-m", "chaos.registry", "--short", "--seed", str(SEED)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["operations_acknowledged"] >= 400
    assert line["faults_by_kind"] == {"identity_killed": 1, "leader_changed": 1, "nats_partitioned": 1}
    assert (line["lost"], line["forked"], line["duplicates"]) == (0, 0, 0)
    assert (line["replicas_compared"], line["seed"]) == (3, SEED)
    assert line["packs_compared"] > 0
    assert line["erasures_compared"] > 0
    assert line["acknowledged_by_call"]["import"] > 0
    assert 0 < line["acknowledged_by_call"]["evaluate"] <= line["evaluations_compared"]
    assert line["roots_compared"] > 0
    assert line["recovery_max_s"] <= 25
    assert 0 < line["store_restart_alone_s"] < 60
