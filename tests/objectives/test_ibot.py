"""iBOT: exact masks, a loss at masked patches only, heads that are shared or not, centers that add up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.objectives.distilled import DOUBLE, SMALL, grads, make, state_of, step, views
from vitral.errors import UserError
from vitral.objectives.config import IbotConfig
from vitral.objectives.ibot import Ibot, Masked, draw_masks, masked_mean, patch_loss
from vitral.optim.config import OptimConfig


def ibot(**keys: Any) -> Ibot:
    made = make("ibot", **keys)
    assert isinstance(made, Ibot)
    return made


def masks(grid: tuple[int, int], count: int, step_: int = 0, **keys: Any) -> Masked:
    return draw_masks(IbotConfig(kind="ibot", **keys), 7, step_, torch.arange(count), grid)


@pytest.mark.parametrize("grid", [(4, 4), (14, 14), (3, 7), (1, 1)])
@pytest.mark.parametrize("mask", ["blocks", "random"])
@pytest.mark.parametrize("spread", [False, True])
def test_places_are_those_of_the_masks_and_fill_a_fixed_size(grid: tuple[int, int], mask: str, spread: bool) -> None:
    sizes = set[int]()
    for number in range(4):
        found = masks(grid, 24, number, mask=mask, mask_spread=spread, mask_ratio=(0.1, 0.6))
        sizes.add(len(found.place_M))
        real = found.place_M[found.is_real_M]
        assert sorted(real.tolist()) == found.mask_RN.flatten().nonzero().flatten().tolist(), "each once"
        share = found.share_M(DOUBLE)
        hidden = found.mask_RN.any(1)
        assert share.sum().item() == pytest.approx(hidden.sum().item() / 48)
        assert share[~found.is_real_M].abs().sum() == 0
        assert found.is_real_M.all() or not spread, "nothing is padded"
    assert len(sizes) == 1


@pytest.mark.parametrize("mask", ["blocks", "random"])
def test_counts_are_exact(mask: str) -> None:
    found = masks((6, 5), 40, mask=mask, mask_ratio=(0.3, 0.3), mask_probability=1.0)
    assert found.mask_RN.sum(1).tolist() == [9] * 80
    assert masks((6, 5), 40, mask=mask, mask_probability=1.0, mask_ratio=(0.001, 0.001)).mask_RN.sum() == 0
    half = masks((6, 5), 4000, mask=mask, mask_ratio=(0.1, 0.5))
    number = half.mask_RN.sum(1)
    assert (number > 0).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert {3, 15} == {int(number[number > 0].min()), int(number.max())}
    assert number[number > 0].double().mean().item() == pytest.approx(9, abs=0.3)


def test_spread_ratios_are_even_over_the_masked_half() -> None:
    found = masks((10, 10), 20, mask_spread=True, mask_ratio=(0.1, 0.5))
    for view in found.mask_RN.sum(1).chunk(2):
        assert sorted(view.tolist()) == [0] * 10 + [12, 16, 20, 24, 28, 32, 36, 40, 44, 48]
    assert not torch.equal(*found.mask_RN.chunk(2)), "the views are masked differently"


def plain(objective: Ibot, batch: Any, found: Masked) -> torch.Tensor:
    """The patches' loss, one view and one patch after the other."""
    config, total = objective.config, torch.zeros((), dtype=DOUBLE)
    B = len(batch.sample_ids_B)
    for view in range(2):
        images = batch.views[view].images_BCHW
        model = objective.taught
        seen = model.fc_norm(model.encode(images).patches_BND)
        logits = objective.teacher_head(seen, None, True) if objective.own_head is None else None
        if objective.teacher_own_head is not None:
            logits = objective.teacher_own_head(seen)
        assert logits is not None
        target = F.softmax((logits - objective.patch_center_K) / objective.temperature(0), dim=-1)
        patches, grid = objective.model.embed(images)
        patches = patches.clone()
        mask_BN = found.mask_RN[view * B : (view + 1) * B]
        for b, n in mask_BN.nonzero().tolist():
            patches[b, n] = objective.mask_token
        out = objective.model.fc_norm(objective.model.encode_tokens(patches, grid).patches_BND)
        said = objective.own_head(out) if objective.own_head is not None else objective.head(out, None, True)
        terms = -(target * F.log_softmax(said / config.student_temperature, dim=-1)).sum(-1)
        for b in range(B):
            if mask_BN[b].any():
                total = total + terms[b][mask_BN[b]].mean() / (2 * B)
    return total


