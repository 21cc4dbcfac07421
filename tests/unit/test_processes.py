"""Ports for servers that are about to start."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from octavo_cli import processes
from octavo_cli.processes import StartFailed, free_port

_KERNEL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.mark.skipif(not _KERNEL_RANGE.exists(), reason="only Linux tells its range")
def test_a_port_for_a_server_is_none_that_the_kernel_gives_to_connections() -> None:
    first, last = map(int, _KERNEL_RANGE.read_text().split())
    assert all(not first <= free_port() <= last for _ in range(200))


@pytest.fixture
def small_range(monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the first of eight ports, in which two blocks of four have room: out of a block of this test's own.

    All eight are free: of a server that has just ended, the kernel may keep the port for a minute.
    """
    begin = 0
    while not begin or not all(_is_free(begin + offset) for offset in range(8)):
        monkeypatch.setattr(processes, "_own_ports", [])
        begin = min(free_port(), *processes._own_ports)
    monkeypatch.setattr(processes, "_SERVER_PORTS", (begin, begin + 8))
    monkeypatch.setattr(processes, "_BLOCK_PORTS", 4)
    monkeypatch.setattr(processes, "_own_ports", [])
    return begin


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


def _ports_until_there_are_no_more() -> list[int]:
    ports = []
    while True:
        try:
            ports.append(free_port())
        except StartFailed:
            return ports


def test_no_port_is_handed_out_that_is_taken_nor_any_twice(small_range: int) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", small_range + 2))
        ports = _ports_until_there_are_no_more()
    assert sorted(ports) == [small_range + offset for offset in (1, 3, 5, 6, 7)]
    with pytest.raises(StartFailed, match="no free port"):
        free_port()


def test_no_port_is_handed_out_by_two_processes(small_range: int) -> None:
    program = (
        "from octavo_cli import processes\n"
        f"processes._SERVER_PORTS, processes._BLOCK_PORTS = ({small_range}, {small_range + 8}), 4\n"
        "print(processes.free_port(), flush=True); input()\n"
        "print(*[processes.free_port() for _ in range(2)], flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        theirs = {int(child.stdout.readline())}
        ours = set(_ports_until_there_are_no_more())
        print(file=child.stdin, flush=True)
        theirs |= set(map(int, child.stdout.readline().split()))
        assert len(theirs) == len(ours) == 3
        assert not theirs & ours
        child.stdin.close()
    assert len(_ports_until_there_are_no_more()) == 3, "its block is free when a process has ended"


def test_a_fork_hands_out_no_port_of_its_parent(small_range: int) -> None:
    ours = {free_port()}
    child = os.fork()
    if child == 0:
        os._exit(bool(processes._own_ports))
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert len(ours | set(_ports_until_there_are_no_more())) == 6
