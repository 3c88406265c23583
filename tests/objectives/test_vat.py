"""VAT's direction against closed forms and the float64 limit; entropy; what the search leaves in the model."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import vitral
from tests.helpers import create_vit
from tests.objectives.semi import batches, make
from vitral.attacks.losses import kl_divergence
from vitral.models.model import ImageModel
from vitral.objectives.semi_supervised import steady
from vitral.objectives.vat import adversarial_direction, prediction_entropy, unit


def digits(count: int) -> torch.Tensor:
    """Images [B, 1, 8, 8] in [0,1]."""
    found: Any = load_digits()
    return torch.tensor(found.images[-count:] / 16, dtype=torch.float32)[:, None]


@pytest.fixture(scope="module")
def trained() -> ImageModel:
    """The bundled model."""
    return vitral.load("vitral-digits").model.eval()


def direction(
    model: torch.nn.Module, images: torch.Tensor, xi: float, iterations: int = 1, seed: int = 0
) -> torch.Tensor:
    start = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images.dtype)
    log_q = model(images).detach().log_softmax(-1)
    return adversarial_direction(model, images, log_q, start, xi=xi, iterations=iterations)


def moved(model: torch.nn.Module, images: torch.Tensor, change: torch.Tensor) -> float:
    with torch.no_grad():
        return kl_divergence(model(images + change), model(images).log_softmax(-1)).mean().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergence_and_entropy_equal_torchs(dtype: torch.dtype) -> None:
    mine, theirs = torch.randn(9, 5, dtype=dtype) * 4, torch.randn(9, 5, dtype=dtype) * 4
    expected = F.kl_div(theirs.log_softmax(-1), mine.softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(kl_divergence(theirs, mine.log_softmax(-1)), expected)
    torch.testing.assert_close(prediction_entropy(mine), torch.distributions.Categorical(logits=mine).entropy())
    assert kl_divergence(mine, mine.log_softmax(-1)).abs().max() == 0


def test_entropy_is_flat_at_uniform_and_at_one_hot_predictions() -> None:
    for logits, value in ((torch.zeros(1, 7), math.log(7)), (torch.tensor([[1e4, 0.0, -1e4]]), 0.0)):
        logits.requires_grad_()
        found = prediction_entropy(logits).sum()
        assert found.item() == pytest.approx(value, abs=1e-6)
        (grad,) = torch.autograd.grad(found, logits)
        assert grad.abs().max() < 1e-7


def test_the_norm_is_one_for_each_sample() -> None:
    x = torch.randn(6, 3, 4, 5) * torch.tensor([1e-30, 1e-12, 1e-3, 1.0, 1e9, 1e20]).view(6, 1, 1, 1)
    torch.testing.assert_close(unit(x, x).flatten(1).norm(dim=1), torch.ones(6), rtol=1e-6, atol=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_a_logistic_model_the_direction_is_its_weight(seed: int) -> None:
    """The Hessian of the divergence has rank one, so any start leads there in one iteration."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(48, 2).double()
    model, weight = torch.nn.Sequential(torch.nn.Flatten(), layer), layer.weight[0] - layer.weight[1]
    found = direction(model, torch.rand(16, 3, 4, 4, dtype=torch.float64), 1e-3, seed=seed).flatten(1)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(16, dtype=torch.float64), rtol=1e-6, atol=0)
    assert (found @ weight / weight.norm()).abs().min() > 1 - 1e-5


def test_a_constant_model_gives_no_loss_and_a_finite_direction() -> None:
    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0 * x.flatten(1)[:, :5]

    images = torch.rand(4, 1, 8, 8)
    found = direction(Constant(), images, 1.0, iterations=3)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(4))
    assert moved(Constant(), images, found) == 0


def test_a_trained_model_is_moved_further_than_by_chance_and_by_more_iterations(trained: ImageModel) -> None:
    """Power iterations find the largest curvature at the image, so the change is small here."""
    model, images = copy.deepcopy(trained).double(), digits(256).double()
    chance = moved(model, images, 0.05 * unit(torch.randn_like(images), images))
    found = [moved(model, images, 0.05 * direction(model, images, 1e-4, iterations)) for iterations in (1, 2, 4)]
    assert chance < 0.5 * found[0]
    assert found[0] < found[1] < found[2]


def test_the_distance_of_the_search(trained: ImageModel) -> None:
    """In float32 1e-3 gives the direction of the float64 limit, 1e-6 only rounding."""
    images = digits(64)
    limit = direction(copy.deepcopy(trained).double(), images.double(), 1e-7).float().flatten(1)

    def cosine(xi: float) -> float:
        return (direction(trained, images, xi).flatten(1) * limit).sum(1).mean().item()

    assert cosine(1e-3) > 0.999
    assert cosine(1e-6) < 0.9


def test_under_autocast_the_search_stays_in_float32(trained: ImageModel) -> None:
    images = digits(32)
    expected = direction(trained, images, 1.0)
    with torch.autocast("cpu", torch.bfloat16), steady(trained, images, wide=True):
        found = direction(trained, images, 1.0)
    assert ((found * expected).flatten(1).sum(1) > 0.99).all()


def test_the_search_leaves_no_trace_in_the_model() -> None:
    made = make("vat", dropout=0.5).train()
    before = copy.deepcopy(made.state_dict())
    modes = [module.training for module in made.modules()]
    part = made.unlabeled_part(batches("vat")["unlabeled"], 5)
    assert all(parameter.grad is None for parameter in made.parameters())
    assert modes == [module.training for module in made.modules()]
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())
    assert part.loss.requires_grad
    assert not part.logits_BC.requires_grad, "q carries no graph"


def test_equal_predictions_diverge_by_nothing_whatever_the_dropout() -> None:
    """Both passes are the same function: with a change of nearly no size the divergence is nearly 0."""
    made = make("vat", dropout=0.5, eps=1e-6).train()
    assert abs(made.unlabeled_part(batches("vat")["unlabeled"], 5).loss.item()) < 1e-9


def test_draws_depend_on_step_and_sample_only() -> None:
    made, whole = make("vat"), batches("vat")["unlabeled"]
    one = made.unlabeled_part(whole, 3).loss
    torch.manual_seed(9)
    assert made.unlabeled_part(whole, 3).loss == one
    assert made.unlabeled_part(whole, 4).loss != one


def test_the_entropy_counts_by_its_own_weight() -> None:
    one = batches("vat")
    plain, more = (make("vat", unlabeled_weight=2.0, entropy_weight=weight) for weight in (0.0, 0.5))
    spread = prediction_entropy(plain.model(one["unlabeled"].views[0].images_BCHW)).mean()
    difference = more(one, 9).loss - plain(one, 9).loss
    torch.testing.assert_close(difference, 0.5 * spread * plain.unlabeled_weight(9) / 2)


def test_the_model_may_be_of_any_size() -> None:
    images = torch.rand(3, 3, 12, 8)
    model = create_vit("vit_micro_patch2_8", image_size=(12, 8)).eval()
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    assert direction(model, images, 1.0, iterations=2).shape == images.shape
