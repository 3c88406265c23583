"""Decoding: a real file of every kind, and what its pixels must be."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

from vitral.data.channels import Decoding, color
from vitral.data.decode import as_image, decode, header, pixels, readable_extensions
from vitral.errors import UserError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), np.uint8)
GREY = RNG.integers(0, 256, (5, 7), np.uint8)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def over_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    exact = (color.astype(np.int64) * alpha + 255 * (255 - alpha.astype(np.int64))) / 255
    return np.rint(exact).astype(np.uint8)


def hwc(image_CHW: torch.Tensor) -> np.ndarray:
    assert image_CHW.dtype == torch.uint8
    assert image_CHW.is_contiguous()
    return image_CHW.permute(1, 2, 0).numpy()


def test_rgb_is_kept_and_gray_is_its_luma(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    assert np.array_equal(hwc(decode(path, 3)), RGB)
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    assert np.abs(hwc(decode(path, 1))[..., 0] - luma).max() <= 0.51
    rgba = hwc(decode(path, 4))
    assert np.array_equal(rgba[..., :3], RGB)
    assert (rgba[..., 3] == 255).all()


def test_gray_and_bilevel(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(GREY))
    assert np.array_equal(hwc(decode(path, 1))[..., 0], GREY)
    assert np.array_equal(hwc(decode(path, 3)), np.repeat(GREY[..., None], 3, 2))
    bits = GREY > 127
    path = saved(tmp_path / "b.png", Image.fromarray(bits))
    assert header(path).mode == "1"
    assert np.array_equal(hwc(decode(path, 1))[..., 0], bits * np.uint8(255))


def test_transparency_goes_over_white(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, (5, 7), np.uint8)
    path = saved(tmp_path / "rgba.png", Image.fromarray(np.dstack([RGB, alpha])))
    assert np.array_equal(hwc(decode(path, 3)), over_white(RGB, alpha[..., None]))
    assert np.array_equal(hwc(decode(path, 4)), np.dstack([RGB, alpha]))
    path = saved(tmp_path / "la.png", Image.fromarray(np.dstack([GREY, alpha])))
    assert np.array_equal(hwc(decode(path, 1))[..., 0], over_white(GREY, alpha))
    assert np.array_equal(hwc(decode(path, 3)), np.repeat(over_white(GREY, alpha)[..., None], 3, 2))
    assert np.array_equal(hwc(decode(path, 2)), np.dstack([GREY, alpha]))


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    opaque = saved(tmp_path / "p.png", image)
    assert hwc(decode(opaque, 3)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    for name, options in (
        ("t.png", {"transparency": 1}),
        ("t.gif", {"transparency": 1}),
        ("b.png", {"transparency": b"\xff\x00"}),
    ):
        path = saved(tmp_path / name, image, **options)
        assert hwc(decode(path, 3)).tolist() == [[[10, 20, 30], [255, 255, 255]]], name
        assert hwc(decode(path, 1))[0, 1, 0] == 255
        assert hwc(decode(path, 4))[0, :, 3].tolist() == [255, 0]


def test_color_key(tmp_path: Path) -> None:
    path = saved(tmp_path / "rgb.png", Image.fromarray(RGB), transparency=tuple(map(int, RGB[0, 0])))
    assert hwc(decode(path, 3))[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(hwc(decode(path, 3))[1], RGB[1])
    path = saved(tmp_path / "l.png", Image.fromarray(GREY), transparency=int(GREY[0, 0]))
    assert np.array_equal(hwc(decode(path, 1))[..., 0], np.where(GREY[0, 0] == GREY, 255, GREY))


def test_cmyk(tmp_path: Path) -> None:
    inks = np.array([[[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], np.uint8)
    image = Image.frombytes("CMYK", (5, 1), inks.tobytes())
    expected = [[[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0], [255, 255, 255]]]
    assert hwc(decode(saved(tmp_path / "a.tif", image), 3)).tolist() == expected
    jpeg = saved(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (255, 0, 0, 0)), quality=100)
    assert np.abs(hwc(decode(jpeg, 3)).astype(int) - [0, 255, 255]).max() <= 3
    assert abs(int(decode(jpeg, 1)[0, 0, 0]) - 179) <= 3


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, ending: str) -> None:
    values = np.arange(0, 256, dtype=np.uint16).reshape(16, 16) * 257
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(values))
    assert header(path).mode in ("I;16", "I;16B", "I")
    assert np.array_equal(hwc(decode(path, 1))[..., 0], values // 257)
    dark = saved(tmp_path / f"dark.{ending}", Image.fromarray(values // 257))
    full = Decoding(value_range=(0, 65535))
    assert int(decode(dark, 3, rules=full).max()) == 1  # a dark image stays dark: no stretching of each image alone
    if ending == "pgm":  # states the largest value
        assert int(decode(dark, 3).max()) == 1
    else:
        with pytest.raises(UserError, match=r"uses 8 bits.*Set data\.value_range=0,255, or data\.value_range=0,65535"):
            decode(dark, 3)


@pytest.mark.parametrize(("factor", "offset"), [(1 / 255, 0), (1, 0), (257, 0), (1000, -5)])
def test_floats_are_scaled_by_the_rule(tmp_path: Path, factor: float, offset: float) -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = saved(tmp_path / "a.tif", Image.fromarray((gray.astype(np.float32) * factor + offset).astype(np.float32)))
    assert header(path).mode == "F"
    rules = Decoding(value_range=(offset, 255 * factor + offset))
    assert np.array_equal(hwc(decode(path, 1, rules=rules))[..., 0], gray)
    if (factor, offset) == (1 / 255, 0):
        assert np.array_equal(hwc(decode(path, 1))[..., 0], gray)
    else:
        with pytest.raises(UserError, match=r"a\.tif: floats outside of \[0,1\].*Set data\.value_range=LOW,HIGH"):
            decode(path, 1)


def test_integers_of_32_bits_need_a_rule(tmp_path: Path) -> None:
    gray = np.arange(256, dtype=np.int32).reshape(16, 16)
    path = saved(tmp_path / "a.tif", Image.fromarray(gray * 100_000 - 7))
    rules = Decoding(value_range=(-7, 25_500_000 - 7))
    assert np.array_equal(hwc(decode(path, 1, rules=rules))[..., 0], gray)
    with pytest.raises(UserError, match=r"integers without a known range \(values from -7 to 25499993\)"):
        decode(path, 1)


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0.5, np.nan]], np.float32)))
    with pytest.raises(UserError, match=r"a\.tif.*not finite"):
        decode(path, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_exif_orientation(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(RGB), exif=exif, **options)
    expected = np.array(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(hwc(decode(path, 3)), expected)
    assert header(path)[1:] == expected.shape[:2]
    if orientation == 6:  # the stored rows run down the right-hand side: a quarter turn clockwise
        assert np.array_equal(expected, np.rot90(RGB, -1))


def test_exif_orientation_of_a_jpeg(tmp_path: Path) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.jpg", Image.fromarray(stored), exif=exif, quality=100)
    assert np.abs(hwc(decode(path, 3)).astype(int) - np.rot90(stored, -1)).max() <= 2
    assert header(path)[1:] == (32, 16)


def test_broken_exif_leaves_the_pixels(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB), exif=b"Exif\0\0not TIFF at all")
    assert np.array_equal(hwc(decode(path, 3)), RGB)


def test_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    for name in ("a.gif", "a.png", "a.tif"):
        path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
        assert (hwc(decode(path, 3)) == [255, 0, 0]).all(), name


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_truncated_is_named_never_black(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, kind)
    path = tmp_path / "cut.png"  # the ending doesn't matter
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
        with pytest.raises(UserError, match=r"cut\.png"):
            decode(path, 3)
    path.write_bytes(buffer.getvalue())
    assert decode(path, 3).shape == (3, 64, 64)


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"a\.png: unreadable image"):
        decode(path, 3)


def test_no_image_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not an image", encoding="utf-8")
    for call in (lambda: decode(path, 3), lambda: header(path)):
        with pytest.raises(UserError, match=r"notes\.png: not an image"):
            call()
    with pytest.raises(UserError, match=r"gone\.png: no such file"):
        decode(tmp_path / "gone.png", 3)
    with pytest.raises(UserError, match=r"upload 3: empty file \(0 bytes\), not an image"):
        decode(b"", 3, name="upload 3")
    with pytest.raises(UserError, match="not a regular file but a folder"):
        decode(tmp_path, 3)


def test_postscript_is_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.eps", Image.fromarray(RGB))
    with pytest.raises(UserError, match="not an image"):
        decode(path, 3)
    assert ".eps" not in readable_extensions()
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm"} <= readable_extensions()


def test_bytes_streams_pil_and_paths_agree(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    with path.open("rb") as stream:
        read = [as_image(source, 3) for source in (path, str(path), path.read_bytes(), stream, Image.fromarray(RGB))]
    assert all(np.array_equal(hwc(image), RGB) for image in read)


def test_arrays_and_tensors() -> None:
    chw = torch.from_numpy(RGB).permute(2, 0, 1)
    floats = RGB / np.float32(255)
    for picture in (
        RGB,
        RGB[:, ::-1][:, ::-1],
        floats,
        floats.astype(np.float64),
        chw,
        torch.from_numpy(RGB),
        chw / 255,
    ):
        assert np.array_equal(hwc(as_image(picture, 3)), RGB)
    for picture in (GREY, GREY[..., None], GREY.astype(np.uint16) * np.uint16(257), torch.from_numpy(GREY), GREY / 255):
        assert np.array_equal(hwc(as_image(picture, 1))[..., 0], GREY)
    assert np.array_equal(hwc(as_image(GREY > 9, 1))[..., 0], (GREY > 9) * np.uint8(255))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (RGB.astype(np.float32), r"floats outside of \[0,1\]"),
        (np.full((2, 2), np.nan), "not finite"),
        (np.full((2, 2), -0.1), "floats outside"),
        (RGB.astype(np.int64), "int64"),
        (RGB.transpose(2, 0, 1), "come last"),
        (RGB[None], "One image at a time"),
        (np.zeros((0, 3), np.uint8), "shape"),
        (torch.zeros(3, 5, 4), "ambiguous"),
        (torch.zeros(7, 5, 9), "ambiguous"),
        (["a"], "no image"),
        (None, "no image"),
    ],
)
def test_other_pictures_are_refused(picture: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_image(picture, 3)


@pytest.mark.parametrize(
    ("name", "behind"), [("#102030", (16, 32, 48)), ("red", (255, 0, 0)), ("#fff", (255, 255, 255))]
)
def test_background_is_the_users(tmp_path: Path, name: str, behind: tuple[int, int, int]) -> None:
    alpha = RNG.integers(0, 256, (5, 7, 1), np.uint8)
    rules = Decoding(color(name))
    assert rules.background == behind

    def over(pixels: np.ndarray) -> np.ndarray:
        exact = (pixels.astype(np.int64) * alpha + np.array(behind) * (255 - alpha.astype(np.int64))) / 255
        return np.rint(exact).astype(np.uint8)

    path = saved(tmp_path / "rgba.png", Image.fromarray(np.dstack([RGB, alpha])))
    assert np.array_equal(hwc(decode(path, 3, rules=rules)), over(RGB))
    assert np.array_equal(hwc(as_image(path.read_bytes(), 3, rules=rules)), over(RGB))
    path = saved(tmp_path / "la.png", Image.fromarray(np.dstack([GREY, alpha])))
    assert np.array_equal(hwc(decode(path, 3, rules=rules)), over(np.repeat(GREY[..., None], 3, 2)))
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    path = saved(tmp_path / "p.png", image, transparency=0)
    assert hwc(decode(path, 3, rules=rules))[0, 0].tolist() == list(behind)


def test_a_transparent_value_of_16_bits(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    path = saved(tmp_path / "a.png", Image.fromarray(values), transparency=25700)
    assert hwc(decode(path, 1))[..., 0].tolist() == [[0, 255, 255]]
    assert hwc(decode(path, 1, rules=Decoding((9, 9, 9))))[..., 0].tolist() == [[0, 9, 255]]


@pytest.mark.parametrize("text", ["", "whitish", "#12", "#11223344", "rgba(1,2,3,4)"])
def test_what_is_no_color(text: str) -> None:
    with pytest.raises(UserError, match=r"data\.background: not a color"):
        color(text)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims this size; its pixels are a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def test_the_pixel_limit_is_held_before_memory_is_taken(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="memory in use is asked of Unix")
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(60_000, 60_000))
    before, limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, Image.MAX_IMAGE_PIXELS
    with pytest.raises(UserError, match=r"bomb\.png: larger than the limit of 150,000,000.*3,600,000,000.*max_pixels"):
        decode(path, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes; the image is 10.8 GB
    assert header(path)[1:] == (60_000, 60_000)
    assert limit == Image.MAX_IMAGE_PIXELS, "Pillow's own limit is as the program left it"
    small = saved(tmp_path / "a.png", Image.fromarray(RGB))
    assert decode(small, 3, rules=Decoding(max_pixels=35)).shape == (3, 5, 7)
    for picture in (small, Image.fromarray(RGB)):
        with pytest.raises(UserError, match="limit of 34 pixels, 7 x 5 = 35 pixels"):
            as_image(picture, 3, rules=Decoding(max_pixels=34))


def windows_icon(picture: bytes) -> bytes:
    """Of 16 x 16 pixels, as it says."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(picture), 22) + picture


