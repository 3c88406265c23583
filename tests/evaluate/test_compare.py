"""The paired test against scipy's binomial test and published intervals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from vitral.errors import UserError
from vitral.evaluate.compare import mcnemar, paired_interval


def answers(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    shuffled = np.random.default_rng(0).permutation(len(a))
    return np.array(a)[shuffled], np.array(b)[shuffled]


@pytest.mark.parametrize("counts", [(50, 9, 2, 3), (300, 1, 0, 5), (0, 7, 7, 0), (40, 0, 30, 1), (900, 400, 350, 10)])
def test_p_value_is_the_binomial_tests(counts: tuple[int, int, int, int]) -> None:
    found = mcnemar(*answers(*counts))
    _, only_a, only_b, _ = counts
    assert (found["only_a"], found["only_b"]) == (only_a, only_b)
    assert found["p_value"] == pytest.approx(binomtest(only_a, only_a + only_b, 0.5).pvalue, rel=1e-10)
    assert found["difference"] == pytest.approx((only_a - only_b) / sum(counts))
    low, high = found["difference_interval"]
    assert -1 <= low <= found["difference"] <= high <= 1
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_closed_form() -> None:
    assert mcnemar(*answers(10, 6, 0, 0))["p_value"] == pytest.approx(2 * 0.5**6)
    assert mcnemar(*answers(10, 1, 0, 0))["p_value"] == 1.0


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe 1998 (Stat. in Medicine 17:2635), method 10
        ((1, 1, 7, 12), (-0.507, -0.026)),  # Fagerland, Lydersen, Laake 2014 (Stat. in Medicine 33:2850), Bentur's data
    ],
)
def test_published_intervals(counts: tuple[int, int, int, int], expected: tuple[float, float]) -> None:
    places = 1e-4 if abs(expected[0]) < 0.1 else 1e-3
    assert paired_interval(*counts) == pytest.approx(expected, abs=places / 2)


def test_swapping_the_models_mirrors_the_answer() -> None:
    a, b = answers(50, 9, 2, 3)
    forth, back = mcnemar(a, b), mcnemar(b, a)
    assert forth["p_value"] == back["p_value"]
    assert forth["difference"] == -back["difference"]
    assert forth["difference_interval"] == pytest.approx([-limit for limit in reversed(back["difference_interval"])])


@pytest.mark.parametrize("right", [True, False])
def test_models_that_never_differ(right: bool) -> None:
    found = mcnemar(np.full(100, right), np.full(100, right))
    assert (found["only_a"], found["only_b"], found["p_value"], found["difference"]) == (0, 0, 1.0, 0.0)
    low, high = found["difference_interval"]
    assert low < 0 < high


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random, counts = np.random.default_rng(0), (0.8, 0.1, 0.05, 0.05)
    draws = random.multinomial(200, counts, size=2000)
    inside = [low <= 0.05 <= high for low, high in (paired_interval(*map(int, draw)) for draw in draws)]
    assert 0.935 <= np.mean(inside) <= 0.985


@pytest.mark.parametrize(("a", "b"), [([True], [True, False]), ([], []), ([2, 0], [1, 0]), ([[True]], [[True]])])
def test_wrong_input_is_refused(a: list[bool], b: list[bool]) -> None:
    with pytest.raises(UserError):
        mcnemar(a, b)
