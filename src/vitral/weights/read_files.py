"""ExternalModel checkpoints on disk: .npz, safetensors, torch's .pth, .pt and .bin, and folders. Never runs their
code."""

from __future__ import annotations

import argparse
import io
import math
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitral.archive_limits import PICKLE_BYTES, check_pickle, open_zip, read_entry
from vitral.errors import UserError, command, shown
from vitral.files import MIB, open_regular, read_json
from vitral.weights.formats import find_format
from vitral.weights.pickle_allowlist import HARMLESS
from vitral.weights.stopped_run import CHECKPOINTS, SPLIT
from vitral.weights.tensors import CHECKSUM, load_tensors, read_metadata

INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
ENDINGS = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt")

# What training scripts put around the weights, the better ones first; a teacher is the average of its students.
_WRAPPERS = (
    "teacher", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "params_ema", "ema", "model", "state_dict",
    "model_state_dict", "model_state", "net", "network", "params", "weights", "module", "encoder", "backbone",
    "student", "target_encoder",
)  # fmt: skip
# Mappings whose tensors are no weights of the model.
_OTHER = re.compile(r"optim|sched|scaler|loss|rng|random|hyper|callbacks|loops|metric|args|config", re.IGNORECASE)
_HEADS = ("head", "head_dist", "classifier", "cls_classifier", "distillation_classifier")
_NESTED = 6
_PREFIXES = (
    "module.", "_orig_mod.", "backbone.", "dinov2_with_registers.", "dinov2.", "dinov3_vit.", "deit.", "vit.",
    "beit.", "data2vec_vision.",
    "opt/target/", "params/img/", "params/",
)  # fmt: skip


# torch's older format: five pickles, the first of a magic number, then the values.
_LEGACY = 5
_LEGACY_START = tuple(pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol)[:9] for protocol in (2, 3))
_VALUES = 2_000_000


class Source(NamedTuple):
    """What a checkpoint holds: tensors by their foreign names, and the JSON files beside them ({} where none is)."""

    where: str
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    notes: list[str]


def read(path: Path) -> Source:
    """A checkpoint's file or folder. Raises UserError for what is not whole, not weights, or needs code to be run."""
    files = _files(path)
    tree: dict[str, Any] = {}
    for file in files:
        _refuse_checkpoint(file)
        tree |= read_tree(file)
    tensors, notes = _unwrap(tree, str(path))
    folder = path if path.is_dir() else path.parent
    return Source(str(path), tensors, _json(folder / "config.json"), _json(folder / "preprocessor_config.json"), notes)


def by_known_names(source: Source) -> Source:
    """Return the checkpoint by the names of a known format, where it has them behind prefixes of the training script:
    `net.blocks.0.norm1.weight`. Its own where no format has them."""
    tensors, notes = _by_known_names(source.tensors, _NESTED) or (source.tensors, [])
    return source._replace(tensors=tensors, notes=[*source.notes, *notes])


def _refuse_checkpoint(path: Path) -> None:
    """Raise UserError for a checkpoint of a run of Vitral's, whose classes and preprocessing lie elsewhere."""
    with open_regular(path) as file:
        if file.read(9)[8:9] != b"{":
            return
    if CHECKSUM in read_metadata(path):
        run = path.absolute().parent.parent if path.absolute().parent.name == CHECKPOINTS else "RUN"
        hint = f"Use the run: {command('vitral', 'predict', str(run), 'IMAGE')}"
        raise UserError("a checkpoint of a Vitral run, which does not hold classes and preprocessing", where=str(path),
                        hint=hint)  # fmt: skip


def is_weights(path: Path) -> bool:
    """Whether this file or folder looks as if `read` could read it."""
    if path.is_dir():
        return any((path / name).is_file() for name in (*INDICES, *WHOLE)) or bool(_candidates(path))
    return path.is_file() and path.suffix in ENDINGS


