"""Images of more than 8 bits: one rule of black and white per data set, exact in every format, kept with the model."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import vitral
from tests.helpers import TINY, edit_config, random_model
from vitral.cli.main import main
from vitral.data import check_cache, value_range
from vitral.data.channels import Decoding, Extent, own_range
from vitral.data.config import DataConfig, DataSource
from vitral.data.dataset import Dataset
from vitral.data.decode import as_image, decode, is_deep
from vitral.data.sources import open_dataset
from vitral.data.value_range import range_of
from vitral.errors import UserError
from vitral.run.command_options import EvalOptions
from vitral.run.config import load_config
from vitral.run.evaluate import evaluate
from vitral.run.train import run
from vitral.weights.folder import load_config as load_config_of

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png16(path: Path, words: np.ndarray, key: tuple[int, ...] | None = None) -> Path:
    """A PNG of 16 bits with 1 to 4 channels, which Pillow can't write; `key` is the transparent color."""
    height, width, channels = words.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in words)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    parts += [(b"tRNS", struct.pack(f">{len(key)}H", *key))] if key is not None else []
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in parts
        )
    )
    return path


def tiff(path: Path, values: np.ndarray, photometric: int = 1) -> Path:
    """One strip, uncompressed, little-endian: [H,W] or [H,W,C] of any type."""
    shape = values.shape[2] if values.ndim == 3 else 1
    tags: list[tuple[int, int, list[int]]] = [
        (256, 4, [values.shape[1]]), (257, 4, [values.shape[0]]), (258, 3, [values.dtype.itemsize * 8] * shape),
        (259, 3, [1]), (262, 3, [photometric]), (273, 4, [8]), (277, 3, [shape]), (278, 4, [values.shape[0]]),
        (279, 4, [values.nbytes]), (339, 3, [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * shape),
    ]  # fmt: skip
    body, extra = values.tobytes(), b""
    start = 8 + len(body)
    entries = b""
    for tag, kind, numbers in tags:
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            place = start + 2 + 12 * len(tags) + 4 + len(extra)
            extra += packed
            packed = struct.pack("<I", place)
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    path.write_bytes(
        b"II*\0" + struct.pack("<I", start) + body + struct.pack("<H", len(tags)) + entries + b"\0" * 4 + extra
    )
    return path


def folder(root: Path, images: list[np.ndarray], ending: str = "tif") -> Path:
    for number, image in enumerate(images):
        for split in ("train", "val"):
            place = root / split / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number}.{ending}")
    return root


def opened(root: Path, **keys: object) -> Dataset:
    return open_dataset(DataConfig(path=str(root), **keys))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bits_used_in_16_bit_files_are_the_scale(tmp_path: Path, bits: int) -> None:
    top = (1 << bits) - 1
    images = [RNG.integers(0, top // 2, (6, 6)).astype(np.uint16) for _ in range(4)]
    images[2][0, 0] = top - 1
    data = opened(folder(tmp_path / "data", images))
    assert data.value_range == (0, top)
    assert f"data.value_range=0,{top})" in data.notes[0]
    read = {name: data.splits["train"].read(place) for place, name in enumerate(data.splits["train"].names)}
    for number, image in enumerate(images):
        expected = np.rint(image.astype(np.float64) * 255 / top)
        assert np.array_equal(read[f"train/{'ab'[number % 2]}/{number}.tif"][0].numpy(), expected)


def test_16_bit_color_keeps_the_bits_that_are_used(tmp_path: Path) -> None:
    """10 bits in each of three channels: of the high bytes alone four levels would be left."""
    for number in range(4):
        (tmp_path / "data/train/ab"[: -1 if number % 2 else None]).mkdir(parents=True, exist_ok=True)
    words = RNG.integers(0, 1024, (4, 6, 5, 3)).astype(np.uint16)
    words[0, 0, 0] = 1023
    for number, image in enumerate(words):
        place = tmp_path / "color/train" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        png16(place / f"{number}.png", image)
    data = opened(tmp_path / "color", val_fraction=0.5)
    assert data.value_range == (0, 1023)
    assert data.channels == 3
    for split in data.splits.values():
        for place, name in enumerate(split.names):
            expected = np.rint(words[int(name[-5])].astype(np.float64) * 255 / 1023)
            assert np.array_equal(split.read(place).numpy().transpose(1, 2, 0), expected)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_16_bit_samples_are_read_whole(tmp_path: Path, channels: int, kind: str) -> None:
    if (channels, kind) == (2, "tif"):
        pytest.skip("Pillow reads no such TIFF")
    words = RNG.integers(0, 4096, (7, 5, channels)).astype(np.uint16)
    words[0, 0] = 4095
    if channels != 3:
        words[..., -1] = RNG.integers(0, 65536, (7, 5))
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        png16(path, words)
    else:
        tiff(path, words, photometric=2)
    rules = Decoding(value_range=(0, 4095))
    color = words[..., : 3 if channels > 2 else 1].astype(np.float64)
    expected = np.rint(color * 255 / 4095)
    if channels != 3:
        expected = np.dstack([expected, np.rint(words[..., -1:] / 257)])
    for source in (path, path.read_bytes()):
        assert np.array_equal(decode(source, channels, rules=rules).numpy().transpose(1, 2, 0), expected)
    with Image.open(path) as image:
        assert np.array_equal(as_image(image, channels, rules=rules).numpy().transpose(1, 2, 0), expected)
    with path.open("rb") as stream:
        assert np.array_equal(as_image(stream, channels, rules=rules).numpy().transpose(1, 2, 0), expected)
    assert is_deep(path)
    with pytest.raises(UserError, match="uses 12 bits"):
        decode(path, channels)


def test_the_transparent_color_of_16_bits_is_compared_with_all_bits(tmp_path: Path) -> None:
    """PNG specification, tRNS: equal in every bit; the neighbor with the same high bytes is opaque."""
    words = np.array([[[40000, 30000, 20000], [40000, 30000, 20001], [65535, 0, 300]]], np.uint16)
    path = png16(tmp_path / "a.png", words, (40000, 30000, 20000))
    found = decode(path, 4).numpy().transpose(1, 2, 0)
    assert found[0, :, 3].tolist() == [0, 255, 255]
    assert np.array_equal(found[..., :3], np.rint(words / 257))
    assert decode(path, 3)[:, 0, 0].tolist() == [255, 255, 255]
    assert decode(path, 3)[:, 0, 1].tolist() == np.rint(words[0, 1] / 257).tolist()


def test_white_is_zero(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535]], np.uint16)
    assert decode(tiff(tmp_path / "a.tif", values, photometric=0), 1).tolist() == [[[255, 254, 0]]]
    words = np.array([[0, 1023]], np.uint16)
    rules = Decoding(value_range=(0, 1023))
    assert decode(tiff(tmp_path / "b.tif", words, photometric=0), 1, rules=rules).tolist() == [[[255, 0]]]


