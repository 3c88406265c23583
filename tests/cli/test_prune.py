"""`vitral prune`, and fewer tokens from the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import random_model, weights, write_colors
from vitral import load
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.weights.folder import load_config


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prune")
    write_colors(root / "pets", "cat dog owl", 8, (8, 8))
    random_model(root / "model")
    random_model(root / "headless", ())
    random_model(root / "relative", positions="relative")
    return root


@pytest.fixture(autouse=True)
def _there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    return capsys.readouterr().err


def test_a_pruned_folder_is_a_model_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = str(tmp_path / "small")
    found = answer(capsys, "prune", "model", "data=pets", "split=auto", "flops=0.6", f"out={out}")
    assert found["macs"][1] <= 0.6 * found["macs"][0]
    assert found["images"] == 24
    folder = load_config(Path(out))
    assert folder.temperature == 1.0
    assert folder.provenance["pruned"]["macs"] == found["macs"]
    count = sum(tensor.numel() for tensor in weights(out).values())
    assert count == found["parameters"][1] < found["parameters"][0]
    assert (Path(out) / "model.safetensors").stat().st_size < Path("model/model.safetensors").stat().st_size
    answers = load(out).predict([torch.zeros(8, 8, 1).numpy()], topk=1)
    assert answers[0]["predictions"][0]["label"] in ("cat", "dog", "owl")
    again = answer(capsys, "prune", "model", "data=pets", "split=auto", "flops=0.6", f"out={out}", "overwrite=true")
    assert again == found
    program, *words = shlex.split(found["next"])
    short = ["train.steps=2", "check.skip=true", "report=false", f"out={tmp_path / 'tuned'}"]
    assert program == "vitral"
    assert main([*words[:-1], *short]) == 0, "the command that it prints trains the smaller model on"
    assert load_config(tmp_path / "tuned/model").architecture == folder.architecture
    for words in (["format=timm"], ["format=hf"]):
        message = refusal(capsys, "export", out, *words, f"out={tmp_path / 'there'}")
        assert "blocks of different sizes (pruned)" in message
    assert answer(capsys, "summary", out)["macs"] == found["macs"][1]


def test_what_cannot_be_pruned_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "a folder for the smaller model is expected" in refusal(capsys, "prune", "model", "data=pets")
    assert "missing argument: MODEL" in refusal(capsys, "prune")
    assert "predicts no classes" in refusal(capsys, "prune", "headless", "data=pets", f"out={tmp_path / 'a'}")
    assert "classes of the data" in refusal(capsys, "prune", "vitral-digits", "data=pets", f"out={tmp_path / 'a'}")
    assert "flops: wrong value" in refusal(capsys, "prune", "model", "data=pets", "flops=1.5", f"out={tmp_path / 'a'}")
    assert "so little cannot be reached" in refusal(
        capsys, "prune", "model", "data=pets", "split=auto", "flops=0.01", f"out={tmp_path / 'a'}"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("mine", encoding="utf-8")
    said = refusal(capsys, "prune", "model", "data=pets", f"out={tmp_path / 'full'}")
    assert "output folder exists and is not empty" in said
    assert not (tmp_path / "a").exists()


def test_fewer_tokens_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    plain = answer(capsys, "eval", "vitral-digits")
    none = answer(capsys, "eval", "vitral-digits", "reduce=tome", "tome.r=0")
    assert none == plain
    for words in (["reduce=tome", "tome.r=2"], ["reduce=tome", "tome.r=[0,4,0,0]"], ["reduce=evit"]):
        fewer = answer(capsys, "eval", "vitral-digits", *words)
        assert fewer["count"] == 360
        assert 0.9 < fewer["top1"] < 1
        assert fewer["loss"] != plain["loss"]
    main(["eval", "vitral-digits", "reduce=evit", "evit.share=0.5", "evit.after=[1]"])
    assert "patch tokens after each block: 16, 9, 9, 9" in capsys.readouterr().err


def test_features_of_fewer_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    image = next(Path("pets").rglob("*.png"))
    for kind, shape in (("pooled", 16), ("avg", 16), ("cls_avg", 32), ("patches", 16)):
        assert main(["embed", "model", str(image), f"features={kind}", "reduce=tome", "tome.r=3"]) == 0
        row = json.loads(capsys.readouterr().out)["embedding"]
        assert len(row) == shape if kind != "patches" else (len(row), len(row[0])) == (16, 16)


def test_wrong_reductions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("eval", "vitral-digits")
    assert "evit.* have no effect with reduce=tome" in refusal(capsys, *words, "reduce=tome", "evit.share=0.5")
    assert "tome.* have no effect with reduce=auto" in refusal(capsys, *words, "tome.r=1")
    assert "one number for each block" in refusal(capsys, *words, "reduce=tome", "tome.r=[1,2]")
    assert "no such block" in refusal(capsys, *words, "reduce=evit", "evit.after=[9]")
    assert "schedule=decreasing has no effect" in refusal(
        capsys, *words, "reduce=tome", "tome.r=[1,1,1,1]", "tome.schedule=decreasing"
    )
    assert "positions=relative" in refusal(capsys, "eval", "relative", "data=pets", "reduce=tome")


@pytest.mark.slow
def test_the_documented_way_keeps_the_accuracy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """30 % fewer operations: within a point of the whole model after 20 epochs, and fewer parameters."""
    small, tuned = str(tmp_path / "small"), str(tmp_path / "tuned")
    found = answer(capsys, "prune", "vitral-digits", "flops=0.7", f"out={small}")
    assert found["macs"][1] <= 0.7 * found["macs"][0]
    assert found["parameters"][1] < 0.75 * found["parameters"][0]
    start = [f"init={small}", "init_head=true", "model.name=auto", "train.epochs=20", "optim.lr=1e-3", "report=false"]
    assert main(["train", "digits", *start, f"out={tuned}"]) == 0
    capsys.readouterr()
    found = answer(capsys, "eval", tuned, "compare=vitral-digits")
    assert found["top1"] >= found["compare"]["top1"] - 0.01


def test_user_error_is_imported_for_python_too() -> None:
    from vitral.run.command_options import PruneOptions
    from vitral.run.prune import prune_model

    with pytest.raises(UserError, match="no such model"):
        prune_model("nothing-of-this-name", PruneOptions(out="x"))
