"""Read CIFAR-10 and CIFAR-100 (fine labels) in the python and the binary layout into memory.

The python layout is made of pickles, which can run any program when they are loaded. Here they cannot: only inert
stand-ins are made, and the arrays are rebuilt from the captured bytes. Source: Krizhevsky 2009, "Learning Multiple
Layers of Features from Tiny Images". Shape letters: N samples, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitral.archive_limits import check_pickle
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, Labels, Pixels, fingerprint, memory_split
from vitral.errors import UserError
from vitral.files import MIB, read_bounded

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
_BYTES = 3 * 32 * 32
_LARGEST = 512 * MIB  # of a file; CIFAR-100's has 155 MB


class Layout(NamedTuple):
    """One way in which one of the sets lies on a disk."""

    name: str
    folder: str
    binary: bool
    train: tuple[str, ...]
    test: str
    meta: str
    classes: int
    label_key: str  # in the pickles
    label_bytes: int  # before the pixels of a binary row; the last one is the label
    rows: int  # of a train file
    md5: dict[str, str]


LAYOUTS = (
    Layout(
        "cifar10", "cifar-10-batches-py", False, tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch",
        "batches.meta", 10, "labels", 0, 10_000,
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    Layout(
        "cifar10", "cifar-10-batches-bin", True, tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin",
        "batches.meta.txt", 10, "", 1, 10_000, {"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"},
    ),
    Layout(
        "cifar100", "cifar-100-python", False, ("train",), "test", "meta", 100, "fine_labels", 0, 50_000,
        {
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
    Layout(
        "cifar100", "cifar-100-binary", True, ("train.bin",), "test.bin", "fine_label_names.txt", 100, "", 2, 50_000, {}
    ),
)  # fmt: skip


def find_cifar(path: Path) -> list[tuple[Layout, Path]]:
    """The CIFAR layouts whose files lie in `path`, or in their usual folders below it; python before binary."""
    return [
        (layout, folder)
        for layout in LAYOUTS
        for folder in (path, path / layout.folder)
        # CIFAR-100's files have everyday names (train, test): the class names must lie beside them.
        if any((folder / name).is_file() for name in (*layout.train, layout.test))
        and (layout.classes == 10 or (folder / layout.meta).is_file())
    ]


def open_cifar(config: DataConfig) -> Dataset:
    """CIFAR-10 or CIFAR-100 from the folder `config.path`, whichever of the four layouts it holds.

    With `verify` every file whose md5 sum is known must have it, and the others the known size. Class indices are the
    files' own. The fingerprint covers labels, pixels and names, and is equal for both layouts of the same images.
    Raises UserError for missing, damaged or changed files, and for a pickle that names anything but plain arrays.
    """
    layout, folder = _one_layout(config.place)
    classes = _classes(layout, folder, config.verify)
    train_files = [name for name in layout.train if (folder / name).is_file()]
    channels = 3 if config.channels == "auto" else config.channels
    parts = {"train": train_files, "test": [layout.test] if (folder / layout.test).is_file() else []}
    missing = [name for name in (*layout.train, layout.test) if not (folder / name).is_file()]
    if missing and (config.verify or not train_files):
        hint = "Pass data.verify=false to skip the check." if train_files else None
        raise UserError(f"missing CIFAR files: {', '.join(missing)}", where=str(folder), hint=hint)
    arrays = {split: _read(layout, folder, files, config.verify) for split, files in parts.items() if files}
    names = {split: [f"{split}/{i:05d}" for i in range(len(arrays[split][1]))] for split in arrays}
    return Dataset(
        name=layout.name,
        classes=classes,
        splits={split: memory_split(*arrays[split], names[split], channels) for split in arrays},
        channels=channels,
        notes=_notes(layout, folder, missing, config.verify),
        fingerprint=fingerprint(
            part
            for split, (images_NCHW, labels_N) in arrays.items()
            for part in (split.encode(), images_NCHW.data, labels_N.data, "\n".join(names[split]).encode())
        ),
    )


def _one_layout(path: Path) -> tuple[Layout, Path]:
    found = find_cifar(path)
    if not found:
        folders = ", ".join(layout.folder for layout in LAYOUTS)
        raise UserError(
            "no CIFAR files here", where=str(path), expected=f"the files of one of {folders}, or that folder"
        )
    if len({layout.name for layout, _ in found}) > 1:
        here = ", ".join(str(folder) for _, folder in found)
        raise UserError("both CIFAR-10 and CIFAR-100 are here", where=str(path), hint=f"Name one of them: {here}.")
    return found[0]


def _notes(layout: Layout, folder: Path, missing: list[str], verify: bool) -> tuple[str, ...]:
    notes = [f"{layout.name} from {folder.name}, without {', '.join(missing)}"] if missing else []
    unsummed = [name for name in (*layout.train, layout.test) if name not in layout.md5]
    if not verify:
        notes.append(f"MD5 SUMS NOT CHECKED (data.verify=false): {folder} may differ from the published {layout.name}")
    elif unsummed:
        notes.append(f"no published md5 sum for {', '.join(unsummed)}: checked by size and label range only")
    return tuple(notes)


def _classes(layout: Layout, folder: Path, verify: bool) -> tuple[str, ...]:
    path = folder / layout.meta
    if not path.is_file():  # of CIFAR-10: see find_cifar
        return CIFAR10_CLASSES
    raw = _bytes(path, layout, verify)
    if layout.binary:
        names = [line.strip() for line in raw.decode("utf-8", "replace").splitlines() if line.strip()]
    else:
        found = _unpickle(raw, path).get("label_names" if layout.classes == 10 else "fine_label_names")
        names = [_text(name) for name in found] if isinstance(found, list) else []
    if len(names) != layout.classes or len(set(names)) != len(names):
        raise UserError(
            "not the class names of this set", where=str(path), got=f"{len(names)} names", expected=layout.classes
        )
    return tuple(names)


def _read(layout: Layout, folder: Path, files: list[str], verify: bool) -> tuple[Pixels, Labels]:
    """Images [N, 3, 32, 32] and labels [N] of these files, one after the other."""
    read = _read_binary if layout.binary else _read_python
    parts = [read(folder / name, _bytes(folder / name, layout, verify), layout) for name in files]
    images_NCHW = np.concatenate([np.ascontiguousarray(pixels).reshape(-1, *SHAPE) for pixels, _ in parts])
    labels_N = np.concatenate([labels for _, labels in parts]).astype(np.int64)
    return images_NCHW, labels_N


def _bytes(path: Path, layout: Layout, verify: bool) -> bytes:
    """The file's content, checked against its md5 sum or, where none is known, its size."""
    raw = read_bounded(path, _LARGEST)
    if not verify or (path.name == layout.meta and path.name not in layout.md5):
        return raw
    if path.name in layout.md5:
        what, got = (
            "not the published CIFAR file (md5 sums differ)",
            hashlib.md5(raw, usedforsecurity=False).hexdigest(),
        )
        expected = layout.md5[path.name]
    else:
        size = (10_000 if path.name == layout.test else layout.rows) * (layout.label_bytes + _BYTES)
        what, got, expected = "not the size of this CIFAR file", f"{len(raw)} bytes", f"{size} bytes"
    if got != expected:
        hint = "data.verify=false switches this check off, if the files are meant to differ."
        raise UserError(what, where=str(path), got=got, expected=expected, hint=hint)
    return raw


