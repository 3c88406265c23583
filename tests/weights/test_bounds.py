"""Archives and pickles that ask for too much: one message at once, and no memory taken."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vitral.archive_limits import check_pickle, open_zip
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.weights.keymap import load_map
from vitral.weights.read_files import read, read_tree

NPY = b"\x93NUMPY\x01\x00"
SHARED = 40  # tuples, each twice in the next one: 2^40 to be hashed


def npy(shape: str, data: bytes, dtype: str = "<f4") -> bytes:
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head = head.ljust(117) + b"\n"
    return NPY + struct.pack("<H", len(head)) + head + data


def zipped(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def encrypted(path: Path) -> None:
    zipped(path, {"a.npy": npy("(2,)", bytes(8))})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def twice(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w") as archive:
            for _ in range(2):
                archive.writestr("a.npy", npy("(2,)", bytes(8)))


def overlapping(path: Path) -> None:
    """A thousand entries of the directory, all of the same megabyte."""
    zipped(path, {"000.npy": bytes(2**20)})
    content = path.read_bytes()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entry = content[start:end]
    directory = b"".join(entry.replace(b"000.npy", b"%03d.npy" % number) for number in range(1000))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1000, 1000, len(directory), start, 0)
    path.write_bytes(content[:start] + directory + tail)


def broken_end(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(100) + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 9, 9, 2**31, 2**31, 0))


def bomb(path: Path) -> None:
    """300 MB of zeros in 300 kB, said to be an array of that size."""
    zipped(path, {"a.npy": npy("(75000000,)", bytes(300_000_000))}, zipfile.ZIP_DEFLATED)


def wrapped(path: Path, data: bytes) -> None:
    """A pickle in torch's archive."""
    zipped(path, {"x/data.pkl": data, "x/version": b"3\n", "x/byteorder": b"little"})


