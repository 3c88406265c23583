"""The check against sets with planted faults: exactly these are found, with these names, and nothing else."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitral.data import check_cache
from vitral.data.check import check_dataset
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, Split, memory_split
from vitral.data.findings import CODES, CheckReport, Finding, known_codes
from vitral.data.label_names import joined_labels
from vitral.data.scan import scan
from vitral.data.sources import open_dataset


def picture(number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A smooth random color picture, unlike every other."""
    random = np.random.default_rng([7, number])
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def plant(root: Path, split: str, label: str, numbers: range) -> None:
    folder = root / split / label
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        picture(number).save(folder / f"{number:03d}.png")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes with ten training and three test images each, nothing wrong with them."""
    root = tmp_path / "pets"
    for place, label in enumerate(("cat", "dog")):
        plant(root, "train", label, range(100 * place, 100 * place + 10))
        plant(root, "test", label, range(100 * place + 50, 100 * place + 53))
    return root


def checked(root: Path, **keys: Any) -> CheckReport:
    return check_dataset(
        open_dataset(DataConfig(path=str(root), source="folder"), hold_out=False, equal_classes=False), **keys
    )


def found(report: CheckReport) -> dict[str, list[set[str]]]:
    """Names of each finding's groups, by code."""
    return {each.code: [{sample.name for sample in group} for group in each.groups] for each in report.findings}


def test_nothing_wrong_nothing_found(pets: Path) -> None:
    report = checked(pets)
    assert report.findings == ()
    assert report.counts == {"train": 20, "test": 6}


def test_duplicates_by_kind(pets: Path) -> None:
    picture(3).save(pets / "train/cat/again.png")  # inside a split
    picture(4).save(pets / "test/cat/leak.png")  # across
    picture(105).save(pets / "train/cat/wrong.bmp")  # a dog's pixels in another format: other label, same split
    report = checked(pets)
    wrong = {"train/dog/105.png", "train/cat/wrong.bmp"}
    assert found(report) == {
        "duplicates-across": [{"train/cat/004.png", "test/cat/leak.png"}],
        "duplicates-labels": [wrong],
        "duplicates": [{"train/cat/003.png", "train/cat/again.png"}, wrong],
    }
    assert [each.code for each in report.errors()] == ["duplicates-across", "duplicates-labels"]
    assert [each.code for each in report.errors({"duplicates-across"})] == ["duplicates-labels"]
    assert report.findings[0].numbers == {"groups": 1, "images": 2}
    assert {sample.split for sample in report.findings[0].groups[0]} == {"train", "test"}


def changed(image: Image.Image) -> Image.Image:
    """Resized, cropped by 2 %, and through JPEG 70."""
    width, height = image.size
    image = image.resize((64, 50), Image.Resampling.BICUBIC, box=(0.01 * width, 0, width, 0.99 * height))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return Image.open(buffer)


def test_look_alikes_inside_and_across(pets: Path) -> None:
    changed(picture(3)).save(pets / "train/cat/near.png")
    changed(picture(51)).save(pets / "train/cat/leak.jpg", quality=90)
    changed(picture(107)).save(pets / "train/cat/other.png")
    report = checked(pets)
    assert found(report) == {
        "near-across": [{"train/cat/leak.jpg", "test/cat/051.png"}],
        "near": [{"train/cat/other.png", "train/dog/107.png"}, {"train/cat/003.png", "train/cat/near.png"}],
    }
    assert {each.severity for each in report.findings} == {"warning"}
    assert report.findings[0].numbers == {"pairs": 2, "different_labels": 1, "mirrored": 0, "cropped": 0}


def test_look_alikes_are_not_looked_for_under_32_pixels_nor_among_equal_ones(tmp_path: Path) -> None:
    for side, expected in ((31, {}), (32, {"near"})):
        root = tmp_path / str(side)
        for label, first in (("cat", 0), ("dog", 50)):
            (root / label).mkdir(parents=True)
            for number in range(first, first + 8):
                picture(number, (side, 40)).save(root / label / f"{number}.png")
        almost = np.array(picture(0, (side, 40)))
        almost[0, 0] ^= 1
        Image.fromarray(almost).save(root / "cat/almost.png")
        assert found(checked(root)).keys() == set(expected)