def _candidates(folder: Path) -> list[Path]:
    files = (file for file in folder.iterdir() if file.suffix in ENDINGS)
    return sorted(file for file in files if file.name not in ("training_args.bin", SPLIT))


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError("no such file or folder", where=str(path))
    if not path.is_dir():
        return [path]
    for whole, index in zip(WHOLE, INDICES, strict=True):
        if (path / whole).is_file():
            return [path / whole]
        if (path / index).is_file():
            shards = _json(path / index).get("weight_map", {})
            if not isinstance(shards, dict) or not all(Path(str(name)).name == name for name in shards.values()):
                raise UserError("not an index of shards", where=str(path / index))
            files = [path / name for name in sorted(set(shards.values()))]
            if absent := [file.name for file in files if not file.is_file()]:
                raise UserError("these shards are missing", where=str(path), got=", ".join(absent))
            return files
    found = _candidates(path)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError("one file of weights is expected", where=str(path), got=names, hint="Name the file itself.")
    return found


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise UserError("not a JSON object", where=str(path), got=type(tree).__name__, expected='{"key": value, ...}')
    return tree


def read_tree(path: Path) -> dict[str, Any]:
    """Read the tree that one file holds; its format is recognized by the first bytes, not by the name. The memory that
    it needs is added up first. Raises UserError as `read` does."""
    where = str(path)
    with open_regular(path) as file:
        start = file.read(9)
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= file.seek(0, 2) - 8:
            return dict(load_tensors(path)[0])  # before the others: the length of its header may begin as they do
        if start[:2] == b"PK":
            with open_zip(file, where) as archive:
                names = archive.namelist()
                if all(name.endswith(".npy") for name in names):
                    return dict(_read_npz(archive, where))
                size = sum(entry.file_size for entry in archive.infolist())
                for name in names:
                    if name.endswith((".pkl", ".pickle")):
                        check_pickle(io.BytesIO(read_entry(archive, name, where, PICKLE_BYTES)), where)
            return _read_torch(path, size)
        if start[:1] == b"\x80":
            size = file.seek(0, 2)
            file.seek(0)
            for _ in range(_LEGACY if start in _LEGACY_START else 1):
                check_pickle(file, where)
            return _read_torch(path, size)
    if start[8:9] == b"{":
        return dict(load_tensors(path)[0])
    raise UserError(
        "not a file of weights", where=where, got=f"it starts with {start!r}",
        expected=".npz, .safetensors, .pth, .pt or .bin",
    )  # fmt: skip


def _read_npz(archive: zipfile.ZipFile, where: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for entry in archive.infolist():
        try:
            with archive.open(entry) as file:
                shape, dtype = _npy_header(file)
                if dtype.hasobject or math.prod(shape) * dtype.itemsize > entry.file_size:
                    raise ValueError(f"{dtype} {list(shape)} of {entry.file_size:,} bytes")
            with archive.open(entry) as file:
                found[entry.filename.removesuffix(".npy")] = _tensor(np.lib.format.read_array(file, allow_pickle=False))
        except Exception as error:  # damaged files make zipfile and NumPy raise nearly anything
            got = f"{shown(entry.filename[:80])}: {error or type(error).__name__}"
            raise UserError("not readable as arrays of numbers", where=where, got=got) from None
    return found


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format")
    read_header = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    return shape, dtype


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype == np.dtype("V2"):  # how NumPy stores bfloat16
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy() if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))


def _read_torch(path: Path, size: int) -> dict[str, Any]:
    """size: bytes of the file, unpacked."""
    try:
        # Namespace holds the training script's arguments, as plain values.
        with torch.serialization.safe_globals([argparse.Namespace, *HARMLESS]):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        expected = re.search(r"GLOBAL (\S+)", str(error))
        got = f"it calls {expected[1]}" if expected else str(error).split("\n")[-1].strip()
        raise UserError(
            "this file wants to run code, or is damaged", where=str(path), got=got,
            hint="Save its state dict alone, as safetensors best, where you trust it.",
        ) from None  # fmt: skip
    except Exception as error:  # damaged files make it raise nearly anything
        got = str(error).split("\n")[0] or type(error).__name__
        raise UserError("not readable as a checkpoint of torch", where=str(path), got=got) from None
    if not isinstance(tree, dict):
        raise UserError("no state dict in this file", where=str(path), got=type(tree).__name__)
    _check_sizes(tree, size, str(path))
    return {str(name): value for name, value in tree.items()}


