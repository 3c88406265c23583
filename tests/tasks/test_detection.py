"""From the files' boxes through resize, assignment, decoding and undone resize to the measurement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.objectives.scenes import write_scenes
from vitral.data.config import AugmentConfig, DataConfig, StreamConfig
from vitral.data.dataset import Dataset
from vitral.data.image_spec import ImageSpec
from vitral.data.image_store import ImageStore
from vitral.data.loader import StreamLoader
from vitral.data.resize import shown_box, to_source
from vitral.data.sources import open_dataset
from vitral.errors import UserError
from vitral.models.dense_head import cell_centers, to_boxes, to_distances
from vitral.objectives.box_targets import Locations, assign
from vitral.tasks.detection import Detection, image_size

SIZE, STRIDES, MAPS = (64, 64), (4, 8), [(16, 16), (8, 8)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_scenes(tmp_path_factory.mktemp("scenes") / "boxes")
    return open_dataset(DataConfig(path=str(root)), boxes=True)


def spec_of(mode: Any) -> ImageSpec:
    return ImageSpec(image_size=SIZE, channels=3, resize_mode=mode)


@pytest.mark.parametrize("mode", ["pad", "squash"])
def test_a_network_that_gives_the_targets_is_perfect(scenes: Dataset, mode: str) -> None:
    split, spec, task = scenes.splits["train"], spec_of(mode), Detection.of(scenes)
    store = ImageStore(split, SIZE, spec, exact=False, workers=0, cache_mb=100, device=torch.device("cpu"))
    loader = StreamLoader(store, StreamConfig(len(split), AugmentConfig(flip=0.0)), seed=0)
    batch = loader.batch(0)
    boxes, classes = batch.targets["boxes"], batch.targets["box_class"]
    centers = cell_centers(MAPS, STRIDES)
    row = assign(boxes, classes, Locations(centers, torch.tensor([4.0] * 256 + [8.0] * 64)), STRIDES, 4, 1.5)
    own = boxes.gather(1, row.clamp(min=0)[..., None].expand(-1, -1, 4))
    decoded = to_boxes(centers, to_distances(centers, own))
    hot = (classes.gather(1, row.clamp(min=0))[..., None] == torch.arange(2)) & (row >= 0)[..., None]
    outputs = task.compact(torch.cat([decoded, 0.9 * hot], 2))
    order = batch.sample_ids_B.argsort()
    found, truth = task.annotated(outputs[order].numpy(), split.labels_N, split, spec)
    values = task.measure(found, truth)
    assert values["ap"] == pytest.approx(1.0, abs=1e-12)
    assert values["ap50"] == pytest.approx(1.0, abs=1e-12)
    # One pixel of the model's image to the side is seen.
    moved = outputs.clone()
    moved[..., :4] += 3
    worse, _ = task.annotated(moved[order].numpy(), split.labels_N, split, spec)
    assert task.measure(worse, truth)["ap"] < 0.9


@pytest.mark.parametrize("mode", ["pad", "squash", "crop"])
def test_the_resize_is_undone(mode: Any) -> None:
    source, size = (47, 113), (64, 32)
    spec = ImageSpec(image_size=size, channels=3, resize_mode=mode)
    top, left, height, width = shown_box(source, size, spec)
    x0, y0, x1, y1 = np.clip([left, top, left + width, top + height], 0, [113, 47, 113, 47])
    assert to_source(np.array([[0.0, 0, 32, 64]]), source, size, spec)[0] == pytest.approx([x0, y0, x1, y1])
    middle = to_source(np.array([[16.0, 32, 16, 32]]), source, size, spec)[0]
    assert middle == pytest.approx([left + width / 2, top + height / 2] * 2)


def test_answers_are_in_pixels_of_the_file() -> None:
    task = Detection(("cat", "owl"), state={"threshold": 0.25})
    outputs = torch.tensor([[[16.0, 24, 32, 40, 0.1, 0.8], [0, 0, 64, 64, 0.3, 0], [40, 40, 64, 64, 0.2, 0.2]]])
    spec = spec_of("pad")
    (found,) = task.answers(task.compact(outputs), 5, [(100, 200)], spec)
    owl, cat = found["detections"]
    # 200 x 100 pixels become 64 x 32, with 16 gray rows above and below.
    assert owl == {"label": "owl", "index": 1, "score": 0.8, "box": [50.0, 25.0, 100.0, 75.0]}
    assert cat == {"label": "cat", "index": 0, "score": 0.3, "box": [0.0, 0.0, 200.0, 100.0]}
    (own,) = task.answers(task.compact(outputs), 5, None, spec)
    assert own["detections"][0]["box"] == [16.0, 24.0, 32.0, 40.0]
    assert task.answers(task.compact(torch.zeros(1, 3, 6)), 5, None, spec) == [{"detections": []}]


def test_classes_are_matched_by_name(scenes: Dataset) -> None:
    split = scenes.splits["val"]
    assert scenes.classes == ("green", "red")
    matched = Detection(("red", "green")).match(scenes, split)
    assert split.boxes is not None
    assert matched.boxes is not None
    assert matched.boxes.label_X.tolist() == (1 - split.boxes.label_X).tolist()
    assert matched.labels_N.tolist() == split.labels_N[:, ::-1].tolist()
    with pytest.raises(UserError, match="the classes of the data are not those of the model"):
        Detection(("red", "blue")).match(scenes, split)


def test_sizes_are_those_of_the_upright_files(scenes: Dataset) -> None:
    split = scenes.splits["test"]
    assert [image_size(split, place) for place in range(len(split))] == [
        tuple(split.read(place).shape[1:]) for place in range(len(split))
    ]


def test_data_without_boxes_are_refused() -> None:
    digits = open_dataset(DataConfig(source="digits"))
    with pytest.raises(UserError, match="the data have no boxes to learn"):
        Detection.of(digits)