def test_unsigned_integers_of_32_bits_do_not_wrap(tmp_path: Path) -> None:
    values = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    path = tiff(tmp_path / "a.tif", values)
    assert decode(path, 1, rules=Decoding(value_range=(0, 2**32 - 1))).tolist() == [[[0, 128, 255]]]
    signed = tiff(tmp_path / "b.tif", np.array([[-(2**31), 0, 2**31 - 1]], np.int32))
    assert decode(signed, 1, rules=Decoding(value_range=(-(2**31), 2**31 - 1))).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        ([(0.1, 0.9, True), (0, 0.3, True)], (0, 1)),
        ([(0, 1.0001, True), (0.2, 0.9, True)], (0, 1.0001)),
        ([(0, 254.5, True)], (0, 255)),
        ([(0, 65535, True)], (0, 65535)),
        ([(0, 0.01, True)], (0, 0.01)),
        ([(0, 8000, True)], (0, 8000)),
        ([(-1024, 3071, False), (0, 100, False)], (-1024, 3071)),
        ([(-0.5, 0.25, True)], (-0.5, 0.25)),
        ([(0, 2**31, False)], (0, 2**32 - 1)),
        ([(0, 3, False)], (0, 255)),
        ([(0, 0, True)], (0, 1)),
    ],
)
def test_the_range_of_a_set(extents: list[tuple[float, float, bool]], expected: tuple[float, float]) -> None:
    assert range_of({str(number): Extent(*each) for number, each in enumerate(extents)}, "x") == expected


def test_images_of_one_set_in_different_ranges_are_refused(tmp_path: Path) -> None:
    share, byte = RNG.random((6, 6)).astype(np.float32), (255 * RNG.random((6, 6))).astype(np.float32)
    with pytest.raises(UserError, match=r"2 float images of another range.*ends at 0\.\d+, the largest value of all"):
        opened(folder(tmp_path / "floats", [share, byte]))
    with pytest.raises(UserError, match=r"different ranges: .* holds floats, .* integers"):
        opened(folder(tmp_path / "mixed", [share, byte.astype(np.int32)]))
    assert opened(tmp_path / "mixed", value_range=(0.0, 255.0)).value_range == (0, 255)


