"""Attacks: closed forms on linear models, balls and ranges, independence of samples, models left as found."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.attacks.models import Linear, images, noise, random_vit
from vitral.attacks import losses
from vitral.attacks.ball import Ball, as_eps
from vitral.attacks.config import PgdConfig
from vitral.attacks.quiet import quiet
from vitral.attacks.registry import ATTACKS, create_attack
from vitral.errors import UserError

SHORT: dict[str, dict[str, Any]] = {
    "apgd": {"steps": 12}, "square": {"queries": 40}, "ensemble": {"steps": 8, "targets": 2, "queries": 10},
}  # fmt: skip


BOTH = ("pgd", "apgd", "square", "ensemble")  # norms


def _attacks() -> Iterator[Any]:
    """Every attack in every norm it has."""
    for kind in ATTACKS:
        norms = ("linf", "l2") if kind in BOTH else ("l2",) if kind == "fgm" else ("linf",)
        for norm in norms:
            yield pytest.param(kind, norm, id=f"{kind}-{norm}")


EVERY = list(_attacks())


def margins(model: nn.Module, x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
    """True logit less the best other one, [B]."""
    return -losses.margin(model(x_BCHW), labels_B)


def inner_images(count: int, shape: tuple[int, int, int]) -> Tensor:
    """Images in [0.3, 0.7], in double precision: small changes reach no bound."""
    return 0.3 + 0.4 * images(count, shape).double()


@pytest.mark.parametrize(("kind", "keys"), [("fgsm", {}), ("pgd", {"steps": 7}), ("mifgsm", {}), ("apgd", {})])
def test_linf_attacks_lower_the_margin_of_a_linear_model_by_eps_times_the_l1_norm(kind: str, keys: Any) -> None:
    model, x = Linear((1, 5, 7)), inner_images(9, (1, 5, 7))
    labels = torch.arange(9) % 2
    if kind == "apgd":  # which stops at a wrong answer: here there is none
        model.bias_K.data, labels = torch.tensor([1e3, 0.0], dtype=torch.float64), torch.zeros(9, dtype=torch.long)
    adversarial = create_attack(kind, eps=0.1, **keys)(model, x, labels, loss=losses.margin)
    lowered = margins(model, x, labels) - margins(model, adversarial, labels)
    l1 = (model.weight_KD[0] - model.weight_KD[1]).abs().sum()
    assert torch.allclose(lowered, 0.1 * l1, atol=1e-9)


def test_on_a_linear_model_fgm_lowers_the_margin_by_eps_times_the_l2_norm_and_pgd_finds_no_more() -> None:
    model, x, labels = Linear((2, 5, 7)), inner_images(8, (2, 5, 7)), torch.arange(8) % 2
    difference_D = model.weight_KD[0] - model.weight_KD[1]
    for kind, keys in (("fgm", {}), ("pgd", {"norm": "l2", "steps": 100, "step": 0.05})):
        adversarial = create_attack(kind, eps=0.2, **keys)(model, x, labels, loss=losses.margin)
        lowered = margins(model, x, labels) - margins(model, adversarial, labels)
        assert torch.allclose(lowered, 0.2 * difference_D.norm(), atol=1e-6), kind


@pytest.mark.parametrize(("kind", "norm"), EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_stay_in_the_ball_and_in_range_and_raise_the_loss(kind: str, norm: str, dtype: torch.dtype) -> None:
    model, x = random_vit().to(dtype), images(24).to(dtype)
    labels = model.eval()(x).argmax(1)
    eps = 0.02 if norm == "linf" else 0.4
    norms = {"norm": norm} if kind in BOTH else {}
    adversarial = create_attack(kind, eps=eps, **norms, **SHORT.get(kind, {}))(model, x, labels, seed=3)
    assert adversarial.dtype == dtype
    assert not adversarial.requires_grad
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    change = (adversarial - x).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert size.max() <= (3 * eps if kind == "nfgsm" else eps) + 1e-6
    with torch.no_grad():
        before, after = (losses.cross_entropy(model(images_BCHW), labels) for images_BCHW in (x, adversarial))
    assert after.mean() > before.mean() + 0.05


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]), eps=st.floats(1e-3, 3), seed=st.integers(0, 2**40),
    point=st.sampled_from(["random_point", "random_surface_point", "project"]),
)  # fmt: skip
def test_random_points_and_projections_are_in_the_ball(norm: str, eps: float, seed: int, point: str) -> None:
    x = images(6, (2, 3, 5), seed % 1000)
    ball = Ball(x, as_eps(eps, x), norm)
    if point == "project":
        found = ball.project(x + 4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed % 2**31)))
        assert torch.allclose(ball.project(found), found, atol=1e-6)
    else:
        found = getattr(ball, point)(noise(6, seed), 1)
    change = (found - x).flatten(1)
    assert 0 <= found.min() <= found.max() <= 1
    assert (change.abs().amax(1) if norm == "linf" else change.norm(dim=1)).max() <= eps * (1 + 1e-5) + 1e-6


def test_random_starts_are_uniform_in_the_ball() -> None:
    from scipy.stats import kstest

    x = torch.full((2000, 1, 2, 3), 0.5)
    change = (Ball(x, as_eps(0.4, x), "l2").random_point(noise(2000), 0) - x).flatten(1).double()
    share = (change.norm(dim=1) / 0.4) ** 6  # of the ball's volume inside of the point
    assert kstest(share.numpy(), "uniform").pvalue > 0.01
    assert change.mean(0).abs().max() < 0.02
    change = Ball(x, as_eps(0.4, x), "linf").random_point(noise(2000), 0) - x
    assert kstest((change.flatten().double().numpy() / 0.8 + 0.5), "uniform").pvalue > 0.01


@pytest.mark.parametrize(("kind", "norm"), EVERY)
def test_samples_do_not_influence_each_other(kind: str, norm: str) -> None:
    model, x = random_vit().double(), images(10).double()
    labels = model.eval()(x).argmax(1)
    norms = {"norm": norm} if kind in BOTH else {}
    attack = create_attack(kind, eps=0.01 if norm == "linf" else 0.2, **norms, **SHORT.get(kind, {}))
    whole = attack(model, x, labels, seed=5)
    ids = torch.arange(10)
    parts = [attack(model, x[i : i + 3], labels[i : i + 3], sample_ids_B=ids[i : i + 3], seed=5) for i in (0, 3, 6, 9)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-9)
    own = torch.linspace(0.5, 1.5, 10) * attack.config.radius
    fifth = attack(model, x[4:5], labels[4:5], eps=own[4].item(), seed=5, sample_ids_B=ids[4:5])
    assert torch.allclose(attack(model, x, labels, eps=own, seed=5)[4:5], fifth, atol=1e-7)


@pytest.mark.parametrize("kind", list(ATTACKS))
def test_the_model_and_torchs_random_state_are_left_as_found(kind: str) -> None:
    model, x = random_vit().train(), images(4)
    model.blocks[0].eval()  # pyright: ignore
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    attack = create_attack(kind, **SHORT.get(kind, {}))
    with torch.inference_mode():
        one = attack(model, x, torch.arange(4), seed=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        two = attack(model, x, torch.arange(4), seed=1)
    assert torch.equal(one, two)  # no dropout, no half precision, the same random numbers
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_are_restored_after_an_exception() -> None:
    model = random_vit().train()

    def fail(logits: Tensor, labels: Tensor) -> Tensor:
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        create_attack("fgsm")(model, images(2), torch.zeros(2, dtype=torch.long), loss=fail)
    assert all(module.training for module in model.modules())
    with pytest.raises(KeyError), quiet(model):
        raise KeyError
    assert all(module.training for module in model.modules())


def test_more_steps_and_restarts_find_more_loss() -> None:
    model, x = random_vit(), images(60)
    labels = model.eval()(x).argmax(1)

    def loss(**keys: Any) -> float:
        adversarial = create_attack("pgd", eps=0.004, **keys)(model, x, labels, seed=2)
        return losses.cross_entropy(model(adversarial), labels).mean().item()

    found = [loss(steps=steps, step=0.001) for steps in (1, 3, 10)]
    assert found == sorted(found)
    assert loss(steps=4, restarts=4) > loss(steps=4)


def test_a_restart_keeps_wrong_answers_and_otherwise_the_largest_loss() -> None:
    model, x = random_vit(), images(40)
    labels = model.eval()(x).argmax(1)
    runs = [
        create_attack("pgd", eps=0.004, steps=3, restarts=count)(model, x, labels, seed=9) for count in (1, 2, 3)
    ]  # fmt: skip
    wrong = torch.stack([model(run).argmax(1) != labels for run in runs])
    assert (wrong[1:] >= wrong[:-1]).all()
    loss = torch.stack([losses.cross_entropy(model(run), labels) for run in runs])
    assert ((loss[1:] >= loss[:-1] - 1e-6) | wrong[1:]).all()
    assert 0 < wrong[2].sum() < 40


def test_dlr_does_not_change_with_shift_and_factor_of_the_logits_and_has_its_closed_form() -> None:
    logits, labels = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double(), torch.arange(50) % 6
    assert torch.allclose(losses.dlr(3.7 * logits + 11, labels), losses.dlr(logits, labels))
    assert not torch.allclose(
        losses.cross_entropy(3.7 * logits + 11, labels), losses.cross_entropy(logits, labels)
    )  # fmt: skip
    z = torch.tensor([[4.0, 3.0, 1.0, -2.0]])
    assert losses.dlr(z, torch.tensor([0])).item() == pytest.approx(-(4 - 3) / (4 - 1))
    assert losses.dlr(z, torch.tensor([2])).item() == pytest.approx(-(1 - 4) / (4 - 1))
    target = losses.targeted_dlr(z, torch.tensor([0]), torch.tensor([3])).item()
    assert target == pytest.approx(-(4 + 2) / (4 - (1 - 2) / 2))


def test_kl_divergence_is_zero_at_equality_and_has_its_closed_form() -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).double()
    p = logits.softmax(-1)
    assert torch.allclose(losses.kl_divergence(logits, p.log()), torch.zeros(7).double(), atol=1e-12)
    q = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).double()
    expected = (p * (p.log() - q.log_softmax(-1))).sum(-1)
    assert torch.allclose(losses.kl_divergence(q, p.log()), expected)
    one_hot = (1000 * torch.eye(5).double()).log_softmax(-1)
    assert losses.kl_divergence(q[:5], one_hot).isfinite().all()


def test_apgd_period_lengths_are_those_of_the_paper() -> None:
    from vitral.attacks.apgd import _periods  # pyright: ignore[reportPrivateUsage]

    assert list(_periods(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert _periods(100)[41] == 19
    assert list(_periods(1)) == [1]


def test_targeted_apgd_reaches_another_class_where_the_untargeted_one_does() -> None:
    model, x = random_vit(), images(40)
    labels = model.eval()(x).argmax(1)
    for keys in ({"loss": "dlr"}, {"loss": "dlr", "targets": 9}, {"loss": "ce", "restarts": 2}):
        adversarial = create_attack("apgd", eps=0.02, steps=20, **keys)(model, x, labels)
        assert (model(adversarial).argmax(1) == labels).float().mean() < 0.2, keys


def test_distributions_as_labels_are_attacked_as_their_most_probable_class_where_there_is_one() -> None:
    model, x = random_vit(), images(20)
    labels = model.eval()(x).argmax(1)
    one_hot = nn.functional.one_hot(labels, 10).float()
    for kind in ("fgsm", "pgd", "mifgsm", "apgd"):
        attack = create_attack(kind, eps=0.01, **SHORT.get(kind, {}))
        assert torch.allclose(attack(model, x, one_hot), attack(model, x, labels), atol=1e-6)


def test_the_ensemble_leaves_out_what_few_classes_do_not_allow() -> None:
    def kinds(classes: int, **keys: Any) -> list[tuple[str, str, int]]:
        parts = create_attack("ensemble", **keys).parts(classes)  # pyright: ignore
        return [
            (part.config.kind, getattr(part.config, "loss", ""), getattr(part.config, "targets", 0)) for part in parts
        ]

    assert kinds(10) == [("apgd", "ce", 0), ("apgd", "dlr", 9), ("square", "", 0)]
    assert kinds(5) == [("apgd", "ce", 0), ("apgd", "dlr", 4), ("square", "", 0)]
    assert kinds(3) == [("apgd", "ce", 0), ("apgd", "dlr", 0), ("square", "", 0)]
    assert kinds(2, norm="l2") == [("apgd", "ce", 0), ("square", "", 0)]


def test_no_gradient_changes_nothing_and_gives_no_nan() -> None:
    class Constant(nn.Module):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            return x_BCHW.flatten(1)[:, :4] * 0.0

    x, labels = images(5), torch.arange(5) % 4
    for kind in ("fgsm", "fgm", "mifgsm"):
        assert torch.equal(create_attack(kind)(Constant(), x, labels), x)
    assert create_attack("pgd", norm="l2")(Constant(), x, labels).isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_attack("pgd", eps=8), "Is eps=8/255 meant"),
        (lambda: create_attack("pgd", eps="8/0"), "eps"),
        (lambda: create_attack("fgsm", eps=0), "eps"),
        (lambda: create_attack("fgsm", eps=-0.1), "eps"),
        (lambda: create_attack("fgsm", eps="-8/255"), r"(?s)eps.*greater than 0"),
        (lambda: create_attack("pgd", steps=0), "steps"),
        (lambda: create_attack("pgx"), "pgx"),
        (lambda: create_attack("fgsm", steps=3), "steps"),
        (lambda: create_attack("pgd", random_start=False, restarts=2), "restarts"),
        (lambda: create_attack("apgd", targets=3), "loss=dlr"),
        (lambda: create_attack("apgd", loss="dlr")(Linear((1, 2, 2)), images(2, (1, 2, 2)), torch.zeros(2).long()),
         "at least 3 classes"),
        (lambda: create_attack("apgd", loss="dlr", targets=1)(
            Linear((1, 2, 2), 3), images(2, (1, 2, 2)), Linear((1, 2, 2), 3)(images(2, (1, 2, 2))).argmax(1)),
         "at least 4 classes"),
        (lambda: create_attack()(Linear((1, 2, 2)), torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1).long()),
         "/ 255"),
        (lambda: create_attack()(Linear((1, 2, 2)), 255 * images(2, (1, 2, 2)), torch.zeros(2).long()), "outside"),
        (lambda: create_attack()(Linear((1, 2, 2)), images(2, (1, 2, 2)), torch.zeros(3).long()), "do not match"),
    ],
)  # fmt: skip
def test_bad_input_gives_one_message(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_no_images_give_no_images() -> None:
    for kind in ATTACKS:
        assert create_attack(kind)(Linear((1, 2, 2)), images(0, (1, 2, 2)), torch.zeros(0).long()).shape == (0, 1, 2, 2)


def test_fractions_are_numbers() -> None:
    assert create_attack("pgd", eps="8/255", step=" 2 / 255 ").config == PgdConfig(eps=8 / 255, step=2 / 255)
    assert create_attack("pgd").config.radius == 8 / 255
    assert math.isclose(create_attack("pgd", norm="l2").config.radius, 128 / 255)
    assert create_attack("pgd", norm="l2", eps=3).config.radius == 3
