"""Write files and folders atomically, and lock a folder for one process.

There is one kind of temporary name: `.NAME.partial` beside NAME. It holds NAME while it is written or removed, and is
renamed at the end; a folder that NAME replaces waits as `.NAME.old` until then. A kill at any moment leaves these names
at most, and the next write of NAME removes them. Nothing here imports torch.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vitral.errors import NAMES, UserError
from vitral.files import json_text

LOCK = ".lock"
PATIENCE = 2.0  # seconds for a process that was killed to release its folder


def partial_of(path: Path) -> Path:
    """The temporary name of a file or folder while it is written or removed."""
    return _beside(path, "partial")


def old_of(path: Path) -> Path:
    """The temporary name of a folder while another one takes its place."""
    return _beside(path, "old")


def _beside(path: Path, ending: str) -> Path:
    place = Path(os.path.abspath(path)) if path.name in ("", "..") else path  # "." has no name of its own
    return place.with_name(f".{place.name}.{ending}")


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file or a whole folder, if there is one, and what a kill has left of an earlier try. A folder loses its
    name first: it is never half there."""
    doomed = path
    if not path.name.endswith((".partial", ".old")):
        doomed = partial_of(path)
        remove(doomed)
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if doomed != path:
        path.rename(doomed)
    shutil.rmtree(doomed)


def tidy(folder: Path, names: Iterable[str]) -> None:
    """Remove the temporary files and folders of these names that a kill has left in a folder."""
    for name in names:
        remove(partial_of(folder / name))


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """A temporary name to write, which becomes `path` at the end; after an error an older file is as it was."""
    partial = partial_of(path)
    remove(partial)
    try:
        yield partial
        flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8, whole or not at all; what UTF-8 cannot encode is escaped."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=NAMES, newline="\n")


def write_cache(path: Path, content: bytes) -> None:
    """A file of the cache, under a name of this process alone first. One that cannot be written is no error: what it
    holds is then computed again."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{id(content)}.partial")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Indented JSON, whole or not at all."""
    write_text(path, json_text(tree, 2) + "\n")


@contextmanager
def whole_folder(path: Path) -> Generator[Path]:
    """A folder under a temporary name, renamed into place at the end; a folder that stood there goes last. After an
    error nothing has changed. Raises UserError where another process writes the same folder.

    A folder that cannot be renamed (a mount point, the working folder) is filled entry by entry instead; `interrupted`
    says whether a kill has ended that.
    """
    partial, old, pinned = partial_of(path), old_of(path), _is_pinned(path)
    if pinned:
        partial = path / partial.name
    recover(path)
    if is_locked(partial):
        raise UserError("another command is writing this folder", where="out", got=path)
    remove(partial)
    try:
        partial.mkdir(parents=True)
        with locked(partial):
            yield partial
        for entry in partial.iterdir():
            if entry.is_file():
                flush(entry)
        if pinned:
            for entry in path.iterdir():
                if entry.name != partial.name:
                    remove(entry)
            for entry in partial.iterdir():
                os.replace(entry, path / entry.name)
            return
        if path.exists():
            path.rename(old)
        os.replace(partial, path)
        flush(path.parent)
    finally:
        recover(path)
        with suppress(OSError):
            remove(partial)


def recover(path: Path) -> None:
    """After a kill between the two renames of `whole_folder` the older folder gets its name back; otherwise what is
    left of it goes."""
    old = old_of(path)
    if not old.exists() or (path.exists() and _is_pinned(path)):
        return
    if path.exists():
        with suppress(OSError):
            remove(old)
    else:
        old.rename(path)


def interrupted(path: Path) -> bool:
    """Whether `whole_folder` was killed while it filled a folder that cannot be renamed."""
    return path.is_dir() and (path / partial_of(path).name).is_dir()


def _is_pinned(path: Path) -> bool:
    return path.is_dir() and (os.path.ismount(path) or path.samefile(Path.cwd()))


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """A lock on the folder that the system takes back when the process ends, however it ends. Raises UserError where
    another process has it."""
    path, handle = folder / LOCK, _lock(folder)
    try:
        yield
    finally:
        # The file is removed while the lock is held, or another process could lock a file that is about to go; Windows
        # removes no open file, and lets no other process open one that is being removed.
        try:
            path.unlink(missing_ok=True)
        except PermissionError:
            os.close(handle)
            with suppress(OSError):
                path.unlink(missing_ok=True)
        else:
            os.close(handle)


def is_locked(folder: Path) -> bool:
    """Whether a process works in this folder."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try_lock(handle)
    finally:
        os.close(handle)


def _lock(folder: Path) -> int:
    path, end = folder / LOCK, time.monotonic() + PATIENCE
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if _try_lock(handle):
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
        os.close(handle)  # the process that had the lock is ending and has removed the file; or it still works
        if time.monotonic() > end:
            raise UserError("another run works in this folder", where="out", got=folder)
        time.sleep(0.05)


def _try_lock(handle: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
