"""A run of MAE from the command to what it leaves, and fine-tuning after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import TINY, create_vit, random_model, weights
from vitral.errors import UserError
from vitral.objectives.mae import MAE
from vitral.run.config import load_config
from vitral.run.self_supervised import load_objective
from vitral.run.train import run
from vitral.weights.folder import load_folder
from vitral.weights.tensors import load_tensors

DECODER: dict[str, Any] = {
    "objective.decoder_width": 8, "objective.decoder_depth": 1, "objective.decoder_heads": 2,
}  # fmt: skip


def pretrain(out: str, **more: Any) -> dict[str, Any]:
    return run(load_config("digits_mae", {**TINY, **DECODER, "check.skip": True, **more, "out": out}))


def finetune(out: str, init: str, **more: Any) -> None:
    """Of one step."""
    keys = {**TINY, **dict.fromkeys(("model.width", "model.depth", "model.heads", "model.mlp_dim")), "check.skip": True}
    keys |= {"model.name": "auto", "init": init, "train.steps": 1}
    run(load_config("digits", {**keys, **more, "out": out}))


def test_the_folder_holds_the_encoder_and_the_checkpoint_the_decoder() -> None:
    assert pretrain("a")["steps"] == 3
    assert not any("decoder" in name or "mask" in name for name in weights("a"))
    objective = load_objective("a")
    assert isinstance(objective, MAE)
    tensors = load_tensors(Path("a/checkpoints/last.safetensors"))[0]
    for name, tensor in objective.state_dict().items():
        assert torch.equal(tensor, tensors[f"objective.{name}"]), name
    model, _ = load_folder("a")
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(images), objective.model(images))
    torch.testing.assert_close(objective.reconstruct(images).original_BCHW, images, rtol=0, atol=1e-6)


def test_what_has_no_objective_to_load() -> None:
    with pytest.raises(UserError, match=r"config.yaml is missing"):
        load_objective("nothing")
    run(load_config("digits", {**TINY, "check.skip": True, "out": "labeled"}))
    with pytest.raises(UserError, match="a run with labels"):
        load_objective("labeled")


def test_the_report_shows_what_is_hidden_and_what_is_said() -> None:
    pretrain("a", report=True)
    page = Path("a/report.html").read_text(encoding="utf-8")
    assert all(f">{name}</th>" in page for name in ("original", "visible patches", "reconstruction"))


def test_learned_positions_start_from_the_fixed_ones(caplog: pytest.LogCaptureFixture) -> None:
    pretrain("a")
    finetune("b", "a", **{"optim.lr": 1e-12, "model.positions": "learned"})
    assert "learned positions that start from the fixed sines and cosines" in caplog.text
    images = torch.rand(2, 1, 8, 8)
    (before, _), (after, _) = load_folder("a"), load_folder("b")
    torch.testing.assert_close(after.pool(after.encode(images)), before(images), rtol=0, atol=1e-5)
    assert isinstance(after.get_parameter("pos_embed"), torch.nn.Parameter)


def test_the_norm_may_move_behind_the_average(caplog: pytest.LogCaptureFixture) -> None:
    pretrain("a", **{"model.pool": "cls"})
    assert "norm.weight" in weights("a")
    finetune("b", "a", **{"model.pool": "avg"})
    assert "fc_norm is initialized in place of norm" in caplog.text
    assert {"fc_norm.weight", "fc_norm.bias"} <= weights("b").keys()
    assert "norm.weight" not in weights("b")


def test_an_encoder_of_maes_repository_is_fine_tuned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As published: class token, a norm, a table of positions; tuned with an average and its own norm."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"width": 64, "depth": 2, "heads": 1, "mlp_dim": 32, "in_channels": 1, "num_classes": 0}
    model = create_vit("vit_micro_patch2_8", **small)
    torch.save({"model": model.state_dict()}, tmp_path / "mae_pretrain.pth")
    keys = {"model.pool": "avg", "model.fc_norm": True, "model.positions": "learned", "data.image_size": 8}
    finetune("b", str(tmp_path / "mae_pretrain.pth"), **keys)
    assert "fc_norm is initialized" in caplog.text
    assert json.loads(Path("b/model/config.json").read_text(encoding="utf-8"))["architecture"]["pool"] == "avg"


def test_few_labels_of_each_class(caplog: pytest.LogCaptureFixture) -> None:
    random_model(Path("init"))
    finetune("b", "init", **{"data.shots": 3, "seed": 5, "train.batch_size": 16})
    assert "30 of 1293 train images, 3 of each class (data.shots), drawn by seed 5" in caplog.text


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"data.shots": 3}, "no effect with objective.kind=mae: data.shots"),
        ({"augment.mixup": 0.5}, "no effect with objective.kind=mae: augment.mixup"),
        ({"model.distill_token": True, "model.pool": "cls"}, "no effect with objective.kind=mae: model.distill_token"),
        ({"model.pool": "map"}, "trains no pooling"),
        ({"model.name": "resnet20_cifar"}, "learns from patches"),
        ({"objective.decoder_heads": 3}, "must be a multiple"),
        ({"objective.mask_ratio": 0.02}, "hides no patch"),
        ({"train.batch_size": 16, "model.patch_size": 8}, "hides no patch"),
    ],
)
def test_what_cannot_work_is_refused(keys: dict[str, Any], words: str) -> None:
    narrow = {key: value for key, value in TINY.items() if "resnet" not in str(keys) or not key.startswith("model.")}
    with pytest.raises(UserError, match=words):
        run(load_config("digits_mae", {**narrow, **DECODER, "check.skip": True, **keys, "out": "a"}))