def _check_sizes(tree: Any, size: int, where: str) -> None:
    """Raise UserError for tensors that show more values than the file can hold, alone or together (where a stride is 0,
    one value is repeated), and for a tree that holds itself, or parts of it so often that no walk through it ends."""
    limit, total = 4 * size + 64 * MIB, 0
    waiting, walked = [tree], 0
    while waiting:
        value, walked = waiting.pop(), walked + 1
        if walked > _VALUES:
            most = f"at most {_VALUES:,}"
            raise UserError("a pickle that holds itself, or too many values", where=where, expected=most)
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
            if total > limit:
                got = f"{list(value.shape)} in a file of {size:,} bytes"
                raise UserError("tensors larger than the file", where=where, got=got)
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif isinstance(value, argparse.Namespace):
            waiting += vars(value).values()


def _unwrap(tree: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors alone: out of what a training script put around them, without prefixes of wrapping modules."""
    notes: list[str] = []
    inner = tree
    while (found := _inside(inner)) is not None:
        key, others = found
        notes.append(f"weights of {key!r}" + (f", not of {', '.join(map(repr, others))}" if others else ""))
        inner = inner[key]
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not any(map(_is_weight, tensors.values())):
        raise UserError("no weights in this file", where=where, got=", ".join(map(str, list(inner)[:6])) or "nothing")
    while prefix := next((p for p in _PREFIXES if any(name.startswith(p) for name in tensors)), None):
        # Of a Flax tree with optimizer or text tower, only what is under the prefix; heads beside a backbone stay.
        inside = {n: t for n, t in tensors.items() if "/" not in prefix or n.startswith(prefix)}
        tensors = {name.removeprefix(prefix): tensor for name, tensor in inside.items()}
        if len(tensors) < len(inside):
            both = next(name for name in inside if prefix + name in inside)
            raise UserError("two tensors of one name", where=where, got=f"{both} and {prefix}{both}")
        notes.append(f"names without {prefix!r}")
    return tensors, notes


def _inside(tree: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """The key of the mapping that holds the weights, and those of others; None where the tree itself holds more."""
    inner = {key: each for key, each in tree.items() if isinstance(each, Mapping) and not _OTHER.search(key)}
    values = {key: count for key, each in inner.items() if (count := _values(each))}
    if not values:
        return None
    key = next((key for key in _WRAPPERS if key in values), max(values, key=lambda key: values[key]))
    if sum(each.numel() for each in tree.values() if _is_weight(each)) >= values[key]:
        return None
    return key, [name for name in values if name != key]


def _values(tree: Mapping[Any, Any], depth: int = 6) -> int:
    """How many values the weights in here have, at any level."""
    inner = [each for each in tree.values() if isinstance(each, Mapping)] if depth else []
    own = sum(value.numel() for value in tree.values() if _is_weight(value))
    return own + sum(_values(each, depth - 1) for each in inner)


def _is_weight(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and bool(value.dim())


def _by_known_names(tensors: dict[str, Tensor], depth: int) -> tuple[dict[str, Tensor], list[str]] | None:
    """The tensors under the prefix that leads to a known format, and a note for each prefix. What else is in the file
    is left out (`criterion.weight`), except for heads."""
    if find_format(tensors) is not None:
        return tensors, []
    starts = Counter(name.split(".")[0] for name in tensors if "." in name and depth)
    known = [prefix for prefix in _WRAPPERS if prefix in starts]
    for prefix in dict.fromkeys([*known, *(each for each, _ in starts.most_common(8))]):
        inside = {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")}
        heads = {n: t for n, t in tensors.items() if n.split(".")[0] in _HEADS and n not in inside}
        found = _by_known_names(inside | heads, depth - 1)
        if found is not None:
            others = {n.split(".")[0] for n in tensors if not n.startswith(f"{prefix}.") and n not in heads}
            left = f", and none of {', '.join(sorted(others))}" if others else ""
            return found[0], [f"names without {prefix + '.'!r}{left}", *found[1]]
    return None
