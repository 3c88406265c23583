"""Tensors on disk: safetensors files that are whole or absent, never half written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitral.errors import UserError


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write to a temporary name beside `path`, flush to the disk, rename over it. Raises OSError and leaves an older
    file as it was if that fails (a full disk, say)."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata or {})
        )
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(_mode())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written: {error}") from error


def _mode() -> int:
    """Permissions of a new file as everywhere else; safetensors lets only the owner read."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, on the CPU, and its metadata. Raises UserError for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError("not readable as safetensors", where=str(path), got=error) from None


def check_match(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], where: str, hint: str | None = None) -> None:
    """Raise a UserError that lists the missing, unexpected and mis-shaped names of `theirs` against `mine`."""
    missing = [name for name in mine if name not in theirs]
    unexpected = [name for name in theirs if name not in mine]
    shapes = [
        f"{name} {list(theirs[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in mine.items()
        if name in theirs and theirs[name].shape != tensor.shape
    ]
    if missing or unexpected or shapes:
        parts = (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
        got = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:4])}{', ...' * (len(names) > 4)})"
            for what, names in parts
            if names
        )
        raise UserError("the weights belong to another architecture", where=where, got=got, hint=hint)