def mac_icon(picture: bytes) -> bytes:
    """Of 16 x 16 pixels by its kind."""
    return struct.pack(">4sI4sI", b"icns", len(picture) + 16, b"icp4", len(picture) + 8) + picture


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
@pytest.mark.parametrize("icon", [windows_icon, mac_icon])
def test_an_icon_is_as_large_as_the_picture_inside(
    icon: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pixels are counted before they are read where bytes are asked, and before they are used everywhere."""
    file = io.BytesIO()
    Image.new("RGBA", (90, 70)).save(file, "PNG")
    data, path, rules = icon(file.getvalue()), tmp_path / "icon", Decoding(max_pixels=90 * 70 - 1)
    path.write_bytes(data)
    for source in (data, path):  # Pillow itself refuses a Mac icon that says another size than it has
        with pytest.raises(UserError, match=r"limit of 6,299 pixels, 90 x 70|not one of the allowed sizes"):
            decode(source, 3, rules=rules)

    def never(_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    assert pixels(data) == (90, 70)
    assert pixels(icon(bomb(60_000, 60_000))) == (60_000, 60_000)


def test_a_plain_icon_and_a_broken_one() -> None:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "ICO", sizes=[(7, 5)], bitmap_format="bmp")
    assert pixels(file.getvalue()) == (7, 5)
    assert decode(file.getvalue(), 3).shape == (3, 5, 7)
    for data in (b"\0\0\1\0\0\0", b"icns", windows_icon(b"no picture")):
        with pytest.raises(UserError, match=r"not an image|unreadable"):
            pixels(data)


def test_between_pillows_limits_nothing_is_warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns from its limit on and raises at twice that; warnings are errors in these tests."""
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    for limit in (20, 10):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert np.array_equal(hwc(decode(path, 3)), RGB)
        assert limit == Image.MAX_IMAGE_PIXELS


def test_sixteen_bits_of_color_are_within_one_level(tmp_path: Path) -> None:
    """Pillow keeps the high byte of each channel: value // 256, where value / 257 rounded is exact."""
    values = RNG.integers(0, 65536, (64, 64, 3)).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    raw = bomb(64, 64).replace(struct.pack(">IIB", 64, 64, 8), struct.pack(">IIB", 64, 64, 16))
    start, body = raw[8:33], zlib.compress(rows)
    start = start[:21] + struct.pack(">I", zlib.crc32(start[4:21]))
    idat = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    path = tmp_path / "deep.png"
    path.write_bytes(raw[:8] + start + idat + raw[-12:])
    found = hwc(decode(path, 3))
    assert np.array_equal(found, values // 256)
    assert np.abs(found - values / 257).max() < 1


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image.*pip install pillow-heif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC image.*pip install pillow-heif"),
        (b"\xff\x0a" + b"\0" * 30, "a JPEG XL image.*pillow-jxl-plugin"),
    ],
)
def test_formats_of_plugins_name_the_plugin(tmp_path: Path, start: bytes, message: str) -> None:
    path = tmp_path / "photo.jpg"  # as phones and messengers rename them
    path.write_bytes(start + b"\0" * 100)
    for source in (path, path.read_bytes()):
        with pytest.raises(UserError, match=message):
            decode(source, 3, name="photo.jpg")


def test_the_content_says_the_format_not_the_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    for name in ("a.jpg", "a", "a.txt", "a.gif"):
        (tmp_path / name).write_bytes(buffer.getvalue())
        assert np.array_equal(hwc(decode(tmp_path / name, 3)), RGB)
