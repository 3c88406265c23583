"""CIFAR: files written here in the published layouts, read back pixel by pixel, and everything that must be refused."""

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitral.config import build
from vitral.data import cifar
from vitral.data.cifar import CIFAR10_CLASSES, LAYOUTS, find_cifar
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.sources import open_dataset
from vitral.errors import UserError

ROWS = 40
RNG = np.random.default_rng(0)
PIXELS = {part: RNG.integers(0, 256, (ROWS, 3072), np.uint8) for part in (1, 2, 3, 4, 5, "test")}
LABELS = {part: RNG.permutation(np.arange(ROWS) % 10).tolist() for part in PIXELS}
FINE = {part: (np.arange(300) % 100).tolist() for part in ("train", "test")}
FINE_PIXELS = {part: RNG.integers(0, 256, (300, 3072), np.uint8) for part in FINE}
SYSTEM = vars(os)["system"]
FINE_NAMES = [f"thing_{index:02d}" for index in range(100)]


def dump(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def old_numpy(path: Path) -> None:
    """As NumPy 1 wrote it: the same pickle but for the name of a module."""
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def python10(root: Path) -> Path:
    folder = root / "cifar-10-batches-py"
    for part in PIXELS:
        name = "test_batch" if part == "test" else f"data_batch_{part}"
        files = [f"x_{index}.png".encode() for index in range(ROWS)]
        dump(folder / name, {b"data": PIXELS[part], b"labels": LABELS[part], b"filenames": files})
    dump(folder / "batches.meta", {b"label_names": [name.encode() for name in CIFAR10_CLASSES], b"num_vis": 3072})
    return folder


def binary10(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for part in PIXELS:
        rows = np.concatenate([np.array(LABELS[part], np.uint8)[:, None], PIXELS[part]], 1)
        (folder / ("test_batch.bin" if part == "test" else f"data_batch_{part}.bin")).write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10_CLASSES) + "\n\n", encoding="utf-8")
    return folder


def python100(root: Path) -> Path:
    folder = root / "cifar-100-python"
    for part in FINE:
        content = {b"data": FINE_PIXELS[part], b"fine_labels": FINE[part], b"coarse_labels": [0] * 300}
        dump(folder / part, content)
    dump(folder / "meta", {b"fine_label_names": [name.encode() for name in FINE_NAMES], b"coarse_label_names": [b"x"]})
    return folder


def binary100(root: Path) -> Path:
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    for part in FINE:
        labels = np.stack([np.full(300, 7, np.uint8), np.array(FINE[part], np.uint8)], 1)
        (folder / f"{part}.bin").write_bytes(np.concatenate([labels, FINE_PIXELS[part]], 1).tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(FINE_NAMES), encoding="utf-8")
    return folder


def opened(path: Path, **keys: object) -> Dataset:
    return open_dataset(build(DataConfig, {"path": str(path), "verify": False, **keys}))


def same(first: Dataset, second: Dataset) -> None:
    assert (first.classes, first.fingerprint) == (second.classes, second.fingerprint)
    for name, split in first.splits.items():
        other = second.splits[name]
        assert np.array_equal(split.labels_N, other.labels_N)
        assert list(split.names) == list(other.names)
        assert all((split.read(index) == other.read(index)).all() for index in range(len(split)))


