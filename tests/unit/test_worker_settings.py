"""What a worker is told at start: what cannot work is refused before anything is loaded, and names its variable."""

import os
from collections.abc import Iterator

import pytest
import torch

from octavo_shared.config import ConfigError, read_settings
from octavo_worker.service import set_num_threads
from octavo_worker.settings import WorkerSettings

GIVEN = {"OCTAVO_BASE_DIR": "/base", "OCTAVO_CACHE_DIR": "/cache"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OCTAVO_NUM_RUNNING_MAX", "257"),
        ("OCTAVO_NUM_RUNNING_MAX", "0"),
        ("OCTAVO_NUM_WAITING_MAX", "0"),
        ("OCTAVO_ARENA_BYTES", "0"),
        ("OCTAVO_WARM_BYTES", "-1"),
        ("OCTAVO_LOCAL_BYTES", "0"),
        ("OCTAVO_RESIDENT_SHARE", "1.0"),
        ("OCTAVO_WORKER_ID", "a.b"),
    ],
)
def test_a_setting_that_cannot_work_names_itself(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        read_settings(WorkerSettings, GIVEN | {name: value})


def test_as_many_sequences_may_run_as_a_step_has_tokens() -> None:
    assert read_settings(WorkerSettings, GIVEN | {"OCTAVO_NUM_RUNNING_MAX": "256"}).num_running_max == 256


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_number_of_threads_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    set_num_threads()
    assert torch.get_num_threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    set_num_threads()
    assert torch.get_num_threads() == len(os.sched_getaffinity(0))
