"""Memory in huge pages: zeros that nobody else has, whatever the system gives."""

import mmap
from pathlib import Path

import pytest
import torch

from octavo_kernels import huge_pages

_SIZES = (1, 31, 33, 1_000_003, 20_000_000, 40_000_000, 5)
"""In all more than a region, and one that is larger than any."""


def test_nobody_else_has_what_was_given_out() -> None:
    given = [huge_pages.zeros(size, torch.bfloat16) for size in _SIZES]
    assert [len(one) for one in given] == list(_SIZES)
    for number, one in enumerate(given):
        assert not one.any()
        assert one.data_ptr() % 64 == 0
        one.fill_(number + 1)
    assert all((one == number + 1).all() for number, one in enumerate(given))


def test_memory_lives_as_long_as_its_tensor() -> None:
    kept = huge_pages.zeros(1000, torch.float32)[3:7]
    for _ in range(5):
        huge_pages.zeros(15_000_000, torch.float32).fill_(9.0)
    kept += 1.0
    assert kept.tolist() == [1.0] * 4


@pytest.mark.skipif(
    not Path("/proc/self/smaps").exists()
    or "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="needs a Linux that gives huge pages",
)
def test_the_system_is_asked_for_huge_pages() -> None:
    memory = huge_pages.zeros(100_000_000, torch.uint8)
    mapping, flags = "", ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(address, 16) for address in first.split("-"))
            mapping = line if begin <= memory.data_ptr() < end else ""
        elif mapping and first == "VmFlags:":
            flags = line
    assert "hg" in flags.split()


def test_plain_memory_serves_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert huge_pages.zeros(0, torch.float32).shape == (0,)
    assert huge_pages.zeros(3, torch.float32, "meta").device.type == "meta"
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert huge_pages.zeros(3, torch.float32).tolist() == [0.0] * 3
