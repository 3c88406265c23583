"""A model on the hub: what is brought there is what is taken from there, and nothing is overwritten by accident."""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

import vitral
from tests.helpers import VITRAL, edit_config, random_model, write_digits
from tests.models.text_models import save, text_writer
from tests.run.text_runs import text_run
from tests.weights.hub_server import TOKEN, hub_server
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.run import serve
from vitral.run.command_options import ServeOptions
from vitral.weights.digests import CONFIG, WEIGHTS, file_digest
from vitral.weights.folder import load_folder

Capture = pytest.CaptureFixture[str]


class NotFound(OSError):
    """As the client raises it."""


class FakeHub(types.ModuleType):
    """The client's part that a push uses, with repositories in memory."""

    def __init__(self) -> None:
        super().__init__("huggingface_hub")
        self.repositories: dict[str, dict[str, Any]] = {}
        self.private: dict[str, bool] = {}
        self.errors = types.SimpleNamespace(RepositoryNotFoundError=NotFound)
        self.endpoint, self.token = "https://hub", "hf_x"

    def HfApi(self) -> FakeHub:
        return self

    def get_token(self) -> str | None:
        return self.token

    def CommitOperationAdd(self, path: str, content: bytes | str) -> tuple[str, bytes]:
        return path, content if isinstance(content, bytes) else Path(content).read_bytes()

    def model_info(self, name: str) -> Any:
        if name not in self.repositories:
            raise NotFound("404")
        files = [types.SimpleNamespace(rfilename=path) for path in self.repositories[name]]
        return types.SimpleNamespace(siblings=files, private=self.private[name])

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        if name.startswith("else/"):
            raise OSError("403 Forbidden: not yours\nand more")
        self.private.setdefault(name, private)
        self.repositories.setdefault(name, {".gitattributes": b""})

    def create_commit(self, name: str, operations: list[tuple[str, bytes]], commit_message: str) -> None:
        self.repositories[name] |= dict(operations)

    def snapshot_download(self, name: str, revision: str | None, allow_patterns: list[str]) -> str:
        if name not in self.repositories:
            raise OSError("404 no such repository")
        folder = Path("cache") / name.replace("/", "--")
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in self.repositories[name].items():
            if any(fnmatch.fnmatch(path, pattern) for pattern in allow_patterns):
                (folder / path).write_bytes(content)
        return str(folder.absolute())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    found = FakeHub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)
    return found


def header(card: bytes) -> dict[str, Any]:
    return yaml.safe_load(card.decode().split("---\n")[1])


