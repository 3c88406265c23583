"""train, eval and predict as programs see them: data on stdout, talk on stderr, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vitral
from tests.helpers import TINY, random_model, write_colors, write_digits
from vitral.cli.main import main
from vitral.data.digits import TEST_SIZE

Capture = pytest.CaptureFixture[str]


def lines(capsys: Capture, *argv: str | Path) -> list[dict[str, Any]]:
    """The JSON lines that a command which ends well prints."""
    code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def keys(values: dict[str, Any]) -> list[str]:
    return [f"{key}={'null' if value is None else str(value).lower()}" for key, value in values.items()]


def test_train_prints_the_summary_on_stdout_and_talks_on_stderr(capsys: Capture) -> None:
    assert main(["train", "digits", "out=a", "--json", *keys(TINY)]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary == {**json.loads(Path("a/summary.json").read_text(encoding="utf-8")), "out": "a"}
    assert (summary["split"], summary["count"], summary["steps"], summary["recipe"]) == ("test", TEST_SIZE, 3, "digits")
    assert "test top-1" in err
    assert "\x1b" not in err, "plain lines where stderr is no terminal"
    assert main(["train", "digits", "out=b", *keys(TINY)]) == 0
    assert capsys.readouterr().out == ""


def test_predict_prints_one_line_an_image(trained: Path, capsys: Capture) -> None:
    files = write_digits(Path("digits"), range(12))
    paths = [str(path) for path, _, _ in files]
    found = lines(capsys, "predict", trained, *paths, "topk=3")
    assert [row["image"] for row in found] == paths
    for row in found:
        assert row.keys() == {"image", "predictions"}
        assert len(row["predictions"]) == 3
        scores = [entry["score"] for entry in row["predictions"]]
        assert scores == sorted(scores, reverse=True)
        assert all(entry.keys() == {"label", "index", "score"} for entry in row["predictions"])
        assert all(entry["label"] == str(entry["index"]) for entry in row["predictions"])
    right = sum(row["predictions"][0]["index"] == label for row, (_, _, label) in zip(found, files, strict=True))
    assert right >= 9


def test_predict_takes_folders_and_models_by_any_name(trained: Path, capsys: Capture) -> None:
    write_digits(Path("digits"), range(5))
    whole = lines(capsys, "predict", trained, "digits")
    assert [row["image"] for row in whole] == [str(path) for path in sorted(Path("digits").rglob("*.png"))]
    assert all(len(row["predictions"]) == 5 for row in whole), "five classes unless asked otherwise"
    for again, first in zip(
        lines(capsys, "predict", trained / "model", "digits", "batch_size=2", "--json"), whole, strict=True
    ):
        assert again["image"] == first["image"]
        assert [said["label"] for said in again["predictions"]] == [said["label"] for said in first["predictions"]]
        scores = [[said["score"] for said in row["predictions"]] for row in (again, first)]
        assert scores[0] == pytest.approx(scores[1], abs=2e-6), "other batches round the last digit otherwise"
    one = str(next(Path("digits").rglob("*.png")))
    assert len(lines(capsys, "predict", trained, one, "digits")) == 6
    Path("empty").mkdir()
    assert main(["predict", str(trained), "empty"]) == 2


def test_predict_keeps_names_in_any_alphabet(capsys: Capture) -> None:
    random_model(Path("model"), ("gato", "cão", "猫"))
    path = write_digits(Path("d"), range(1))[0][0].rename("são.png")
    row = lines(capsys, "predict", "model", path)[0]
    assert row["image"] == "são.png"
    assert {entry["label"] for entry in row["predictions"]} == {"gato", "cão", "猫"}


def test_eval_measures_on_the_recorded_data(trained: Path, capsys: Capture) -> None:
    found = lines(capsys, "eval", trained, "--json")[0]
    summary = json.loads((trained / "summary.json").read_text(encoding="utf-8"))
    shared = ("split", "top1", "top1_interval", "top5", "count", "ece", "ece_uncalibrated", "loss")
    assert {key: found[key] for key in shared} == {key: summary[key] for key in shared}
    assert found["count"] == sum(sum(row) for row in found["confusion"]) == TEST_SIZE
    assert sum(found["confusion"][i][i] for i in range(10)) == round(found["top1"] * TEST_SIZE)
    assert list(found["per_class"]) == [str(digit) for digit in range(10)]
    low, high = found["top1_interval"]
    assert low < found["top1"] < high


def test_eval_of_another_split(trained: Path, capsys: Capture) -> None:
    found = lines(capsys, "eval", trained, "split=val", "--json")[0]
    summary = json.loads((trained / "summary.json").read_text(encoding="utf-8"))
    assert (found["split"], found["count"], found["top1"]) == ("val", 144, summary["val_top1"])
    assert lines(capsys, "eval", trained, "split=train", "--json")[0]["count"] == 1797 - TEST_SIZE - 144
    assert main(["eval", str(trained), "split=validation"]) == 2
    assert "split" in capsys.readouterr().err


def test_eval_below_the_threshold_is_exit_code_3(trained: Path, capsys: Capture) -> None:
    assert main(["eval", str(trained), "min_top1=1", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["top1"] < 1
    assert "below min_top1=1" in err
    assert main(["eval", str(trained), "min_top1=0.5"]) == 0
    assert main(["eval", str(trained), "min_top1=90"]) == 2


def test_eval_of_a_folder_and_of_wrong_folders(trained: Path, capsys: Capture) -> None:
    write_digits(Path("digits"), range(40))
    found = lines(capsys, "eval", trained, "data=digits/", "--json")[0]
    assert (found["split"], found["count"]) == ("train", 40)
    write_colors(Path("pets"))
    assert main(["eval", str(trained), "data=pets"]) == 2
    err = capsys.readouterr().err
    assert "classes of the data are not those of the model" in err
    assert "cat, dog" in err
    assert main(["eval", str(trained), "data.source=cifar"]) == 2, "a source without a path is not ignored"


def test_eval_compares_two_models(trained: Path, capsys: Capture) -> None:
    random_model(Path("guess"), tuple("0123456789"))
    found = lines(capsys, "eval", trained, "compare=guess", "--json")[0]
    other = found["compare"]
    assert other["p_value"] < 1e-10
    assert other["difference"] == pytest.approx(found["top1"] - other["top1"])
    assert round((other["only_a"] - other["only_b"]) / TEST_SIZE, 9) == round(other["difference"], 9)
    assert main(["eval", str(trained), "compare=guess"]) == 0
    text = capsys.readouterr().out
    assert "against guess" in text
    assert f"{100 * found['top1']:.2f} %" in text


def test_eval_of_a_model_that_names_no_data(capsys: Capture) -> None:
    random_model(Path("model"))
    assert main(["eval", "model"]) == 2
    assert "data=DIR" in capsys.readouterr().err


def test_predictions_of_command_and_library_are_the_same(trained: Path, capsys: Capture) -> None:
    path = write_digits(Path("digits"), range(1))[0][0]
    assert lines(capsys, "predict", trained, path) == vitral.load(trained).predict([str(path)])
