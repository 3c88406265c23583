"""`vitral attack` on the command line: text, exit codes, and every kind of bad input as one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import TINY, random_model, write_colors
from vitral.cli.main import main
from vitral.run.config import load_config
from vitral.run.train import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("attack")
    write_colors(root / "pets", "cat dog owl", 6, (8, 8))
    write_colors(root / "two", "cat dog", 3, (8, 8))
    random_model(root / "model")
    random_model(root / "pair", ("cat", "dog"))
    random_model(root / "headless", ())
    return root


@pytest.fixture(autouse=True)
def _there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def test_text_and_json(capsys: Capture) -> None:
    words = ["attack", "model", "data=pets", "attack.eps=20/255", "attack.steps=3", "curve=4/255,0.5x,0.9"]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [round(255 * row["eps"], 6) for row in found["curve"]] == [0, 4, 10, 20, 229.5]
    robust = [row["robust_top1"] for row in found["curve"]]
    assert robust == sorted(robust, reverse=True)
    assert robust[3] == found["robust_top1"]
    failed = [check for check in found["checks"] if check["passed"] is False]
    assert err.count("the real accuracy under attack may be lower") == len(failed)
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"{100 * found['robust_top1']:.2f} % of 18 train images correct under pgd" in text
    assert "eps 20/255" in text
    for title in ("Strength of the attack", "Accuracy over the size", "least robust first"):
        assert title in text


@pytest.mark.slow
def test_limits_give_exit_code_3(capsys: Capture) -> None:
    words = ["attack", "vitral-digits", "samples=40", "curve=none"]
    assert main([*words, "attack.eps=0.1", "check=none", "min_top1=0.9"]) == 3
    assert "below min_top1=0.9" in capsys.readouterr().err
    assert main([*words, "attack.kind=fgsm", "attack.eps=0.1", "check=strict"]) == 3
    assert "check=strict: expected that a longer attack" in capsys.readouterr().err
    assert main([*words, "attack.kind=fgsm", "attack.eps=0.1"]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("model data=pets attack.eps=0", ("attack.eps", "greater than 0")),
        ("model data=pets attack.eps=-0.1", ("attack.eps", "greater than 0")),
        ("model data=pets attack.eps=8", ("more than the whole range", "8/255")),
        ("model data=pets attack.eps=8/0", ("attack.eps", "number")),
        ("model data=pets attack.norm=l2 attack.eps=9", ("longer than any change", "at most 8")),
        ("model data=pets attack.kind=pdg", ("attack.kind", "did you mean 'pgd'")),
        ("model data=pets attack.kind=nfgsm", ("more than eps", "for training only")),
        ("model data=pets attack.kind=embedding_fgm", ("attack.kind", "wrong value")),
        ("model data=pets attack.kind=square attack.steps=3", ("attack.steps", "key of another kind")),
        ("model data=pets attack=apgd", ("did you mean 'attack.kind=apgd'",)),
        ("model data=pets eps=8/255", ("eps: unknown key", "attack.eps")),
        ("model data=pets curve=8", ("curve=8", "8/255")),
        ("model data=pets curve=half", ("curve=half", "0.5x")),
        ("model data=pets samples=0", ("samples", "1")),
        ("model data=pets overwrite=true", ("no effect without out=DIR",)),
        ("model data=pets transfer=model check=strict", ("no effect with transfer",)),
        ("model data=pets transfer=pair", ("same classes", "2 classes")),
        ("model data=pets split=test", ("no such split",)),
        ("model data=two", ("the classes of the data are not those of the model",)),
        ("pair data=two attack.kind=apgd attack.loss=dlr", ("attack.loss", "2 classes", "at least 3 classes")),
        ("model data=pets attack.kind=apgd attack.loss=dlr attack.targets=2", ("3 classes", "at least 4 classes")),
        ("vitral-digits attack.kind=apgd attack.loss=dlr attack.targets=10", ("attack.targets", "at most 9")),
        ("headless data=pets", ("no head", "predicts no classes")),
        ("model", ("doesn't say what it was trained on", "data=DIR")),
        ("nowhere data=pets", ("nowhere",)),
        ("model data=pets out=pets", ("overwrite=true",)),
        ("model data=pets out=pets overwrite=true", ("not written by vitral attack",)),
        ("", ("missing argument: MODEL",)),
    ],
)
def test_bad_input_is_one_message(words: str, says: tuple[str, ...], capfd: Capture) -> None:
    assert main(["attack", *words.split()]) == 2
    out, err = capfd.readouterr()
    assert all(text in err for text in says), err
    assert (out, err.count("error:")) == ("", 1)
    assert "Traceback" not in err


def test_a_model_of_numbers_has_no_classes(capfd: Capture) -> None:
    run(load_config("digits_regression", {**TINY, "out": "numbers"}))
    capfd.readouterr()
    assert main(["attack", "numbers"]) == 2
    err = capfd.readouterr().err
    assert "one class per image" in err
    assert "regression" in err