def test_the_range_is_found_once_and_kept_while_the_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [RNG.integers(0, 900, (6, 6)).astype(np.uint16) for _ in range(4)]
    root = folder(tmp_path / "data", images)
    assert opened(root).value_range == (0, 1023)
    read, extent_of = [], value_range.sample_extent
    monkeypatch.setattr(value_range, "sample_extent", lambda *a, **k: (read.append(a), extent_of(*a, **k))[1])
    assert opened(root).value_range == (0, 1023)
    assert not read
    Image.fromarray(images[0] * 4).save(root / "train/a/0.tif")
    assert opened(root).value_range == (0, 4095)
    assert len(read) == 8
    for kept in check_cache.cache_folder().iterdir():
        kept.write_text('{"train: a": 3}', encoding="utf-8")
    assert opened(root).value_range == (0, 4095)


def test_8_bit_data_have_no_rule(tmp_path: Path) -> None:
    data = opened(folder(tmp_path / "data", [RNG.integers(0, 256, (6, 6), np.uint8) for _ in range(4)], "png"))
    assert data.value_range is None
    assert opened(tmp_path / "data", value_range=(0.0, 1.0)).value_range == (0, 1)


def test_what_lies_beyond_is_clipped_with_a_note_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.linspace(0, 0.9, 144, dtype=np.float32).reshape(12, 12)
    glint = values.copy()
    glint[0, 0] = 7
    path = tmp_path / "glint.tif"
    Image.fromarray(glint).save(path)
    rules = Decoding(value_range=(0, 0.9371))  # used by no other test: noted once per range
    found = decode(path, 1, rules=rules)[0].numpy()
    assert found[0, 0] == 255
    assert np.array_equal(found.ravel()[1:], np.rint(values.astype(np.float64).ravel()[1:] / 0.9371 * 255))
    assert "glint.tif: values from 0.006" in caplog.text
    assert "are clipped to data.value_range=0,0.9371" in caplog.text
    Image.fromarray(values * 255).save(path)
    with pytest.raises(UserError, match=r"glint\.tif: values from 0 to 229\.5 do not fit data\.value_range=0,0\.937"):
        decode(path, 1, rules=rules)


def test_arrays_follow_the_same_rule() -> None:
    words = RNG.integers(0, 1024, (6, 5, 3)).astype(np.uint16)
    expected = np.rint(words.astype(np.float64) * 255 / 1023)
    for kind in (np.uint16, np.int32, np.int64, np.float32):
        found = as_image(words.astype(kind), 3, rules=Decoding(value_range=(0, 1023)))
        assert np.array_equal(found.numpy().transpose(1, 2, 0), expected)
    with pytest.raises(UserError, match="uses 10 bits"):
        as_image(words, 3)
    assert own_range(Extent(0, 0, False), True) == (0, 65535)  # black, whatever white would be


def test_the_rule_travels_with_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [RNG.integers(0, 1024, (8, 8)).astype(np.uint16) for _ in range(8)]
    root = folder(tmp_path / "data", words)
    random_model(tmp_path / "plain", ("a", "b"))
    config = json.loads((tmp_path / "plain/config.json").read_text(encoding="utf-8"))
    image = str(root / "val/a/0.tif")
    assert config["preprocessing"]["value_range"] is None
    with pytest.raises(UserError, match=r"uses 10 bits.*Set value_range=0,1023"):
        vitral.load(str(tmp_path / "plain")).predict(image)
    assert main(["predict", str(tmp_path / "plain"), image]) == 2
    assert "Set value_range=0,1023" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "plain"), image, "value_range=[0,1023]"]) == 0
    said = json.loads(capsys.readouterr().out)
    shutil.copytree(tmp_path / "plain", tmp_path / "ruled")
    edit_config(tmp_path / "ruled", lambda tree: tree["preprocessing"].update(value_range=[0, 1023]))
    ruled = vitral.load(str(tmp_path / "ruled"))
    assert ruled.predict(image)[0]["predictions"] == said["predictions"]
    data = DataSource(path=str(root))
    with pytest.raises(UserError, match=r"uses 10 bits[^.]*. Set value_range=0,1023"):
        evaluate(str(tmp_path / "plain"), EvalOptions(data=data))
    assert evaluate(str(tmp_path / "plain"), EvalOptions(data=data, value_range=(0.0, 1023.0)))["count"] == 8


def test_training_keeps_the_rule_and_every_command_uses_it(tmp_path: Path) -> None:
    """The rule of the whole set, in the run's configuration and in the model folder."""
    root = folder(tmp_path / "data", [RNG.integers(0, 1024, (8, 8)).astype(np.uint16) for _ in range(16)])
    keys = {
        **TINY,
        "check.allow": ["duplicates-across"],
        "data.path": str(root),
        "data.source": "folder",
        "out": str(tmp_path / "run"),
    }
    run(load_config("digits", {**TINY, **keys, "out": str(tmp_path / "run")}))
    config = load_config_of(tmp_path / "run/model")
    assert config.preprocessing.value_range == (0, 1023)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text(encoding="utf-8"))["data"]["value_range"] == [
        0,
        1023,
    ]
    predictor = vitral.load(str(tmp_path / "run"))
    image = root / "val/a/0.tif"
    exact = np.asarray(Image.open(image)).astype(np.float64) / 1023
    assert np.abs(predictor.preprocess(image)[0].numpy() - exact).max() <= 0.5 / 255 + 1e-6
    assert evaluate(str(tmp_path / "run"))["count"] == 16
    assert evaluate(str(tmp_path / "run"), EvalOptions(data=DataSource(path=str(root))))["count"] == 16


