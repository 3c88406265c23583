"""Crops made while decoding, against the whole picture decoded by the usual rules and cropped afterwards."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from vitral.data.decode import decode
from vitral.data.jpeg_crop import Box, crop_image, crop_jpeg, open_jpeg, random_crops
from vitral.errors import UserError


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth colors with some texture, different in every corner."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((width, height), 3)
    noisy = np.asarray(coarse).astype(int) + random.integers(-12, 13, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, turn: int = 1, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, exif=exif, **options)
    return file.getvalue()


def crop(data: bytes, box: Box, size: tuple[int, int], channels: int = 3) -> tuple[torch.Tensor, Box]:
    opened = open_jpeg(data)
    assert opened is not None
    return crop_jpeg(opened, [box], [size], channels)[0]


def whole(data: bytes, box: Box, size: tuple[int, int], channels: int = 3) -> torch.Tensor:
    """The reference: decode.py, then slicing, then float32 resizing."""
    top, left, height, width = box
    part = decode(data, channels)[:, top : top + height, left : left + width].float()[None]
    return F.interpolate(part, size, mode="bilinear", antialias=True, align_corners=False)[0]


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("subsampling", [0, 2])
def test_without_scaling_the_pixels_are_those_of_the_whole_picture(turn: int, subsampling: int) -> None:
    data = jpeg(picture(93, 131), turn, subsampling=subsampling)
    opened = open_jpeg(data)
    assert opened is not None
    assert (opened.height, opened.width) == tuple(decode(data, 3).shape[1:])
    random = np.random.default_rng(turn)
    for _ in range(20):
        height, width = int(random.integers(1, opened.height + 1)), int(random.integers(1, opened.width + 1))
        box = (
            int(random.integers(opened.height - height + 1)),
            int(random.integers(opened.width - width + 1)),
            height,
            width,
        )
        pixels, seen = crop(data, box, (height, width))
        assert seen == box
        assert torch.equal(pixels, decode(data, 3)[:, box[0] : box[0] + height, box[1] : box[1] + width])


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize(("size", "scale"), [((100, 90), 2), ((55, 50), 4), ((24, 24), 8)])
def test_the_coarsest_scale_that_covers_the_size_shows_the_same(
    turn: int, size: tuple[int, int], scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jpeg(picture(401, 303) if turn < 5 else picture(303, 401), turn)
    drafts: list[Any] = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(
        JpegImageFile, "draft", lambda self, *words: (draft(self, *words), drafts.append(self.decoderconfig[0]))[0]
    )
    for box in ((0, 0, 401, 303), (37, 51, 250, 231), (151, 72, 250, 231), (3, 5, 210, 201)):
        pixels, seen = crop(data, box, size)
        assert drafts.pop() == max(s for s in (1, 2, 4, 8) if box[2] >= s * size[0] and box[3] >= s * size[1]), box
        assert max(abs(a - b) for a, b in zip(seen, box, strict=True)) <= scale
        difference = (pixels.float() - whole(data, seen, size)).abs()
        assert difference.mean() < 3, (turn, box)
        assert difference.max() < 40, (turn, box)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_modes_and_channels_follow_the_usual_rules(mode: str, channels: int) -> None:
    data = jpeg(picture(64, 80).convert(mode), 6)
    pixels, _ = crop(data, (10, 5, 40, 50), (40, 50), channels)
    assert torch.equal(pixels, decode(data, channels)[:, 10:50, 5:55])


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True}])
def test_other_kinds_of_jpeg(options: dict[str, Any]) -> None:
    data = jpeg(picture(200, 160), **options)
    pixels, _ = crop(data, (10, 20, 30, 90), (30, 90))
    assert torch.equal(pixels, decode(data, 3)[:, 10:40, 20:110])


def test_rows_below_the_box_are_not_decoded() -> None:
    """Their bytes may be anything: nothing of them is looked at."""
    data = bytearray(jpeg(picture(400, 100)))
    expected, _ = crop(bytes(data), (0, 0, 50, 100), (50, 100))
    data[len(data) // 2 : -2] = bytes(len(data) - 2 - len(data) // 2)
    assert torch.equal(crop(bytes(data), (0, 0, 50, 100), (50, 100))[0], expected)


def run(files: Sequence[bytes | None], reads: list[Any], size: tuple[int, int], max_pixels: int = 10**9) -> list[Any]:
    """All boxes are the lower right quarter."""

    def boxes(which: list[int], sizes_B2: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.tensor([[h // 2, w // 2, h - h // 2, w - w // 2]]) for h, w in sizes_B2.tolist()])

    sources = [None if data is None else (lambda data=data: data) for data in files]
    return [cut for (cut,) in random_crops(sources, reads, boxes, [size], 3, max_pixels=max_pixels)]


def test_files_of_all_kinds_stand_where_they_belong(tmp_path: Path) -> None:
    pictures = [picture(40 + 2 * n, 60 - 2 * n, n) for n in range(5)]
    encoded: list[bytes] = []
    for number, image in enumerate(pictures):
        file = io.BytesIO()
        image.save(file, "JPEG" if number % 2 else "PNG")
        encoded.append(file.getvalue())
    reads = [lambda data=data: decode(data, 3) for data in encoded]
    files = [*encoded[:2], None, *encoded[3:]]
    for number, (pixels, box) in enumerate(run(files, reads, (16, 12))):
        height, width = 40 + 2 * number, 60 - 2 * number
        assert box == (height // 2, width // 2, height - height // 2, width - width // 2)
        assert torch.equal(pixels, crop_image(reads[number](), box, (16, 12)))


def test_a_damaged_file_is_read_whole_which_names_it(tmp_path: Path) -> None:
    data = jpeg(picture(200, 200))
    for cut in (10, 200, len(data) // 2):
        (tmp_path / "cut.jpg").write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"cut\.jpg"):
            run([data[:cut]], [lambda: decode(tmp_path / "cut.jpg", 3)], (20, 20))


def test_the_limit_on_pixels_holds() -> None:
    def refuse() -> torch.Tensor:
        raise UserError("larger than the limit")

    with pytest.raises(UserError, match="limit"):
        run([jpeg(picture(100, 100))], [refuse], (20, 20), max_pixels=9999)
    run([jpeg(picture(100, 100))], [refuse], (20, 20), max_pixels=10000)


def test_what_is_no_jpeg_is_said_so(tmp_path: Path) -> None:
    assert open_jpeg(b"") is None
    assert open_jpeg(b"\x89PNG....") is None
    picture(5, 5).save(tmp_path / "wrong.jpg", "PNG")
    assert open_jpeg(tmp_path / "wrong.jpg") is None


@pytest.mark.parametrize("turn", [None, 1, 6, 3])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"\xff\xc0 no frame" * 9}, {"mode": "L"}])
def test_the_header_is_read_as_pillow_reads_it(turn: int | None, options: dict[str, Any]) -> None:
    """Size and orientation by a few bytes, or by Pillow where there is EXIF; cut-off headers are Pillow's to refuse."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8))
    if "mode" in options:
        image, options = image.convert(options["mode"]), {}
    exif = Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
        options = {**options, "exif": exif}
    image.save(file := io.BytesIO(), "JPEG", **options)
    jpeg = open_jpeg(file.getvalue())
    assert jpeg is not None
    assert (jpeg.turn, jpeg.height, jpeg.width) == (turn or 1, *((61, 37) if turn == 6 else (37, 61)))
    assert jpeg.data[jpeg.frame + 1] == (0xC2 if "progressive" in options else 0xC0)
    for stop in (4, jpeg.frame + 3):
        with pytest.raises((OSError, SyntaxError, IndexError)):  # whatever Pillow raises
            open_jpeg(file.getvalue()[:stop])