def test_the_folder_arrives_with_a_header_and_without_places(hub: FakeHub, capsys: Capture) -> None:
    folder = random_model(Path("model"))
    places = {"data": {"path": "/home/anna/photos", "notes": ["a note"]}, "init": "C:\\models\\mine"}
    edit_config(folder, lambda tree: tree.update(provenance=places))
    tree = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    assert main(["push", "model", "anna/pets", "license=cc-by-4.0", "private=true", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"repository": "anna/pets", "url": "https://hub/anna/pets"}
    assert hub.private["anna/pets"]
    files = hub.repositories["anna/pets"]
    assert files.keys() == {".gitattributes", "config.json", "model.safetensors", "README.md"}
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    there = json.loads(files["config.json"])
    assert there["provenance"] == {"data": {"path": "photos", "notes": ["a note"]}, "init": "mine"}
    changed = {"provenance": None, "digests": None}
    assert there | changed == tree | changed
    assert there["digests"][WEIGHTS] == tree["digests"][WEIGHTS] == file_digest(folder / WEIGHTS)
    Path("there").mkdir()
    for name in (CONFIG, WEIGHTS):
        (Path("there") / name).write_bytes(files[name])
    assert load_folder("there")[1].provenance == there["provenance"], "the digests are of what arrived"
    assert files["README.md"].endswith(b"---\na card\n")
    said = header(files["README.md"])
    assert (said["license"], said["library_name"]) == ("cc-by-4.0", "vitral")
    assert said["pipeline_tag"] == "image-classification"
    assert "model-index" not in said, "nothing has been measured"


def test_a_card_of_ones_own_stays(hub: FakeHub) -> None:
    folder = random_model(Path("model"))
    (folder / "README.md").write_text("---\nlicense: mit\nmine: [1, 2]\n---\n# Mine\n\n---\nend\n", encoding="utf-8")
    assert main(["push", "model", "anna/pets"]) == 0
    card = hub.repositories["anna/pets"]["README.md"]
    assert header(card) == {"license": "mit", "mine": [1, 2]}
    assert card.endswith(b"---\n# Mine\n\n---\nend\n")
    (folder / "README.md").write_text("---\na: [\n---\n", encoding="utf-8")
    assert main(["push", "model", "anna/more"]) == 2
    assert "anna/more" not in hub.repositories


def test_a_repository_with_files_is_kept_unless_asked(hub: FakeHub, capsys: Capture) -> None:
    random_model(Path("model"))
    hub.repositories["anna/pets"], hub.private["anna/pets"] = {".gitattributes": b"", "data.csv": b"1"}, False
    assert main(["push", "model", "anna/pets"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "data.csv" in err
    assert "overwrite=true" in err
    assert main(["push", "model", "anna/pets", "overwrite=true", "private=true"]) == 2
    assert "is public" in capsys.readouterr().err
    assert set(hub.repositories["anna/pets"]) == {".gitattributes", "data.csv"}
    assert main(["push", "model", "anna/pets", "overwrite=true"]) == 0
    assert hub.repositories["anna/pets"]["data.csv"] == b"1"


def test_from_python_the_model_goes_as_it_is(hub: FakeHub) -> None:
    random_model(Path("model"))
    assert vitral.load("model", image_size=12).push_to_hub("anna/larger") == "https://hub/anna/larger"
    files = hub.repositories["anna/larger"]
    assert json.loads(files["config.json"])["architecture"]["image_size"] == [12, 12]
    assert b"12 x 12 pixels" in files["README.md"]


def test_a_repository_that_was_made_in_vain_is_said(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    random_model(Path("model"))

    def fail(*_: object, **__: object) -> None:
        raise OSError("too slow")

    monkeypatch.setattr(hub, "create_commit", fail)
    for said in (True, False):  # the second time it is there already
        assert main(["push", "model", "anna/pets"]) == 2
        err = capsys.readouterr().err
        assert "too slow" in err
        assert ("The repository exists now and is empty" in err) is said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model pets", "OWNER/NAME"), ("model a/b@v1", "OWNER/NAME"), ("model", "missing argument: OWNER/NAME"),
        ("nothing a/b", "no such model"), ("model else/b", "403 Forbidden"), ("foreign.pt a/b", "weights convert"),
    ],
)  # fmt: skip
def test_what_cannot_be_pushed_is_one_message(words: str, message: str, hub: FakeHub, capsys: Capture) -> None:
    import torch

    random_model(Path("model"))
    torch.save(vitral.create_model("vit_micro_patch2_8", num_classes=2).state_dict(), "foreign.pt")
    assert main(["push", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert "Traceback" not in err
    assert not [files for files in hub.repositories.values() if len(files) > 1]


def test_token_extra_and_damage_are_found_before_anything_is_sent(hub: FakeHub, monkeypatch: Any) -> None:
    folder = random_model(Path("model"))
    hub.token = ""
    monkeypatch.setattr(hub, "token", None)
    with pytest.raises(UserError, match="HF_TOKEN"):
        vitral.load("model").push_to_hub("anna/pets")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "vitral\[hub\]"'):
        vitral.load("model").push_to_hub("anna/pets")
    (folder / "model.safetensors").write_bytes(b"no")
    assert main(["push", "model", "anna/pets"]) == 2
    assert not hub.repositories


def test_a_model_that_writes_text_comes_back_by_its_name(hub: FakeHub, capsys: Capture) -> None:
    pytest.importorskip("jiwer")
    text_run(Path("toy"), train__steps=2)
    assert main(["push", "toy/run", "anna/speller", "license=mit"]) == 0
    files = hub.repositories["anna/speller"]
    assert files.keys() == {".gitattributes", "config.json", "model.safetensors", "tokenizer.json", "README.md"}
    for name in ("model.safetensors", "tokenizer.json"):
        assert files[name] == (Path("toy/run/model") / name).read_bytes()
    assert json.loads(files["config.json"])["format"] == "vitral-text-1"
    assert header(files["README.md"])["license"] == "mit"
    assert b'vitral predict . --text "TEXT"' in files["README.md"]
    here, there = (vitral.load_text(name).write(["abc", "cab"]) for name in ("toy/run", "anna/speller"))
    assert [[each.text for each in row] for row in there] == [[each.text for each in row] for row in here]
    capsys.readouterr()
    for command in (["predict", "NAME", "--text", "abc"], ["eval", "NAME", "samples=5", "--json"], ["summary", "NAME"]):
        outs: list[str] = []
        for name in ("toy/run", "anna/speller"):
            assert main([word.replace("NAME", name) for word in command]) == 0, capsys.readouterr().err
            outs.append(capsys.readouterr().out.replace(name, "NAME"))
        assert outs[0] == outs[1]
    assert main(["explain", "anna/speller", "--text", "abc", "out=inside"]) == 0
    worker = serve._worker("speller", "anna/speller", ServeOptions())
    assert worker.writer is not None
    worker.close()
    assert main(["predict", "anna/nothing", "--text", "abc"]) == 2
    assert "the hub did not answer" in capsys.readouterr().err
    (Path("toy/run/model") / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert main(["push", "toy/run", "anna/damaged"]) == 2
    assert "anna/damaged" not in hub.repositories


@pytest.mark.oracle
def test_texts_there_and_back_with_the_hubs_own_client(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    save(text_writer(), tmp_path / "writer")
    with hub_server() as (address, repositories):
        known = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        environment = {**os.environ, **known, "HF_HUB_DISABLE_TELEMETRY": "1"}
        for words in (["push", "writer", "anna/speller"], ["predict", "anna/speller", "--text", "abc"]):
            done = subprocess.run([*VITRAL, *words], capture_output=True, encoding="utf-8", env=environment)
            assert done.returncode == 0, done.stderr
        assert "tokenizer.json" in repositories["anna/speller"].files
    assert json.loads(done.stdout)["text"] == vitral.load_text(tmp_path / "writer").write(["abc"])[0][0].text


@pytest.mark.oracle
def test_there_and_back_with_the_hubs_own_client(tmp_path: Path) -> None:
    """Over HTTP, by huggingface_hub itself: predictions of what comes back are those of what went."""
    pytest.importorskip("huggingface_hub")
    folder = random_model(Path("model"))
    images = [str(path) for path, _, _ in write_digits(Path("digits"), range(4))]
    with hub_server() as (address, repositories):
        known = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        environment = {**os.environ, **known, "HF_HUB_DISABLE_TELEMETRY": "1"}

        def call(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([*VITRAL, *words], capture_output=True, encoding="utf-8", env=environment)

        pushed = call("push", "model", "anna/pets", "private=true")
        assert (pushed.returncode, pushed.stdout) == (0, f"{address}/anna/pets\n"), pushed.stderr
        assert repositories["anna/pets"].private
        there = call("predict", "anna/pets", *images)
        assert there.returncode == 0, there.stderr
        assert [json.loads(line) for line in there.stdout.splitlines()] == vitral.load(folder).predict(images)
        environment["HF_TOKEN"] = "hf_wrong"
        wrong = call("push", "model", "anna/more")
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert "could not be brought to the hub" in wrong.stderr
        assert "Traceback" not in wrong.stderr
    away = call("push", "model", "anna/pets")
    assert (away.returncode, away.stdout) == (2, ""), "nothing listens there any more"
    assert "could not be brought to the hub" in away.stderr