def _read_binary(path: Path, raw: bytes, layout: Layout) -> tuple[Pixels, Labels]:
    row = layout.label_bytes + _BYTES
    if not raw or len(raw) % row:
        raise UserError(
            "cut off, or not CIFAR's binary layout", where=str(path), got=f"{len(raw)} bytes", expected=f"rows of {row}"
        )
    rows = np.frombuffer(raw, np.uint8).reshape(-1, row)
    return rows[:, layout.label_bytes :], _labels(rows[:, layout.label_bytes - 1], path, layout)


def _read_python(path: Path, raw: bytes, layout: Layout) -> tuple[Pixels, Labels]:
    content = _unpickle(raw, path)
    data, labels = content.get("data"), content.get(layout.label_key)
    pixels = _whole_numbers(data, path) if isinstance(data, _Inert) else None
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _BYTES or labels is None:
        expected = f"a dict with data, uint8 [N, {_BYTES}], and {layout.label_key}"
        raise UserError(
            "not a CIFAR batch", where=str(path), got=f"keys {', '.join(sorted(content))}", expected=expected
        )
    labels_N = _labels(_whole_numbers(labels, path) if isinstance(labels, _Inert) else labels, path, layout)
    if len(labels_N) != len(pixels):
        raise UserError("labels and images differ in number", where=str(path), got=f"{len(labels_N)} and {len(pixels)}")
    return pixels, labels_N


def _labels(values: Any, path: Path, layout: Layout) -> Labels:
    try:
        labels_N = np.asarray(values)
        whole = labels_N.ndim == 1 and len(labels_N) > 0 and labels_N.dtype.kind in "iu"
    except ValueError:  # nested lists of unequal lengths
        whole, labels_N = False, np.zeros(0)
    if not whole or labels_N.min() < 0 or labels_N.max() >= layout.classes:
        raise UserError(
            "labels out of range", where=str(path), expected=f"whole numbers from 0 to {layout.classes - 1}"
        )
    return labels_N.astype(np.int64)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class _Inert:
    """Stands in for numpy.ndarray and numpy.dtype: keeps what it is made of, and does nothing with it."""

    def __init__(self, *arguments: object) -> None:
        self.arguments, self.state = arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _whole_numbers(array: Any, path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    """The array whose pickled parts these are: whole numbers, or a UserError."""
    try:
        _, shape, dtype, fortran, raw = array.state
        code, order = _text(dtype.arguments[0]), "|" if dtype.state is None else _text(dtype.state[1])
        if code[0] not in "iu" or not isinstance(raw, bytes):
            raise ValueError(f"an array of {code}")
        order = order if order in "<>" else "|" if code[1:] == "1" else "="
        return np.frombuffer(raw, np.dtype(order + code)).reshape(shape, order="F" if fortran else "C")
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"a damaged array: {error}", where=str(path)) from None


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Stands in for _codecs.encode, which Python 3 writes around bytes in protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("an encoding other than latin1")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Inert, ("numpy._core.multiarray", "_reconstruct"): _Inert,
    ("numpy", "ndarray"): _Inert, ("numpy", "dtype"): _Inert, ("_codecs", "encode"): _encode,
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _STAND_INS:
            raise UserError(f"this pickle wants to load {module_name}.{global_name}, which no CIFAR file does; refused")
        return _STAND_INS[module_name, global_name]


def _unpickle(raw: bytes, path: Path) -> dict[str, Any]:
    """The dict in a pickle, with text keys. Runs nothing of what the pickle names."""
    check_pickle(io.BytesIO(raw), str(path))
    try:
        content: Any = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except UserError as error:
        raise UserError(error.what, where=str(path)) from None
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(f"unreadable pickle: {error or type(error).__name__}", where=str(path)) from None
    if not isinstance(content, dict):
        raise UserError("not a CIFAR file: a dict is expected", where=str(path), got=type(content).__name__)
    return {_text(key): value for key, value in content.items()}