def test_constant_and_damaged_images(pets: Path) -> None:
    Image.new("RGB", (48, 40), (9, 99, 200)).save(pets / "train/dog/blue.png")
    (pets / "train/cat/empty.png").write_bytes(b"")
    whole = (pets / "train/cat/001.png").read_bytes()
    (pets / "test/dog/cut.png").write_bytes(whole[: len(whole) // 2])
    report = checked(pets)
    assert found(report) == {
        "damaged": [{"train/cat/empty.png"}, {"test/dog/cut.png"}],
        "constant": [{"train/dog/blue.png"}],
    }
    assert {name: list(places) for name, places in report.damaged.items()} == {"train": [10], "test": [6]}
    assert [each.code for each in report.errors()] == ["damaged"]
    assert checked(pets, max_bad=1).errors()
    assert not checked(pets, max_bad=2).errors()
    with pytest.raises(ValueError, match="max_bad"):
        known_codes(("damaged",))


def test_splits_that_lack_classes(pets: Path) -> None:
    plant(pets, "test", "owl", range(200, 203))
    plant(pets, "train", "fox", range(300, 309))
    report = checked(pets)
    assert found(report) == {"split-classes": []}
    assert "train has none of owl" in report.findings[0].message
    assert "test has none of fox" in report.findings[0].message


def test_one_small_and_unequal_classes(tmp_path: Path) -> None:
    plant(tmp_path, "train", "cat", range(40))
    plant(tmp_path, "train", "dog", range(100, 104))
    report = checked(tmp_path)
    assert found(report) == {"small-class": [], "imbalance": []}
    assert report.findings[1].numbers == {"ratio": 10.0}
    report = checked_memory(np.zeros(20, np.int64))
    assert [each.code for each in report.findings] == ["one-class", "empty-class"]


def checked_memory(labels_N: Any, names: list[str] | None = None, **keys: Any) -> CheckReport:
    return check_dataset(in_memory(labels_N, names), **keys)


def in_memory(
    labels_N: Any, names: list[str] | None = None, classes: tuple[str, ...] = ("cat", "dog"), made_up: bool = False
) -> Dataset:
    images_NCHW = np.random.default_rng(0).integers(0, 256, (len(labels_N), 3, 9, 8), dtype=np.uint8)
    names = names or [f"{index}" for index in range(len(labels_N))]
    split = memory_split(images_NCHW, labels_N, names, 3, made_up=made_up)
    return Dataset("mem", classes, {"train": split}, 3, (), "00")


@pytest.mark.parametrize(
    ("classes", "name", "label", "wrong"),
    [
        (("cat", "dog"), "dog/cat_12.png", 1, True),
        (("cat", "dog"), "dog/Cat-12.png", 1, True),
        (("cat", "dog"), "dog/cat.12.png", 1, True),
        (("cat", "dog"), "cat/cat_12.png", 0, False),
        (("cat", "dog"), "dog/catalogue_12.png", 1, False),
        (("cat", "dog"), "dog/cat_and_dog_1.png", 1, False),
        (("cat", "dog"), "dog/IMG_0012.png", 1, False),
        (("cat", "cat big"), "cat big/cat_big_1.png", 1, False),
        (("cat", "cat big"), "cat/cat_big_1.png", 0, False),  # its own name is in it
        (("0", "3"), "3/0012.png", 1, False),
        (("0", "3"), "3/0_12.png", 1, False),
        (("train", "bus"), "train/00017", 1, False),  # CIFAR-100 has a class of this name, and so names its split
        (("cat", "dog"), "photos/dog/001.png", 0, True),
    ],
)
def test_label_against_name(classes: tuple[str, ...], name: str, label: int, wrong: bool) -> None:
    labels_N = np.array([0, 1] * 8 + [label])
    names = [f"{classes[value]}/{index}x.png" for index, value in enumerate(labels_N[:-1])]
    report = check_dataset(in_memory(labels_N, [*names, name], classes))
    assert found(report) == ({"name-label": [{name}]} if wrong else {})


def test_numbers_as_classes_count_where_files_are_named_after_them() -> None:
    labels_N = np.array([0, 1] * 10)
    names = [f"{value}/{value}_{index}.png" for index, value in enumerate(labels_N)]
    names[7] = "1/0_7.png"
    assert found(check_dataset(in_memory(labels_N, names, ("0", "1")))) == {"name-label": [{"1/0_7.png"}]}


def files(labels_N: Any, classes: tuple[str, ...], form: str) -> list[str]:
    return [form.format(label=classes[label], i=i) for i, label in enumerate(labels_N.tolist())]


@pytest.mark.parametrize(
    ("classes", "form"),
    [
        (("0", "1"), "{label}/{i:05d}.png"),  # running numbers
        (("0", "1"), "{label}/{i}.png"),
        (("0", "1", "2", "3", "4"), "img/{i:04d}_left.png"),  # grades in a table
        (("0", "1", "2", "3", "4"), "img/{i}/left.png"),
        (("A", "B"), "{label}/a{i:04d}.png"),
        (("cat", "dog"), "{label}/cat_{i:04d}.png"),  # named alike in both classes
        (("train", "bus"), "{label}/train_{i:06d}.png"),
    ],
)
def test_numbers_and_shared_names_say_nothing(classes: tuple[str, ...], form: str) -> None:
    labels_N = np.arange(60) % len(classes)
    labels_N[::3] = 0
    assert found(check_dataset(in_memory(labels_N, files(labels_N, classes, form), classes))) == {}


def test_names_that_the_source_makes_up_are_not_looked_at() -> None:
    labels_N = np.arange(40) % 2
    names = [f"{'cat' if i < 30 else 'dog'}/{i}" for i in range(40)]
    assert found(check_dataset(in_memory(labels_N, names, made_up=True))) == {}
    assert "name-label" in found(check_dataset(in_memory(labels_N, names)))


def test_a_few_wrong_names_are_a_warning() -> None:
    labels_N = np.arange(400) % 2
    names = files(labels_N, ("cat", "dog"), "{label}/{label}_{i:03d}.png")
    for wrong, severity in ((4, "warning"), (5, "error")):
        changed = [f"dog/cat_{i:03d}.png" if i in range(1, 2 * wrong, 2) else name for i, name in enumerate(names)]
        [finding] = check_dataset(in_memory(labels_N, changed)).findings
        assert (finding.code, finding.severity, finding.numbers) == ("name-label", severity, {"images": wrong})


def test_a_flat_folder_is_no_class() -> None:
    labels_N = np.array([0] * 10 + [1] * 10)
    names = [f"train/{'cat' if i % 2 else 'dog'}_{i:04d}.png" for i in range(10)] + [f"b/{i}.png" for i in range(10)]
    report = check_dataset(in_memory(labels_N, names, ("images", "bird")))
    assert [each.code for each in report.findings] == ["flat-folder"]
    assert report.findings[0].numbers == {"labels": 2, "images": 10}
    names = [f"images/IMG_{i:04d}.png" for i in range(10)] + [f"b/DSC_{i}.png" for i in range(10)]
    assert not check_dataset(in_memory(labels_N, names, ("images", "bird"))).findings


FLAT = "flat-folder"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"mine": "cat dog"}, {FLAT: "error", "one-class": "error"}),
        ({"batch_1": "cat dog", "batch_2": "cat dog"}, {FLAT: "error"}),
        ({"cat": "cat", "dog": "dog", "new": "cat dog"}, {FLAT: "error", "name-label": "error"}),
        ({"cat": "cat", "dog": "dog", "new": "fox owl"}, {FLAT: "error"}),
        ({"cat": "siamese persian", "dog": "poodle beagle"}, {}),  # breeds
        ({"cat": "cat", "dog": "poodle beagle"}, {}),
        ({"healthy": "left right", "ill": "left right"}, {FLAT: "warning"}),
        ({"mine": "cat dog", "yours": "dog cat"}, {FLAT: "warning"}),
        ({"cat": "cat", "dog": "dog", "both": "both"}, {}),
        ({"cat": "cat wild-cat", "dog": "dog", "owl": "owl"}, {}),
        ({"cat": "img", "dog": "dsc"}, {}),
        ({"raw": "steak chicken", "cooked": "steak chicken"}, {FLAT: "warning"}),
        ({"photo": "steak chicken", "sketch": "tea chicken"}, {}),
        ({"train": "steam_train train_s", "bus": "coach minibus"}, {}),
        ({"train": "steam_train train_s", "bus": "dsc"}, {}),
    ],
)
def test_flat_folders_are_found_and_subjects_are_not(files: dict[str, str], expected: dict[str, str]) -> None:
    names = [f"{folder}/{labels.split()[i % 2 if ' ' in labels else 0]}_{i:03d}.png" for folder, labels in files.items()
             for i in range(12)]  # fmt: skip
    labels_N = np.repeat(np.arange(len(files)), 12)
    report = check_dataset(in_memory(labels_N, names, tuple(files)))
    assert {each.code: each.severity for each in report.findings} == expected


