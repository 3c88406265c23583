"""Sources found by themselves, the validation split that is carved, and what a Dataset promises."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitral.config import build
from vitral.data import sources
from vitral.data.config import DataConfig
from vitral.data.content_ids import first_copies
from vitral.data.dataset import Dataset, Labels, fingerprint, memory_split, spaced
from vitral.data.sources import SOURCES, open_dataset
from vitral.data.splits import iteratively_stratified, stratified, with_validation
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
    held = stratified(labels, fraction, 0)
    assert len(held) == round(fraction * len(labels))
    assert np.array_equal(held, np.unique(held))
    taken = np.bincount(labels[held], minlength=len(counts))
    assert np.abs(taken - len(held) * np.array(counts) / len(labels)).max() <= 1
    assert np.array_equal(held, stratified(labels, fraction, 0))
    assert not np.array_equal(held, stratified(labels, fraction, 1))


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
            Image.new("L", (4, 4), "ab".index(label) * 2 + index).save(path)
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


def copied(labels: Labels, copies: int) -> tuple[Labels, Labels]:
    """These labels with `copies` exact copies planted in random places; and where the first copy of each stands."""
    random = np.random.default_rng(1)
    of = np.concatenate([np.arange(len(labels)), random.integers(0, len(labels), copies)])
    of = random.permutation(of)
    _, first, inverse = np.unique(of, return_index=True, return_inverse=True)
    return labels[of], first[inverse]


@pytest.mark.parametrize("copies", [1, 30, 300])
@pytest.mark.parametrize("counts", [(100, 100), (7, 50, 300), (20,) * 30])
def test_copies_are_on_one_side(counts: tuple[int, ...], copies: int) -> None:
    labels, first = copied(labels_of(*counts), copies)
    held = stratified(labels, 0.1, 0, first)
    kept = np.setdiff1d(np.arange(len(labels)), held)
    assert not set(first[held]) & set(first[kept])
    assert len(held) == pytest.approx(0.1 * len(labels), abs=len(counts))
    taken, all_of_it = (np.bincount(part, minlength=len(counts)) for part in (labels[held], labels))
    assert np.abs(taken - 0.1 * all_of_it).max() <= 3
    hot = labels[:, None] == np.arange(len(counts))
    held = iteratively_stratified(hot, 0.1, 0, first)
    kept = np.setdiff1d(np.arange(len(labels)), held)
    assert not set(first[held]) & set(first[kept])
    assert np.abs(np.bincount(labels[held], minlength=len(counts)) - 0.1 * all_of_it).max() <= 4


def test_without_copies_nothing_changes() -> None:
    labels = labels_of(7, 50, 300)
    places = np.arange(len(labels))
    assert np.array_equal(stratified(labels, 0.1, 0, places), stratified(labels, 0.1, 0))
    hot = np.random.default_rng(0).random((200, 4)) < 0.3
    assert np.array_equal(iteratively_stratified(hot, 0.2, 0, np.arange(200)), iteratively_stratified(hot, 0.2, 0))


def test_nothing_but_copies() -> None:
    """Every image four times: whole groups, also where each is larger than its class's share."""
    first = np.repeat(np.arange(20) * 4, 4)
    labels = np.repeat(np.arange(2, dtype=np.int64), 40)
    held = stratified(labels, 0.1, 0, first)
    assert np.bincount(labels[held]).tolist() == [4, 4]
    assert len(set(first[held])) == 2
    labels, first = np.repeat(np.arange(2, dtype=np.int64), 12), np.repeat(np.arange(6) * 4, 4)
    assert np.bincount(labels[stratified(labels, 0.01, 0, first)]).tolist() == [4, 4]


def test_copies_are_found_by_content(tmp_path: Path) -> None:
    """Files byte by byte; images in memory by their pixels, however many channels they are read with."""
    for name, color in (("a/0", 1), ("a/1", 2), ("a/2", 1), ("b/0", 3), ("b/1", 1), ("b/2", 4)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (5, 4), color).save(tmp_path / f"{name}.png")
    data = open_dataset(DataConfig(path=str(tmp_path)), hold_out=False)
    assert first_copies(data.splits["train"]).tolist() == [0, 1, 0, 3, 0, 5]
    assert first_copies(data.splits["train"].subset([5, 4, 2])).tolist() == [0, 1, 1]
    colors = np.array([[9, 9, 9], [9, 10, 9], [9, 9, 9]], np.uint8)[:, :, None, None]
    for channels in (1, 3):
        split = memory_split(colors, np.zeros(3, np.int64), list("abc"), channels)
        assert first_copies(split).tolist() == [0, 1, 0]


def test_a_class_that_is_one_image_many_times_cannot_be_split(tmp_path: Path) -> None:
    images = np.array([1, 1, 1, 2, 3], np.uint8)[:, None, None, None]
    split = memory_split(images, np.array([0, 0, 0, 1, 1]), list("abcde"), 1)
    with pytest.raises(UserError, match=r"(?s)one image is too few.*: cat.*2 or more different images"):
        with_validation(Dataset("x", ("cat", "dog"), {"train": split}, 1, (), "00"), 0.3)
