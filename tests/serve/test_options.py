"""What `vitral serve` answers before it serves: wrong words, names, keys and addresses."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import edit_config, random_model
from vitral.cli import serve as command
from vitral.cli.main import main
from vitral.config import describe
from vitral.errors import UserError
from vitral.predictor import Predictor, load
from vitral.run import serve
from vitral.run.command_options import ServeOptions
from vitral.serve.model_worker import ModelWorker

Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, *argv: str) -> str:
    assert main(["serve", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ((), ("missing argument: MODEL...",)),
        (("vitral-digits", "prot=1"), ("prot: unknown key", "did you mean 'port'?")),
        (("vitral-digits", "port=70000"), ("port: wrong value", "65535")),
        (("vitral-digits", "max_batch=0"), ("max_batch",)),
        (("vitral-digits", "deadline=0"), ("deadline",)),
        (("vitral-digits", "engine=tensorrt"), ("engine", "auto")),
        (
            ("vitral-digits", "vitral-digits"),
            ("two models would have one name", "names=[vitral-digits-1,vitral-digits-2]"),
        ),
        (("vitral-digits", "names=[a,b]"), ("one name per model",)),
        (("vitral-digits", "names=[a/b]"), ("not a name",)),
        (("vitral-digits", "api_key_file=nowhere"), ("api_key_file: not readable",)),
        (("vitral-digits", "host=203.0.113.7", "port=0"), ("203.0.113.7",)),
        (("vitral-digits", "allow_hosts=[https://vision.example]"), ("allow_hosts", "without scheme")),
        (("vitral-digits", "allow_hosts=[vision.example:8443]"), ("allow_hosts", "port")),
        (("nowhere", "port=0"), ("nowhere",)),
    ],
)
def test_wrong_words_are_refused(
    words: tuple[str, ...], parts: tuple[str, ...], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "log_lines", lambda _: None)
    said = refused(capsys, *words)
    for part in parts:
        assert part in said


def test_a_port_that_is_taken_is_said(capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused(capsys, "vitral-digits", f"port={taken.getsockname()[1]}")
    assert "cannot listen here" in said
    assert "port=0" in said


def test_a_missing_extra_says_what_to_install(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "uvicorn" else name)
    said = refused(capsys, "vitral-digits")
    assert "uvicorn" in said
    assert 'pip install "vitral[serve]"' in said


def test_help_names_every_key(capsys: Capture) -> None:
    assert main(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    for key in describe(ServeOptions):
        assert key.name in text
        assert key.help, key.name


def test_models_are_called_by_their_folders(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    random_model(run.parent / "plain")
    random_model_in_run = random_model(tmp_path / "model")
    run.mkdir()
    random_model_in_run.rename(run / "model")
    names = serve.names_of([str(run), str(tmp_path / "plain"), "vitral-digits"], ())
    assert names == ["my-run", "plain", "vitral-digits"]
    assert serve.names_of([str(run / "model")], ()) == ["my-run"]
    assert serve.names_of(["a", "b"], ("x", "y.2")) == ["x", "y.2"]


def test_a_served_model_has_the_servers_limit_and_is_watched_where_it_is(tmp_path: Path) -> None:
    """Whatever its folder says of pixels, and whatever else lies in it."""
    folder = random_model(tmp_path / "plain")
    (folder / "model").mkdir()
    edit_config(folder, lambda tree: tree["preprocessing"].update(max_pixels=99))
    large = Image.new("L", (10, 10))
    with pytest.raises(UserError, match="limit of 99 pixels"):
        load(folder).preprocess(large)
    host = serve._worker("m", str(folder), ServeOptions(max_pixels=100))
    assert host.source is not None
    assert host.source.path == folder
    for predictor in (host.predictor, host.source.load()):
        assert isinstance(predictor, Predictor)
        assert predictor.preprocess(large).shape == (1, 8, 8)
        with pytest.raises(UserError, match="limit of 100 pixels"):
            predictor.preprocess(Image.new("L", (101, 1)))


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text(" s3cret\n", encoding="utf-8")
    assert serve.read_key(None) is None
    assert serve.read_key(str(file)) == "s3cret"
    monkeypatch.setenv("VITRAL_API_KEY", "other")
    assert serve.read_key(None) == "other"
    with pytest.raises(UserError, match="too"):
        serve.read_key(str(file))
    monkeypatch.setenv("VITRAL_API_KEY", "")
    with pytest.raises(UserError, match="not a key"):
        serve.read_key(None)
    monkeypatch.delenv("VITRAL_API_KEY")
    file.write_text("two words", encoding="utf-8")
    with pytest.raises(UserError, match="not a key") as caught:
        serve.read_key(str(file))
    assert "two" not in str(caught.value)


@pytest.mark.parametrize(("asked", "expected"), [("auto", ["cpu", "cuda"]), ("cuda", ["cuda", "cuda"])])
def test_exports_leave_a_clusters_gpus_to_models(
    monkeypatch: pytest.MonkeyPatch, asked: str, expected: list[str]
) -> None:
    opened: list[str] = []

    def open_host(name: str, _: str, options: ServeOptions) -> ModelWorker:
        opened.append(options.device)
        return ModelWorker(name, load("vitral-digits", "cpu"))

    monkeypatch.setattr(serve, "_worker", open_host)
    monkeypatch.setattr(serve, "find_export", lambda model: Path(model) if model.endswith("onnx") else None)
    monkeypatch.setattr(serve, "log_lines", lambda _: None)
    options = ServeOptions(engine="ray", device=asked)
    serve._application(["model.onnx", "model"], ["one", "two"], options, None, "cuda")
    assert opened == expected
