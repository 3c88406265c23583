"""Pictures of what is inside a model: exact pixels, the image under the map, names as they are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vitral.report import explain_plots as plots


def opened(png: bytes) -> plots.Array:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def noise(height: int, width: int, seed: int = 0) -> plots.Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_small_pictures_are_enlarged_without_blur() -> None:
    small = noise(8, 6)
    big = plots.enlarged(small, 96)
    assert big.shape == (96, 72, 3)
    assert np.array_equal(big[6::12, 6::12], small)
    assert len(np.unique(big.reshape(-1, 3), axis=0)) <= 48


def test_photos_are_smooth_and_keep_their_shape() -> None:
    assert plots.enlarged(noise(160, 240), 96).shape == (64, 96, 3)
    step = np.zeros((80, 80, 3), np.uint8)
    step[:, 40:] = 255
    assert len(np.unique(plots.enlarged(step, 240))) > 4


@pytest.mark.parametrize("size", [(8, 8), (120, 80)])
def test_the_image_is_seen_under_the_map(size: tuple[int, int]) -> None:
    picture = noise(*size)
    picture[:] = picture[:, :, :1]
    for heat in (np.zeros((4, 4)), np.ones((4, 4))):
        panel = plots.heat_panel(picture, heat, 96, 1.0)
        gray = plots.enlarged(picture, 96)[:, :, 0].ravel()
        assert np.corrcoef(gray, panel.astype(float).sum(2).ravel())[0, 1] > 0.99
    low, high = (plots.heat_panel(picture, np.full((4, 4), v), 96, 2.0).mean((0, 1)) for v in (0.0, 2.0))
    assert high[1] > low[1] + 80, "viridis: yellow against violet"


def test_marks_and_signs() -> None:
    picture, heat = noise(8, 8), np.zeros((4, 2))
    plain, marked = (plots.heat_panel(picture, heat, 96, 1.0, mark) for mark in (None, (3, 1)))
    rows, columns = np.nonzero((plain != marked).any(2))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (72, 96, 48, 96)
    values = np.zeros((8, 8))
    values[0, 0], values[7, 7] = 1.0, -1.0
    panel = plots.signed_panel(picture, values, 96, 1.0).astype(int)
    red, blue = panel[5, 5], panel[90, 90]
    assert red[0] > red[2] + 60, "for the class: orange"
    assert blue[2] > blue[0] + 20, "against it: violet"
    assert plots.heat_panel(picture, heat, 96, 0.0).shape == (96, 96, 3), "nothing to show is no mistake"


def test_panels_of_a_sheet_are_shown_pixel_by_pixel() -> None:
    panels = [[noise(32, 40, 3 * row + column) for column in range(3)] for row in range(2)]
    found = opened(plots.sheet(panels, ["a", "b", "c"], ["one", "two"], [plots.Bar("viridis", 0, 1, "share")]))
    for panel in (panels[0][0], panels[1][2]):
        inner = panel[1:-1, 1:-1]
        places = [
            (top, left)
            for top, left in zip(*np.nonzero((found[:-29, :-37] == inner[0, 0]).all(2)), strict=True)
            if np.array_equal(found[top : top + 30, left : left + 38], inner)
        ]
        assert len(places) == 1
    assert plots.sheet(panels, [], [], []) == plots.sheet(panels, [], [], []), "the same bytes"


def test_class_names_are_shown_as_they_are() -> None:
    scores = np.random.default_rng(0).dirichlet(np.ones(4), 3)
    names = ["_under", r"$\frac{", "ünïcode", "x" * 80]
    assert opened(plots.lens_curves(scores, names, [0, 1, 2, 3])).shape[1] == 630


def test_large_grids_are_thinned_out() -> None:
    similarity = np.eye(40 * 30)
    assert max(opened(plots.position_sheet(similarity, (40, 30))).shape) < 1200
    assert opened(plots.filter_sheet(np.zeros((1, 1, 2, 2)))).size
    assert opened(plots.filter_sheet(noise(28 * 3, 16).reshape(28, 3, 16, 3)[:, :, :3] / 255)).size