@pytest.mark.parametrize(
    ("classes", "joined"),
    [
        (("cat", "dog", "cat;dog"), {";": ["cat;dog"]}),
        (("cat|dog", "dog|owl", "owl | cat"), {"|": ["cat|dog", "dog|owl", "owl | cat"]}),
        (("a, b", "a", "b", "c"), {",": ["a, b"]}),
        (("Paris, France", "Lyon, France", "Rome, Italy"), {}),
        (("salt;pepper", "sugar"), {}),
        ((";", "a;", "a"), {}),
    ],
)
def test_a_forgotten_separator_of_labels_is_told(classes: tuple[str, ...], joined: dict[str, list[str]]) -> None:
    assert joined_labels(classes) == joined
    report = check_dataset(in_memory(np.arange(8 * len(classes)) % len(classes), None, classes))
    assert [each.code for each in report.findings] == ["label-separator"] * len(joined)
    assert all(repr(sign) in each.message for sign, each in zip(joined, report.findings, strict=True))


def test_sizes_aspects_and_gray(pets: Path) -> None:
    picture(900, (8, 9)).save(pets / "train/cat/tiny.png")
    picture(901, (400, 40)).save(pets / "train/dog/strip.png")
    picture(902).convert("L").save(pets / "test/cat/gray.png")
    assert found(checked(pets)) == {
        "sizes": [{"train/cat/tiny.png"}],
        "aspect": [{"train/dog/strip.png"}],
        "gray-mix": [{"test/cat/gray.png"}],
    }


