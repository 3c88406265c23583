"""What a model that writes text looks at: the evaluator `pointing`, the section of the report, `vitral explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.text_models import image_writer, save, text_writer, with_search
from tests.run.text_runs import CTC_STRIPS, SMALL, STRIPS, text_run
from vitral.cli.main import main
from vitral.data.text.batches import split_ids
from vitral.data.text.config import TextConfig
from vitral.data.text.dataset import TextSplit
from vitral.data.text.sources import open_text
from vitral.data.text.tokenizer import Bytes, TextTokenizer, Wordpiece
from vitral.data.text.tokenizer_file import Tokenizers
from vitral.errors import UserError
from vitral.evaluate.classification import wilson_interval
from vitral.interpret.alignment import alignment
from vitral.interpret.reading import Reading, read
from vitral.models.create import build_sequence_model
from vitral.models.image_to_text import ImageToText
from vitral.models.presets import resolve_sequence
from vitral.models.search_config import SearchConfig
from vitral.run.text_alignment import examples, layer_figure, look_section
from vitral.run.text_config import TextData
from vitral.run.text_data import text_subject
from vitral.run.text_eval import measure_text
from vitral.run.text_options import TextEvalOptions
from vitral.tasks.text_writing import Written
from vitral.text_predictor import load_text

pytest.importorskip("jiwer")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def strips_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on strips of digits, hardly trained, with a report."""
    folder = tmp_path_factory.mktemp("strips")
    text_run(folder, STRIPS, report=True, data__count=160)
    return folder / "run"


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on texts, hardly trained, with a report."""
    folder = tmp_path_factory.mktemp("texts")
    text_run(folder, SMALL, report=True, train__steps=3)
    return folder / "run"


def explained(capsys: Capture, *words: str) -> dict[str, Any]:
    code = main(["explain", *words, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_pointing_counts_peaks_in_the_boxes_of_the_digits(strips_run: Path, capsys: Capture) -> None:
    found = measure_text(str(strips_run), TextEvalOptions.model_validate({"eval": {"pointing": {}}})).result
    predictor, data = load_text(strips_run), TextData(source="digits_read", count=160)
    split = open_text(data, data.images()).splits["test"]
    assert split.images is not None
    assert split.boxes is not None
    hits = list[bool]()
    for place, (text, boxes_T4) in enumerate(zip(split.targets, split.boxes, strict=True)):
        x_1 = predictor.preprocess([split.images.read(place)[0].numpy()])
        text_1T = torch.tensor([[*predictor.tokenizers.target.encode(text), 2]])
        map_TM = alignment(predictor.model, x_1, text_1T)[0].mean((0, 1))[:, -80:]
        for map_M, (left, top, right, bottom) in zip(map_TM[:-1], boxes_T4, strict=True):
            row, column = divmod(int(map_M.argmax()), 20)  # 4 x 20 patches of 2 x 2, of an image of 12 x 60 pixels
            x, y = (2 * column + 1) * 60 / 40, (2 * row + 1) * 12 / 8
            hits.append(left <= x < right and top <= y < bottom)
    assert found["pointing_characters"] == len(hits)
    assert found["pointing"] == pytest.approx(sum(hits) / len(hits), abs=1.5 / len(hits))  # centers on an edge
    right = round(found["pointing"] * len(hits))
    assert found["pointing_interval"] == pytest.approx(wilson_interval(right, len(hits)))
    assert len(found["pointing_layers"]) == len(predictor.model.alignment_names)
    assert main(["eval", str(strips_run), "eval.pointing={}", "samples=5"]) == 0
    assert "characters with the peak of attention" in capsys.readouterr().out


def test_pointing_needs_boxes(text_folder: Path) -> None:
    with pytest.raises(UserError, match="box of each character"):
        measure_text(str(text_folder), TextEvalOptions.model_validate({"eval": {"pointing": {}}}))


def test_reports_show_three_examples(strips_run: Path, text_folder: Path) -> None:
    for run, media in ((strips_run, "image/png"), (text_folder, "image/svg+xml")):
        page = (run / "report.html").read_text(encoding="utf-8")
        look = page.partition("What the model looks at")[2].partition("<h2")[0]
        assert look.count(f"data:{media}") == 3
        assert "first wrong one" in look


def test_examples_are_the_first_right_the_first_wrong_and_the_next() -> None:
    rights = [("a",), ("b", "B"), ("c",), ("d",), ("e",)]
    names = ["first right one", "first wrong one", "next one"]
    assert examples(["x", "B", "c", "d", "e"], rights, [4, 4, 4, 4, 4]) == list(zip([1, 0, 2], names, strict=True))
    assert examples(["x", "B", "c", "d", "e"], rights, [4, 400, 4, 4, 4]) == list(zip([2, 0, 3], names, strict=True))
    assert [place for place, _ in examples(["x", "y"], rights[:2], [900, 500])] == [1]
    spaced = examples(["a ", "b"], [(" a",), ("c",)], [4, 4])  # as the metric: spaces at the ends do not count
    assert spaced == [(0, "first right one"), (1, "first wrong one")]


@pytest.mark.parametrize(("tokenizer", "written", "finished", "names"), [
    (Bytes(), (259,) * 7 + (100,), False, ["<0xff>"] * 7 + ["<0x60>"]),  # no UTF-8: three bytes each, encoded again
    (Wordpiece(["a", "b", "ab", "## b"]), (4, 7), True, ["a", "## b", "<end>"]),
])  # fmt: skip
def test_reports_show_the_tokens_that_were_written(
    tokenizer: TextTokenizer, written: tuple[int, ...], finished: bool, names: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tokenizers = Tokenizers(tokenizer, Bytes())
    architecture = resolve_sequence(
        "transformer_tiny", vocabulary=len(tokenizer), source_vocabulary=260, max_length=8, width=16, mlp_dim=16
    )
    model, split = build_sequence_model(architecture), TextSplit(["ab"], ["first"], ["ab"])
    ids = split_ids(split, tokenizers, TextConfig())
    best = Written(tokenizer.decode(written), 0.0, 0.0, finished, written)
    monkeypatch.setattr("vitral.run.text_data.write", lambda *given: [[best]])
    device = torch.device("cpu")
    subject = text_subject(model, "test", split, ids, tokenizers, SearchConfig(max_length=8), device=device)
    shown = list[list[str]]()

    def looked(*given: Any) -> Any:
        found = read(*given)
        shown.append(found.written)
        return found

    monkeypatch.setattr("vitral.run.text_alignment.read", looked)
    assert look_section(model, split, ids, tokenizers, subject.outputs(), store=None, device=device) is not None
    assert shown == [names]


def test_a_failing_picture_does_not_lose_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*given: Any, **keys: Any) -> Any:
        raise UserError("no picture")

    monkeypatch.setattr("vitral.run.text_run.look_section", fails)
    assert text_run(tmp_path, SMALL, report=True, train__steps=1)["steps"] == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"summary.json", "report.html"}
    assert "the report shows no attention: no picture" in caplog.text


def test_heads_are_counted_from_0() -> None:
    """As in the explorer, and in `vitral explain` of images."""
    found = Reading([4, 5], ["a"] * 6, np.full((1, 2, 2, 3), 1 / 3), np.zeros((2, 6)), None, None, ["x", "y", "z"])
    with pytest.MonkeyPatch.context() as patch:
        names = list[str]()
        patch.setattr("vitral.run.text_alignment.plots.alignment_matrices", lambda maps, *_: names.extend(maps))
        layer_figure(found, None, 0)
    assert names == ["mean", "head 0", "head 1"]


def test_explain_of_a_text(text_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "seen"
    found = explained(capsys, str(text_folder), "--text", "abcde", f"out={out}")
    assert sorted(found["files"]) == sorted(path.name for path in out.iterdir())
    assert [name for name in found["files"] if name.endswith("svg")] == [
        "01-text-attention.svg", "01-text-layer1.svg", "01-text-layer2.svg"
    ]  # fmt: skip
    (row,) = found["sources"]
    scores = [each["score"] for each in row["n_best"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert row["text"] == row["n_best"][0]["text"]
    # The probabilities of the steps are that of the text.
    assert sum(np.log(step["probability"]) for step in row["steps"]) == pytest.approx(row["n_best"][0]["log_prob"])
    for step in row["steps"]:
        top = [each["probability"] for each in step["top"]]
        assert len(top) == 5
        assert top == sorted(top, reverse=True)
        assert step["probability"] <= top[0]
    page = (out / "explain.html").read_text(encoding="utf-8")
    assert "The best texts of the search" in page


@pytest.mark.parametrize(
    "model", ["vit_text_micro_patch2_8x40", pytest.param("vit_ctc_micro_patch2_8x40", marks=pytest.mark.slow)]
)
def test_explain_of_an_image(model: str, strips_run: Path, tmp_path: Path, capsys: Capture) -> None:
    is_ctc = "ctc" in model
    if is_ctc:
        text_run(tmp_path, CTC_STRIPS, train__steps=60)
    run = tmp_path / "run" if is_ctc else strips_run
    image = tmp_path / "strip.png"
    noise = np.random.default_rng(0).integers(0, 256, (12, 60), dtype=np.uint8)
    Image.fromarray(noise).save(image)
    found = explained(capsys, str(run), str(image), f"out={tmp_path / 'seen'}")
    (row,) = found["sources"]
    assert row["image"] == str(image)
    if is_ctc:
        frames = [step["frame"] for step in row["steps"]]
        assert frames == sorted(set(frames))
        assert len(frames) == len(row["text"])
    else:
        assert {"01-strip-attention.png", "01-strip-layer1.png", "01-strip-layer2.png"} <= set(found["files"])
    for path in (tmp_path / "seen").glob("*.png"):
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10


@pytest.mark.parametrize(("words", "says"), [
    (["out=seen"], "missing argument: a text"), (["--text", "abc"], "no folder"),
    (["--text", "XYZ", "out=seen"], "no such characters"), ([__file__, "out=seen"], "not images"),
    (["--text", "abc", "out=seen", "token=1,2"], "token"),
])  # fmt: skip
def test_wrong_use_of_explain_gets_one_message(
    words: list[str], says: str, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["explain", str(text_folder), *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "seen").exists()


def test_an_empty_text_is_named(tmp_path: Path, capsys: Capture) -> None:
    """Of CTC that finds a blank in every frame."""
    predictor = image_writer("ctc")
    assert isinstance(predictor.model, ImageToText)
    assert predictor.model.ctc is not None
    with torch.no_grad():
        predictor.model.ctc.bias[-1] = 50
    save(predictor, tmp_path / "blank")
    Image.new("L", (40, 8)).save(tmp_path / "a.png")
    out = tmp_path / "inside"
    found = explained(capsys, str(tmp_path / "blank"), str(tmp_path / "a.png"), f"out={out}", "search.search=greedy")
    assert (found["sources"][0]["text"], found["sources"][0]["steps"]) == ("", [])
    page = (out / "explain.html").read_text(encoding="utf-8")
    assert "Written: (an empty text)" in page
    assert "No token was written" in page


@pytest.mark.parametrize(
    "own", [{}, {"search": "beam", "beams": 3, "early_stopping": True}, {"search": "sample", "seed": 3}]
)
def test_explain_keeps_the_search_of_the_folder(own: dict[str, Any], tmp_path: Path, capsys: Capture) -> None:
    """But for its kind and the number of texts."""
    kept: dict[str, Any] = {"allowed": "bde", "min_length": 3, "no_repeat_ngram": 2, "max_length": 9}
    writer = with_search(text_writer(scale=2.0), SearchConfig(**kept, **own))
    save(writer, tmp_path / "model")
    found = explained(capsys, str(tmp_path / "model"), "--text", "abcde", f"out={tmp_path / 'seen'}")
    beams = own.get("beams", 5)
    beam = {"search": "beam", "beams": beams, "n_best": beams, "early_stopping": own.get("early_stopping", "never")}
    texts = writer.write(["abcde"], SearchConfig.model_validate({**kept, **beam}))[0]
    assert [each["text"] for each in found["sources"][0]["n_best"]] == [each.text for each in texts]
    assert len(texts) == beams
