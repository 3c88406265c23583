"""Detectors: what comes out, where it lies, and which weights an encoder gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import create_vit
from tests.objectives.scenes import small_detector
from vitral.errors import UserError
from vitral.models.dense_head import cell_centers, to_boxes, to_distances
from vitral.models.detector_config import DETECTORS, DetectorConfig
from vitral.models.parameters import is_head, layer_of
from vitral.models.presets import preset_table, resolve
from vitral.models.pyramid import FeaturePyramid
from vitral.models.select_boxes import CANDIDATES, select_boxes
from vitral.models.summary import count_parameters
from vitral.weights.adapt import adapt, without_head


def test_outputs_are_boxes_inside_the_image_and_scores() -> None:
    torch.manual_seed(0)
    model = small_detector(image_size=(48, 64)).eval()
    outputs = model(torch.rand(2, 1, 48, 64)).detach()
    assert outputs.shape == (2, 12 * 16 + 6 * 8, 4 + 2)
    boxes, scores = outputs[..., :4], outputs[..., 4:]
    assert bool((boxes[..., 2:] >= boxes[..., :2]).all())
    assert float(boxes.min()) >= 0
    assert float(boxes[..., 2].max()) <= 64
    assert float(boxes[..., 3].max()) <= 48
    # Before training every class has probability 0.01 and quality 0.5 at each location.
    assert scores.mean().item() == pytest.approx((0.01 * 0.5) ** 0.5, rel=0.1)


def test_centers_are_those_of_cells_row_by_row() -> None:
    centers = cell_centers([(2, 3), (1, 2)], [4, 8])
    assert centers.tolist() == [[2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6], [4, 4], [12, 4]]
    model = small_detector(image_size=(24, 40), patch_size=8, strides=(4, 8, 16))
    assert model.config.maps == ((6, 10), (3, 5), (2, 3)), "no pixel is without a cell"
    assert model.centers_A2.shape == (60 + 15 + 6, 2)
    assert model(torch.rand(1, 1, 24, 40)).shape == (1, 81, 6)


def test_boxes_and_distances_are_inverse() -> None:
    torch.manual_seed(0)
    centers, distances = torch.rand(50, 2) * 64, torch.randn(50, 4) * 9
    assert torch.allclose(to_distances(centers, to_boxes(centers, distances)), distances, atol=1e-5)
    assert to_boxes(torch.tensor([10.0, 20.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [9, 18, 13, 24]


def test_the_pyramid_has_a_map_per_scale() -> None:
    maps = FeaturePyramid(16, 8, (4, 2, 1, 0.5, 0.25))(torch.rand(2, 16, 5, 7))
    assert [tuple(each.shape[1:]) for each in maps] == [(8, 20, 28), (8, 10, 14), (8, 5, 7), (8, 3, 4), (8, 2, 2)]


def test_translation_moves_boxes_with_the_object() -> None:
    """Without positions, away from the border: attention sees a set, and convolutions the same neighborhood."""
    torch.manual_seed(0)
    model = small_detector(positions="none", patch_size=4, strides=(4,), image_size=(80, 80)).eval()
    here, moved = torch.zeros(1, 1, 80, 80), torch.zeros(1, 1, 80, 80)
    patch = torch.rand(1, 1, 4, 4)
    here[..., 36:40, 36:40], moved[..., 40:44, 36:40] = patch, patch
    one, other = (model(each)[0].detach().unflatten(0, (20, 20)) for each in (here, moved))
    inner = slice(5, 15)
    assert torch.allclose(one[inner, inner, 4:], other[6:16, inner, 4:], atol=1e-5)
    shift = torch.tensor([0.0, 4.0, 0.0, 4.0])
    assert torch.allclose(one[inner, inner, :4] + shift, other[6:16, inner, :4], atol=1e-4)
    assert not torch.allclose(one[inner, inner, 4:], other[inner, inner, 4:], atol=1e-5)


@pytest.mark.parametrize("name", DETECTORS)
def test_presets_have_the_parameters_of_their_parts(name: str) -> None:
    """The encoder of the Vision Transformer of that size, without its head, and closed forms of the rest."""
    config = resolve(name)
    assert isinstance(config, DetectorConfig)
    names = {"micro": "micro_patch2_8", "nano": "nano_patch4_32", "tiny": "tiny_patch4_32"}
    size = name.split("_")[1]
    encoder = resolve(f"vit_{names.get(size, f'{size}_patch16_224')}", num_classes=0, image_size=config.image_size,
                      patch_size=config.patch_size)  # fmt: skip
    D, F, C, depth = config.width, config.pyramid_width, config.num_classes, config.tower_depth
    pyramid = 0
    for stride in config.strides:
        scale, features = config.patch_size / stride, D
        while scale > 1:
            pyramid += 4 * features * (features // 2) + features // 2 + (2 * (features // 2) if scale == 4 else 0)
            features, scale = features // 2, scale / 2
        pyramid += features * F + 9 * F * F + 4 * F
    head = 2 * depth * (9 * F * F + 2 * F) + (C + 5) * (9 * F + 1) + len(config.strides)
    assert count_parameters(config) == count_parameters(encoder) + pyramid + head
    assert preset_table()[name]["parameters"] == count_parameters(config)


def test_the_encoder_of_another_model_fits() -> None:
    source = create_vit("vit_micro_patch2_8", image_size=32, patch_size=8, width=16, depth=1, heads=2, mlp_dim=16,
                        in_channels=1, num_classes=10, pool="avg")  # fmt: skip
    model = small_detector()
    state, notes = adapt(dict(source.state_dict()), source.config, model.config)
    theirs, mine = without_head(state), without_head(dict(model.state_dict()))
    assert {name: tensor.shape for name, tensor in theirs.items()} == {
        name: tensor.shape for name, tensor in mine.items()
    }
    assert any("grid of 4 x 4 to 8 x 8" in note for note in notes)
    names = dict(model.named_parameters())
    assert all(is_head(name) == name.startswith(("pyramid.", "dense_head.")) for name in names)
    assert layer_of("dense_head.scales", 12) == layer_of("pyramid.levels.0.mix.weight", 12) == 13


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"strides": (3,)}, "each patch_size 8 times or"),
        ({"strides": (8, 4)}, "must increase"),
        ({"strides": (1, 8)}, "divided by 1, 2 or 4"),
        ({"pyramid_width": 12}, "8 groups"),
        ({"num_classes": 0}, "one class at least"),
        ({"head": "mlp"}, "head=mlp has no effect in a detector"),
        ({"distill_token": True}, "distill_token=True has no effect"),
        ({"fc_norm": True, "pool": "avg"}, "fc_norm=True has no effect"),
    ],
)
def test_what_is_no_detector(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve("detector_micro_patch8_64", **keys)


def test_another_image_size_is_refused() -> None:
    with pytest.raises(UserError, match="wrong image size"):
        small_detector()(torch.rand(1, 1, 32, 32))


def test_the_best_boxes_are_chosen() -> None:
    """Two boxes at one place are one detection per class; a location may be of two classes; weak ones are left out."""
    outputs = torch.tensor([[
        [0.0, 0, 10, 10, 0.9, 0.0], [1, 0, 10, 10, 0.8, 0.0], [0, 0, 10, 10, 0.0, 0.7], [20, 20, 30, 30, 0.3, 0.5],
        [40, 40, 50, 50, 0.04, 0.05],
    ]])  # fmt: skip
    found = select_boxes(outputs, 0.05, 0.6, 5)
    assert found.shape == (1, 5, 6)
    rows = [[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.7, 1], [20, 20, 30, 30, 0.5, 1], [20, 20, 30, 30, 0.3, 0]]
    assert torch.allclose(found[0, :4], torch.tensor(rows))
    assert found[0, 4].tolist() == [0, 0, 0, 0, 0, -1]
    assert select_boxes(outputs, 0.05, 0.6, 2)[0, :, 4].tolist() == pytest.approx([0.9, 0.7])
    assert select_boxes(outputs[:0], 0.05, 0.6, 2).shape == (0, 2, 6)


def test_no_more_candidates_than_stated_are_compared() -> None:
    torch.manual_seed(0)
    corners = torch.rand(1, CANDIDATES + 200, 2) * 1e5
    scores = torch.rand(1, CANDIDATES + 200, 1) * 0.9 + 0.1
    found = select_boxes(torch.cat([corners, corners + 1, scores], 2), 0.05, 0.6, CANDIDATES + 200)
    assert int((found[0, :, 5] == 0).sum()) == CANDIDATES
    assert torch.equal(found[0, :CANDIDATES, 4], scores[0, :, 0].sort(descending=True).values[:CANDIDATES])