def test_every_image_of_cifar10(tmp_path: Path) -> None:
    python10(tmp_path)
    data = opened(tmp_path)
    assert (data.name, data.channels, data.classes, data.typical_size()) == ("cifar10", 3, CIFAR10_CLASSES, (32, 32))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 180, "val": 20, "test": 40}
    train = np.concatenate([PIXELS[part] for part in (1, 2, 3, 4, 5)]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([LABELS[part] for part in (1, 2, 3, 4, 5)])
    whole = {"train": (train, labels), "test": (PIXELS["test"].reshape(-1, 3, 32, 32), np.array(LABELS["test"]))}
    seen: set[str] = set()
    for split in data.splits.values():
        for index, name in enumerate(split.names):
            part, place = name.split("/")
            assert np.array_equal(split.read(index).numpy(), whole[part][0][int(place)])
            assert split.labels_N[index] == whole[part][1][int(place)]
            seen.add(name)
    assert len(seen) == 240


@pytest.mark.parametrize(("python", "binary"), [(python10, binary10), (python100, binary100)])
def test_both_layouts_hold_the_same(tmp_path: Path, python: Any, binary: Any) -> None:
    first, second = python(tmp_path / "a"), binary(tmp_path / "b")
    same(opened(first.parent), opened(second.parent))
    same(opened(first), opened(second, source="cifar"))


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    python100(tmp_path)
    data = opened(tmp_path)
    assert (data.name, data.classes) == ("cifar100", tuple(FINE_NAMES))
    assert data.splits["test"].labels_N.tolist() == FINE["test"]


def test_pickles_of_any_numpy_and_with_text_keys(tmp_path: Path) -> None:
    reference = opened(python10(tmp_path / "a"))
    other = python10(tmp_path / "b")
    for part in PIXELS:
        path = other / ("test_batch" if part == "test" else f"data_batch_{part}")
        labels = np.array(LABELS[part], ">i4")
        dump(path, {"data": np.asfortranarray(PIXELS[part]), "labels": labels})
        assert b"_reconstruct" in path.read_bytes()
        old_numpy(path)
    assert b"numpy.core.multiarray" in (other / "test_batch").read_bytes()
    same(reference, opened(other))


def test_gray_on_request(tmp_path: Path) -> None:
    data = opened(python10(tmp_path), channels=1)
    luma = np.array([0.299, 0.587, 0.114]) @ PIXELS["test"][0].reshape(3, -1)
    assert np.abs(data.splits["test"].read(0).numpy().ravel() - luma).max() <= 0.51


class Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [SYSTEM, os.mkdir, eval, exec, __import__, getattr])
def test_nothing_in_a_pickle_runs(tmp_path: Path, function: Any) -> None:
    folder = python10(tmp_path)
    mark = tmp_path / "ran"
    commands = {SYSTEM: f"mkdir {mark}", os.mkdir: str(mark), eval: f"__import__('os').mkdir({str(mark)!r})"}
    payload = Evil(function, commands.get(function, "os"))
    for content in ({b"data": payload}, payload, {b"data": PIXELS[1], b"labels": LABELS[1], b"filenames": [payload]}):
        dump(folder / "data_batch_2", content)
        with pytest.raises(UserError, match=rf"data_batch_2.*wants to load .*{function.__name__}"):
            opened(folder)
    assert not mark.exists()


def test_stand_ins_are_harmless(tmp_path: Path) -> None:
    """What is let through makes no array of objects and decodes nothing but latin1."""
    folder = python10(tmp_path)
    objects = np.array([{"a": 1}, None], object)
    for content in (objects, {b"data": objects, b"labels": [1, 2]}, {b"data": PIXELS[1], b"labels": objects}):
        dump(folder / "data_batch_1", content)
        with pytest.raises(UserError, match="data_batch_1"):
            opened(folder)
    raw = pickle.dumps({b"a": 1}, protocol=2).replace(b"\x06\0\0\0latin1", b"\x05\0\0\0rot13")
    (folder / "data_batch_1").write_bytes(raw)
    with pytest.raises(UserError, match=r"data_batch_1.*other than latin1"):
        opened(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "a dict is expected"),
        ({b"data": PIXELS[1]}, "not a CIFAR batch"),
        ({b"data": PIXELS[1][:, :3000], b"labels": LABELS[1]}, "not a CIFAR batch"),
        ({b"data": PIXELS[1].astype(np.int32), b"labels": LABELS[1]}, "not a CIFAR batch"),
        ({b"data": PIXELS[1], b"labels": LABELS[1][1:]}, "39 and 40"),
        ({b"data": PIXELS[1], b"labels": [10] * ROWS}, "out of range"),
        ({b"data": PIXELS[1], b"labels": [-1] * ROWS}, "out of range"),
        ({b"data": PIXELS[1], b"labels": [0.5] * ROWS}, "out of range"),
        ({b"data": PIXELS[1], b"labels": [[1], [1, 2]]}, "out of range"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: object, message: str) -> None:
    folder = python10(tmp_path)
    dump(folder / "data_batch_3", content)
    with pytest.raises(UserError, match=rf"data_batch_3: (.|\n)*{message}"):
        opened(folder)


