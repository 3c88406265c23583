"""Limits for zip archives and pickles from outside: sizes and counts are added up before anything is read or built."""

from __future__ import annotations

import pickletools
import zipfile
from collections import Counter
from pathlib import Path
from typing import IO, Any

from vitral.errors import UserError, shown
from vitral.files import MIB, explained, require_regular

MAX_ENTRIES, MAX_OPCODES, PICKLE_BYTES = 100_000, 2_000_000, 64 * MIB
_READ = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz", 98: "ppmd"}
_HASHED = 1_000_000  # tuples within tuples, each counted as often as it would be hashed


def tensors_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, from its header alone.

    Raises UserError for anything else. Imports no torch.
    """
    from safetensors import SafetensorError, safe_open

    require_regular(path)
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError("not readable as safetensors", where=str(path), got=error) from None


def open_zip(file: IO[bytes], where: str) -> zipfile.ZipFile:
    """An archive whose entries can be read one by one.

    Raises UserError for an archive that is damaged, encrypted, or packed by a rare method; for entries that lie outside
    of it or have one name; and where it would unpack to more than 20 times its size and 256 MiB.
    """
    size = file.seek(0, 2)
    if not zipfile.is_zipfile(file):
        raise UserError("the file is cut off: its end is missing", where=where, hint="Download it again.")
    with explained("damaged zip archive", where, "Download it again."):
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise UserError("zip archive of too many entries", where=where, got=f"{len(entries):,}")
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] or ":" in parts[0]:
            raise UserError("zip archive with an entry outside of it", where=where, got=repr(entry.filename[:200]))
        if entry.flag_bits & 1:
            raise UserError("encrypted zip archive", where=where, hint="Decrypt it first.")
        if entry.compress_type not in _READ:
            kind = _METHODS.get(entry.compress_type, f"method {entry.compress_type}")
            what = "zip archive packed by another method"
            raise UserError(what, where=where, got=kind, expected="stored or deflated")
    twice = [name for name, count in Counter(entry.filename for entry in entries).items() if count > 1]
    if twice:
        raise UserError("two entries of the zip archive have one name", where=where, got=shown(twice[0][:200]))
    limit, total = 20 * size + 256 * MIB, sum(entry.file_size for entry in entries)
    if total > limit:
        raise UserError(
            "zip archive that unpacks to too much", where=where, got=f"{total:,} bytes",
            expected=f"at most {limit:,} for a file of {size:,}",
        )  # fmt: skip
    return archive


def read_entry(archive: zipfile.ZipFile, name: str, where: str, limit: int) -> bytes:
    """One entry of at most `limit` bytes. Raises UserError for a larger one and a damaged one."""
    entry = archive.getinfo(name)
    if entry.file_size > limit:
        most = f"at most {limit:,} bytes"
        raise UserError("entry of the zip archive too large", where=f"{where}: {name}", expected=most)
    with explained("damaged zip archive", f"{where}: {name}", "Download it again."):
        return archive.read(entry)


def check_pickle(file: IO[bytes], where: str) -> None:
    """Read one pickle, up to its end, without building anything of it.

    Raises UserError for one that is cut off or damaged, of too many steps, that numbers its objects with gaps (whose
    reader takes memory for the gaps), or that hashes tuples within tuples so often that it would take for ever.
    """
    with explained("damaged pickle", where, "Download the file again."):
        _walk(file)


def _walk(file: IO[bytes]) -> None:
    """The stack machine, with the cost of hashing in place of each object."""
    stack: list[Any] = []  # costs, and None for marks
    memo: dict[int, int] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if number > MAX_OPCODES:
            raise ValueError(f"more than {MAX_OPCODES:,} steps")
        if "PUT" in name or name == "MEMOIZE":
            index = len(memo) if argument is None else int(argument)
            if not 0 <= index <= number:
                raise ValueError(f"object number {index:,} after {number:,} steps")
            memo[index] = stack[-1]
        elif "GET" in name:
            stack.append(memo[int(argument or 0)])
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            _step(opcode, stack)


def _step(opcode: pickletools.OpcodeInfo, stack: list[Any]) -> None:
    before, parts = opcode.stack_before, []
    if pickletools.markobject in before:
        parts = list(iter(stack.pop, None))
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        parts.append(stack.pop())
        if parts[-1] is None:
            raise ValueError("an object is missing")
    cost = 1 + sum(parts) if opcode.name.startswith("TUPLE") else 1
    if cost > _HASHED:
        raise ValueError("tuples within tuples, each many times")
    stack += [None if kind is pickletools.markobject else cost for kind in opcode.stack_after]
