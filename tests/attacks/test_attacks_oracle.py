"""Attacks beside torchattacks, foolbox and AutoAttack's authors' code: the same images from the same start."""

from __future__ import annotations

import warnings
from copy import deepcopy
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitral
from tests.attacks.models import images, noise, random_vit
from tests.oracles import load_oracle
from vitral.attacks.ball import Ball, as_eps
from vitral.attacks.registry import create_attack

pytestmark = pytest.mark.oracle


def load(name: str) -> ModuleType:
    """A reference package, whose own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_oracle(name)


def victim() -> tuple[nn.Module, Tensor, Tensor]:
    """A random ViT, images, and its own answers as labels."""
    model, x = random_vit().eval(), images(20)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize(
    ("name", "theirs", "kind", "ours"),
    [
        ("FGSM", {"eps": 0.03}, "fgsm", {"eps": 0.03}),
        ("PGD", {"eps": 0.03, "alpha": 0.01, "steps": 7, "random_start": False}, "pgd",
         {"eps": 0.03, "step": 0.01, "steps": 7, "random_start": False}),
        ("PGDL2", {"eps": 0.5, "alpha": 0.2, "steps": 7, "random_start": False}, "pgd",
         {"norm": "l2", "eps": 0.5, "step": 0.2, "steps": 7, "random_start": False}),
        ("MIFGSM", {"eps": 0.03, "alpha": 0.03 / 8, "steps": 8, "decay": 0.9}, "mifgsm",
         {"eps": 0.03, "steps": 8, "momentum": 0.9}),
    ],
)  # fmt: skip
def test_torchattacks_finds_the_same_images(name: str, theirs: Any, kind: str, ours: Any) -> None:
    model, x, labels = victim()
    expected = getattr(load("torchattacks"), name)(model, **theirs)(x, labels)
    found = create_attack(kind, **ours)(model, x, labels)
    assert (found - expected).abs().max() <= 1e-5
    assert (found - x).abs().max() > 0.02


def test_foolbox_finds_the_same_images() -> None:
    foolbox = load("foolbox")
    model, x, labels = victim()
    theirs = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    for attack, eps, kind, keys in (
        (foolbox.attacks.LinfFastGradientAttack(), 0.03, "fgsm", {}),
        (foolbox.attacks.L2FastGradientAttack(), 0.5, "fgm", {}),
        (foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=0.01, steps=6), 0.03, "pgd",
         {"step": 0.01, "steps": 6, "random_start": False}),
        (foolbox.attacks.L2BasicIterativeAttack(abs_stepsize=0.2, steps=6), 0.5, "pgd",
         {"norm": "l2", "step": 0.2, "steps": 6, "random_start": False}),
    ):  # fmt: skip
        _, expected, _ = attack(theirs, x, labels, epsilons=eps)
        found = create_attack(kind, eps=eps, **keys)(model, x, labels)
        assert (found - expected).abs().max() <= 1e-5, kind


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """The bundled model in double precision with the 360 test digits."""
    from vitral.run.command_options import EvalOptions
    from vitral.run.eval_target import loaded_subject
    from vitral.run.inference_inputs import load_used, open_images

    predictor = load_used("vitral-digits", EvalOptions())
    dataset, _ = open_images(predictor.config, EvalOptions().data, predictor.config, "vitral-digits")
    batches = list(loaded_subject(predictor, dataset.splits, "test", 360).batches("test", None))
    x, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert len(x) == 360
    return (
        vitral.load("vitral-digits").model.double().eval(),
        x.double() / (255 if x.dtype == torch.uint8 else 1),
        labels,
    )


@pytest.mark.parametrize(("norm", "loss", "count"), [("linf", "ce", 150), ("linf", "dlr", 100), ("l2", "ce", 100)])
def test_apgd_fools_the_model_on_the_images_of_the_authors_code(digits: Any, norm: str, loss: str, count: int) -> None:
    base = load("pyautoattack.autopgd_base")
    model, x, labels = digits
    x, labels = x[:count], labels[:count]
    eps = 0.05 if norm == "linf" else 0.4
    start = Ball(x, as_eps(eps, x), norm).random_surface_point(noise(len(x), 5), 0)
    theirs = base.APGDAttack(model, n_iter=100, norm=norm.replace("l", "L"), eps=eps, loss=loss, device="cpu")
    theirs.init_hyperparam(x)
    _, right, _, _ = theirs.attack_single_run(x, labels, x_init=start)
    found = create_attack("apgd", norm=norm, eps=eps, loss=loss)(model, x, labels, seed=5)
    clean = model(x).argmax(1) == labels
    ours = (model(found).argmax(1) == labels)[clean]
    assert int((ours != right.bool()[clean]).sum()) <= 2, "two images at the edge may differ"
    assert 0.02 < 1 - ours.double().mean() < 0.98


def test_targeted_apgd_fools_the_model_on_the_images_of_the_authors_code(digits: Any) -> None:
    base = load("pyautoattack.autopgd_base")
    model, x, labels = digits
    clean = model(x).argmax(1) == labels
    x, labels = x[clean][:100], labels[clean][:100]
    start = Ball(x, as_eps(0.05, x), "linf").random_surface_point(noise(len(x), 5), 0)
    theirs = base.APGDAttack_targeted(model, n_iter=50, norm="Linf", eps=0.05, n_target_classes=1, device="cpu")
    theirs.init_hyperparam(x)
    theirs.y_target = model(x).sort(dim=1).indices[:, -2]
    theirs.loss = "dlr-targeted"
    _, right, _, _ = theirs.attack_single_run(x, labels, x_init=start)
    found = create_attack("apgd", eps=0.05, loss="dlr", targets=1, steps=50)(model, x, labels, seed=5)
    ours = model(found).argmax(1) == labels
    assert int((ours != right.bool()).sum()) <= 2
    assert 0.02 < 1 - ours.double().mean() < 0.98


def test_square_in_l2_fools_as_many_images_as_the_authors_code(digits: Any) -> None:
    """Their windows never reach the last row and column, which counts on 8 x 8 pixels: here they do."""
    model, x, labels = deepcopy(digits[0]).float(), digits[1].float(), digits[2]
    clean = model(x).argmax(1) == labels
    x, labels = x[clean][:100], labels[clean][:100]
    keys: dict[str, Any] = {"norm": "L2", "eps": 0.5, "n_queries": 200, "p_init": 0.8, "seed": 0, "device": "cpu"}
    theirs = load("pyautoattack.square").SquareAttack(model, **keys)
    theirs.random_int = lambda low, high: (low + (high - low + 1) * torch.rand(1)).long()
    expected = theirs.perturb(x, labels)
    found = create_attack("square", norm="l2", eps=0.5, queries=200)(model, x, labels)
    ours, others = ((model(changed).argmax(1) != labels).double().mean() for changed in (found, expected))
    assert 0.3 < others < 0.9
    assert abs(ours - others) <= 0.1


def test_the_standard_evaluation_takes_a_model_as_it_is_and_agrees_with_the_ensemble(digits: Any) -> None:
    from contextlib import redirect_stdout
    from io import StringIO

    model, x, labels = digits
    model, x, labels = deepcopy(model).float(), x[:90].float(), labels[:90]  # it mixes types in double precision
    log = StringIO()
    with redirect_stdout(log):
        theirs = load("pyautoattack").AutoAttack(model, norm="Linf", eps=0.03, version="custom", device="cpu")
        theirs.attacks_to_run = ["apgd-ce", "apgd-t"]
        theirs.apgd.n_iter = theirs.apgd_targeted.n_iter = 20
        expected, *_ = theirs.run_standard_evaluation(x, labels, batch_size=90)
    found = create_attack("ensemble", eps=0.03, steps=20, queries=1)(model, x, labels)
    ours, others = ((model(images_BCHW).argmax(1) == labels).double().mean() for images_BCHW in (found, expected))
    assert ours <= others + 0.005 + 1 / 90
    assert "Warning" not in log.getvalue()
