"""Image folders: what is found in them, and every way in which they can be wrong."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vitral.config import build
from vitral.data.check import check_dataset
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.sources import open_dataset
from vitral.errors import UserError


def write(path: Path, color: tuple[int, int, int] | int = 0, size: tuple[int, int] = (6, 4)) -> Path:
    """An image of one color; PNG files say their path, so that no two are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = PngInfo()
    own.add_text("path", str(path))
    image = Image.new("L" if isinstance(color, int) else "RGB", size, color)
    image.save(path, pnginfo=own) if path.suffix == ".png" else image.save(path)
    return path


def fill(root: Path, classes: str = "cat dog", count: int = 3, color: tuple[int, int, int] | int = (9, 8, 7)) -> Path:
    for label in classes.split():
        for index in range(count):
            write(root / label / f"{index}.png", color)
    return root


def opened(path: Path, **keys: object) -> Dataset:
    return open_dataset(build(DataConfig, {"path": str(path), **keys}))


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(path)


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_splits_classes_and_labels(tmp_path: Path, val: str) -> None:
    for split, count in (("train", 3), (val, 1), ("test", 2)):
        fill(tmp_path / split, "dog cat Ibis", count)
    data = opened(tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 9, "val": 3, "test": 6}
    assert data.classes == ("Ibis", "cat", "dog")
    assert data.notes == ()
    for split in data.splits.values():
        assert [data.classes[label] for label in split.labels_N] == [Path(name).parent.name for name in split.names]
    assert data.splits["val"].names == [f"{val}/{label}/0.png" for label in data.classes]
    image = data.splits["test"].read(5)
    assert image.shape == (3, 4, 6)
    assert image[:, 0, 0].tolist() == [9, 8, 7]


def test_classes_alone_are_all_train(tmp_path: Path) -> None:
    data = opened(fill(tmp_path, count=10), val_fraction=0.2)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 16, "val": 4}
    assert np.bincount(data.splits["val"].labels_N).tolist() == [2, 2]
    assert data.notes[0] == "no validation split: 4 of 20 train images held out, stratified, seed 0"
    assert "no test split" in data.notes[1]


def test_files_are_found_at_any_depth_with_any_case(tmp_path: Path) -> None:
    fill(tmp_path)
    Image.new("RGB", (6, 4)).save(tmp_path / "cat" / "3.JPG", "JPEG")
    write(tmp_path / "cat" / "2024" / "may" / "4.png")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "cat" / "notes.txt").write_text("x", encoding="utf-8")
    write(tmp_path / "cat" / ".thumbs" / "5.png")
    write(tmp_path / "__MACOSX" / "cat" / "6.png")
    write(tmp_path / ".git" / "7.png")
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog")
    names = {name for split in data.splits.values() for name in split.names}
    cats = {"cat/0.png", "cat/1.png", "cat/2.png", "cat/3.JPG", "cat/2024/may/4.png"}
    assert names == cats | {f"dog/{i}.png" for i in range(3)}
    assert "ignored 1 file that ends in .txt, no image format" in data.notes


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    store = fill(tmp_path / "store")
    (tmp_path / "data").mkdir()
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).symlink_to(store / label)
    os.symlink(store / "cat", store / "cat" / "again")
    data = opened(tmp_path / "data")
    assert sum(len(split) for split in data.splits.values()) == 6


def test_channels_come_from_the_headers(tmp_path: Path) -> None:
    fill(tmp_path, color=50)
    assert opened(tmp_path).channels == 1
    assert opened(tmp_path).splits["train"].read(0).tolist() == [[[50] * 6] * 4]
    assert opened(tmp_path, channels=3).splits["train"].read(0).shape == (3, 4, 6)
    write(tmp_path / "dog" / "9.png", (1, 2, 3))
    assert opened(tmp_path).channels == 3
    (tmp_path / "cat" / "0.png").write_bytes(b"damaged")
    assert opened(tmp_path).channels == 3


def test_typical_size_is_the_median_as_seen(tmp_path: Path) -> None:
    for index, size in enumerate([(10, 30), (12, 30), (50, 31)]):
        for label in ("a", "b"):
            for split in ("train", "val"):
                write(tmp_path / split / label / f"{index}.png", 0, size)
    assert opened(tmp_path).typical_size() == (30, 12)
    exif = Image.Exif()
    exif[0x0112] = 6
    for label in ("a", "b"):
        for index in range(3):
            Image.new("L", (64, 20)).save(tmp_path / "train" / label / f"{index}.png", exif=exif)
    assert opened(tmp_path).typical_size() == (64, 20)


