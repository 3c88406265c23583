"""The gate: what is opened, and what is refused before anything is built of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitral.atomic_files import write_text
from vitral.errors import NAMES, UserError, shown
from vitral.files import CannotOpen, open_regular, parse_json, read_bounded, read_json, read_text

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.skipif(os.name == "nt", reason="no named pipes, devices and sockets in folders")
@pytest.mark.timeout(20)
def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path, kind in (
        (tmp_path, "a folder"), (tmp_path / "pipe", "a named pipe"), (tmp_path / "link", "a named pipe"),
        (tmp_path / "socket", "a socket"), (Path("/dev/zero"), "a device"), (Path("/dev/null"), "a device"),
    ):  # fmt: skip
        with pytest.raises(CannotOpen, match=f"not a regular file but {kind}") as caught:
            open_regular(path)
        assert str(path) in str(caught.value)
        assert not caught.value.absent
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "name").symlink_to(tmp_path / "file")
    with open_regular(tmp_path / "name") as file:
        assert file.read() == b"content"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.timeout(20)
def test_a_name_that_changes_its_meaning_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between the look at the name and its opening, a pipe takes the file's place."""
    (tmp_path / "file").write_bytes(b"")
    looked = os.stat

    def swap(path: Path) -> os.stat_result:
        found = looked(path)
        path.unlink()
        os.mkfifo(path)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", swap)
        with pytest.raises(CannotOpen, match="not a regular file"):
            open_regular(tmp_path / "file")


def test_what_is_absent_or_too_large_is_said(tmp_path: Path):
    with pytest.raises(CannotOpen, match="no such file") as caught:
        open_regular(tmp_path / "absent")
    assert caught.value.absent
    with pytest.raises(CannotOpen, match="not a file name"):
        open_regular("a\0b")
    with pytest.raises(CannotOpen, match="no such file"):
        open_regular("x" * 5000)
    with pytest.raises(CannotOpen, match="no such file") as caught:
        open_regular(Path(__file__) / "config.json")
    assert caught.value.absent
    (tmp_path / "ten").write_bytes(b"0123456789")
    assert read_bounded(tmp_path / "ten", 10) == b"0123456789"
    with pytest.raises(UserError, match="file too large"):
        read_bounded(tmp_path / "ten", 9)
    (tmp_path / "latin").write_bytes(b"one\ntwo \xe9")
    with pytest.raises(UserError, match=r"latin:2: not UTF-8 but another encoding"):
        read_text(tmp_path / "latin")
    (tmp_path / "zero").write_bytes(b"one\ntwo \0")
    with pytest.raises(UserError, match=r"zero:2: not a text file: it holds a NUL byte"):
        read_text(tmp_path / "zero")
    (tmp_path / "mark").write_bytes("\ufeffé".encode())
    assert read_text(tmp_path / "mark") == "é"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 500_000, "nested deeper than 64 levels"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested deeper than 64 levels"),
        ("[" + "[]," * 999_999 + "[]]", "more than 1,000,000 items"),
        ("[" + '"",' * 1_000_000 + "1]", "more than 1,000,000 items"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ("[NaN]", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("[1e999]", "too large"),
        ("9" * 6000, "6,000 digits does not fit into 64 bits"),
        (str(2**63), "64 bits"),
        ("{\n'a': 1}", "x.json:2: not readable as JSON"),
        ("", "not readable as JSON"),
        ('["a\n"]', "not readable as JSON"),
    ],
)
def test_json_is_bounded_before_it_is_built(text: str, said: str):
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        parse_json(text, where="x.json")
    assert time.process_time() - start < 5
    assert said in str(caught.value)
    assert str(caught.value).startswith("x.json")
    assert len(str(caught.value)) < 300


def test_signs_in_strings_are_no_structure():
    """What the count sees is what the parser builds: brackets, commas and escapes in strings do not count."""
    tree = {"a[[[": ['[[[{,,"', "\\", '\\"[', {"b": [1, [2]]}], "c": -(2**63), "d": 1.5, "e": "é\u2028", "f": None}
    text = json.dumps(tree)
    assert parse_json(text, where="x", max_depth=5, max_items=20) == tree
    assert parse_json(text.encode(), where="x", max_depth=5, max_items=20) == tree
    with pytest.raises(UserError, match="nested deeper than 4"):
        parse_json(text, where="x", max_depth=4)
    with pytest.raises(UserError, match="more than 10 items"):
        parse_json(text, where="x", max_items=10)
    commas = json.dumps([",[" * 300_000, "\\" * 1001, 1])  # in several parts, and with an odd run of backslashes
    assert parse_json(commas, where="x", max_items=20) == json.loads(commas)
    assert str(parse_json("[NaN]", where="x", constants=True)[0]) == "nan"


def test_reading_json_names_the_file(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"a": [1, 2]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": [1, 2]}
    with pytest.raises(UserError, match="file too large"):
        read_json(tmp_path / "a.json", 5)


def test_names_are_written_everywhere_alike(tmp_path: Path):
    assert shown("plain é 猫.png") == "plain é 猫.png"
    assert shown(b"caf\xe9.png".decode("utf-8", "surrogateescape")) == r"caf\xe9.png"
    assert shown("a\nb\x1b[31m\x85\u202ec") == r"a\nb\x1b[31m\x85\u202ec"
    assert shown("\ud800") == r"\ud800"
    name = b"\xe9t\xe9".decode("utf-8", "surrogateescape")
    write_text(tmp_path / "card.md", f"a card of {name}\n")
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == "a card of \\xe9t\\xe9\n"
    assert f"a\n{name}".encode("utf-8", NAMES) == b"a\n\\xe9t\\xe9"  # lines of a text stay lines


def test_a_message_stays_short():
    error = UserError("wrong value", where="a" * 5000, got="b" * 10**6, expected="a number")
    assert len(str(error)) < 5000
    assert "1,000,000 characters" in str(error)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_hostile_text_is_bounded():
    """31 MB of empty lists would be 1.9 GB of them."""
    code = (
        "from pathlib import Path; from vitral.files import parse_json\n"
        "try: parse_json(b'[' + b'[],' * 10_000_000 + b'1]', where='x')\n"
        "except ValueError as error: print(error)\n"
        "print(Path('/proc/self/status').read_text(encoding='utf-8').split('VmHWM:')[1].split()[0])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    said, peak = found.stdout.splitlines()
    assert "more than 1,000,000 items" in said
    assert int(peak) < 300_000  # kB
