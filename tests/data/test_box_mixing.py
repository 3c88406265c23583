"""Mosaic and copy-paste by truth: white rectangles are drawn at the boxes, and found again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vitral.data.box_mixing import BoxMixer
from vitral.data.boxes import BoxRow, BoxTargets, as_boxes
from vitral.data.config import AugmentConfig, StreamConfig
from vitral.data.dataset import Split, memory_split
from vitral.data.image_spec import ResizeSpec
from vitral.data.image_store import ImageStore
from vitral.data.loader import StreamLoader
from vitral.structs import Batch, View

SIDE, COUNT = 32, 24


@pytest.fixture(scope="module")
def split() -> Split:
    """Two white rectangles per image, one in each half, on dark ground of the image's own level."""
    draw = np.random.default_rng(0)
    images, rows = np.zeros((COUNT, 3, SIDE, SIDE), np.uint8), list[list[BoxRow]]()
    for number in range(COUNT):
        images[number] = 2 * number + 4
        own: list[BoxRow] = []
        for half in (0, SIDE // 2):
            x0, y0 = int(draw.integers(half + 1, half + 8)), int(draw.integers(1, 20))
            x1, y1 = x0 + int(draw.integers(4, 8)), y0 + int(draw.integers(4, 12))
            images[number, :, y0:y1, x0:x1] = 255
            own.append(BoxRow((x0, y0, x1, y1), "ab"[number % 2]))
        rows.append(own)
    boxes = as_boxes(rows, [(SIDE, SIDE)] * COUNT, {"a": 0, "b": 1})
    plain = memory_split(images, np.zeros(COUNT, np.int64), [str(number) for number in range(COUNT)], 3)
    return Split(boxes.hot(2), plain.names, plain.read, plain.size, content=plain.content, made_up=True, boxes=boxes)


def loader(split: Split, keys: dict[str, Any], rank: int = 0, world: int = 1, workers: int = 0) -> StreamLoader:
    store = ImageStore(split, (SIDE, SIDE), ResizeSpec(resize_mode="pad"), exact=False, workers=workers,
                       cache_mb=0 if workers else 100, device=torch.device("cpu"))  # fmt: skip
    return StreamLoader(store, StreamConfig(COUNT, AugmentConfig.model_validate(keys)), 5, rank=rank, world=world)


def pixels(box_4: Tensor) -> Tensor:
    """Share of each pixel that a box covers, [H, W]."""
    low = torch.arange(SIDE).float()
    (x0, y0, x1, y1), zero = box_4, torch.tensor(0.0)
    across, down = ((torch.minimum(low + 1, b) - torch.maximum(low, a)).maximum(zero) for a, b in ((x0, x1), (y0, y1)))
    return down[:, None] * across


def check_white(batch: Batch, *, both: bool = False) -> tuple[int, int]:
    """Boxes are white inside; with both changes, but for gray edges of pasted ones that hide a part. Returns their
    number, and that of white pixels outside of all boxes: of dropped ones."""
    boxes_BM4, class_BM = batch.targets["boxes"], batch.targets["box_class"]
    assert not boxes_BM4[class_BM < 0].any()
    found, outside = 0, 0
    for image_CHW, boxes_M4, class_M in zip(batch.views[0].images_BCHW, boxes_BM4, class_BM, strict=True):
        covered_HW = torch.zeros(SIDE, SIDE)
        for box_4 in boxes_M4[class_M >= 0]:
            inside_HW = pixels(box_4) > 0.99
            if inside_HW.any():
                values = image_CHW[0][inside_HW]
                assert (values.median() if both else values.min()) > 0.98, box_4
            covered_HW = torch.maximum(covered_HW, (pixels(box_4) > 0).float())
            found += 1
        outside += int(((image_CHW[0] > 0.6) & (covered_HW == 0)).sum())
    return found, outside


@pytest.mark.parametrize(
    "keys", [{"mosaic": 1.0}, {"copy_paste": 1.0}, {"mosaic": 0.5, "copy_paste": 0.5, "flip": 0.5}]
)
def test_boxes_follow_their_rectangles(split: Split, keys: dict[str, Any]) -> None:
    batches = [loader(split, keys).batch(step) for step in range(4)]
    rows = 2 * (4 if "mosaic" in keys else 1) * (2 if "copy_paste" in keys else 1)
    assert {batch.targets["boxes"].shape for batch in batches} == {(COUNT, rows, 4)}
    counts = [check_white(batch, both=len(keys) > 1) for batch in batches]
    found, outside = (sum(each) for each in zip(*counts, strict=True))
    assert found > 4 * COUNT * 2
    assert outside < 0.01 * 4 * COUNT * SIDE**2, "only what is left of dropped boxes"


def test_every_box_with_its_visible_share_is_there(split: Split) -> None:
    """With min_visible=0 nothing white but slivers is outside of boxes."""
    for keys in ({"mosaic": 1.0}, {"copy_paste": 1.0}):
        opened = loader(split, keys)
        assert opened.boxes is not None
        opened.boxes.min_visible = 0.0
        _, outside = check_white(opened.batch(0))
        assert outside <= 12


def test_shares_of_mixed_images(split: Split) -> None:
    plain = loader(split, {})
    for keys, least, most in (
        ({"mosaic": 0.5}, 0.35, 0.65),
        ({"mosaic": 1.0}, 1.0, 1.0),
        ({"copy_paste": 0.5}, 0.25, 0.5),
    ):
        opened = loader(split, keys)
        changed = [
            (opened.batch(step).views[0].images_BCHW != plain.batch(step).views[0].images_BCHW).flatten(1).any(1)
            for step in range(8)
        ]
        assert least <= float(torch.cat(changed).float().mean()) <= most, keys
    assert all(torch.equal(plain.batch(0).targets[name], loader(split, {"mosaic": 1e-9}).batch(0).targets[name][:, :2])
               for name in ("boxes", "box_class")), "an image that is not mixed keeps its boxes"  # fmt: skip


def test_a_mosaic_shows_four_images_of_the_group(split: Split) -> None:
    """Levels of the ground tell which image a corner shows; the own one is at the upper left."""
    batch = loader(split, {"mosaic": 1.0}).batch(1)
    corner = (batch.views[0].images_BCHW[:, 0] * 255).round().int()
    for row, place in enumerate(batch.sample_ids_B.tolist()):
        middle = SIDE // 4
        own = {*corner[row].flatten().tolist()}
        group = {2 * other + 4 for other in batch.sample_ids_B[row - row % 8 :][:8].tolist()}
        assert 2 * place + 4 in {*corner[row, :middle, :middle].flatten().tolist()} | {255}
        assert len(own & group) >= 4
    matrix_B33 = batch.views[0].matrix_B33
    zoom_B = matrix_B33[:, 0, 0]
    assert ((zoom_B >= 0.5) & (zoom_B <= 1)).all()
    assert torch.equal(zoom_B, matrix_B33[:, 1, 1])


def test_what_is_hidden_is_cut_or_dropped() -> None:
    """One image's rectangle over another's, pixel by pixel."""
    boxes = as_boxes([[BoxRow((0, 0, 10, 10), "a")]], [(0, 0)], {"a": 0})
    mixer = BoxMixer(AugmentConfig(copy_paste=1.0), 0, BoxTargets(boxes, 0.3))
    images = torch.zeros(2, 1, 16, 16)
    for hider, expected in (((0, 0, 4, 10), [4, 0, 10, 10]), ((2, 2, 6, 6), [0, 0, 10, 10]),
                            ((0, 0, 10, 6.2), [0, 7, 10, 10]), ((0, 0, 10, 8), None)):  # fmt: skip
        given = {"boxes": torch.tensor([[[0.0, 0, 10, 10]], [hider]]), "box_class": torch.tensor([[0], [1]])}
        seed = next(seed for seed in range(99) if pasted(mixer, images, given, seed)["box_class"][0, 1] == 1)
        found = pasted(mixer, images, given, seed)
        assert found["box_class"][0].tolist() == [0 if expected else -1, 1]
        assert found["boxes"][0, 0].tolist() == (expected or [0] * 4)
        torch.testing.assert_close(found["boxes"][0, 1], torch.tensor(hider).float())


def pasted(mixer: BoxMixer, images: Tensor, given: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    mixer.seed = seed
    return mixer._copy_paste(View(images, torch.eye(3).expand(2, 3, 3)), given, torch.arange(2))[1]


def test_batches_are_equal_for_any_workers_and_processes(split: Split) -> None:
    keys = {"mosaic": 0.7, "copy_paste": 0.7, "flip": 0.5, "scale": 0.2, "repeated_aug": 2}
    whole = [list(loader(split, keys, workers=workers).stream(0, 3))[-1] for workers in (0, 2, 8)]
    thirds = [loader(split, keys, rank, 3).batch(2) for rank in range(3)]
    parts = [torch.cat([part.views[0].images_BCHW for part in thirds]), *(
        torch.cat([part.targets[name] for part in thirds]) for name in ("boxes", "box_class")
    )]  # fmt: skip
    for batch in whole:
        own = (batch.views[0].images_BCHW, batch.targets["boxes"], batch.targets["box_class"])
        assert all(torch.equal(one, other) for one, other in zip(own, parts, strict=True))