def test_unreadable_images_are_named_when_read(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "val")
    (tmp_path / "train" / "cat" / "1.png").write_text("not an image", encoding="utf-8")
    data = opened(tmp_path)
    assert data.typical_size() == (4, 6)
    assert data.splits["train"].read(0).shape == (3, 4, 6)
    with pytest.raises(UserError, match=r"1\.png"):
        data.splits["train"].read(1)
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"\.png"):
        opened(tmp_path).typical_size()


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    first = opened(fill(tmp_path / "a")).fingerprint
    assert opened(fill(tmp_path / "b")).fingerprint == first  # where it lies says nothing
    assert opened(tmp_path / "b", val_fraction=0.4, channels=1).fingerprint == first
    path = tmp_path / "b" / "cat" / "0.png"
    path.write_bytes(path.read_bytes() + b"more")
    assert opened(tmp_path / "b").fingerprint != first
    path.rename(tmp_path / "a" / "cat" / "7.png")
    assert opened(tmp_path / "a").fingerprint != first
    assert len(first) == 16
    assert int(first, 16) >= 0


def test_class_indices_come_from_train_alone(tmp_path: Path) -> None:
    fill(tmp_path / "train", "ant bee cat")
    fill(tmp_path / "val", "bee cat")
    refused(tmp_path, r"split 'val'.*missing: ant")
    fill(tmp_path / "val", "ant cow")
    refused(tmp_path, r"split 'val'.*extra: cow")
    fill(tmp_path / "train", "cow")
    assert opened(tmp_path).classes == ("ant", "bee", "cat", "cow")
    fill(tmp_path / "test", "bee dog")
    refused(tmp_path, r"split 'test'.*missing: ant, cat, cow; extra: dog")


def test_empty_folders(tmp_path: Path) -> None:
    refused(tmp_path, "no images here")
    (tmp_path / "cat").mkdir()
    refused(tmp_path, "no images here")
    fill(tmp_path, "dog emu")
    refused(tmp_path, r"classes without any image: cat(.|\n)*files that end in")
    (tmp_path / "cat" / "0.txt").write_text("x", encoding="utf-8")
    refused(tmp_path, "classes without any image: cat")
    assert open_dataset(DataConfig(path=str(tmp_path)), equal_classes=False).classes == ("cat", "dog", "emu")


def test_images_without_class_folders(tmp_path: Path) -> None:
    write(tmp_path / "b.png")
    write(tmp_path / "a.png")
    refused(tmp_path, r"2 images lie directly in this folder.*one is a\.png(.|\n)*<class>")
    fill(tmp_path / "data" / "train")
    write(tmp_path / "data" / "test" / "7.png")
    refused(tmp_path / "data", r"test: 1 image lies directly")


def test_strays_beside_classes_are_told(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "val")
    write(tmp_path / "train" / "stray.png")
    fill(tmp_path / "unlabeled", "x")
    notes = opened(tmp_path).notes
    assert "ignored 1 image outside of the class folders, in train" in notes
    assert "ignored 1 folder beside train: unlabeled" in notes


def test_one_class_and_one_image(tmp_path: Path) -> None:
    refused(fill(tmp_path, "cat"), r"only one class(.|\n)*cat")
    write(tmp_path / "dog" / "0.png")
    refused(tmp_path, "one image is too few.*dog")


def test_split_names(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "val")
    refused(tmp_path / "a", "none named train")
    for name in ("train", "val", "valid"):
        fill(tmp_path / "b" / name)
    refused(tmp_path / "b", "two folders for one split: val and valid")
    assert opened(fill(tmp_path / "c", "car plane train")).classes == ("car", "plane", "train")  # a class of vehicles


def test_images_without_or_with_a_foreign_ending_are_found_by_content(tmp_path: Path) -> None:
    fill(tmp_path)
    for name in ("bare", "photo.jpg_large", "3.dat"):
        (tmp_path / "cat" / name).write_bytes((tmp_path / "cat" / "0.png").read_bytes())
    (tmp_path / "cat" / "album.db").write_bytes(b"\xd0\xcf\x11\xe0 no image")
    data = opened(tmp_path)
    assert sum(len(split) for split in data.splits.values()) == 9
    assert "ignored 1 file that ends in .db, no image format" in data.notes


def test_a_heic_photo_is_never_passed_over(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "cat" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 50)
    data = open_dataset(DataConfig(path=str(tmp_path)), hold_out=False)
    index = list(data.splits["train"].names).index("cat/IMG_1.HEIC")
    with pytest.raises(UserError, match="pillow-heif"):
        data.splits["train"].read(index)


def test_background_and_pixel_limit_reach_the_files(tmp_path: Path) -> None:
    fill(tmp_path)
    for name in ("cat", "dog"):
        Image.new("RGBA", (6, 4), (0, 0, 0, 0)).save(tmp_path / name / "clear.png")
    train = open_dataset(DataConfig(path=str(tmp_path), background="#010203"), hold_out=False).splits["train"]
    assert train.read(3)[:, 0, 0].tolist() == [1, 2, 3]
    train = open_dataset(DataConfig(path=str(tmp_path), max_pixels=23), hold_out=False).splits["train"]
    with pytest.raises(UserError, match="limit of 23 pixels"):
        train.read(0)


@pytest.mark.parametrize("names", ["Train Val TEST", "training valid testing", "TRAINING Validation Testing"])
def test_splits_in_other_spellings_are_no_classes(tmp_path: Path, names: str) -> None:
    for name in names.split():
        fill(tmp_path / name)
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog")
    assert set(data.splits) == {"train", "val", "test"}


