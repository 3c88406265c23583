"""Adversarial training: losses by hand, closed forms, one process equal to many, and what the monitor sees."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from tests.helpers import create_vit
from tests.objectives.training import Trained, assert_equal, five_steps
from tests.processes import in_processes
from vitral import distributed
from vitral.attacks.ball import Noise
from vitral.attacks.embeddings import embedding_fgm, token_scale
from vitral.attacks.registry import create_attack
from vitral.errors import UserError
from vitral.models.vit import VisionTransformer
from vitral.objectives.adversarial import Adversarial
from vitral.objectives.adversarial_config import AdversarialConfig
from vitral.objectives.config import SupervisedConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.supervised import Supervised
from vitral.run.config import load_config
from vitral.structs import Batch, View

PGD: dict[str, Any] = {"kind": "pgd", "eps": 0.05, "steps": 2}


def batch(size: int = 8, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, 8, 8, generator=generator, dtype=dtype)
    labels = torch.randint(0, 10, (size,), generator=generator)
    return Batch((View(images, torch.eye(3).expand(size, 3, 3)),), {"label": labels}, torch.arange(100, 100 + size))


def build(seed: int = 0, drop_path: float = 0.0) -> VisionTransformer:
    torch.manual_seed(seed)
    model = create_vit("vit_micro_patch2_8", drop_path=drop_path).double()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15)
    return model


def objective(images: Any = None, **keys: Any) -> Adversarial:
    keys = {"kind": "adversarial", "attack": PGD, "eps_warmup": 0.0, **keys}
    context = ObjectiveContext(100, seed=3, train_images=images)
    return Adversarial(build, AdversarialConfig(**keys), context).train()


def adversarial(made: Adversarial, given: Batch, step: int) -> Tensor:
    return create_attack(**PGD)(
        made.model, given.views[0].images_BCHW, given.targets["label"], sample_ids_B=given.sample_ids_B, seed=3,
        step=step,
    )  # fmt: skip


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9])
def test_the_loss_is_that_of_adversarial_images_mixed_with_that_of_clean_ones(weight: float) -> None:
    made, given = objective(clean_weight=weight, label_smoothing=0.1), batch()
    labels = given.targets["label"]
    clean, changed = given.views[0].images_BCHW, adversarial(made, given, 7)
    expected = weight * F.cross_entropy(made.model(clean), labels, label_smoothing=0.1)
    expected = expected + (1 - weight) * F.cross_entropy(made.model(changed), labels, label_smoothing=0.1)
    found = made({"train": given}, 7)
    torch.testing.assert_close(found.loss, expected)
    assert found.metrics["adversarial_top1"].item() == pytest.approx(
        (made.model(changed).argmax(1) == labels).double().mean().item()
    )
    assert not torch.equal(adversarial(made, given, 7), adversarial(made, given, 8)), "each step starts elsewhere"


def test_trades_is_cross_entropy_plus_beta_times_the_divergence_of_images_that_maximize_it() -> None:
    made, given = objective(loss="trades", beta=3.0), batch()
    images, labels = given.views[0].images_BCHW, given.targets["label"]
    clean = made.model(images)

    def divergence(logits: Tensor, p: Tensor) -> Tensor:
        return (p * (p.log() - logits.log_softmax(-1))).sum(-1)

    changed = create_attack(**PGD)(
        made.model, images, clean.softmax(-1).detach(), loss=divergence, sample_ids_B=given.sample_ids_B, seed=3, step=1
    )  # fmt: skip
    terms = divergence(made.model(changed), clean.softmax(-1))
    expected = F.cross_entropy(clean, labels) + 3 * terms.mean()
    found = made({"train": given}, 1).loss
    torch.testing.assert_close(found, expected)
    grads = torch.autograd.grad(found, list(made.model.parameters()))
    for grad, own in zip(grads, torch.autograd.grad(expected, list(made.model.parameters())), strict=True):
        torch.testing.assert_close(grad, own)  # the clean side of the divergence is not detached
    assert (terms > 1e-4).all()


def test_trades_has_finite_gradients_where_probabilities_underflow() -> None:
    made, given = objective(loss="trades"), batch()
    with torch.no_grad():
        made.model.get_parameter("head.weight").mul_(1e4)
    made({"train": given}, 0).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters() if parameter.grad is not None)


def test_without_a_change_every_loss_is_the_supervised_one() -> None:
    given = batch()
    plain = Supervised(build, SupervisedConfig(), ObjectiveContext(100)).train()({"train": given}, 0).loss
    for keys in ({}, {"clean_weight": 0.3}, {"loss": "trades"}):
        made = objective(attack={"kind": "pgd", "eps": 1e-12, "steps": 1}, **keys)
        torch.testing.assert_close(made({"train": given}, 0).loss, plain, atol=1e-9, rtol=0)


def test_the_radius_grows_linearly_to_eps() -> None:
    made = objective(eps_warmup=0.5)
    assert [made.eps(step) for step in (0, 24, 49, 50, 99)] == pytest.approx([0.001, 0.025, 0.05, 0.05, 0.05])
    assert objective(eps_warmup=0.0).eps(0) == 0.05


def test_mixed_labels_are_attacked_as_mixed_and_weigh_in_the_loss() -> None:
    made, given = objective(), batch()
    mixed = {**given.targets, "partner": given.targets["label"].roll(1), "weight": torch.full((8,), 0.7)}
    given = given._replace(targets=mixed)
    target = 0.7 * F.one_hot(mixed["label"], 10).double() + 0.3 * F.one_hot(mixed["partner"], 10).double()
    changed = create_attack(**PGD)(
        made.model, given.views[0].images_BCHW, target, sample_ids_B=given.sample_ids_B, seed=3, step=2
    )  # fmt: skip
    expected = F.cross_entropy(made.model(changed), target)
    torch.testing.assert_close(made({"train": given}, 2).loss, expected, rtol=1e-6, atol=1e-6)


def test_embedding_fgm_has_the_length_eps_and_follows_the_gradient() -> None:
    model, given = build().eval(), batch()
    labels = given.targets["label"]
    patches, grid = model.embed(given.views[0].images_BCHW)

    def logits_of(some: Tensor) -> Tensor:
        return model.classify(model.pool(model.encode_tokens(some, grid)))

    change = embedding_fgm(logits_of, patches, labels, 0.03)
    size = 0.03 * patches[0].numel() ** 0.5
    torch.testing.assert_close(change.flatten(1).norm(dim=1), torch.full((8,), size).double(), rtol=1e-6, atol=0)
    normalized = F.layer_norm(patches, patches.shape[-1:], eps=1e-6)
    torch.testing.assert_close((patches - patches.mean(-1, keepdim=True)) / token_scale(patches), normalized)
    loss = F.cross_entropy(logits_of(patches), labels, reduction="none")
    small = embedding_fgm(logits_of, patches, labels, 1e-5)
    raised = F.cross_entropy(logits_of(patches + token_scale(patches) * small), labels, reduction="none") - loss
    other = small[:, torch.randperm(small.shape[1])]
    raised_by_other = (
        F.cross_entropy(logits_of(patches + token_scale(patches) * other), labels, reduction="none") - loss
    )
    assert (raised > 0).all()
    assert (raised > raised_by_other).all()
    zero = embedding_fgm(lambda some: some[:, 0, :10] * 0, patches, labels, 0.03)
    assert torch.equal(zero, torch.zeros_like(zero))


def test_embedding_fgm_scales_with_the_embeddings() -> None:
    made, given = objective(attack={"kind": "embedding_fgm", "eps": 0.05}), batch()
    assert isinstance(made.model, VisionTransformer)
    seen: list[tuple[Tensor, Tensor]] = []
    encode = made.model.encode_tokens

    def spy(patches: Tensor, *rest: Any, **more: Any) -> Any:
        seen.append((patches.detach(), token_scale(patches).detach()))
        return encode(patches, *rest, **more)

    made.model.encode_tokens = spy  # pyright: ignore
    for factor in (1.0, 10.0):
        with torch.no_grad():
            for parameter in made.model.patch_embed.parameters():
                parameter.mul_(factor)
        seen.clear()
        made({"train": given}, 0)
        clean, changed = seen[0], seen[-1]
        ratio = ((changed[0] - clean[0]) / clean[1]).flatten(1).norm(dim=1) / clean[0][0].numel() ** 0.5
        torch.testing.assert_close(ratio, torch.full((8,), 0.05).double(), rtol=1e-3, atol=0)


class Linear(nn.Module):
    """Two classes whose logits are linear in the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def test_gradients_of_a_linear_model_are_aligned_and_grad_align_trains_both() -> None:
    made, given = objective(align=0.5), batch()
    images, labels = given.views[0].images_BCHW, given.targets["label"]
    noise = Noise(given.sample_ids_B, 3)
    made.model, vit = Linear(), made.model  # pyright: ignore
    aligned, known = made._alignment(images, labels % 2, 0.3, noise)  # pyright: ignore
    torch.testing.assert_close(aligned, torch.ones_like(aligned))
    assert known.all()
    made.model = vit
    cosine = made._alignment(images, labels, 0.3, noise)[0].mean()  # pyright: ignore
    assert 0 < cosine < 0.999
    grads = torch.autograd.grad(cosine, list(made.model.parameters()), allow_unused=True)
    assert max(grad.abs().max().item() for grad in grads if grad is not None) > 1e-6
    found = made({"train": given}, 0)
    plain = objective()({"train": given}, 0)
    torch.testing.assert_close(found.loss, plain.loss + 0.5 * found.metrics["align_loss"])


