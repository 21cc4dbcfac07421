"""Tests that need a GPU; skipped without one, and until now never run on one."""

import pytest
import torch


@pytest.fixture
def gpu() -> torch.device:
    """The first CUDA (or ROCm) device."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA or ROCm GPU")
    return torch.device("cuda")