def test_several_labels_an_image(tmp_path: Path) -> None:
    labels_NK = np.array([[True, True], [True, False], [False, True], [True, True]] * 3)
    images_NCHW = np.random.default_rng(0).integers(0, 256, (12, 1, 40, 40), dtype=np.uint8)
    images_NCHW[3], images_NCHW[2] = images_NCHW[0], images_NCHW[1]
    split = memory_split(images_NCHW, labels_NK, [str(i) for i in range(12)], 1)
    report = check_dataset(Dataset("m", ("a", "b"), {"train": split}, 1, (), "00"))
    assert found(report) == {"duplicates-labels": [{"1", "2"}], "duplicates": [{"0", "3"}, {"1", "2"}]}
    assert report.findings[0].groups[0][0].label == "a"


@pytest.mark.parametrize(
    ("mean", "std", "far"),
    [
        (0.5, 0.29, False),
        (0.05, 0.29, True),
        (0.95, 0.29, True),
        (0.5, 0.05, True),
        (0.5, 0.9, True),
        (0.4, 0.4, False),
    ],
)
def test_statistics_against_a_checkpoint(mean: float, std: float, far: bool) -> None:
    """Uniform noise has mean 0.5 and std 0.29: too dark, too bright, too flat and too wild are all told."""
    report = checked_memory(np.array([0, 1] * 8), normalization=((mean,) * 3, (std,) * 3))
    assert found(report).keys() == ({"normalization"} if far else set())


def test_sums_are_those_of_numpy_in_any_number_of_threads(pets: Path) -> None:
    split = open_dataset(DataConfig(path=str(pets)), hold_out=False).splits["train"]
    one, many = scan(split, 3, 1), scan(split, 3, 5)
    pixels_XC = np.concatenate([split.read(i).numpy().reshape(3, -1).T for i in range(len(split))]) / 255
    np.testing.assert_allclose(one.mean, pixels_XC.mean(0), rtol=1e-12)
    np.testing.assert_allclose(one.std, pixels_XC.std(0), rtol=1e-9)
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, vars(many)[name])


def test_the_digits_have_no_errors() -> None:
    report = check_dataset(open_dataset(DataConfig(path="digits"), hold_out=False))
    assert not report.findings


def counted(dataset: Dataset) -> tuple[Dataset, list[int]]:
    """The dataset, and a list that grows with every image read."""
    reads: list[int] = []

    def wrap(split: Split) -> Split:
        def read(index: int) -> torch.Tensor:
            reads.append(index)
            return split.read(index)

        return Split(split.labels_N, split.names, read, split.size, split.file)

    splits = {name: wrap(split) for name, split in dataset.splits.items()}
    return Dataset(dataset.name, dataset.classes, splits, dataset.channels, (), dataset.fingerprint), reads


