"""Memory of one image is bounded by its header, whatever its kind; what is no image is named."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.test_value_range import png16
from vitral.data import decode as decoding
from vitral.data.channels import Decoding
from vitral.data.decode import as_image, decode, decoded_bytes, pixels
from vitral.errors import UserError

SIDE = 2400
_SAVED: dict[str, tuple[str, dict[str, Any]]] = {
    "rgba.png": ("RGBA", {}), "rgba.webp": ("RGBA", {}), "rgb.jpg": ("RGB", {}), "float.tif": ("F", {}),
    "key.png": ("RGB", {"transparency": (9, 9, 9)}), "palette.png": ("P", {"transparency": 3}),
    "word.tif": ("I;16", {}), "ink.tif": ("CMYK", {}),
    "lzw.tif": ("RGBA", {"compression": "tiff_lzw"}), "turned.png": ("RGB", {"orientation": 6}),
    "rgb.jp2": ("RGB", {}),
}  # fmt: skip
_MEASURE = """
import os, sys
from vitral.data.channels import Decoding
from vitral.data.decode import decode, decoded_bytes
from vitral.data.image_spec import ResizeSpec
from vitral.data.resize import fit_image

def high(name):
    with open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith(name)).split()[1])

small = decode(sys.argv[1], 3)
for path in sys.argv[2:]:
    if os.fork() == 0:
        before = high("VmRSS")
        fit_image(decode(path, 3, rules=Decoding(value_range=(0, 4000))), (224, 224), ResizeSpec(resize_mode="crop"))
        print(os.path.basename(path), high("VmHWM") - before, decoded_bytes(path), flush=True)
        os._exit(0)
    os.wait()
"""


def transparent(side: int) -> np.ndarray:
    image = np.full((side, side, 4), 1000, np.uint16)
    image[..., 3] = 30000
    return image


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read where Linux says it")
def test_peak_memory_is_the_decoded_bytes_and_eight_per_pixel(tmp_path: Path) -> None:
    for name, (mode, options) in _SAVED.items():
        image = Image.new(mode, (SIDE, SIDE), {"F": 0.5, "RGB": (9, 8, 7), "RGBA": (9, 8, 7, 99)}.get(mode, 3))
        if "orientation" in options:
            exif = Image.Exif()
            exif[0x0112] = options["orientation"]
            image.save(tmp_path / name, exif=exif)
        else:
            image.save(tmp_path / name, **options)
    png16(tmp_path / "deep.png", transparent(SIDE))
    png16(tmp_path / "gray.png", transparent(SIDE)[..., 2:])
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    paths = [str(tmp_path / name) for name in (*_SAVED, "deep.png", "gray.png")]
    words = [sys.executable, "-c", _MEASURE, str(tmp_path / "small.png"), *paths]
    found = subprocess.run(words, capture_output=True, encoding="utf-8", check=True).stdout.splitlines()
    assert len(found) == len(paths)
    for line in found:
        name, peak, size = line.split()
        assert int(peak) <= int(size) + 8 * SIDE**2 + 64_000_000, line


@pytest.mark.parametrize(
    ("mode", "ending", "each"),
    [("L", "png", 1), ("RGB", "jpg", 3), ("RGBA", "png", 4), ("I;16", "png", 2), ("F", "tif", 4), ("RGB", "webp", 16)],
)
def test_decoded_bytes_are_known_from_the_header(tmp_path: Path, mode: str, ending: str, each: int) -> None:
    path = tmp_path / f"a.{ending}"
    Image.new(mode, (30, 20)).save(path)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        assert decoded_bytes(source) == 30 * 20 * each


def test_deeper_images_count_more(tmp_path: Path) -> None:
    path = png16(tmp_path / "deep.png", transparent(10))
    assert decoded_bytes(path) == 800
    assert decode(path, 3, rules=Decoding(max_pixels=200, value_range=(0, 4000))).shape == (3, 10, 10)
    with pytest.raises(UserError, match=r"limit of 796 bytes \(4 per pixel of data\.max_pixels\), 10 x 10 = 100"):
        decode(path, 3, rules=Decoding(max_pixels=199))
    with pytest.raises(UserError, match="; max_pixels sets the limit"):
        decode(path, 3, rules=Decoding(max_pixels=99, limit_key="max_pixels"))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_compositing_is_exact_for_every_value(mode: str) -> None:
    """Against whole numbers, over all pairs of color and alpha, in more than one stripe."""
    color, alpha = np.meshgrid(np.arange(256), np.arange(256))
    image = np.dstack([color] * (len(mode) - 1) + [alpha]).astype(np.uint8).repeat(5, axis=0)
    for behind in (0, 77, 255):
        exact = np.rint((color * alpha + behind * (255 - alpha)) / 255).astype(np.uint8).repeat(5, axis=0)
        found = as_image(Image.fromarray(image), 3, rules=Decoding((behind, behind, behind)))
        assert all(np.array_equal(plane.numpy(), exact) for plane in found)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_lab_is_read_with_any_channels(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "a.tif"
    Image.new("LAB", (4, 3), (255, 128, 128)).save(path)
    found = decode(path, channels)
    assert found.shape == (channels, 3, 4)
    assert int(found.min()) >= 254


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"empty file \(0 bytes\)"),
        (b"\n <!DOCTYPE html><html>", "HTML page instead of an image"),
        (b"\xef\xbb\xbf<html lang='en'>", "HTML page instead of an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", r"Git LFS pointer.*git lfs pull"),
        (bytes(5000), "first 256 bytes are zero"),
        (b"some text", "not an image in a format"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for source in (path, content, io.BytesIO(content)):
        for call in (lambda source=source: decode(source, 3, name="a.jpg"), lambda source=source: pixels(source)):
            with pytest.raises(UserError, match=message):
                call()


def test_a_damaged_file_of_a_plugin_that_is_there_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    with pytest.raises(UserError, match="pip install pillow-heif"):
        decode(heic, 3)
    monkeypatch.setitem(Image.OPEN, "HEIF", (lambda *_: None, None))
    with pytest.raises(UserError, match=r"image \(24 bytes\): damaged HEIC image"):
        decode(heic, 3)


def test_a_closed_image_is_said_to_be_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 3)).save(path)
    with Image.open(path) as image:
        pass
    with pytest.raises(UserError, match=r"a\.png: image is closed"):
        as_image(image, 3)
    loaded = Image.new("RGB", (4, 3))
    loaded.close()
    with pytest.raises(UserError, match="image is closed"):
        as_image(loaded, 3)


def test_the_libraries_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(stream, "TIFF", compression="tiff_lzw")
    data = bytearray(stream.getvalue())
    data[200:4000] = bytes(3800)
    for content in (bytes(data), stream.getvalue()[:6000]):
        with pytest.raises(UserError, match="unreadable image"):
            decode(content, 3)
    assert decoding._quiet_libtiff.cache_info().currsize == 1
    assert capfd.readouterr() == ("", "")