@pytest.mark.parametrize("patch_head", ["shared", "last_layer", "own"])
@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_the_loss_of_patches_is_the_papers(patch_head: str, pool: str) -> None:
    objective, batch = ibot(patch_head=patch_head, model={"pool": pool}), views(7)
    torch.nn.init.normal_(objective.patch_center_K, std=0.1)
    torch.nn.init.normal_(objective.mask_token)
    out = objective({"train": batch}, 0)
    want = plain(objective, batch, draw_masks(objective.config, 3, 0, batch.sample_ids_B, (4, 4)))
    assert want > 0
    torch.testing.assert_close(out.metrics["loss_patches"], want.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.loss.detach(), out.metrics["loss_views"] + want.detach(), rtol=1e-10, atol=1e-12)


def test_only_masked_patches_have_a_gradient() -> None:
    found = masks((4, 4), 6)
    said = torch.randn(len(found.place_M), 5, dtype=DOUBLE, requires_grad=True)
    expected = torch.randn(len(found.place_M), 5, dtype=DOUBLE).softmax(-1)
    grad = torch.autograd.grad(patch_loss(expected, said, found), said)[0]
    assert torch.equal(grad.abs().sum(1) > 0, found.is_real_M)


def test_without_a_masked_patch_the_loss_is_zero_and_the_center_stays() -> None:
    for centering in ("mean", "sinkhorn"):
        objective, batch = ibot(mask_ratio=(1e-6, 1e-6), centering=centering), views(4)
        out = objective({"train": batch}, 0)
        assert out.metrics["loss_patches"] == 0
        assert all(grad.isfinite().all() for grad in grads(objective, out).values())
        step(state_of(objective, OptimConfig(name="sgd")), objective, batch)
        assert torch.equal(objective.patch_center_K, torch.zeros(12, dtype=DOUBLE))


def test_the_teacher_never_sees_the_mask_token() -> None:
    objective, batch = ibot(), views(6)
    first = objective({"train": batch}, 0)
    torch.nn.init.normal_(objective.mask_token, std=5)
    second = objective({"train": batch}, 0)
    for name in ("logits", "patch_logits"):
        assert torch.equal(first.means[name], second.means[name])
    assert first.loss != second.loss
    assert not any("mask_token" in name for teacher in objective.teachers for name, _ in teacher.named_parameters())


def test_a_shared_head_is_one_and_the_teachers_another() -> None:
    shared, last, own = (ibot(patch_head=kind) for kind in ("shared", "last_layer", "own"))
    counts = [sum(p.numel() for p in each.parameters() if p.requires_grad) for each in (shared, last, own)]
    head = sum(p.numel() for p in shared.head.parameters() if p.requires_grad)
    assert counts[1] - counts[0] == 12 * SMALL["head_bottleneck"]
    assert counts[2] - counts[0] == head
    for objective in (shared, last, own):
        optimizer = state_of(objective, OptimConfig()).optimizer
        entries = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert len(entries) == len(set(entries))
        places = [tensor.data_ptr() for tensor in objective.state_dict().values()]
        assert len(places) == len(set(places)), "no tensor has two names"


def test_the_patches_center_is_the_mean_over_masked_patches_each_view_alike() -> None:
    objective, batch = ibot(center_momentum=0.75), views(9)
    out = objective({"train": batch}, 0)
    objective.after_update(0, out.means, torch.zeros(()))
    found, rows = draw_masks(objective.config, 3, 0, batch.sample_ids_B, (4, 4)), list[torch.Tensor]()
    model, images = objective.taught, torch.cat([view.images_BCHW for view in batch.views[:2]])
    logits = objective.teacher_head(model.fc_norm(model.encode(images).patches_BND)).detach()
    for mask_N, logits_NK in zip(found.mask_RN, logits, strict=True):
        if mask_N.any():
            rows.append(logits_NK[mask_N].mean(0))
    torch.testing.assert_close(objective.patch_center_K, 0.25 * torch.stack(rows).mean(0))
    parts = masked_mean(torch.ones(len(found.place_M), 2, dtype=DOUBLE), found)
    torch.testing.assert_close(parts["patch_logits"] / parts["patch_share"], torch.ones(2, dtype=DOUBLE))


@pytest.mark.parametrize("pool", ["cls_avg", "map"])
def test_what_cannot_read_patches_is_refused(pool: str) -> None:
    with pytest.raises(UserError, match=r"model\.pool"):
        ibot(model={"pool": pool})
    with pytest.raises(ValueError, match="makes iBOT equal to DINO"):
        IbotConfig(kind="ibot", mask_probability=0)
