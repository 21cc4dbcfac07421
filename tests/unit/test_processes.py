"""Ports for servers that are about to start."""

import socket
from pathlib import Path

import pytest

from octavo_cli import processes
from octavo_cli.processes import StartFailed, free_port

_KERNEL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.mark.skipif(not _KERNEL_RANGE.exists(), reason="only Linux tells its range")
def test_a_port_for_a_server_is_none_that_the_kernel_gives_to_connections() -> None:
    first, last = map(int, _KERNEL_RANGE.read_text().split())
    assert all(not first <= free_port() <= last for _ in range(200))


def test_no_port_is_handed_out_that_is_taken_nor_any_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(processes, "_SERVER_PORTS", (port, port + 1))
    monkeypatch.setattr(processes, "_handed_out", set())
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        with pytest.raises(StartFailed, match="no free port"):
            free_port()
    assert free_port() == port
    with pytest.raises(StartFailed, match="no free port"):
        free_port()