class Halves(nn.Module):
    """Two classes that depend on the image where its first pixel is above 0.5; elsewhere constant ones."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        which = (flat[:, :1] > 0.5).to(x.dtype)
        return which * torch.stack([flat.square().sum(1), flat.sum(1)], dim=1)


def test_images_without_a_gradient_are_left_out_of_the_alignment() -> None:
    made, given = objective(align=0.5), batch()
    images = given.views[0].images_BCHW.clone()
    images[:, 0, 0, 0] = torch.tensor([0.9, 0.1] * 4)
    labels, noise = given.targets["label"] % 2, Noise(given.sample_ids_B, 3)
    made.model = Halves()  # pyright: ignore
    cosine, known = made._alignment(images, labels, 0.02, noise)  # pyright: ignore
    assert known.tolist() == [True, False] * 4
    sums, counts = made._measured(images, labels, 0.02, noise)  # pyright: ignore
    assert counts.tolist() == [8, 8, 8, 4]
    assert sums[3].item() == pytest.approx(cosine[known].sum().item(), rel=1e-5)


def test_the_random_point_of_the_alignment_is_in_the_ball_of_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = objective(attack={"kind": "fgm", "eps": 0.3}, align=0.5), batch()
    images = given.views[0].images_BCHW
    seen = list[Tensor]()

    def spy(x: Tensor, labels: Tensor, graph: bool) -> Tensor:
        seen.append(x)
        return x

    monkeypatch.setattr(made, "_gradient", spy)
    made._alignment(images, given.targets["label"], 0.3, Noise(given.sample_ids_B, 3))  # pyright: ignore
    assert (seen[1] - seen[0]).flatten(1).norm(dim=1).max() <= 0.3 + 1e-9


def test_forward_leaves_gradients_modes_and_random_state_alone() -> None:
    made, given = objective(clean_weight=0.5), batch()
    made.model.blocks[1].eval()  # pyright: ignore
    modes, state = [module.training for module in made.modules()], torch.get_rng_state()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made({"train": given}, 0)
    made.monitor(0)
    assert [module.training for module in made.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in made.parameters())
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


KINDS: dict[str, dict[str, Any]] = {
    "mixed": {"clean_weight": 0.25},
    "align": {"align": 0.5, "attack": {"kind": "fgsm", "eps": 0.05}},
    "trades": {"loss": "trades"},
    "embedding_fgm": {"attack": {"kind": "embedding_fgm"}, "clean_weight": 0.5},
}


def trained(kind: str, micro: int | None = None, ddp: bool = False) -> Trained:
    return five_steps(objective(**KINDS[kind]), batch(), micro, ddp=ddp)


@pytest.mark.parametrize(("kind", "micro"), [("mixed", 1), *((kind, 3) for kind in KINDS)])
def test_micro_batches_are_one_batch(kind: str, micro: int) -> None:
    assert_equal(trained(kind, micro), trained(kind))


def in_all_ways() -> tuple[dict[str, Trained], dict[str, float]]:
    """Every kind in these processes, and what the monitor measures of 5 images."""
    return {kind: trained(kind, 4, True) for kind in KINDS}, monitored()


def monitored(total: int = 5) -> dict[str, float]:
    """Each process has its share of the images, in two batches; the first may be empty."""
    given = batch()
    start, end = distributed.shard_range(total)
    made = objective(attack={**PGD, "eps": 0.02})
    images, labels = given.views[0].images_BCHW, made.model(given.views[0].images_BCHW).argmax(1)

    def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield images[start : end - 2], labels[start : end - 2]
        yield images[end - 2 : end], labels[end - 2 : end]

    made.context = made.context._replace(train_images=batches)
    return {name: value.item() for name, value in made.monitor(0).items()}


@pytest.mark.slow
def test_two_processes_are_one() -> None:
    alone = {kind: trained(kind) for kind in KINDS}
    for found, numbers in in_processes(2, "tests.objectives.test_adversarial:in_all_ways"):
        for kind in KINDS:
            assert_equal(found[kind], alone[kind])
        assert numbers == pytest.approx(monitored())


def images_of(given: Batch) -> Any:
    def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
        assert count == 128
        yield given.views[0].images_BCHW[:0], given.targets["label"][:0]
        yield given.views[0].images_BCHW[:5], given.targets["label"][:5]
        yield given.views[0].images_BCHW[5:], given.targets["label"][5:]

    return batches


def test_the_monitor_measures_fgsm_pgd_and_alignment_on_the_same_images() -> None:
    given = batch()
    made = objective(images_of(given), attack={**PGD, "eps": 0.02})
    images = given.views[0].images_BCHW
    labels = made.model(images).argmax(1)
    labels[:2] = (labels[:2] + 1) % 10
    made.context = made.context._replace(train_images=images_of(given._replace(targets={"label": labels})))
    found = made.monitor(0)
    fgsm = create_attack("fgsm", eps=0.02)(made.model, images, labels)
    pgd = create_attack("pgd", eps=0.02, steps=7)(made.model, images, labels, seed=3)
    assert found["clean_top1"].item() == pytest.approx((made.model(images).argmax(1) == labels).double().mean().item())
    assert found["fgsm_top1"].item() == pytest.approx((made.model(fgsm).argmax(1) == labels).double().mean().item())
    assert found["pgd_top1"].item() == pytest.approx((made.model(pgd).argmax(1) == labels).double().mean().item())
    noise = Noise(torch.arange(8), 3)
    aligned = made._alignment(images, labels, 0.02, noise)[0].mean().item()  # pyright: ignore
    assert found["grad_align"].item() == pytest.approx(aligned)
    assert objective(images_of(given), monitor_images=0).monitor(0) == {}
    assert objective(images_of(given), attack={"kind": "embedding_fgm"}).monitor(0) == {}


def test_catastrophic_overfitting_and_a_constant_classifier_are_noticed() -> None:
    made = objective(eps_warmup=0.5)
    row = {"step": 600, "loss": 1.0, "adversarial_top1": 0.8}
    assert made.check_collapse({**row, "fgsm_top1": 0.8, "pgd_top1": 0.7}) is None
    assert made.check_collapse({**row, "fgsm_top1": 0.2, "pgd_top1": 0.0}) is None
    assert "catastrophic overfitting" in (made.check_collapse({**row, "fgsm_top1": 0.8, "pgd_top1": 0.3}) or "")
    assert "grad_align 0.15" in (made.check_collapse({**row, "grad_align": 0.15}) or "")
    assert made.check_collapse({**row, "grad_align": 0.25}) is None
    constant = {"step": 600, "loss": 2.303, "adversarial_top1": 0.1}
    assert "constant classifier" in (made.check_collapse(constant) or "")
    assert made.check_collapse({**constant, "step": 30}) is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attack": {"kind": "ensemble"}}, "for evaluation"),
        ({"loss": "trades", "attack": {"kind": "fgsm"}}, "random start"),
        ({"loss": "trades", "attack": {"kind": "pgd", "random_start": False}}, "random start"),
        ({"loss": "trades", "attack": {"kind": "apgd", "loss": "dlr"}}, "KL divergence"),
        ({"loss": "trades", "clean_weight": 0.5}, "clean_weight"),
        ({"beta": 2.0}, "beta"),
        ({"clean_weight": 1.0}, "weight 0"),
        ({"monitor_images": 0, "monitor_every": 2}, "monitor_every"),
        ({"stop_on_overfitting": True, "monitor_images": 0}, "monitor_images"),
        ({"attack": {"kind": "embedding_fgm"}, "align": 0.1}, "on pixels"),
        ({"attack": {"kind": "fgsm", "eps": 8}}, "Is eps=8/255 meant"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AdversarialConfig(kind="adversarial", **keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train.parallel": "fsdp"}, "fsdp"),
        ({"precision": "bfloat16_params"}, "bfloat16_params"),
        ({"data.validation": "none", "objective.stop_on_overfitting": True}, "validated weights"),
        ({"data.target": "digit"}, "regression"),
    ],
)
def test_runs_that_it_does_not_support_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("digits", {"objective.kind": "adversarial", **keys})


def test_embeddings_need_a_vision_transformer() -> None:
    from vitral import create_model

    config = AdversarialConfig(kind="adversarial", attack={"kind": "embedding_fgm"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no patch embeddings"):
        Adversarial(lambda: create_model("resnet20_cifar"), config, ObjectiveContext(10))


def test_passes_count_those_of_the_attack_and_of_the_losses() -> None:
    assert objective().config.passes == 3
    assert objective(clean_weight=0.5).config.passes == 4
    assert objective(attack={"kind": "fgsm"}).config.passes == 2
    assert objective(loss="trades").config.passes == pytest.approx(2 + 1 / 3 + 2)
    targeted = {"kind": "apgd", "loss": "dlr", "steps": 5, "targets": 3, "restarts": 2}
    assert objective(attack=targeted).config.passes == 31
    assert objective(attack={"kind": "square", "queries": 30}).config.passes == 11


@pytest.mark.parametrize(
    ("log_every", "monitor_every", "expected"),
    [
        (1, "auto", [*range(1, 100, 5), 100]),
        (10, "auto", [*range(10, 101, 10)]),
        (10, 4, [10, 50, 90, 100]),
        (30, 2, [30, 90, 100]),
    ],
)
def test_the_first_row_the_last_and_some_between_are_monitored(
    log_every: int, monitor_every: Any, expected: list[int]
) -> None:
    made = objective(monitor_every=monitor_every)
    made.context = made.context._replace(log_every=log_every)
    rows = [step for step in range(1, 101) if step % log_every == 0 or step == 100]
    assert [step for step in rows if made._is_monitored(step - 1)] == expected  # pyright: ignore


def test_dlr_in_training_needs_three_classes() -> None:
    config = objective(attack={"kind": "apgd", "loss": "dlr", "steps": 2}).config
    config.check_data(None, SimpleNamespace(classes=("a", "b", "c")))
    with pytest.raises(UserError, match=r"(?s)objective\.attack\.loss.*2 classes.*at least 3"):
        config.check_data(None, SimpleNamespace(classes=("a", "b")))


def test_lengths_and_steps_that_do_not_fit_the_images_are_noticed() -> None:
    with pytest.raises(UserError, match=r"(?s)objective\.attack\.eps.*at most 13\.86"):
        objective(attack={"kind": "pgd", "norm": "l2", "eps": 1000})
    config = objective(attack={"kind": "pgd", "eps": 0.1, "step": 0.21}).config
    (warning,) = config.warnings(None)
    assert "objective.attack.step=0.21 is more than 2 eps" in warning
    assert not objective(attack={"kind": "pgd", "eps": 0.1, "step": 0.2}).config.warnings(None)
