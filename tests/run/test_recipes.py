"""The recipes on data of one's own: what `auto` becomes, what is learned, what fine-tuning keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from PIL import Image

from tests.data.test_cifar import binary10, python10
from tests.helpers import (
    SHAPES,
    assert_equal_tensors,
    random_model,
    skip_unless_built,
    weights,
    write_colors,
    write_shapes,
)
from tests.objectives.scenes import write_scenes
from vitral.data.config import DataSource
from vitral.errors import UserError
from vitral.run.command_options import EvalOptions
from vitral.run.config import RunConfig, keys_of, load_config, recipe_values, recipes
from vitral.run.evaluate import evaluate
from vitral.run.train import run

BETTER_THAN_CHANCE = 0.6  # of three classes; 30 images, 0.33 by chance: one in a thousand guessers gets there
SHORT: dict[str, Any] = {"report": False, "optim.lr": 2e-3, "train.eval_every": 4.0}


# What makes any recipe small enough to be run in a moment, and nothing else of it.
SMALL: dict[str, Any] = {
    "data.image_size": 8, "train.steps": 2, "train.batch_size": 24, "train.micro_batch": 12, "optim.warmup": 1,
    "check.skip": True, "report": False, "out": "a",
}  # fmt: skip
FEW = {"data.labels_per_class": 2, "data.unlabeled_ratio": 1}  # where the recipe uses unlabeled images
CODES = {"name": "igpt_micro_8", "colors": 2, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 32}
TOKENS = {"name": "vq_micro_patch2_8", "codes": 2, "width": 16, "depth": 1}
BOXES = {"name": "detector_micro_patch8_64", "width": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "pyramid_width": 8}
NARROW = {"name": "vit_micro_patch2_8", "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 32}


@pytest.mark.parametrize("name", [name for name in sorted(recipes()) if keys_of(name) is RunConfig])
def test_every_recipe_runs(name: str) -> None:
    skip_unless_built(name)
    for split, first in (("train", 0), ("test", 50)):
        write_colors(Path("pets") / split, "cat dog", 16, (12, 12), first=first)
    keys_of_codes = {"objective.codes": 4} if recipe_values(name).get("objective.kind") == "beit" else {}
    few = FEW if "data.unlabeled_ratio" in recipe_values(name) else {}
    keys = {**SMALL, **few, **keys_of_codes, "data": "pets"}
    if recipe_values(name).get("objective.kind") in ("detection", "soft_teacher"):
        scenes = write_scenes(Path("scenes"), {"train": 48, "val": 4, "test": 4})
        keys |= {"data": str(scenes), "data.image_size": 32}
    if "data.labeled_images" in recipe_values(name):
        keys |= {"data.labels_per_class": None, "data.labeled_images": 24, "model.second_stage": 8}
    if load_config(name, {"init": "vitral-digits"}).model.name == "auto":
        shared: dict[str, Any] = (
            {"positions": "relative_bias", "positions_at": "layers_shared"} if "_beit" in name else {}
        )
        keys["init"] = str(random_model(Path("init"), in_channels=3, head="mlp", **shared))
    else:
        preset = str(recipe_values(name)["model.name"])
        narrow = CODES if preset.startswith("igpt") else TOKENS if preset.startswith("vq") else NARROW
        narrow = BOXES if preset.startswith("detector") else narrow
        keys |= {f"model.{key}": value for key, value in narrow.items()}
        keys |= {"model.class_tokens": 2} if "model.class_tokens" in recipe_values(name) else {}
    if load_config(name, {"init": "vitral-digits"}).data.target:  # numbers: these photos have none
        del keys["data"]
    assert run(load_config(name, keys))["steps"] == 2
    validation = load_config(name, keys).data.validation
    counts = json.loads(Path("a/model/config.json").read_text(encoding="utf-8"))["provenance"]["data"]["counts"]
    assert ("val" in counts) == (validation == "own")


def width_and_height(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def unseen(model: Path, data: Path) -> float:
    found = evaluate(str(model), EvalOptions(data=DataSource(path=str(data))))
    assert found["count"] == 30
    return found["top1"]


def architecture(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "model/config.json").read_text(encoding="utf-8"))
    assert tuple(config["id2label"].values()) == SHAPES
    return config["architecture"]


@pytest.fixture(scope="module")
def small_run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recipes") / "small"
    run(load_config("small", {"data": str(shapes), "out": str(out), **SHORT, "train.epochs": 8}))
    return out


@pytest.fixture(scope="module")
def other_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("other") / "shapes", 10, first=500)


def test_small_learns_a_folder_of_photos(small_run: Path, shapes: Path, other_shapes: Path) -> None:
    assert unseen(small_run, other_shapes) > BETTER_THAN_CHANCE
    sizes = [width_and_height(path) for path in shapes.rglob("*.png")]
    side = min(round(median(width for width, _ in sizes)), round(median(height for _, height in sizes)), 64)
    found = architecture(small_run)
    (height, width), patch = found["image_size"], found["patch_size"]
    assert height == width <= 64
    assert abs(side - height) < patch, "as large as the images, cut to whole patches"
    assert 8 <= height // patch <= 9
    assert (found["in_channels"], found["num_classes"], found["width"]) == (3, 3, 128)
    text = (small_run / "train.log").read_text(encoding="utf-8")
    assert "no validation split: 9 of 90 train images held out" in text
    assert "no test split" in text


def test_small_learns_tiny_gray_images(tmp_path: Path) -> None:
    write_shapes(tmp_path / "gray", gray=True)
    run(load_config("small", {"data": "gray", "out": "run", **SHORT, "train.epochs": 15}))
    found = architecture(Path("run"))
    assert (found["image_size"], found["patch_size"], found["in_channels"]) == ([12, 12], 2, 1)
    assert unseen(Path("run"), write_shapes(tmp_path / "more", 10, gray=True, first=500)) > BETTER_THAN_CHANCE


def test_finetune_learns_from_a_trained_model(small_run: Path, other_shapes: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "mine", first=200)
    keys = {"data": "mine", "init": str(small_run), "out": "run", "report": False, "train.epochs": 5}
    run(load_config("finetune", keys))
    assert unseen(Path("run"), other_shapes) > BETTER_THAN_CHANCE
    mine, theirs = architecture(Path("run")), architecture(small_run)
    assert mine == theirs, "size, channels, mean and deviation are init's"


def test_finetune_replaces_the_head_and_keeps_the_encoder(small_run: Path) -> None:
    write_colors(Path("pets"), "cat dog", 10)
    run(
        load_config(
            "finetune",
            {
                "data": "pets", "init": str(small_run / "model"), "out": "run", "report": False, "train.steps": 4,
                "objective.head_only_fraction": 1.0,
            },
        )
    )  # fmt: skip
    mine, theirs = dict(weights("run")), dict(weights(small_run))
    heads = [{key: tensors.pop(key) for key in list(tensors) if key.startswith("head.")} for tensors in (mine, theirs)]
    assert_equal_tensors(mine, theirs)
    assert [head["head.weight"].shape[0] for head in heads] == [2, 3]
    run(
        load_config(
            "finetune",
            {"data": "pets", "init": str(small_run), "out": "all", "report": False, "train.steps": 4},
        )
    )
    assert not torch.equal(weights("all")["blocks.0.attn.qkv.weight"], theirs["blocks.0.attn.qkv.weight"])


def test_finetune_at_another_size_interpolates_positions(small_run: Path) -> None:
    write_colors(Path("pets"), "cat dog", 10)
    patch = architecture(small_run)["patch_size"]
    keys = {"data": "pets", "init": str(small_run), "out": "run", "report": False, "train.steps": 1}
    run(load_config("finetune", {**keys, "data.image_size": 4 * patch, "objective.head_only_fraction": 1.0}))
    assert weights("run")["pos_embed"].shape[1] == 17
    with pytest.raises(UserError, match="not a multiple of patch_size"):
        run(load_config("finetune", {**keys, "out": "other", "data.image_size": 4 * patch + 1}))


def test_cifar10_tiny_runs_on_both_layouts_alike() -> None:
    """Few images in the published layouts; the recipe itself, but for its batch size."""
    keys = {"train.steps": 30, "data.verify": False, "train.batch_size": 8, "report": False, "train.eval_every": 10.0}
    for out, path in (("python", python10(Path("p"))), ("binary", binary10(Path("b")).parent)):
        summary = run(load_config("cifar10_tiny", {**keys, "data.path": str(path), "out": out}))
        assert (summary["steps"], summary["split"], summary["count"]) == (30, "test", 40)
        assert summary["parameters"] == 5_362_762
        assert "MD5 SUMS NOT CHECKED" in (Path(out) / "train.log").read_text(encoding="utf-8")
    assert_equal_tensors(weights("python"), weights("binary"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cifar10_tiny_runs_on_the_real_images(cifar_pack: Path) -> None:
    subprocess.run([sys.executable, str(cifar_pack / "unpack.py"), "batches", "DIR"], check=True)
    with pytest.raises(UserError, match="md5"):
        run(load_config("cifar10_tiny", {"data.path": "DIR", "train.steps": 30, "out": "strict"}))
    keys = {"data.path": "DIR", "train.steps": 30, "data.verify": False, "out": "run"}
    summary = run(load_config("cifar10_tiny", keys))
    assert (summary["count"], summary["split"]) == (10_000, "test")
    assert summary["top1"] > 0.15
