"""Uploads are looked at in a process of their own: what goes wrong there is the upload's loss alone."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from octavo_identity.build_pool import BuildPool
from octavo_identity.building import build
from octavo_shared.errors import AdapterRefused, DependencyUnavailable, InternalError
from octavo_shared.pack import digest_of, read_header
from support.adapters import TINY_BASE, config_json, tiny_weights
from support.hostile import BASE, Upload, good_config, hostile_uploads

STEPS = """
import os, resource, signal, socket, sys, time
import msgspec
from octavo_identity import build_process
from octavo_identity.build_process import Answer
from octavo_shared.errors import Refusal
def misbehave(order_file, weights_file, pack_file):
    config = build_process._read(order_file)
    if b"do-sleep" in config: time.sleep(600)
    if b"do-spin" in config:
        resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
        while True: pass
    if b"do-crash" in config: os.kill(os.getpid(), signal.SIGSEGV)
    if b"do-end" in config: os._exit(0)
    if b"do-eat" in config:
        build_process._limit(1000)
        try: bytearray(256 << 20)
        except MemoryError: return Answer(refusal=Refusal("adapter_refused", "limits: eaten", {"rule": "limits"}))
    if b"do-lie" in config:
        os.pwrite(pack_file, b"no pack at all", 0)
        return Answer(14)
    if b"do-bug" in config: return Answer(refusal=Refusal("internal", "internal error 1", {}))
    if b"do-raise" in config:
        def build(*_): raise ValueError("what the upload holds")
        build_process.build = build
    return answer(order_file, weights_file, pack_file)
answer, build_process._answer = build_process._answer, misbehave
build_process.main()
"""


@pytest.fixture
def pool() -> Iterator[BuildPool]:
    found = BuildPool([sys.executable, "-c", STEPS], build_s_max=20)
    yield found
    found.close()


def test_a_pack_is_the_same_from_a_process_and_its_digest_is_of_the_bytes_returned(pool: BuildPool) -> None:
    built = pool.build(config_json(), tiny_weights(), TINY_BASE, None)
    assert built.pack == build(config_json(), tiny_weights(), TINY_BASE, None)
    assert (built.digest, built.header) == (digest_of(built.pack), read_header(built.pack))


@pytest.mark.parametrize("harm", ["spin", "crash", "end", "eat"])
def test_a_process_that_an_upload_broke_is_the_uploads_loss_alone(pool: BuildPool, harm: str) -> None:
    with pytest.raises(AdapterRefused) as refused:
        pool.build(config_json(revision=f"do-{harm}"), tiny_weights(), TINY_BASE, None)
    assert refused.value.fields["rule"] == "limits"
    assert pool.build(config_json(), tiny_weights(), TINY_BASE, None).pack


def test_a_process_that_never_answers_is_ended_at_its_deadline() -> None:
    pool = BuildPool([sys.executable, "-c", STEPS], build_s_max=0.5)
    try:
        with pytest.raises(AdapterRefused, match="limits"):
            pool.build(config_json(revision="do-sleep"), tiny_weights(), TINY_BASE, None)
    finally:
        pool.close()


def test_what_a_process_claims_is_looked_at_again(pool: BuildPool) -> None:
    with pytest.raises(AdapterRefused, match="format"):
        pool.build(config_json(revision="do-lie"), tiny_weights(), TINY_BASE, None)
    with pytest.raises(InternalError):
        pool.build(config_json(revision="do-bug"), tiny_weights(), TINY_BASE, None)


def test_what_went_wrong_in_a_process_is_logged_under_the_id_that_the_caller_gets_and_without_the_upload(
    pool: BuildPool,
) -> None:
    with capture_logs() as logs, pytest.raises(InternalError) as error:
        pool.build(config_json(revision="do-raise"), tiny_weights(), TINY_BASE, None)
    (line,) = [line for line in logs if line["event"] == "build_failed"]
    assert line["error_id"] == error.value.fields["error_id"]
    assert line["detail"].startswith("ValueError at ")
    assert "what the upload holds" not in str(logs)


def test_a_program_that_does_not_start_blames_no_upload() -> None:
    for program in ([sys.executable, "-c", "pass"], [sys.executable, "-c", "raise SystemExit(3)"]):
        with pytest.raises(DependencyUnavailable):
            BuildPool(program).build(config_json(), tiny_weights(), TINY_BASE, None)


def test_hostile_uploads_are_refused_by_the_processes_that_serve() -> None:
    """A few of each kind, one after the other through one process: it lives on and keeps nothing."""
    pool = BuildPool()
    try:
        for name, (make, rule) in list(hostile_uploads().items())[::9]:
            upload = make()
            assert isinstance(upload.weights, bytes)
            with pytest.raises(AdapterRefused) as refused:
                pool.build(upload.config, upload.weights, BASE, upload.dtype)
            assert refused.value.fields["rule"] == rule, name
        good = Upload(good_config(), tiny_weights())
        assert pool.build(good.config, tiny_weights(), BASE, None).pack
        assert len(pool._all) == 1
    finally:
        pool.close()


def test_a_process_ends_with_its_parent() -> None:
    program = """
import os, sys
from octavo_identity.build_pool import BuildPool, _Child
child = _Child([sys.executable, "-m", "octavo_identity.build_process"])
print(child._process.pid, flush=True)
os._exit(0)
"""
    command = [sys.executable, "-c", program]
    child = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    # Reading its output to the end has waited for all who hold it; what is left is at most a zombie.
    status = Path(f"/proc/{child}/status")
    assert not status.exists() or "octavo" not in Path(f"/proc/{child}/cmdline").read_text()


def test_a_process_whose_parent_is_gone_before_it_is_ready_ends_without_a_word() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        command = [sys.executable, "-m", "octavo_identity.build_process", str(theirs.fileno())]
        done = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