def test_the_hint_at_flat_files_survives_a_stray_text_file(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for index in range(4):
            write(tmp_path / f"{label}_{index}.png")
    (tmp_path / "README.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.source=filename"):
        opened(tmp_path, source="folder")


@pytest.mark.parametrize(
    "stray",
    [
        "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "cat/.AppleDouble/0.png", "cat/Thumbs.db", "__MACOSX/cat/._0.png",
        "cat/._0.png", "$RECYCLE.BIN/S-1/0.png", "lost+found/0.png", ".thumbnails/0.png", "#recycle/cat/0.png",
        "cat/@Recycle/0.png", "System Volume Information/0.png", "cat/.ipynb_checkpoints/0.png",
        "cat/desktop.ini", "@appstore/0.png", "@sharebin/0.png", "cat/@SynoResource/0.png", "RECYCLED/0.png",
        "FOUND.000/0.png",
    ],
)  # fmt: skip
@pytest.mark.parametrize("flat", [False, True])
def test_what_systems_put_beside_images_is_no_data(stray: str, flat: bool, tmp_path: Path) -> None:
    root = fill(tmp_path / "d")
    write(tmp_path / "stray.png").rename(root / "stray")
    (root / stray).parent.mkdir(parents=True, exist_ok=True)
    (root / "stray").rename(root / stray)
    source = "images" if flat else "auto"
    config = build(DataConfig, {"path": str(root), "source": source})
    data = open_dataset(config, hold_out=False, one_class=True)
    assert sum(len(split) for split in data.splits.values()) == 6
    assert data.classes == (("image",) if flat else ("cat", "dog"))
    assert data.notes == ()


@pytest.mark.parametrize("name", ["thumbnails", "_thumbs", "Thumbs"])
def test_thumbnails_beside_images_are_left_out_with_a_note(name: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "d")
    write(root / "cat" / name / "0.png")
    data = open_dataset(build(DataConfig, {"path": str(root)}), hold_out=False)
    assert len(data.splits["train"]) == 6
    assert data.notes == (f"ignored 1 folder of thumbnails beside images ({name})",)
    classes = fill(tmp_path / "signs")
    (classes / "cat").rename(classes / "thumbs")
    (classes / "dog").rename(classes / "recycled")
    assert open_dataset(build(DataConfig, {"path": str(classes)}), hold_out=False).classes == ("recycled", "thumbs")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_never_opened(tmp_path: Path) -> None:
    fill(tmp_path)
    for name in ("pipe", "pipe.png"):
        os.mkfifo(tmp_path / "cat" / name)
    data = open_dataset(build(DataConfig, {"path": str(tmp_path)}), hold_out=False)
    assert len(data.splits["train"]) == 6
    assert data.notes == ("ignored 2 pipes, sockets or devices",)


def test_a_class_called_train_among_other_classes(tmp_path: Path) -> None:
    for label, stems in (("train", "train_s steam_train"), ("bus", "coach_s minibus"), ("tram", "tram")):
        for stem in stems.split():
            for index in range(4):
                write(tmp_path / label / f"{stem}_{index:06d}.png")
    data = open_dataset(build(DataConfig, {"path": str(tmp_path)}), hold_out=False)
    assert data.classes == ("bus", "train", "tram")
    assert len(data.splits["train"]) == 20
    assert not {"flat-folder", "name-label", "split-names"} & {each.code for each in check_dataset(data).findings}


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are always Unicode")
def test_names_of_other_encodings(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/d\xe9p\xf4t"
    for label in (b"caf\xe9", b"the"):
        os.makedirs(root + b"/" + label)
        for index in range(3):
            Image.new("RGB", (6, 4), (index, len(label), 0)).save(tmp_path / "one.png")
            (tmp_path / "one.png").rename(Path(os.fsdecode(root + b"/" + label + b"/\xe9t\xe9%d.png" % index)))
    data = open_dataset(build(DataConfig, {"path": os.fsdecode(root)}), hold_out=False)
    assert data.classes == ("caf\\xe9", "the")
    assert len(data.splits["train"]) == 6
    assert data.name == "d\\xe9p\\xf4t"
    assert data.splits["train"].read(0).shape == (3, 4, 6)
    report = check_dataset(data)
    assert report.damaged == {}
    assert all(sample.name.isascii() for finding in report.findings for group in finding.groups for sample in group)


def test_folders_beside_the_splits_are_a_finding(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "eval", count=2)
    (tmp_path / "docs").mkdir()
    data = open_dataset(build(DataConfig, {"path": str(tmp_path)}), hold_out=False)
    assert data.left_out == {"eval": 4}
    [finding] = [each for each in check_dataset(data).findings if each.code == "left-out"]
    assert finding.message == "folders beside train are not read: eval (4 images)"
    assert finding.numbers == {"folders": 1, "images": 4}


def test_a_test_folder_without_classes_names_the_way_around(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    write(tmp_path / "test" / "a.png")
    refused(tmp_path, rf"(?s)1 image lies directly.*data={tmp_path}/train")
