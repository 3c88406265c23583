"""What several tests share: small runs, folders of images that can be learned, commands called as from a shell."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vitral.config import build, describe
from vitral.data.image_spec import ImageSpec
from vitral.models.create import build_model, create_model
from vitral.models.presets import resolve
from vitral.models.vit import VisionTransformer
from vitral.run.config import RunConfig, recipe_values
from vitral.weights.digests import signed
from vitral.weights.folder import FolderConfig, save_folder
from vitral.weights.tensors import load_tensors

VITRAL = [sys.executable, "-m", "vitral"]

# A run on the digits that ends in a moment: a narrow model, no augmentation, no report.
TINY: dict[str, Any] = {
    "train.eval_every": 1.0,
    "train.steps": 3, "train.batch_size": 16, "train.ema": None, "model.width": 16, "model.depth": 2, "model.heads": 2,
    "model.mlp_dim": 32, "optim.warmup": 0.0, "report": False,
}  # fmt: skip

# The same for learning the digits to well above chance in some seconds.
LEARNS: dict[str, Any] = {
    "train.steps": 250, "train.ema": 0.9, "augment.rotate": 0.0, "augment.scale": 0.0, "augment.shear": 0.0,
    "augment.translate": 0.0, "train.eval_every": 5.0, "objective.label_smoothing": 0.0, "report": False,
}  # fmt: skip

SHAPES = ("circle", "cross", "square")
COLOURS = ((220, 60, 50), (60, 180, 70), (60, 80, 220))


def shape_image(label: str, number: int, *, gray: bool = False) -> Image.Image:
    """A shape on noise: in its class's color, at sizes from 40 to 90 pixels; or gray, 12 x 12."""
    random = np.random.default_rng([number, SHAPES.index(label)])
    height, width = (12, 12) if gray else (int(v) for v in random.integers(40, 90, 2))
    noise = random.integers(0, 50, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    draw = ImageDraw.Draw(image)
    side = min(height, width) * random.uniform(0.5, 0.7)
    left, top = random.uniform(0, width - side), random.uniform(0, height - side)
    color = (230, 230, 230) if gray else COLOURS[SHAPES.index(label)]
    box = (left, top, left + side, top + side)
    if label == "circle":
        draw.ellipse(box, fill=None if gray else color, outline=color, width=1 if gray else 3)
    elif label == "square":
        draw.rectangle(box, fill=color)
    else:
        draw.line(box, fill=color, width=max(2, int(side / 6)))
        draw.line((left, top + side, left + side, top), fill=color, width=max(2, int(side / 6)))
    return image.convert("L") if gray else image


def write_shapes(root: Path, count: int = 30, *, gray: bool = False, first: int = 0) -> Path:
    """root/<shape>/<number>.png, `count` of each of three shapes."""
    for label in SHAPES:
        (root / label).mkdir(parents=True)
        for number in range(first, first + count):
            shape_image(label, number, gray=gray).save(root / label / f"{number:03d}.png")
    return root


def write_colors(
    root: Path, classes: str = "cat dog", count: int = 4, size: tuple[int, int] = (12, 12), *, first: int = 0
) -> Path:
    """root/<class>/<number>.png of two colors each: images whose content doesn't matter, all different."""
    for index, label in enumerate(classes.split()):
        (root / label).mkdir(parents=True)
        for number in range(first, first + count):
            image = Image.new("RGB", size, (60 * index, 20 * number, 90))
            image.paste((200, 90, 10 * number), (0, 0, size[0] // 4, size[1] // 3))
            image.save(root / label / f"{number}.png")
    return root


def write_digits(root: Path, numbers: range) -> list[tuple[Path, np.ndarray[Any, Any], int]]:
    """Digits of these numbers as root/<label>/<number>.png; and for each its path, its uint8 pixels and its label."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    written: list[tuple[Path, np.ndarray[Any, Any], int]] = []
    for number in numbers:
        pixels_HW = np.rint(digits.images[number] * (255 / 16)).astype(np.uint8)
        label = int(digits.target[number])
        path = root / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_HW).save(path)
        written.append((path, pixels_HW, label))
    return written


def random_model(
    path: Path, classes: tuple[str, ...] = ("cat", "dog", "owl"), preset: str = "vit_micro_patch2_8", **options: Any
) -> Path:
    """A model folder with random weights: two narrow blocks, 8 x 8 gray images, temperature 2."""
    small = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "in_channels": 1, "num_classes": len(classes)}
    architecture = resolve(preset, **{**small, **options})
    config = build(
        FolderConfig,
        {
            "name": preset, "architecture": architecture, "id2label": {str(i): name for i, name in enumerate(classes)},
            "preprocessing": ImageSpec(
                image_size=architecture.image_size, channels=architecture.in_channels, resize_mode="crop"
            ),
            "task": "classification" if classes else "features", "temperature": 2.0, "provenance": {},
        },
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(architecture)
    if classes:
        torch.nn.init.normal_(model.get_parameter("head.weight"), std=2.0)
    save_folder(path, model, config, "a card\n")
    return path


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json of a model folder, or other things in the folder, and sign it anew."""
    tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(tree)
    (folder / "config.json").write_text(signed(tree, folder / "model.safetensors"), encoding="utf-8")


def skip_unless_built(recipe: str) -> None:
    """Skip the test where a recipe names a key of the model that there is not yet."""
    missing = {key for key in recipe_values(recipe) if key.startswith("model.")} - {k.name for k in describe(RunConfig)}
    if missing:
        pytest.skip(f"not built: {', '.join(missing)}")


def create_vit(name: str, **options: Any) -> VisionTransformer:
    """`create_model` of a name that is a Vision Transformer's."""
    model = create_model(name, **options)
    assert isinstance(model, VisionTransformer)
    return model


def weights(folder: str | Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a run folder's model, or of a model folder."""
    inner = Path(folder) / "model"
    return load_tensors((inner if inner.is_dir() else Path(folder)) / "model.safetensors")[0]


def assert_equal_tensors(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """Equal names, equal bits."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def assert_same_answers(one: list[dict[str, Any]], other: list[dict[str, Any]], atol: float = 1e-5) -> None:
    """Equal images and classes, and scores that differ by rounding: kernels round by the batch and the place in it."""
    assert [answer["image"] for answer in one] == [answer["image"] for answer in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine.get("error") == theirs.get("error")
        if "error" in mine:
            continue
        assert [each["label"] for each in mine["predictions"]] == [each["label"] for each in theirs["predictions"]]
        scores = [each["score"] for each in theirs["predictions"]]
        np.testing.assert_allclose([each["score"] for each in mine["predictions"]], scores, rtol=0, atol=atol)
