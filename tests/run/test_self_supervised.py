"""A run without labels, from the command to a model folder that other commands take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import TINY, write_colors, write_shapes
from vitral.config import load_yaml
from vitral.errors import UserError
from vitral.run.command_options import ProbeOptions
from vitral.run.config import load_config
from vitral.run.probe import probe
from vitral.run.train import run
from vitral.training.metrics_log import MetricsLog
from vitral.weights.folder import load_folder
from vitral.weights.tensors import load_tensors

BASE: dict[str, Any] = {**TINY, "objective.kind": "masked_patch", "model.pool": "avg"}


def tiny(out: Path, **more: object) -> dict[str, Any]:
    keys = {key.replace("__", "."): value for key, value in more.items()}
    return run(load_config("digits", {**BASE, **keys, "out": str(out)}))


def test_the_summary_is_what_the_probe_says_of_the_folder(tmp_path: Path) -> None:
    """The same neighbors by the same features: counted twice, by different ways to the images."""
    summary = tiny(tmp_path / "a", report=True)
    assert summary["split"] == "test"
    found = probe(
        str(tmp_path / "a"), ProbeOptions.model_validate({"kind": "knn", "knn": {"k": [20]}, "split": "test"})
    )
    assert found["top1"] == summary["top1"]
    assert found["count"] == summary["count"] == 360
    page = (tmp_path / "a/report.html").read_text(encoding="utf-8")
    assert "20 nearest neighbors" in page
    assert "no label" in page
    card = (tmp_path / "a/model/README.md").read_text(encoding="utf-8")
    assert "without labels (masked_patch)" in card
    assert f"{100 * summary['top1']:.2f} %" in card
    assert not (tmp_path / "a/predictions.csv").exists()


def test_the_encoder_starts_a_training_and_is_saved_without_a_head(tmp_path: Path) -> None:
    tiny(tmp_path / "a")
    model, config = load_folder(str(tmp_path / "a"))
    assert config.classes == ()
    assert config.architecture.num_classes == 0
    assert not [name for name in model.state_dict() if name.startswith("head")]
    keys = {**TINY, "init": str(tmp_path / "a"), "model.name": "auto", "optim.lr": 1e-30, "out": str(tmp_path / "b")}
    keys |= {f"model.{name}": None for name in ("width", "depth", "heads", "mlp_dim", "pool")}
    assert run(load_config("digits", keys))["top1"] >= 0
    tuned = load_tensors(tmp_path / "b/model/model.safetensors")[0]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(tuned[name], value, atol=1e-6, rtol=0)


def test_the_neighbors_are_asked_at_the_chosen_interval_and_the_last_weights_kept(tmp_path: Path) -> None:
    tiny(tmp_path / "a", train__steps=6, train__eval_every=2 * 16 / 1293)
    rows = [row for row in MetricsLog.read(tmp_path / "a") if "val_knn_top1" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert json.loads((tmp_path / "a/summary.json").read_text(encoding="utf-8"))["best_step"] == 6


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    tiny(tmp_path / "whole", train__steps=6, train__save_seconds=0.0)
    checkpoints = tmp_path / "cut/checkpoints"
    tiny(tmp_path / "cut", train__steps=6, train__save_seconds=0.0)
    for path in checkpoints.glob("last*"):
        path.unlink()
    (checkpoints / "previous.safetensors").rename(checkpoints / "last.safetensors")
    shutil.rmtree(tmp_path / "cut/model")
    tiny(tmp_path / "cut", train__steps=6, train__save_seconds=0.0, resume=True)
    one, two = (load_tensors(tmp_path / name / "model/model.safetensors")[0] for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("layout", ["flat", "one-class", "classes"])
def test_images_need_no_labels(layout: str, tmp_path: Path) -> None:
    root = tmp_path / "images"
    if layout == "classes":
        write_shapes(root, 10)
    else:
        write_colors(tmp_path / "all", "thing", 12)
        (tmp_path / "all/thing").rename(root)
        if layout == "one-class":
            root.rename(tmp_path / "thing")
            root.mkdir()
            (tmp_path / "thing").rename(root / "thing")
    keys = {
        "data.path": str(root), "data.image_size": 16, "model.patch_size": 4, "augment.crop": "random_resized",
        "train.batch_size": 8, "augment.mixup": 0, "augment.cutmix": 0,
    }  # fmt: skip
    summary = run(load_config("small", {**BASE, **keys, "train.ema": None, "out": str(tmp_path / "a")}))
    assert ("top1" in summary) == (layout == "classes")
    assert load_folder(str(tmp_path / "a"))[1].architecture.num_classes == 0
    assert load_yaml(tmp_path / "a/config.yaml")["objective"]["kind"] == "masked_patch"


@pytest.mark.parametrize("memory", ["1GB", "5MB"])
def test_memory_chooses_the_micro_batch_without_labels_too(memory: str, tmp_path: Path) -> None:
    keys = {"objective.kind": "mae", "objective.decoder_width": 32, "objective.decoder_depth": 1,
            "objective.decoder_heads": 2, "train.batch_size": 256}  # fmt: skip
    run(load_config("digits", {**BASE, **keys, "memory": memory, "out": str(tmp_path / "a")}))
    chosen = load_yaml(tmp_path / "a/config.yaml")["train"]["micro_batch"]
    assert (chosen == 256) == (memory == "1GB"), chosen


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"augment.mixup": 0.2}, "augment.mixup"), ({"train.patience": 3}, "train.patience"),
        ({"lora.rank": 2, "init": "vitral-digits"}, "lora.rank"),
        ({"train.parallel": "fsdp"}, "fsdp"), ({"precision": "bfloat16_params"}, "bfloat16_params"),
        ({"augment.repeated_aug": 2}, "augment.repeated_aug"), ({"model.head": "mlp"}, "model.head"),
        ({"objective.label_smoothing": 0.1}, "key of another kind"), ({"objective.kind": "made_up"}, "wrong value"),
        ({"objective.mask_token_prob": 0.9, "objective.swap_prob": 0.2}, "must be at most 1"),
    ],
)  # fmt: skip
def test_what_has_no_use_without_labels_is_refused(keys: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        tiny(tmp_path / "a", **{key.replace(".", "__"): value for key, value in keys.items()})
    assert not (tmp_path / "a").exists()


def test_a_residual_network_has_no_patches(tmp_path: Path) -> None:
    keys = {f"model.{name}": None for name in ("width", "depth", "heads", "mlp_dim", "pool")}
    with pytest.raises(UserError, match="learns from patches"):
        tiny(tmp_path / "a", **{key.replace(".", "__"): value for key, value in keys.items()},
             model__name="resnet20_cifar", data__image_size=8)  # fmt: skip
