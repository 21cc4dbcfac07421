"""The base on a GPU: ``load_base`` proves it against the unmodified model, then it answers."""

from pathlib import Path

import pytest
import torch
from transformers import GptOssConfig, MixtralConfig, PretrainedConfig

from octavo_worker.engine.engine import Engine, EngineLimits, new_arena
from octavo_worker.model.base import load_base
from octavo_worker.prepare_base import default_folder, prepare_base
from support.engines import ask, run, save_base
from support.golden import WINDOW, make_model, small


def test_the_base_passes_its_self_check_and_answers(gpu: torch.device) -> None:
    base = load_base(prepare_base(default_folder()), gpu)
    engine = Engine(base, new_arena(base, 256 * 1024 * 1024), EngineLimits())
    answers = run(engine, ask("a", (1, 2, 3), 8), ask("b", (4, 5), 8))
    assert all(len(tokens) == 8 for tokens in answers.tokens.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make_config", [GptOssConfig, MixtralConfig])
def test_a_mixture_passes_its_self_check_with_the_experts_of_its_architecture(
    gpu: torch.device, make_config: type[PretrainedConfig], dtype: torch.dtype, tmp_path: Path
) -> None:
    config = make_config(**small(num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW))
    config.initializer_range = 0.1
    base = load_base(save_base(make_model(config), tmp_path / "base"), gpu, dtype)
    engine = Engine(base, new_arena(base, 8 * 1024 * 1024), EngineLimits())
    answers = run(engine, ask("a", tuple(range(1, 60)), 8), ask("b", (4, 5), 8))
    assert all(len(tokens) == 8 for tokens in answers.tokens.values())
