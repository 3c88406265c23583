"""Sources found by themselves, the validation split that is carved, and what a Dataset promises."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitral.config import build
from vitral.data import sources
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, Labels, fingerprint, memory_split, spaced
from vitral.data.sources import SOURCES, iteratively_stratified, open_dataset, stratified
from vitral.errors import UserError


def opened(**keys: object) -> Dataset:
    return open_dataset(build(DataConfig, keys))


def labels_of(*counts: int) -> Labels:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(0).permutation(labels).astype(np.int64)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("counts", [(100, 100), (7, 50, 300), (20,) * 30, (33, 34, 35)])
def test_the_held_out_part_is_exact_and_stratified(counts: tuple[int, ...], fraction: float) -> None:
    labels = labels_of(*counts)
    held_out = stratified(labels, fraction, 0)
    assert len(held_out) == round(fraction * len(labels))
    assert np.array_equal(held_out, np.unique(held_out))
    taken = np.bincount(labels[held_out], minlength=len(counts))
    assert np.abs(taken - len(held_out) * np.array(counts) / len(labels)).max() <= 1
    assert np.array_equal(held_out, stratified(labels, fraction, 0))
    assert not np.array_equal(held_out, stratified(labels, fraction, 1))


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_every_class_is_on_both_sides(fraction: float) -> None:
    counts = (2, 2, 3, 500)
    labels = labels_of(*counts)
    taken = np.bincount(labels[stratified(labels, fraction, 0)], minlength=4)
    assert (taken >= 1).all()
    assert (taken <= np.array(counts) - 1).all()
    assert taken.sum() == max(round(fraction * 507), 4) if fraction < 0.9 else 503


def test_the_choice_never_changes() -> None:
    """Frozen values: another choice would change every published result on carved data."""
    labels = np.arange(20, dtype=np.int64) % 2
    assert stratified(labels, 0.2, 0).tolist() == [1, 8, 18, 19]


def test_a_subset_of_a_subset() -> None:
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 4), np.uint8)
    whole = memory_split(images, np.arange(10, dtype=np.int64), [f"s/{i}" for i in range(10)], 3)
    part = whole.subset([9, 5, 3, 1]).subset(np.array([2, 0]))
    assert len(part) == 2
    assert part.names == ["s/3", "s/9"]
    assert part.labels_N.tolist() == [3, 9]
    assert [int(part.read(i)[0, 0, 0]) for i in range(2)] == [3, 9]
    assert part.size is not None
    assert part.size(0) == (2, 4)
    again = pickle.loads(pickle.dumps(part))  # to other processes
    assert torch.equal(again.read(1), part.read(1))


def test_spaced_places() -> None:
    assert spaced(3, 5) == [0, 1, 2]
    assert spaced(9, 5) == [0, 2, 4, 6, 8]
    assert spaced(10**9, 256)[-1] == 10**9 - 1


def test_fingerprints_keep_parts_apart() -> None:
    assert fingerprint([b"ab", b"c"]) != fingerprint([b"a", b"bc"])
    assert fingerprint([b"ab", b"c"]) == fingerprint([b"ab", np.frombuffer(b"c", np.uint8).data])


def test_the_same_data_gives_the_same_dataset() -> None:
    first, second = opened(path="digits"), opened(path="digits")
    assert first.fingerprint == second.fingerprint
    for name in ("train", "val", "test"):
        assert first.splits[name].names == second.splits[name].names
    fewer = opened(path="digits", val_fraction=0.3)
    assert fewer.fingerprint == first.fingerprint
    assert len(fewer.splits["val"]) == 431
    assert fewer.splits["test"].names == first.splits["test"].names


def test_a_split_that_exists_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(path="digits")

    def same(config: DataConfig) -> Dataset:
        return replace(data, notes=())

    monkeypatch.setitem(SOURCES, "digits", same)
    again = opened(path="digits")
    assert again.splits == data.splits
    assert again.notes == ()


def test_no_path() -> None:
    with pytest.raises(UserError, match=r"data=DIR.*data=digits"):
        opened()
    with pytest.raises(UserError, match="source folder needs a folder"):
        opened(source="folder")
    assert opened(source="digits").name == "digits"


def test_a_missing_path_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    for written in ("flowrs", "flower/train/x"):
        with pytest.raises(UserError, match="no such folder") as caught:
            opened(path=str(tmp_path / written))
        assert caught.value.nearest == str(tmp_path / "flowers")
    with pytest.raises(UserError, match="did you mean 'digits'"):
        opened(path="digit")
    with pytest.raises(UserError, match="no such folder"):
        opened(path=str(tmp_path / "qqqqqq"), source="cifar")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    for name, message in (("a.png", "this is a file"), ("cifar-10-python.tar.gz", "Unpack it")):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=message):
            opened(path=str(tmp_path / name))


def test_a_folder_called_digits_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in "ab":
        for index in range(2):
            path = tmp_path / "digits" / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(path)
    monkeypatch.chdir(tmp_path)
    assert opened(path="digits").classes == ("a", "b")
    assert opened(path="digits", source="digits").classes == tuple("0123456789")
    with pytest.raises(UserError, match="the digits are built in"):
        opened(path="elsewhere", source="digits")


def test_what_the_system_refuses_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def denied(config: DataConfig) -> Dataset:
        raise PermissionError(13, "Permission denied", str(tmp_path / "locked"))

    monkeypatch.setitem(sources.SOURCES, "folder", denied)
    with pytest.raises(UserError, match="locked: cannot be read: Permission denied"):
        opened(path=str(tmp_path), source="folder")


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_multi_label_data_are_held_out_in_proportion(fraction: float) -> None:
    random = np.random.default_rng(0)
    labels_NK = random.random((400, 6)) < np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.01])
    labels_NK[:2, 5] = True
    held = iteratively_stratified(labels_NK, fraction, 0)
    assert np.array_equal(held, iteratively_stratified(labels_NK, fraction, 0))
    assert len(np.unique(held)) == len(held) == pytest.approx(400 * fraction, abs=3)
    taken_K, all_K = labels_NK[held].sum(axis=0), labels_NK.sum(axis=0)
    assert np.abs(taken_K - fraction * all_K).max() <= 2
    assert ((taken_K > 0) & (taken_K < all_K)).all()
