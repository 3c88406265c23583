"""Open and parse untrusted files: regular files only, size and structure bounded before anything is built.

Every reader of the package goes through here, and every failure is a UserError that names the file.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedReader
from typing import Any

from vitral.errors import UserError, shown

MIB = 2**20
JSON_BYTES, TEXT_BYTES, IMAGE_BYTES = 64 * MIB, 256 * MIB, 4096 * MIB
MAX_DEPTH, MAX_ITEMS = 64, 1_000_000
_PART = 2**20  # bytes of JSON that are looked at together
_OPEN, _CLOSE, _STRINGS = b"[{", b"]}", (b"\\\\", b'\\"')
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class CannotOpen(UserError):
    """A file that is absent, forbidden, or not a regular file. `absent` says that nothing has that name."""

    def __init__(self, what: str, *, where: str, absent: bool = False) -> None:
        super().__init__(what, where=where)
        self.absent = absent


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading bytes, without ever waiting for a writer.

    Raises CannotOpen for folders, named pipes, sockets and devices, and for what the system does not open.
    """
    where = shown(os.fspath(path))
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
    try:
        _require_regular(os.stat(path).st_mode, where)  # opening a device can already change it
        handle = os.open(path, flags)
    except OSError as error:
        absent = error.errno in _ABSENT
        what = "no such file" if absent else f"cannot be read: {error.strerror or error}"
        raise CannotOpen(what, where=where, absent=absent) from None
    except CannotOpen:
        raise
    except ValueError:  # a NUL in the name, or a name that the file system's encoding lacks
        raise CannotOpen("not a file name", where=where, absent=True) from None
    try:
        _require_regular(os.fstat(handle).st_mode, where)  # the name may mean something else by now
    except UserError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


@contextmanager
def explained(what: str, where: str, hint: str | None = None) -> Generator[None]:
    """Turn what a library raises on a damaged file, which may be of nearly any class, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        got = (str(error) or type(error).__name__)[:300]
        raise UserError(what, where=where, got=got, hint=hint) from None


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise CannotOpen for what `open_regular` refuses: before a library opens the path."""
    open_regular(path).close()


def _require_regular(mode: int, where: str) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise CannotOpen(f"not a regular file but {kind}", where=where)


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises UserError for anything else."""
    with open_regular(path) as file:
        try:
            content = file.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else None
        except OSError as error:
            raise CannotOpen(f"cannot be read: {error.strerror or error}", where=shown(os.fspath(path))) from None
    if content is None or len(content) > limit:
        raise UserError("file too large", where=shown(os.fspath(path)), expected=f"at most {limit:,} bytes")
    return content


def read_text(path: str | os.PathLike[str], limit: int = TEXT_BYTES) -> str:
    """A UTF-8 text file of at most `limit` bytes, without a byte-order mark. Raises UserError, with the line of the
    first byte that is not UTF-8, or NUL."""
    content, where = read_bounded(path, limit), shown(os.fspath(path))
    text = decode_text(content, where)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError("not a text file: it holds a NUL byte", where=f"{where}:{line}")
    return text


def read_lines(path: str | os.PathLike[str], limit: int = TEXT_BYTES) -> list[str]:
    """The lines of a text file, which only line feeds end (a carriage return before one goes with it): a form feed or
    U+2028 is a character of its line. A last line end begins no further line. Raises UserError as `read_text` does."""
    text = read_text(path, limit).replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n") if text else []


def decode_text(content: bytes, where: str) -> str:
    """UTF-8 bytes as text, without a byte-order mark. Raises UserError, with the line of the first other byte."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        kind = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding"
        raise UserError(
            f"not UTF-8 but {kind} (byte {error.start})", where=f"{where}:{line}", hint="Save the file as UTF-8."
        ) from None


def json_text(tree: Any, indent: int | None = None) -> str:
    r"""JSON as readable UTF-8. What UTF-8 cannot hold becomes JSON's own escape, which reads back as it was."""
    return json.dumps(tree, indent=indent, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")


def read_json(path: str | os.PathLike[str], limit: int = JSON_BYTES, *, constants: bool = False) -> Any:
    """The value in a JSON file of at most `limit` bytes; see `parse_json`."""
    return parse_json(read_bounded(path, limit), where=shown(os.fspath(path)), constants=constants)


def parse_json(
    content: bytes | str,
    *,
    where: str,
    max_depth: int = MAX_DEPTH,
    max_items: int = MAX_ITEMS,
    constants: bool = False,
) -> Any:
    """The value of a JSON text. Depth and number of items are counted before anything is built.

    where: the file, or what else the text is, for messages. max_items: members of objects and lists, altogether.
    constants: accept NaN and Infinity, as Python writes them. Raises UserError for what is not UTF-8 or not JSON, for
    keys that an object has twice, for numbers that do not fit into 64 bits, and beyond the limits.
    """
    text = decode_text(content, where) if isinstance(content, bytes) else content
    try:
        _check_structure(text.encode("utf-8", "surrogatepass"), max_depth, max_items)
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=None if constants else _refuse,
            parse_int=whole_number, parse_float=_finite,
        )  # fmt: skip
    except json.JSONDecodeError as error:
        where = f"{where}:{error.lineno}" if error.lineno > 1 else where
        raise UserError(f"not readable as JSON: {error.msg} (character {error.colno})", where=where) from None
    except ValueError as error:
        raise UserError(f"not readable as JSON: {error}", where=where) from None


def whole_number(text: str) -> int:
    """An integer of 64 bits. Raises ValueError for others."""
    digits = text.lstrip("+-0").replace("_", "")
    value = int(text) if len(digits) < 20 else 2**64
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"a whole number of {len(digits):,} digits does not fit into 64 bits")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {twice[:80]!r} occurs twice in one object")
    return tree


def _check_structure(text: bytes, max_depth: int, max_items: int) -> None:
    """Raise ValueError if the JSON text is nested too deep or holds too many items. Counts signs, builds nothing."""
    opened = sum(text.count(sign) for sign in (b"[", b"{"))
    if opened <= max_depth and opened + text.count(b",") <= max_items:  # an upper bound: strings are counted too
        return
    import numpy as np

    for escape in _STRINGS:  # of a run of backslashes, pairs first: then a quote that is left ends a string
        text = text.replace(escape, b"")
    depth, items, inside = 0, 0, False
    for start in range(0, len(text), _PART):
        part = np.frombuffer(text, np.uint8, min(_PART, len(text) - start), start)
        in_string = np.logical_xor.accumulate(part == ord('"')) ^ inside
        inside = bool(in_string[-1])
        signs = part[~in_string]
        steps = np.isin(signs, list(_OPEN)).astype(np.int8) - np.isin(signs, list(_CLOSE)).astype(np.int8)
        levels = depth + np.cumsum(steps, dtype=np.int64)
        items += int((steps > 0).sum()) + int((signs == ord(",")).sum())
        if levels.size:
            depth = int(levels[-1])
            if int(levels.max()) > max_depth:
                raise ValueError(f"nested deeper than {max_depth} levels")
        if items > max_items:
            raise ValueError(f"more than {max_items:,} items")
