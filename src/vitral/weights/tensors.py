"""Tensors on disk: safetensors files that are whole or absent, never half written."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitral.atomic_files import flush, partial_of, remove
from vitral.errors import UserError
from vitral.files import open_regular, require_regular

CHECKSUM = "crc32"  # metadata key of a file that is verified when it is read


class DamagedFile(UserError):
    """A file that cannot be read whole, or whose content is not what was written."""


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    checked: bool = False,
    make_way: Callable[[], None] | None = None,
) -> None:
    """Write to a temporary name beside `path`, flush to the disk, rename over it. Raises OSError and leaves an older
    file as it was if that fails (a full disk, say).

    checked: with a checksum that `load_tensors` verifies. make_way: called before the renaming, when all is written.
    """
    partial = partial_of(path)  # a folder: safetensors writes under random names, which a kill would leave for ever
    written = partial / path.name
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    facts = dict(metadata or {})
    if checked:
        facts[CHECKSUM] = checksum(whole, facts)
    try:
        remove(partial)
        partial.mkdir()
        save_file(whole, written, facts)
        flush(written)
        written.chmod(_mode())
        if make_way is not None:
            make_way()
        written.replace(path)
        flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of names, types, shapes, values and metadata, in order of the names, as 8 hex digits."""
    found = zlib.crc32(repr(sorted((key, value) for key, value in metadata.items() if key != CHECKSUM)).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found = zlib.crc32(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def file_checksum(path: Path) -> str:
    """CRC-32 of a file's content, as 8 hex digits."""
    found = 0
    with open_regular(path) as file:
        while part := file.read(2**24):
            found = zlib.crc32(part, found)
    return f"{found:08x}"


def _mode() -> int:
    """Permissions of a new file as everywhere else; safetensors lets only the owner read."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def _opened(path: Path) -> Generator[Any]:
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as file:
            yield file
    except Exception as error:  # beside its own, the library raises what torch and Python say to shapes and types
        raise DamagedFile("not readable as safetensors", where=str(path), got=error) from None


def load_tensors(path: Path, *, checked: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, on the CPU, and its metadata. Raises DamagedFile for anything else, where the
    file carries a checksum of something else and, with `checked`, where it carries none."""
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    if checked and CHECKSUM not in metadata:
        raise DamagedFile("damaged: its checksum is missing", where=str(path))
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors, metadata):
        raise DamagedFile("damaged: its checksum is of another content", where=str(path))
    return tensors, metadata


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a safetensors file, from its header alone. Raises DamagedFile."""
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, from its header alone. Raises DamagedFile."""
    with _opened(path) as file:
        return file.metadata() or {}


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError where weights hold NaN or infinity: every answer computed with them would be meaningless."""
    wrong = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if wrong:
        raise UserError(
            "the weights are not finite", where=where, got=f"NaN or infinity in {', '.join(wrong[:4])}",
            hint="Use another checkpoint of that training, or restore the file.",
        )  # fmt: skip


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.isfinite(torch.stack(tensor.detach().aminmax())).all())  # reads once, and allocates nothing


def mismatches(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the names of `theirs` that are missing, unexpected, of another shape than in `mine`, or not floating-point
    where `mine` are: whole numbers are no weights."""
    return {
        "missing": [name for name in mine if name not in theirs],
        "unexpected": [name for name in theirs if name not in mine],
        "other shape": [
            f"{name} {list(theirs[name].shape)}, not {list(tensor.shape)}"
            for name, tensor in mine.items()
            if name in theirs and tensor.shape != theirs[name].shape
        ],
        "not floating-point": [
            f"{name} {str(theirs[name].dtype).removeprefix('torch.')}"
            for name, tensor in mine.items()
            if name in theirs and tensor.is_floating_point() and not theirs[name].is_floating_point()
        ],
    }


def check_match(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], where: str, hint: str | None = None) -> None:
    """Raise a UserError that lists the `mismatches`."""
    wrong = {what: names for what, names in mismatches(mine, theirs).items() if names}
    if wrong:
        listed = {what: f"({', '.join(names[:4])}{', ...' * (len(names) > 4)})" for what, names in wrong.items()}
        got = "; ".join(f"{len(names)} {what} {listed[what]}" for what, names in wrong.items())
        raise UserError("the weights belong to another architecture", where=where, got=got, hint=hint)
