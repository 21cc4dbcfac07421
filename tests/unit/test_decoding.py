"""Decoding into types on several threads at once, each type for the first time."""

import subprocess
import sys

import pytest

RACE = """
import sys
import threading

import msgspec

from octavo_shared import decoding

sys.setswitchinterval(1e-6)
value = {f"f{number}": {"a": 1, "b": ["x"]} for number in range(20)}
raw = {"json": msgspec.json.encode(value), "msgpack": msgspec.msgpack.encode(value), "convert": value}
decode = {"json": decoding.from_json, "msgpack": decoding.from_msgpack, "convert": decoding.convert}[sys.argv[1]]
for _ in range(100):
    inner = msgspec.defstruct("Inner", [("a", int), ("b", list[str])])
    kind = msgspec.defstruct("Kind", [(name, inner) for name in value])
    start, decoded = threading.Barrier(4), []

    def work():
        start.wait()
        decoded.append(decode(raw[sys.argv[1]], kind))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [msgspec.to_builtins(one) for one in decoded] == [value] * 4
"""


@pytest.mark.parametrize("form", ["json", "msgpack", "convert"])
def test_threads_that_decode_a_type_for_the_first_time_at_once_all_get_it(form: str) -> None:
    done = subprocess.run([sys.executable, "-c", RACE, form], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
