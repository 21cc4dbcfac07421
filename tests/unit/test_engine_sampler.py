"""Sampling: noise depends on seed and index alone; the distribution is the model's, cut by top_p."""

import numpy as np
import pytest
import torch

from octavo_shared.messages.generation import Sampling
from octavo_worker.engine.sampler import choose, uniform


def _sampling(temperature: float = 1.0, top_p: float = 1.0, seed: int = 0, **fields: float) -> Sampling:
    return Sampling(max_tokens=9, seed=seed, temperature=temperature, top_p=top_p, **fields)  # type: ignore[arg-type]


def test_noise_is_the_published_philox() -> None:
    # Known answer of Philox 4x32-10 for a zero counter and key: first words 6627e8d5 e169c58d.
    expected = ((0x6627E8D5 << 32 | 0xE169C58D) >> 11) * 2.0**-53
    assert uniform([0], [0], [0])[0] == expected


def test_noise_is_uniform_and_differs_by_seed_and_index() -> None:
    values = uniform([7] * 4000 + list(range(4000)), [0] * 8000, list(range(4000)) + [7] * 4000)
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 0.01
    assert len(set(values.tolist())) > 7990
    assert uniform([-1], [0], [3])[0] != uniform([1], [0], [3])[0]
    assert uniform([1], [1], [3])[0] != uniform([1], [0], [3])[0]


def test_temperature_zero_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert choose(torch.tensor([[0.0, 2.0, 2.0]]), [_sampling(0.0)], [0]).tokens == [1]


@pytest.mark.parametrize("temperature", [5e-324, 1e-46, 1e-40, 9e-7, 1e-6])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_the_smallest_temperatures_are_greedy_and_not_a_division_by_zero(temperature: float, top_p: float) -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    choice = choose(logits, [_sampling(temperature, top_p)] * 5, list(range(5)))
    assert choice.tokens == logits.argmax(-1).tolist()
    assert all(choice.is_finite)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_frequencies_follow_the_distribution(top_p: float) -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.15, 0.25])
    num = 4000
    logits = probabilities.log().expand(num, 4)
    tokens = choose(logits, [_sampling(1.0, top_p, seed=11)] * num, list(range(num))).tokens
    got = np.bincount(tokens, minlength=4) / num
    # 0.5 and 0.25 reach 0.7; the others are cut.
    expected = [0.1, 0.5, 0.15, 0.25] if top_p == 1 else [0, 2 / 3, 0, 1 / 3]
    assert np.abs(got - expected).max() < 0.03


def test_a_small_top_p_is_greedy() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    assert choose(logits, [_sampling(5.0, 1e-9)] * 5, list(range(5))).tokens == logits.argmax(-1).tolist()


def test_a_nucleus_wider_than_the_sorted_head_is_still_right() -> None:
    logits = torch.zeros(3000, 2000)
    tokens = choose(logits, [_sampling(1.0, 0.9)] * 3000, list(range(3000))).tokens
    assert 1400 < len(set(tokens)) <= 1800


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_drawn_the_same_alone_and_in_a_crowd(dtype: torch.dtype) -> None:
    logits = (torch.randn(24, 3000, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    samplings = [
        _sampling(0.5 + i % 3, (0.3, 0.95, 1.0)[i % 3], i // 2, top_k=(0, 5, 900)[i % 5 % 3], min_p=(0, 1e-4)[i % 2])
        for i in range(24)
    ]
    crowd = choose(logits, samplings, list(range(24))).tokens
    alone = [choose(logits[i : i + 1], samplings[i : i + 1], [i]).tokens[0] for i in range(24)]
    assert crowd == alone


@pytest.mark.parametrize("cut", [{}, {"top_p": 0.9}, {"top_k": 1}, {"min_p": 0.1}])
def test_logits_that_are_not_numbers_are_told_apart_row_by_row(cut: dict[str, float]) -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [float("inf"), 1.0], [float("nan")] * 2])
    choice = choose(logits, [_sampling(**cut), _sampling(0.0), _sampling(**cut), _sampling(**cut)], [0, 0, 0, 0])
    assert choice.is_finite == [True, False, False, False]
    assert all(0 <= token < 2 for token in choice.tokens)
    assert choice.tokens[0] == choose(logits[:1], [_sampling(**cut)], [0]).tokens[0]


def _reference(row: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return the distribution that ``sampling`` leaves of softmax(row), by plain sorting in float64."""
    probabilities = torch.softmax(row.double() / sampling.temperature, dim=-1)
    kept = probabilities >= sampling.min_p * probabilities.max()
    order = probabilities.argsort(descending=True, stable=True)
    if sampling.top_k:
        kept[order[sampling.top_k :]] = False
    left = torch.where(kept, probabilities, 0.0)
    mass = left[order].cumsum(-1) - left[order]
    left[order[mass >= sampling.top_p * left.sum()]] = 0.0
    return left / left.sum()


@pytest.mark.parametrize("top_k", [0, 1, 3, 40, 700])
@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_top_k_min_p_and_top_p_cut_as_defined(top_k: int, min_p: float, top_p: float) -> None:
    row = torch.randn(800, generator=torch.Generator().manual_seed(top_k)) * 1.5
    num = 6000
    sampling = _sampling(1.3, top_p, seed=3, top_k=top_k, min_p=min_p)
    tokens = choose(row.expand(num, 800), [sampling] * num, list(range(num))).tokens
    got = np.bincount(tokens, minlength=800) / num
    expected = _reference(row, sampling).numpy()
    assert (got[expected == 0] == 0).all(), "a token that was cut off was chosen"
    assert np.abs(got - expected).max() < 0.03


def test_choices_of_one_request_differ() -> None:
    logits = torch.zeros(4, 1000)
    tokens = choose(logits, [_sampling(choice=i) for i in range(4)], [0] * 4).tokens
    assert len(set(tokens)) == 4