def test_unchanged_files_are_not_decoded_again(pets: Path, tmp_path: Path) -> None:
    picture(3).save(pets / "train/cat/again.png")

    def again(**keys: Any) -> tuple[CheckReport, int]:
        dataset, reads = counted(open_dataset(DataConfig(path=str(pets), source="folder"), hold_out=False))
        return check_dataset(dataset, cache=tmp_path / "cache", **keys), len(reads)

    first, count = again()
    assert (count, first.cached) == (27, False)
    second, count = again()
    assert (count, second.cached) == (0, True)
    assert second.findings == first.findings
    assert (second.fingerprint, second.mean, second.std) == (first.fingerprint, first.mean, first.std)
    assert again(variant="background black")[1] == 27
    file = pets / "train/cat/005.png"
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    touched, count = again()
    assert count == 27
    assert touched.fingerprint == first.fingerprint  # the content is the same
    picture(999).save(file)
    assert again()[0].fingerprint != first.fingerprint
    file.unlink()
    assert again()[1] == 26


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"name": 1}', "ü".encode("latin-1")])
def test_a_damaged_cache_is_no_harm(damage: bytes, tmp_path: Path) -> None:
    dataset = in_memory(np.array([0, 1] * 6))
    first = check_dataset(dataset, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    assert check_dataset(dataset, cache=tmp_path) == first
    assert check_dataset(dataset, cache=tmp_path).cached


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not check_dataset(in_memory(np.array([0, 1] * 6)), cache=tmp_path / "file/below").cached


def test_processes_check_the_same_data_at_once(pets: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from vitral.data.check import check_dataset; from vitral.data.config import DataConfig\n"
        "from vitral.data.sources import open_dataset\n"
        "d = open_dataset(DataConfig(path=sys.argv[1]), hold_out=False)\n"
        "print(check_dataset(d, cache=Path(sys.argv[2])).fingerprint)\n"
    )
    command = [sys.executable, "-c", code, str(pets), str(tmp_path / "cache")]
    here = {**os.environ, "PYTHONPATH": str(Path(check_cache.__file__).parents[2])}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=here) for _ in range(3)
    ]
    answers = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert answers == {checked(pets).fingerprint + "\n"}
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".json"]


def test_the_cache_lies_where_the_system_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert check_cache.cache_folder() == tmp_path / "vitral/checks"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert check_cache.cache_folder() == Path.home() / ".cache/vitral/checks"


def test_reports_survive_json(pets: Path) -> None:
    (pets / "train/cat/empty.png").write_bytes(b"")
    picture(3).save(pets / "test/cat/again.png")
    report = checked(pets)
    assert CheckReport.from_json(report.to_json()) == report


@pytest.mark.parametrize("make", [lambda: Finding("nonsense", "error", "x"), lambda: known_codes(("duplicats",))])
def test_codes_are_known(make: Callable[[], object]) -> None:
    with pytest.raises((AssertionError, ValueError), match=r"nonsense|did you mean 'duplicates'"):
        make()
    assert all(severity in ("error", "warning") and text for severity, text in CODES.values())


@pytest.fixture(scope="module")
def cifar_folder(cifar_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifar") / "c10"
    subprocess.run([sys.executable, str(cifar_pack / "unpack.py"), "folder", str(folder)], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "recall"), [("saved", 0.98), ("mirrored", 0.95), ("tinted", 0.95), ("cropped", 0.6)]
)
def test_planted_look_alikes_among_real_images(cifar_folder: Path, change: str, recall: float) -> None:
    """10,000 CIFAR-10 images with 500 of them planted again, changed: most are found, and little else."""
    script = Path(__file__).parents[2] / "benchmarks/data_check.py"
    command = [
        sys.executable,
        str(script),
        str(cifar_folder / "test"),
        "images=10000",
        "planted=500",
        f"change={change}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    checked, result = (json.loads(line) for line in done.stdout.splitlines())
    assert checked["checked"] == result["images"] == 10_000
    assert result["recall"] >= recall
    assert result["other_pairs"] <= 60  # of the 10,000 themselves; looked at, they are the same pictures
