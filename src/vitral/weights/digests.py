"""Digests of a folder: SHA-256 of config.json and of the weights or graph, stored in config.json, verified on load."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitral.atomic_files import write_cache
from vitral.data.check_cache import cache_folder
from vitral.errors import command
from vitral.files import CannotOpen, json_text, open_regular
from vitral.weights.tensors import DamagedFile

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KEY = "digests"

_BLANK = "0" * 64  # stands in config.json for its own digest while that is computed
_HASHED_ALWAYS = 32 * 2**20  # bytes; hashing fewer takes less than 0.1 s
_SETTLED = 2 * 10**9  # ns; a file changed later than this before now may change again without a new time of change


def signed(tree: Mapping[str, Any], *weights: Path) -> str:
    """Return the text of config.json for this content, with the digests of the weights and of the text itself.

    The text's own digest is that of the same text with 64 zeros in its place, so formatting counts too.
    """
    digests = {CONFIG: _BLANK, **{file.name: file_digest(file) for file in weights}}
    text = json_text({**tree, KEY: digests}, 2) + "\n"
    return text.replace(_BLANK, _text_digest(text))


def take_digests(tree: dict[str, Any], where: str, *weights: str) -> dict[str, str] | None:
    """Remove the digests from a config.json's content and return them; None where there are none. Raises DamagedFile
    for anything else than one digest of config.json and one of each of these files."""
    if KEY not in tree:
        return None
    found = tree.pop(KEY)
    if (
        not isinstance(found, dict)
        or found.keys() != {CONFIG, *weights}
        or not all(isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) for value in found.values())
    ):
        raise DamagedFile("damaged: the digests are not readable", where=where, got=str(found)[:200])
    return found


def verify_text(text: str, expected: str, path: Path) -> None:
    """Raise DamagedFile where a config.json has changed since it was saved."""
    if _text_digest(text.replace(expected, _BLANK)) != expected:
        raise DamagedFile(
            "damaged or edited: the content does not match its digest", where=str(path), hint=_hint(path.parent)
        )


def verify_weights(path: Path, expected: str, *, remembered: bool = True) -> None:
    """Raise DamagedFile where the weights have changed since they were saved.

    remembered: a file of more than 32 MiB is hashed once per machine. The cache folder then holds its digest under its
    device, inode, size and times of change.
    """
    try:
        before = path.stat()
        memory = _memory(before) if remembered and before.st_size > _HASHED_ALWAYS else None
        found = _recall(memory) or file_digest(path)
    except (OSError, CannotOpen) as error:
        raise DamagedFile("cannot be read", where=str(path), got=error) from None
    if found != expected:
        raise DamagedFile(
            "damaged or replaced: the content does not match its digest in config.json", where=str(path),
            got=f"SHA-256 {found}", expected=expected, hint=_hint(path.parent),
        )  # fmt: skip
    if memory is not None and time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > _SETTLED:
        write_cache(memory, found.encode("ascii"))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hex digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def accept_command(folder: Path) -> str:
    """Return the command that writes new digests for a folder that was changed on purpose."""
    return command("vitral", "doctor", str(folder), "accept=true")


def _hint(folder: Path) -> str:
    if not (folder / WEIGHTS).is_file():
        return "Restore the folder from its source, or export the model again."
    return f"Restore the folder from its source. If the change is yours, accept it: {accept_command(folder)}"


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _memory(status: os.stat_result) -> Path:
    state = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return cache_folder("digests") / "-".join(map(str, state))


def _recall(memory: Path | None) -> str | None:
    try:
        return memory.read_text(encoding="utf-8") if memory is not None else None
    except (OSError, ValueError):
        return None
