"""What a kill leaves is whole or cleared away by the next who writes there; who holds a lock keeps the others out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kills import after_each_kill, run_killed
from vitral.atomic_files import is_locked, locked, remove, whole_file, whole_folder, write_text
from vitral.errors import UserError, command

unix = pytest.mark.skipif(os.name == "nt", reason="needs fork")


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def write_folder(path: Path, text: str) -> None:
    with whole_folder(path) as folder:
        for name in ("config.json", "weights"):
            (folder / name).write_text(text, encoding="utf-8")


@unix
def test_a_replaced_folder_is_the_old_one_or_the_new_one_at_every_moment(tmp_path: Path) -> None:
    old, new = ({"config.json": text, "weights": text} for text in ("old", "new"))
    write_folder(tmp_path / "template", "old")
    place, seen = tmp_path / "model", list[str]()
    for _ in after_each_kill(tmp_path / "template", place, lambda: write_folder(place, "new")):
        if place.exists():
            assert content(place) in (old, new)
            seen.append(content(place)["weights"])
        else:  # between the two renames
            assert content(tmp_path / ".model.old") == old
            seen.append("aside")
        write_folder(place, "newer")
        assert set(content(place).values()) == {"newer"}
        assert {path.name for path in tmp_path.iterdir()} == {"template", "model"}, "nothing is left"
    assert set(seen) == {"old", "aside", "new"}, "all states were tried"


@unix
def test_a_folder_that_cannot_be_renamed_is_filled_and_a_kill_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working folder, or a mount point."""
    from vitral.weights.folder import free_place

    write_folder(tmp_path / "template", "old")
    place = tmp_path / "model"

    def work() -> None:
        os.chdir(place)
        write_folder(Path(), "new")

    for _ in after_each_kill(tmp_path / "template", place, work):
        monkeypatch.chdir(place)
        assert free_place(".", overwrite=True) == Path()
        write_folder(Path(), "newer")
        assert content(place) == {"config.json": "newer", "weights": "newer"}
        monkeypatch.chdir(tmp_path)


@unix
def test_a_file_is_the_old_one_or_the_new_one_at_every_moment(tmp_path: Path) -> None:
    (tmp_path / "template").mkdir()
    (tmp_path / "template/x").write_text("old", encoding="utf-8")
    place = tmp_path / "place"
    for _ in after_each_kill(tmp_path / "template", place, lambda: write_text(place / "x", "new")):
        assert (place / "x").read_text(encoding="utf-8") in ("old", "new")
        write_text(place / "x", "newer")
        assert content(place) == {"x": "newer"}


@unix
def test_a_folder_is_removed_whole(tmp_path: Path) -> None:
    write_folder(tmp_path / "template", "old")
    place = tmp_path / "model"
    for _ in after_each_kill(tmp_path / "template", place, lambda: remove(place)):
        assert not place.exists() or len(content(place)) == 2
        remove(place)
        assert {path.name for path in tmp_path.iterdir()} == {"template"}


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    def fails(what: Callable[[Path], contextlib.AbstractContextManager[Path]], path: Path, inside: str) -> None:
        with what(path) as partial:
            (partial / inside).write_text("new", encoding="utf-8")
            raise RuntimeError

    write_folder(tmp_path / "model", "old")
    for what, name, inside in ((whole_folder, "model", "config.json"), (whole_file, "model/weights", "")):
        with pytest.raises(RuntimeError):
            fails(what, tmp_path / name, inside)
    assert content(tmp_path / "model") == {"config.json": "old", "weights": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_two_do_not_write_one_folder(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("first", encoding="utf-8")
        with pytest.raises(UserError, match="another command is writing"):
            write_folder(tmp_path / "model", "second")
    assert content(tmp_path / "model") == {"config.json": "first"}


def test_a_lock_is_held_until_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitral.atomic_files.PATIENCE", 0.0)
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(UserError, match="another run works"), locked(tmp_path):
            pytest.fail("two at once")
    assert not is_locked(tmp_path)
    assert not list(tmp_path.iterdir())


@unix
def test_a_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    def work() -> None:
        with locked(tmp_path):
            os.unlink(tmp_path / "nothing")

    assert run_killed(work, 2) == 137
    assert (tmp_path / ".lock").exists()
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


class Windows:
    """Of Windows: an open file can be neither removed nor renamed, nor a folder in which one is open."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open: dict[int, str] = {}
        low, close = os.open, os.close

        def opened(path: Any, *rest: Any, **keys: Any) -> int:
            handle = low(path, *rest, **keys)
            self.open[handle] = os.path.abspath(path)
            return handle

        def closed(handle: int) -> None:
            self.open.pop(handle, None)
            close(handle)

        patch.setattr(os, "open", opened)
        patch.setattr(os, "close", closed)
        for name in ("unlink", "remove", "rename", "replace", "rmdir"):
            patch.setattr(os, name, self._refusing(getattr(os, name)))

    def _refusing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **keys: Any) -> Any:
            name = os.path.abspath(path)
            used = [other for other in self.open.values() if other == name or other.startswith(name + os.sep)]
            if used and "dir_fd" not in keys:
                raise PermissionError(13, "used by another process", name)
            return function(path, *rest, **keys)

        return call


def test_nothing_is_removed_or_renamed_while_it_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Windows(monkeypatch)
    with locked(tmp_path):
        with pytest.raises(PermissionError):
            (tmp_path / ".lock").unlink()
        write_folder(tmp_path / "model", "old")
        write_folder(tmp_path / "model", "new")
        write_text(tmp_path / "x", "text")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "x"}
    assert set(content(tmp_path / "model")) == {"config.json", "weights"}


@pytest.mark.parametrize(("system", "line"), [("nt", 'vitral train "my run"'), ("posix", "vitral train 'my run'")])
def test_printed_commands_are_quoted_for_the_systems_shell(
    system: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("vitral.errors.os.name", system)
        found = command("vitral", "train", "my run")
    assert found == line
