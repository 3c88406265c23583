"""What `auto` becomes."""

from __future__ import annotations

import pytest

from vitral.run.prepare import _auto_patch


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((28,), 4),  # MNIST: 7 patches of 4, not 9 of 3 and a pixel cut off
        ((32,), 4),
        ((64,), 8),
        ((24,), 3),
        ((36,), 4),  # 9 patches are nearer to 8 than 6 are
        ((224,), 28),
        ((60, 48), 6),  # both sides are cut whole
        ((37,), 4),  # a prime: nothing divides it
        ((8,), 2),
        ((3,), 2),
    ],
)
def test_patches_cut_the_image_whole(sides: tuple[int, ...], expected: int) -> None:
    assert _auto_patch(*sides) == expected