def itself(path: Path) -> None:
    """{"state_dict": {"model": the same}}."""
    inner = b"}q\x01X\x05\x00\x00\x00modelh\x00s"
    wrapped(path, b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dict" + inner + b"s.")


def repeated(path: Path) -> None:
    """One value, shown as 10^15."""
    torch.save({"a.weight": torch.zeros(1).expand(10**15)}, path)


def hashed() -> bytes:
    pairs = b"".join(b"h%ch%c\x86q%c" % (index, index, index + 1) for index in range(SHARED))
    return b"\x80\x02}K\x01\x85q\x00" + pairs + b"K\x01s."


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "encrypted.npz": (encrypted, "encrypted zip archive"),
    "bzip2.npz": (lambda path: zipped(path, {"a.npy": npy("(2,)", bytes(8))}, zipfile.ZIP_BZIP2), "bzip2"),
    "lzma.pth": (lambda path: zipped(path, {"x/data.pkl": b"\x80\x02}."}, zipfile.ZIP_LZMA), "lzma"),
    "outside.npz": (lambda path: zipped(path, {"../../a.npy": npy("(2,)", bytes(8))}), "an entry outside of it"),
    "absolute.pth": (lambda path: zipped(path, {"/tmp/data.pkl": b"\x80\x02}."}), "an entry outside of it"),
    "drive.npz": (lambda path: zipped(path, {"C:\\a.npy": npy("(2,)", bytes(8))}), "an entry outside of it"),
    "twice.npz": (twice, "two entries of the zip archive have one name"),
    "overlapping.npz": (overlapping, "unpacks to too much"),
    "broken_end.pth": (broken_end, "damaged zip archive"),
    "bomb.npz": (bomb, "unpacks to too much"),
    "shape.npz": (lambda path: zipped(path, {"a.npy": npy("(1000000000000000,)", bytes(8))}), "of 136 bytes"),
    "negative.npz": (lambda path: zipped(path, {"a.npy": npy("(-1, -4)", bytes(16))}), "arrays of numbers"),
    "header.npz": (lambda path: zipped(path, {"a.npy": npy("(2,", bytes(8))}), "arrays of numbers"),
    "text.npz": (lambda path: zipped(path, {"a.npy": b"no array"}), "arrays of numbers"),
    "letters.npz": (lambda path: zipped(path, {"a.npy": npy("(2,)", bytes(8), "<U1")}), "arrays of numbers"),
    "itself.pth": (itself, "a pickle that holds itself"),
    "repeated.pth": (repeated, "tensors larger than the file"),
    "hashed.pth": (lambda path: wrapped(path, hashed()), "tuples within tuples"),
    "hashed2.pth": (lambda path: path.write_bytes(hashed()), "tuples within tuples"),
    "gap.pth": (lambda path: path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f."), "object number 2,147,483,647"),
    "stop.pth": (lambda path: path.write_bytes(b"\x80\x02."), "damaged pickle"),
    "cut.pth": (lambda path: path.write_bytes(b"\x80\x02}q\x00X\x10\x00\x00\x00abc"), "damaged pickle"),
    "opcode.pth": (lambda path: wrapped(path, b"\x80\x02}q\x00\xff."), "damaged pickle"),
    "mark.pth": (lambda path: path.write_bytes(b"\x80\x02u."), "damaged pickle"),
    "number.pth": (lambda path: path.write_bytes(pickle.dumps(3, 2)), "not readable as a checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.timeout(60)
def test_files_that_ask_for_too_much_get_one_message(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, part = CASES[name]
    path = tmp_path / name
    make(path)
    before, start = _peak(), time.process_time()
    assert main(["weights", "inspect", str(path)]) == 2
    assert time.process_time() - start < 5
    assert _peak() - before < 300_000  # kB
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"error: {path}")
    assert part in err
    assert len(err.splitlines()) <= 4
    assert not list(tmp_path.parent.parent.glob("a.npy"))


def _peak() -> int:
    """The most memory that this process has had, kB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.timeout(60)
def test_a_named_pipe_is_no_file_of_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    os.mkfifo(tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "config.json")
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match="not a regular file but a named pipe"):
            read(path)
    for words in (["predict", str(tmp_path), __file__], ["weights", "inspect", str(tmp_path)]):
        assert main(words) == 2


def test_every_protocol_of_honest_pickles_passes() -> None:
    shared = (1, 2.5, "x", b"x", None, True, 2**100)
    tree = {"a": [1, (2, 3), {"x": {1, 2}}], "b": np.zeros(3), "c": 1j, "d": shared, "e": [shared] * 1000}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        file = io.BytesIO(pickle.dumps(tree, protocol) + b"rest")
        check_pickle(file, "x")
        assert file.read() == b"rest"


@pytest.mark.parametrize("zipped_format", [True, False])
def test_honest_checkpoints_pass(tmp_path: Path, zipped_format: bool) -> None:
    tied = torch.rand(4, 4)
    state = {"a.weight": tied, "b.weight": tied, "c.weight": torch.zeros(1).expand(100), "d": torch.rand(3).half()}
    optimizer = torch.optim.Adam([tied.clone().requires_grad_()])
    tree = {"state_dict": state, "optimizer": optimizer.state_dict(), "losses": [0.5] * 10_000}
    torch.save(tree, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped_format)
    found = read(tmp_path / "a.pth").tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_compressed_archive_of_arrays_is_read(tmp_path: Path) -> None:
    arrays = {"Transformer/a": np.arange(12, dtype=">f4").reshape(3, 4), "zeros": np.zeros((1000, 1000), np.float32)}
    np.savez_compressed(tmp_path / "a.npz", allow_pickle=False, **arrays)
    found = read(tmp_path / "a.npz").tensors
    assert {name: tensor.tolist() for name, tensor in found.items()} == {n: a.tolist() for n, a in arrays.items()}
    with (tmp_path / "a.npz").open("rb") as file, open_zip(file, "a") as archive:
        assert len(archive.namelist()) == 2


def test_a_broken_expression_in_a_map_is_named(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text('rules: [{from: "x.{n:[12}", to: y}]', encoding="utf-8")
    with pytest.raises(UserError, match=r"map\.yaml: rule 1(.|\n)*not a regular expression"):
        load_map(str(path))


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_a_header_whose_length_begins_like_another_format(start: bytes, tmp_path: Path) -> None:
    """The first eight bytes of safetensors are a length: 0x80 also begins a pickle, PK a zip."""
    path, count = tmp_path / "model.safetensors", 0
    while not path.is_file() or not path.read_bytes().startswith(start):
        save_file({"a": torch.ones(2)}, path, {"text": "x" * (int.from_bytes(start, "little") - 130 + count)})
        count += 1
    assert read_tree(path)["a"].tolist() == [1.0, 1.0]
