"""Scenes of handwritten digits with boxes, for detection without a download.

Canvases of 64 x 64 pixels hold 1 to 6 of scikit-learn's scans, enlarged to 12 to 28 pixels, on noise and among pieces
of other scans. Splits share no scan. Everything is drawn by the counter generator and computed in integers, and the
enlargement is Pillow's on 8 bits, so the scenes are equal on every processor.
Shape letters: N scenes, X boxes, H W height and width, 4 a box (x0, y0, x1, y1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from vitral.data.box_files import with_boxes
from vitral.data.boxes import BoxRow, Unpaired, as_boxes
from vitral.data.config import DataConfig
from vitral.data.counter_rng import Stream, bits, numbered, philox
from vitral.data.dataset import Array, Dataset, fingerprint, memory_split
from vitral.data.digits import TEST_SIZE
from vitral.data.splits import stratified
from vitral.errors import UserError

SIDE = 64
COUNTS = {"train": 2000, "val": 300, "test": 300}
MOST = 6  # digits of a scene
SIDES = (12, 28)  # of an enlarged scan, pixels
_PIECES = (6, 10)  # sides of the enlarged corners of scans that are no digits
_NOISE = 48  # levels of the background
_INK = 64  # level from which a pixel belongs to a digit's box
_TRIES = 20  # places per digit
_OVERLAP = 4  # a box may share a quarter of its area with another one
_SEED = 0
_DRAWS = 4 + MOST * (2 + 2 * _TRIES) + 4 * 5  # of a scene


def open_digits_scenes(config: DataConfig) -> Dataset:
    """2,000 scenes for training, 300 for validation and 300 for testing, gray, with the box and class of each digit.

    A box is the smallest one about the digit's pixels of a quarter of full ink or more. The test scans are those of
    `digits`; as many of the others are for validation. Raises UserError if a path to somewhere else is given.
    """
    if config.path not in (None, "digits_scenes"):
        what = "the scenes of digits are built in and read no folder"
        raise UserError(what, where="data.path", got=config.path, expected="digits_scenes")
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    scans_NHW = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    digits_N = bunch.target.astype(np.int64)
    channels = 1 if config.channels == "auto" else config.channels
    index_of = {str(digit): digit for digit in range(10)}
    splits, boxes, content = {}, {}, list[bytes]()
    for number, (name, places) in enumerate(scan_places(digits_N).items()):
        words_ND, noise_NHW = _words(number, COUNTS[name]), _noise(number, COUNTS[name])
        scenes = [
            _scene(scans_NHW[places], digits_N[places], _Dice(words_D), noise_HW)
            for words_D, noise_HW in zip(words_ND, noise_NHW, strict=True)
        ]
        images_NCHW = np.stack([image_HW for image_HW, _ in scenes])[:, None]
        boxes[name] = as_boxes([rows for _, rows in scenes], [(SIDE, SIDE)] * len(scenes), index_of)
        names = [f"{name}/{place:05d}" for place in range(len(scenes))]
        splits[name] = memory_split(images_NCHW, boxes[name].hot(10), names, channels)
        content += [name.encode(), images_NCHW.tobytes(), boxes[name].content()]
    dataset = Dataset("digits_scenes", tuple(index_of), splits, channels, (), fingerprint(content))
    return with_boxes(dataset, boxes, Unpaired())


def scan_places(digits_N: Array) -> dict[str, Array]:
    """The scans of each split, as places among all: disjoint, stratified."""
    from sklearn.model_selection import train_test_split

    parts: Any = train_test_split(range(len(digits_N)), test_size=TEST_SIZE, stratify=digits_N, random_state=0)
    rest, test = (np.sort(part) for part in parts)
    val = stratified(digits_N[rest], TEST_SIZE / len(rest), _SEED)
    return {"train": np.delete(rest, val), "val": rest[val], "test": test}


def _words(split: int, count: int) -> Array:
    """32 random bits for each choice of each scene, [N, draws]."""
    place_N1, number_1D = np.arange(count, dtype=np.int64)[:, None], np.arange(_DRAWS, dtype=np.int64)[None]
    return bits(_SEED, split, 0, place_N1, numbered(int(Stream.SCENE), number_1D))


def _noise(split: int, count: int) -> Array:
    """Even noise, uint8 [N, H, W], from the 16 bytes of each counter."""
    place_N1, number_1D = np.arange(count, dtype=np.int64)[:, None], np.arange(SIDE * SIDE // 16, dtype=np.int64)
    words = philox((place_N1, split, 0, numbered(int(Stream.SCENE_NOISE), number_1D[None])), (_SEED, 0))
    bytes_NX = np.stack(words, axis=2).astype("<u4").view(np.uint8)
    return (bytes_NX.astype(np.uint16) * _NOISE >> 8).astype(np.uint8).reshape(-1, SIDE, SIDE)


class _Dice:
    """Whole numbers of one scene, in a fixed order."""

    def __init__(self, words_D: Array) -> None:
        self._words = iter(words_D.tolist())

    def below(self, limit: int) -> int:
        """One of 0 .. limit - 1."""
        return next(self._words) * limit >> 32


def _scene(scans_NHW: Array, digits_N: Array, dice: _Dice, noise_HW: Array) -> tuple[Array, list[BoxRow]]:
    """The image [H, W] and the boxes of one scene. A digit without room is left out; the first always has it."""
    canvas_HW = noise_HW.copy()
    for _ in range(dice.below(4)):
        side = _PIECES[0] + dice.below(_PIECES[1] - _PIECES[0] + 1)
        scan_HW, corner = scans_NHW[dice.below(len(scans_NHW))], dice.below(4)
        piece_HW = scan_HW[4 * (corner // 2) :, 4 * (corner % 2) :][:4, :4]
        _draw(canvas_HW, _enlarged(piece_HW, side), dice.below(SIDE - side + 1), dice.below(SIDE - side + 1))
    rows: list[BoxRow] = []
    for _ in range(1 + dice.below(MOST)):
        side, which = SIDES[0] + dice.below(SIDES[1] - SIDES[0] + 1), dice.below(len(scans_NHW))
        digit_HW = _enlarged(scans_NHW[which], side)
        y, x = (np.flatnonzero((digit_HW >= _INK).any(axis)) for axis in (1, 0))
        for _ in range(_TRIES):
            left, top = dice.below(SIDE - side + 1), dice.below(SIDE - side + 1)
            box = (left + int(x[0]), top + int(y[0]), left + int(x[-1]) + 1, top + int(y[-1]) + 1)
            if not any(_overlaps(box, row.corners) for row in rows):
                _draw(canvas_HW, digit_HW, left, top)
                rows.append(BoxRow(box, str(digits_N[which])))
                break
    return canvas_HW, rows


def _enlarged(scan_HW: Array, side: int) -> Array:
    return np.asarray(Image.fromarray(np.ascontiguousarray(scan_HW)).resize((side, side), Image.Resampling.BILINEAR))


def _draw(canvas_HW: Array, patch_HW: Array, left: int, top: int) -> None:
    """Ink covers what is darker."""
    room_HW = canvas_HW[top : top + patch_HW.shape[0], left : left + patch_HW.shape[1]]
    np.maximum(room_HW, patch_HW, out=room_HW)


def _overlaps(one: tuple[int, int, int, int], other: tuple[float, float, float, float]) -> bool:
    """Whether the boxes share more than a quarter of the smaller one."""
    wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return wide > 0 and high > 0 and wide * high * _OVERLAP > min(areas)
