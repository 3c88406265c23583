"""DINO: who teaches whom, what moves when, and that neither micro-batches nor processes change the result."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.objectives.distilled import DOUBLE, encoder, grads, make, state_of, step, views
from tests.processes import in_processes
from vitral import distributed
from vitral.data.config import AugmentConfig
from vitral.errors import UserError
from vitral.objectives.config import DinoConfig, IbotConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.self_distillation import SelfDistillation
from vitral.optim.config import OptimConfig
from vitral.structs import Batch
from vitral.training.nonfinite import BOUND, STEPS

SGD = OptimConfig(name="sgd", lr=0.1, weight_decay=0.1)
KINDS: list[dict[str, Any]] = [
    {"kind": "dino"},
    {"kind": "dino", "centering": "sinkhorn", "head_norm": "batch", "koleo": 0.1},
    {"kind": "ibot"},
    {"kind": "ibot", "centering": "sinkhorn", "head_norm": "batch", "patch_head": "own"},
]


def plain_loss(objective: SelfDistillation, batch: Batch) -> torch.Tensor:
    """DINO's loss, one view after the other."""
    config, terms = objective.distilled, list[torch.Tensor]()
    images = [view.images_BCHW for view in batch.views]
    for i, seen in enumerate(images[:2]):
        model = objective.taught
        logits = objective.teacher_head(model.pool(model.encode(seen)))
        target = F.softmax((logits - objective.center_K) / objective.temperature(0), dim=-1)
        for j, other in enumerate(images):
            if i != j:
                said = objective.head(objective.model.pool(objective.model.encode(other)))
                terms.append(-(target * F.log_softmax(said / config.student_temperature, dim=-1)).sum(-1).mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("local", [0, 3])
@pytest.mark.parametrize("pool", ["cls", "avg", "cls_avg", "map"])
def test_the_loss_is_the_papers(local: int, pool: str) -> None:
    objective, batch = make(model={"pool": pool}), views(5, local)
    torch.nn.init.normal_(objective.center_K, std=0.1)
    torch.testing.assert_close(
        objective({"train": batch}, 0).loss, plain_loss(objective, batch), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("keys", KINDS)
def test_teacher_and_student_are_two_and_equal_at_first(keys: dict[str, Any]) -> None:
    objective, batch = make(**keys, model={"drop_path": 0.5, "dropout": 0.5}), views(8)
    mine = {id(p) for p in objective.parameters() if p.requires_grad}
    theirs = [p for teacher in objective.teachers for p in teacher.parameters()]
    assert not mine & {id(p) for p in theirs}
    assert not any(p.requires_grad for p in theirs)
    assert {p.data_ptr() for p in objective.model.parameters()}.isdisjoint({p.data_ptr() for p in theirs})
    images = batch.views[0].images_BCHW
    first = objective.taught.encode(images)
    assert torch.equal(first.patches_BND, objective.taught.encode(images).patches_BND), "never dropout"
    assert objective.eval_model is objective.taught
    objective.model.eval()
    assert torch.equal(first.patches_BND, objective.model.encode(images).patches_BND)
    objective.train()
    step(state_of(objective, SGD), objective, batch)
    assert not torch.equal(first.patches_BND, objective.taught.encode(images).patches_BND)


@pytest.mark.parametrize("keys", KINDS)
def test_every_parameter_and_no_teachers_takes_part_in_the_loss(keys: dict[str, Any]) -> None:
    objective = make(**keys, freeze_last_layer=0.0, norm_last_layer=False)
    for name, grad in grads(objective, objective({"train": views(12)}, 0)).items():
        assert grad.isfinite().all(), name
        # A bias before a batch norm, or of keys, moves nothing.
        if not name.endswith("bias"):
            assert grad.norm() > 0, name


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_ends_of_the_teachers_momentum(momentum: float) -> None:
    objective = make(momentum=momentum, momentum_final=momentum)
    before = {name: tensor.clone() for name, tensor in objective.taught.state_dict().items()}
    step(state_of(objective, SGD), objective, views(6))
    want = before if momentum else objective.model.state_dict()
    for name, tensor in objective.taught.state_dict().items():
        assert torch.equal(tensor, want[name]), name


def test_the_center_is_a_moving_mean_outside_of_the_graph() -> None:
    objective, batch = make(center_momentum=0.8), views(6)
    out = objective({"train": batch}, 0)
    assert not out.means["logits"].requires_grad
    assert torch.equal(objective.center_K, torch.zeros(12, dtype=DOUBLE)), "a forward pass changes nothing"
    images = torch.cat([view.images_BCHW for view in batch.views[:2]])
    logits = objective.teacher_head(objective.taught.pool(objective.taught.encode(images)))
    objective.after_update(0, out.means, torch.zeros(()))
    torch.testing.assert_close(objective.center_K, 0.2 * logits.mean(0))
    before = objective.center_K.clone()
    objective.after_update(1, {"logits": torch.full((12,), math.nan)}, torch.ones(()))
    assert torch.equal(objective.center_K, before)


@pytest.mark.parametrize("keys", KINDS)
def test_a_step_that_is_not_finite_moves_nothing(keys: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    objective, batch = make(**keys), views(12)
    state = state_of(objective, SGD)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    batch.views[1].images_BCHW[3] = math.nan
    step(state, objective, batch)
    assert "is skipped" in caplog.text
    for name, tensor in objective.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert state.progress.skipped == 1


@pytest.mark.parametrize("keys", KINDS)
def test_prototypes_rest_in_the_first_epoch(keys: dict[str, Any]) -> None:
    objective = make(**keys, context=ObjectiveContext(steps=20, epoch_steps=2.0), norm_last_layer=False)
    state = state_of(objective, OptimConfig(name="adamw", lr=0.1, weight_decay=0.5))
    before = [p.clone() for p in objective.prototypes]
    for _ in range(2):
        step(state, objective, views(12))
        assert all(torch.equal(p, b) for p, b in zip(objective.prototypes, before, strict=True))
    step(state, objective, views(12))
    assert not any(torch.equal(p, b) for p, b in zip(objective.prototypes, before, strict=True))


def test_directions_of_prototypes_decay_and_lengths_do_not() -> None:
    objective = make(norm_last_layer=False)
    groups = state_of(objective, SGD).optimizer.param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert [id(p) in decayed for p in objective.prototypes] == [False, True]


@pytest.mark.parametrize(
    ("warmup", "epoch_steps", "want"),
    [(0.5, 4.0, [0.02, 0.04, 0.06, 0.06]), (2, 5.0, [0.02, 0.04, 0.06, 0.06]), (0, 4.0, [0.06] * 4)],
)
def test_the_temperature_rises_and_stays(warmup: float, epoch_steps: float, want: list[float]) -> None:
    keys: dict[str, Any] = {
        "teacher_temperature_start": 0.02,
        "teacher_temperature": 0.06,
        "temperature_warmup": warmup,
    }
    objective = make(**keys, context=ObjectiveContext(steps=20, epoch_steps=epoch_steps))
    assert [objective.temperature(i) for i in (0, 5, 10, 19)] == pytest.approx(want)
    keys["temperature_warmup"] = 300
    short = make(**keys, context=ObjectiveContext(steps=2, epoch_steps=1.0))
    assert 0.02 <= short.temperature(1) < 0.021, "a warm-up longer than the run"


@pytest.mark.parametrize("keys", [KINDS[0], KINDS[2], {"kind": "ibot", "mask": "random", "patch_head": "last_layer"}])
def test_micro_batches_with_centering_are_the_whole_batch(keys: dict[str, Any]) -> None:
    found = list[dict[str, torch.Tensor]]()
    for micro in (None, 5):
        objective = make(**keys)
        state = state_of(objective, SGD)
        for _ in range(3):
            step(state, objective, views(12), micro=micro)
        found.append(dict(objective.state_dict()))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-10, atol=1e-12, msg=name)


def test_micro_batches_with_sinkhorn_are_balanced_each_by_itself() -> None:
    found = list[torch.Tensor]()
    for micro in (None, 6):
        objective = make(centering="sinkhorn")
        found.append(step(state_of(objective, SGD), objective, views(12), micro=micro))
    assert (found[0] - found[1]).abs() > 1e-6


def trained(keys: dict[str, Any]) -> dict[str, Any]:
    """Three updates, of all samples or of this process's."""
    torch.set_num_threads(1)
    objective = make(**keys)
    state = state_of(objective, SGD, ddp=distributed.world() > 1)
    first, last = distributed.shard_range(16)
    losses = [distributed.mean([step(state, objective, views(16).slice(first, last))])[0] for _ in range(3)]
    return {"loss": torch.stack(losses), **objective.state_dict()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [*KINDS, {"kind": "ibot", "centering": "sinkhorn", "patch_head": "last_layer", "koleo": 0.1, "mask": "random"}],
)
def test_two_processes_are_one(keys: dict[str, Any]) -> None:
    alone = trained(keys)
    for found in in_processes(2, "tests.objectives.test_dino:trained", keys):
        torch.testing.assert_close(found.pop("loss"), alone["loss"], rtol=1e-6, atol=0)  # the loop sums in float32
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, alone[name], rtol=1e-10, atol=1e-12, msg=name)


def skipped(keys: dict[str, Any], folder: str) -> tuple[int, bool, str]:
    """An update of which the last process has a damaged image: steps skipped, weights as before, what is said."""
    objective = make(**keys)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    state = state_of(objective, SGD, ddp=True)
    first, last = distributed.shard_range(16)
    batch = views(16).slice(first, last)
    if distributed.rank():
        batch.views[0].images_BCHW[2] = math.nan
    step(state, objective, batch, folder=Path(folder))
    distributed.barrier()  # the main process has written
    kept = all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())
    return state.progress.skipped, kept, (Path(folder) / "nonfinite" / STEPS).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("keys", KINDS[:2])
