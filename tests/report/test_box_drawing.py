"""Outlines of boxes: solid, dashed, with labels that stay inside of the picture."""

from __future__ import annotations

import numpy as np

from vitral.report.box_drawing import Outline, draw_outlines

RED, WHITE = (255, 0, 0), (255, 255, 255)


def test_dashes_leave_gaps_and_lie_over_solid_lines() -> None:
    black = np.zeros((100, 100, 3), np.uint8)
    solid, dashed = Outline((10, 20, 90, 80), "", RED), Outline((10, 20, 90, 80), "", WHITE, dashed=True)
    edge = draw_outlines(black, [solid, dashed], 100)[20, 10:90]
    assert {tuple(pixel) for pixel in edge.tolist()} == {RED, WHITE}
    assert 0.4 < (edge == WHITE).all(1).mean() < 0.7
    assert (draw_outlines(black, [dashed, solid], 100)[20, 10:90] == RED).all()
    small = draw_outlines(black[:10, :10, :1], [Outline((2, 2, 3, 3), "", WHITE, dashed=True)], 100)
    assert small.shape == (100, 100, 3)
    assert (small[20, 20] == WHITE).all()


def test_labels_stay_inside() -> None:
    """Those of boxes in all corners: as many colored pixels as in the middle of a large picture."""

    def colored(box: tuple[float, float, float, float], dashed: bool) -> int:
        picture = draw_outlines(np.zeros((200, 200, 3), np.uint8), [Outline(box, "a long name", RED, dashed)], 200)
        return int((picture == RED).all(2).sum())

    for dashed in (False, True):
        middle = colored((60, 90, 66, 96), dashed)
        for x in (0, 194):
            for y in (0, 194):
                assert colored((x, y, x + 6, y + 6), dashed) >= middle - 40, "less of the label by the box at most"