def test_one_extreme_sample_does_not_set_the_range(tmp_path: Path) -> None:
    """A hot pixel in one image, and -9999 for no data in all of them."""
    words = [RNG.integers(0, 1024, (8, 8)).astype(np.uint16) for _ in range(20)]
    words[7][3, 3] = 65535
    with pytest.raises(UserError, match=r"(?s)less than 16 of 255.*7\.tif has values from .* to 65535.*value_range="):
        opened(folder(tmp_path / "hot", words))
    assert opened(tmp_path / "hot", value_range=(0.0, 1023.0)).value_range == (0, 1023)
    shares = [np.where(RNG.random((8, 8)) < 0.1, -9999, RNG.random((8, 8))).astype(np.float32) for _ in range(8)]
    with pytest.raises(UserError, match=r"(?s)has values from -9999 to .*data\.value_range="):
        opened(folder(tmp_path / "gaps", shares))
    color = tmp_path / "color/train"
    for number in range(4):
        (color / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        image = RNG.integers(0, 1024, (6, 6, 3)).astype(np.uint16)
        image[0, 0, 0] = 65535 if number == 0 else 5
        png16(color / "ab"[number % 2] / f"{number}.png", image)
    with pytest.raises(UserError, match=r"less than 16 of 255.*0\.png has values"):
        opened(tmp_path / "color", val_fraction=0.5)


def test_sets_with_dark_images_and_empty_areas_keep_their_range(tmp_path: Path) -> None:
    """Black frames, masked backgrounds and many values alone are no extremes."""
    words = [RNG.integers(0, 4096, (8, 8)).astype(np.uint16) for _ in range(6)]
    words[1][:] = 0
    words[2] = words[2] // 100
    words[3][:7] = 0
    assert opened(folder(tmp_path / "data", words)).value_range == (0, 4095)
    assert opened(folder(tmp_path / "few", [RNG.integers(0, 9, (8, 8)).astype(np.uint16)] * 4)).value_range == (0, 255)


@pytest.mark.parametrize("scale", [(0, 4095), (0, 255), (0, 65535), (-1024, 3071)])
def test_floats_of_another_scale_than_the_model_are_refused(scale: tuple[float, float], tmp_path: Path) -> None:
    share = RNG.random((6, 6)).astype(np.float32)
    Image.fromarray(share).save(tmp_path / "a.tif")
    rules = Decoding(value_range=scale, range_key="value_range")
    with pytest.raises(UserError, match=r"less than 1/255 of value_range=.*set value_range=LOW,HIGH"):
        decode(tmp_path / "a.tif", 1, rules=rules)
    with pytest.raises(UserError, match="less than 1/255"):
        as_image(share, 1, rules=rules)
    assert len(as_image(np.zeros((6, 6), np.float32), 1, rules=rules).unique()) == 1  # black is black in any range


def test_dark_integers_are_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rules = Decoding(value_range=(0, 4090))  # used by no other test: noted once per range
    assert not as_image(np.array([[0, 3], [5, 2]], np.uint16), 1, rules=rules).any()
    assert "become black under data.value_range=0,4090" in caplog.text


def test_floats_that_overshoot_by_rounding_are_clipped(tmp_path: Path) -> None:
    values = np.array([[-1e-7, 0.5, 1.0000001]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert decode(tmp_path / "a.tif", 1).tolist() == [[[0, 128, 255]]]
    with pytest.raises(UserError, match=r"floats outside of \[0,1\] \(values from 0 to 1\.1"):
        as_image(np.array([[0, 1.1]], np.float32), 1)


def test_12_bits_packed_say_what_white_is(tmp_path: Path) -> None:
    words = np.array([[0, 1, 2048, 4000]], np.uint16)
    path = tiff(tmp_path / "a.tif", words)
    packed = bytes.fromhex("000001800fa0")
    content = bytearray(path.read_bytes())
    content[8:16] = packed + b"\0\0"
    for tag, value in ((258, 12), (279, 6)):
        at = content.index(struct.pack("<HHI", tag, 3 if tag == 258 else 4, 1))
        content[at + 8 : at + 12] = struct.pack("<I", value)
    path.write_bytes(content)
    assert decode(path, 1).tolist() == [[np.rint(words[0] * 255.0 / 4095).tolist()]]