def test_processes_that_need_each_other_skip_a_step_together(keys: dict[str, Any], tmp_path: Path) -> None:
    found = in_processes(2, "tests.objectives.test_dino:skipped", keys, str(tmp_path))
    bound = "centering" in keys
    for count, kept, said in found:
        assert (count, kept) == (1, True)
        assert (BOUND in said) == bound
        assert ("images, samples" in said) != bound


@pytest.mark.parametrize("keys", KINDS)
def test_bfloat16_is_near_float32(keys: dict[str, Any]) -> None:
    objective, batch = make(**keys, dtype=torch.float32), views(16, dtype=torch.float32)
    exact = objective({"train": batch}, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective({"train": batch}, 0)
    assert found.loss.dtype == torch.float32
    assert found.loss.item() == pytest.approx(exact.loss.item(), rel=0.03)


def test_views_are_two_large_ones_and_small_ones_of_whole_patches() -> None:
    config, augment = DinoConfig(kind="dino"), AugmentConfig(flip=0.5, brightness=0.4)
    found = config.views(augment, (224, 224), 16)["train"]
    assert [view.size for view in found] == [(224, 224)] * 2 + [(96, 96)] * 8
    assert [view.augment.blur for view in found[:3]] == [1.0, 0.1, 0.5]
    assert [view.augment.solarize for view in found[:3]] == [0.0, 0.2, 0.0]
    assert (found[0].augment.crop_scale, found[2].augment.crop_scale) == ((0.4, 1.0), (0.05, 0.4))
    assert all(view.augment.crop == "random_resized" and view.augment.flip == 0.5 for view in found)
    sizes = {(224, 14): 98, (32, 4): 12, (8, 2): 4, (8, 4): 8, (8, 1): 3}
    for (side, patch), small in sizes.items():
        assert config.views(augment, (side, side), patch)["train"][-1].size == (small, small), (side, patch)
    assert len(DinoConfig(kind="dino", local_crops=0).views(augment, (8, 8), 2)["train"]) == 2
    with pytest.raises(UserError, match="multiple of 16"):
        DinoConfig(kind="dino", local_size=100).views(augment, (224, 224), 16)


def test_a_small_view_has_its_own_tokens_and_places() -> None:
    model = encoder(torch.float32, image_size=224, patch_size=16)
    captured = model.encode(torch.rand(1, 3, 96, 96), capture=("blocks.0",)).captured["blocks.0"]
    assert captured.shape[1] == 37


@pytest.mark.parametrize("config", [DinoConfig, IbotConfig])
def test_what_has_no_effect_is_refused(config: Any) -> None:
    kind = {"kind": "dino" if config is DinoConfig else "ibot"}
    idle: list[dict[str, Any]] = [
        {"centering": "sinkhorn", "center_momentum": 0.5}, {"sinkhorn_rounds": 5}, {"head_depth": 1, "head_hidden": 3},
        {"local_crops": 0, "local_size": 4},
    ]  # fmt: skip
    for keys in idle:
        with pytest.raises(ValueError, match="has no effect here"):
            config(**kind, **keys)


def test_a_collapse_is_named_by_its_direction() -> None:
    objective = make()
    healthy = {"feature_std": 0.8, "teacher_entropy": 1.5, "teacher_mean_entropy": 2.3}
    assert objective.check_collapse(healthy) is None
    most = math.log(12)
    assert "says the same of every prototype" in str(objective.check_collapse({**healthy, "teacher_entropy": most}))
    assert "to one prototype" in str(objective.check_collapse({**healthy, "teacher_mean_entropy": 0.01}))
    assert "nearly equal" in str(objective.check_collapse({**healthy, "feature_std": 0.001}))


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_pictures_are_of_the_patches_and_of_the_token_that_is_read(pool: str) -> None:
    objective = make(model={"pool": pool}).eval()
    images = torch.rand(5, 3, 8, 8, dtype=DOUBLE)
    found = objective.pictures(images)
    assert set(found) == {"image", "features of its patches", *(["class token's attention"] if pool == "cls" else [])}
    for name, pictures in found.items():
        assert (len(pictures), *pictures.shape[-2:]) == (5, 8, 8), name
        assert 0 <= pictures.min() <= pictures.max() <= 1
        if name != "image":
            cells = pictures.unflatten(3, (4, 2)).unflatten(2, (4, 2))
            assert torch.equal(cells, cells[:, :, :, :1, :, :1].expand_as(cells)), "one color a patch"
