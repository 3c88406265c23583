"""What a model of codes knows, beside loops over images and scikit-learn's neighbors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier  # pyright: ignore[reportMissingTypeStubs]

from tests.models.igpt_models import codes_of, colors_of, igpt
from tests.processes import in_processes
from vitral import distributed
from vitral.evaluate.config import CompletionConfig
from vitral.evaluate.pixels import bits_per_token, completed_classes, generative_classes
from vitral.models.code_sampling import sample_codes
from vitral.models.igpt import IGPT
from vitral.models.search_config import SearchConfig

Batch = tuple[torch.Tensor, torch.Tensor]


def images(model: IGPT, count: int, seed: int) -> Batch:
    made = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, model.config.colors, (count, model.config.tokens), generator=made)
    return model.images(codes), torch.randint(0, 3, (count,), generator=made)


def test_the_class_is_the_most_probable_one() -> None:
    model = igpt(torch.float64, class_tokens=3)
    given, labels = images(model, 7, 0)
    logs = model.class_log_probs(model.codes(given))
    for row, image in enumerate(given):
        codes = model.codes(image[None])
        for label in range(3):
            nll = model.nll(model.read(codes, torch.tensor([label])).patches_BND, codes).sum()
            torch.testing.assert_close(logs[row, label], -nll)
    found, same = generative_classes(model, [(given[:4], labels[:4]), (given[4:], labels[4:])])
    assert found.tolist() == logs.argmax(1).tolist()
    assert same.tolist() == labels.tolist()
    assert len({*found.tolist()}) > 1


@pytest.mark.parametrize("k", [1, 3])
def test_completions_are_classified_by_neighbors(k: int) -> None:
    model = igpt(torch.float64, image_size=(6, 5))
    colors_of(model).copy_(torch.tensor([[0.0], [0.13], [0.37], [0.71], [1.0]]))
    train, own = images(model, 40, 1), images(model, 9, 2)
    places, config = [3, 4, 5, 6, 7, 8, 9, 10, 11], CompletionConfig(k=k, draws=2, seed=5)
    found = completed_classes(model, [train], [(own[0][:5], own[1][:5]), (own[0][5:], own[1][5:])], places, config)

    def right(cut: int, given: torch.Tensor) -> list[bool]:
        """By scikit-learn, which takes the lowest of equally common classes: here those of the nearest are taken."""
        flat = [each[:, :, :cut].flatten(1).double().numpy() for each in (train[0], given)]
        judge = KNeighborsClassifier(k, algorithm="brute").fit(flat[0], train[1].numpy())
        near = train[1].numpy()[judge.kneighbors(flat[1], return_distance=False)]
        counts = np.stack([(near == label).sum(1) for label in range(3)], 1)
        tied = (counts == counts.max(1, keepdims=True)).sum(1) > 1
        return (np.where(tied, near[:, 0], judge.predict(flat[1])) == own[1].numpy()).tolist()

    assert found["whole"][:, 0].tolist() == right(6, own[0])
    assert found["upper_half"][:, 0].tolist() == right(3, own[0])
    drawn = sample_codes(
        model, torch.full((9,), -1), SearchConfig(search="sample", seed=5), places, model.codes(own[0])[:, :15]
    )
    assert found["completed"][:, 0].tolist() == right(6, model.images(drawn))
    assert found["completed"].shape == (9, 2)


def shared(count: int) -> dict[str, np.ndarray[Any, Any]]:
    """What this process finds, with its share of the images in two batches, one of them empty if there are few."""
    model = igpt(torch.float64)
    (train, labels), (own, classes) = images(model, 40, 1), images(model, count, 2)
    part = slice(*distributed.shard_range(count))
    given = [*zip(own[part].tensor_split(2), classes[part].tensor_split(2), strict=True)]
    known = slice(*distributed.shard_range(40))
    places, config = list(range(count))[part], CompletionConfig(k=1, draws=3, seed=5)
    bits = bits_per_token(model, given, places)
    return completed_classes(model, [(train[known], labels[known])], given, places, config) | {"bits": bits}


@pytest.mark.parametrize("count", [1, 9])
def test_processes_draw_the_same_completions(count: int) -> None:
    """Also of one image, where a process has none."""
    whole = shared(count)
    assert whole["completed"].shape == (count, 3)
    for found in in_processes(2, "tests.evaluate.test_pixels:shared", count):
        for name, rows in whole.items():
            np.testing.assert_allclose(found[name].astype(float), rows.astype(float), rtol=1e-12)


def test_each_sample_keeps_its_own_codes() -> None:
    model = igpt()
    given = codes_of(model, 4)[:, :5]
    config, any_class = SearchConfig(search="sample"), torch.full((4,), -1)
    drawn = sample_codes(model, any_class, config, range(4), given)
    assert torch.equal(drawn[:, :5], given)
    alone = sample_codes(model, any_class[:1], config, [2], given[2:3])
    assert torch.equal(drawn[2:3], alone)
