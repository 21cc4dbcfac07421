"""The base on a GPU: ``load_base`` proves it against the unmodified model, then it answers."""

import torch

from octavo_worker.engine.engine import Engine, EngineLimits, new_arena
from octavo_worker.model.base import load_base
from octavo_worker.prepare_base import default_folder, prepare_base
from support.engines import ask, run


def test_the_base_passes_its_self_check_and_answers(gpu: torch.device) -> None:
    base = load_base(prepare_base(default_folder()), gpu)
    engine = Engine(base, new_arena(base, 256 * 1024 * 1024), EngineLimits())
    answers = run(engine, ask("a", (1, 2, 3), 8), ask("b", (4, 5), 8))
    assert all(len(tokens) == 8 for tokens in answers.tokens.values())