def test_cut_off_files(tmp_path: Path) -> None:
    for folder, name in ((python10(tmp_path), "data_batch_4"), (binary10(tmp_path), "data_batch_4.bin")):
        raw = (folder / name).read_bytes()
        for length in (0, 1, len(raw) // 2 + 1, len(raw) - 1):
            (folder / name).write_bytes(raw[:length])
            with pytest.raises(UserError, match=name):
                opened(folder)


def test_labels_of_binary_files_are_checked(tmp_path: Path) -> None:
    folder = binary10(tmp_path)
    raw = bytearray((folder / "test_batch.bin").read_bytes())
    raw[3073] = 10
    (folder / "test_batch.bin").write_bytes(raw)
    with pytest.raises(UserError, match=r"test_batch\.bin: labels out of range"):
        opened(folder)


def test_sums_are_checked_and_switched_off_loudly(tmp_path: Path) -> None:
    folder = python10(tmp_path)
    with pytest.raises(UserError, match=r"md5 sums differ(.|\n)*data\.verify=false") as caught:
        opened(folder, verify=True)
    got = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()
    assert str(folder / "batches.meta") in str(caught.value)
    assert got in str(caught.value)
    assert "5ff9c542aee3614f3951f8cda6e48888" in str(caught.value)
    assert any(note.startswith("MD5 SUMS NOT CHECKED") and str(folder) in note for note in opened(folder).notes)


def test_files_with_the_published_sums_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = python10(tmp_path)
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert set(sums) == set(LAYOUTS[0].md5)
    monkeypatch.setattr(cifar, "LAYOUTS", (LAYOUTS[0]._replace(md5=sums),))
    data = opened(folder, verify=True)
    assert not any("md5" in note.lower() for note in data.notes)
    same(data, replace(opened(folder), notes=()))
    (folder / "data_batch_5").write_bytes((folder / "data_batch_5").read_bytes() + b"x")
    with pytest.raises(UserError, match=rf"data_batch_5(.|\n)*{sums['data_batch_5']}"):
        opened(folder, verify=True)


def test_binary_files_are_checked_by_size_and_one_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = binary10(tmp_path)
    with pytest.raises(UserError, match=r"data_batch_1\.bin(.|\n)*30730000 bytes"):
        opened(folder, verify=True)
    monkeypatch.setattr(cifar, "LAYOUTS", (LAYOUTS[1]._replace(rows=ROWS),))
    with pytest.raises(UserError, match=r"test_batch\.bin(.|\n)*803d5f7f4d78ea53de84dbe85f74fb6d"):
        opened(folder, verify=True)
    good = {"test_batch.bin": hashlib.md5((folder / "test_batch.bin").read_bytes()).hexdigest()}
    monkeypatch.setattr(cifar, "LAYOUTS", (LAYOUTS[1]._replace(rows=ROWS, md5=good),))
    notes = opened(folder, verify=True).notes
    assert any("size and label range only" in note and "data_batch_1.bin" in note for note in notes)
    assert not any("test_batch.bin" in note for note in notes)


def test_missing_files(tmp_path: Path) -> None:
    folder = python10(tmp_path)
    (folder / "batches.meta").unlink()
    assert opened(folder).classes == CIFAR10_CLASSES
    (folder / "data_batch_2").unlink()
    (folder / "test_batch").unlink()
    with pytest.raises(UserError, match="missing CIFAR files: data_batch_2, test_batch"):
        opened(folder, verify=True)
    data = opened(folder)
    assert "test" not in data.splits
    assert any("without data_batch_2, test_batch" in note for note in data.notes)
    hundred = python100(tmp_path)
    (hundred / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"a", b"b"]}, protocol=2))
    with pytest.raises(UserError, match=r"meta: not the class names(.|\n)*2 names"):
        opened(hundred)


def test_which_folder_is_cifar(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no CIFAR files here"):
        opened(tmp_path, source="cifar")
    (tmp_path / "train").write_bytes(b"")  # an everyday name: no CIFAR-100 without its class names
    assert find_cifar(tmp_path) == []
    folders = [make(tmp_path) for make in (binary10, python10)]
    assert [folder for _, folder in find_cifar(tmp_path)] == folders[::-1]
    assert "cifar-10-batches-py" in " ".join(opened(tmp_path).notes)
    python100(tmp_path)
    with pytest.raises(UserError, match="both CIFAR-10 and CIFAR-100"):
        opened(tmp_path)
