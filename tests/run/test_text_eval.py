"""Evaluation of models that write text: right texts in the tokenizer's form, warnings, comparisons, bad input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.text_models import image_writer, save, text_writer
from tests.run.text_runs import SMALL, text_run
from vitral.cli.main import main
from vitral.data.text.batches import split_ids
from vitral.data.text.config import TextConfig, TextSource, TokenizerConfig
from vitral.data.text.dataset import TextSplit
from vitral.data.text.tokenizer_file import train_tokenizers
from vitral.errors import UserError
from vitral.files import read_lines
from vitral.models.search_config import SearchConfig
from vitral.run.text_data import text_subject
from vitral.run.text_eval import measure_text
from vitral.run.text_options import TextEvalOptions
from vitral.tasks.task import Subject
from vitral.tasks.text import Text
from vitral.tasks.text_writing import Written
from vitral.text_predictor import TextPredictor, load_text

pytest.importorskip("jiwer")

ROWS = [("abc", "cba"), ("abd", "dba"), ("bcd", "dcb"), ("dab", "bad"), ("cad", "dac"), ("bca", "acb")]


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The folder of a random model from and to texts of a to e."""
    save(text_writer(), tmp_path / "one")
    return str(tmp_path / "one")


def table(folder: Path, rows: Sequence[tuple[str, str]] = ROWS) -> TextSource:
    """Text pairs, all of the split train."""
    lines = ["source\ttarget\tsplit", *(f"{source}\t{target}\ttrain" for source, target in rows)]
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return TextSource(path=str(folder / "pairs.tsv"))


def perfect(kind: Any, targets: list[str], monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A model that writes each target as the tokenizer decodes its ids, the second one of two right texts."""
    pytest.importorskip("tokenizers")
    config = TokenizerConfig(kind=kind, **({"vocab_size": 300} if kind in ("bpe", "wordpiece") else {}))
    tokenizers = train_tokenizers(config, targets, TokenizerConfig(kind="bytes"), targets)
    split = TextSplit(targets, targets, targets, [("zz", target) for target in targets])
    ids = split_ids(split, tokenizers, TextConfig())

    def write(*given: Any) -> list[list[Written]]:
        rows = (ids.target.padded(np.array([place]), 64)[0].tolist() for place in given[-1])
        return [[Written(tokenizers.target.decode(row), 0.0, 0.0, True, ())] for row in rows]

    monkeypatch.setattr("vitral.run.text_data.write", write)
    monkeypatch.setattr("vitral.run.text_data.likelihood", lambda *given: torch.zeros(len(given[-1]), 3).double())
    search, cpu = SearchConfig(), torch.device("cpu")
    subject = text_subject(text_writer().model, "test", split, ids, tokenizers, search, device=cpu)
    subject.outputs()
    return subject


@pytest.mark.parametrize("kind", ["characters", "bytes", "bpe", "words", "wordpiece"])
def test_a_perfect_model_makes_no_errors(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = ["cafe\u0301 noir", "\u1112\u1161\u11ab e\u0301", "a b", "a  b", " a\tb "]  # the first two decomposed
    found = Text().measure(*perfect(kind, targets, monkeypatch).outputs())
    assert (found["cer"], found["wer"], found["exact_match"]) == (0, 0, 1)


def test_each_model_is_compared_by_its_own_form_of_the_right_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a  b", "cafe\u0301", "b   a"]
    subjects = [perfect(kind, texts, monkeypatch) for kind in ("words", "characters")]
    own, other = (Text().per_sample(*each.outputs()) for each in subjects)
    found = Text().compare(own, other)
    assert (found["cer"]["difference"], found["wer"]["difference"]) == (0, 0)


def test_the_split_is_checked_for_both_models(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    save(text_writer(seed=1), tmp_path / "two")
    data = table(tmp_path, [*ROWS, ("abX", "aY\u0301"), ("ab", "")])
    measure_text(model, TextEvalOptions(data=data, compare=str(tmp_path / "two"), search=SearchConfig(max_length=4)))
    log = capsys.readouterr().err.splitlines()
    for name in (model, str(tmp_path / "two")):
        lines = [line for line in log if line.startswith(f"{name}, train texts: ")]
        assert {line.split("[")[1].split("]")[0] for line in lines} == {"text-unknown", "text-empty", "text-form"}
        assert any("source texts that training lacks" in line and "X (1)" in line for line in lines)
        assert any("1 empty target text [text-empty]: pairs.tsv:9" in line for line in lines)
    measure_text(model, TextEvalOptions(data=table(tmp_path), search=SearchConfig(max_length=4)))
    assert not capsys.readouterr().err


def test_what_the_evaluators_measure_is_compared(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    save(text_writer(seed=1, scale=2.0), tmp_path / "two")
    rows = [(source, " ".join(target)) for source, target in ROWS]
    data = f"data.path={table(tmp_path, rows).path}"
    words = ["eval", model, data, f"compare={tmp_path / 'two'}", "eval.translation={}", "search.max_length=9"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["compare"]
    assert found.keys() == {"model", "chrf", "bleu"}
    texts = [
        [row["text"] for row in load_text(each).predict([source for source, _ in rows], SearchConfig(max_length=9))]
        for each in (model, tmp_path / "two")
    ]
    right = [[target for _, target in rows]]
    for name in ("chrf", "bleu"):
        own, other = (getattr(sacrebleu, f"corpus_{name}")(each, right).score for each in texts)
        assert found[name]["difference"] == pytest.approx(own - other)
        low, high = found[name]["difference_interval"]
        assert low <= found[name]["difference"] <= high
    assert main(words) == 0
    assert f"chrF {found['chrf']['difference']:+.2f} (95 % interval" in capsys.readouterr().out
    assert main([*words, "eval.clean={}", "--json"]) == 0
    both = json.loads(capsys.readouterr().out)["compare"]
    assert both.keys() == {"model", "chrf", "bleu", "cer", "exact_match", "wer"}


def test_paths_of_parallel_files_do_not_depend_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, column in (("a.txt", 0), ("b.txt", 1)):
        rows = [*ROWS, *((n * "d", "x") for n in range(1, 9))]
        Path(name).write_text("\n".join(row[column] for row in rows), encoding="utf-8")
    data = {"source": "pairs", "path": "a.txt", "target_path": "b.txt", "max_source": 9, "max_target": 9}
    text_run(tmp_path, {**SMALL, "data": data}, check__skip=True, train__steps=1)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert measure_text(str(tmp_path / "run"), TextEvalOptions()).result["count"] > 0


def with_max_source(predictor: TextPredictor, longest: int, path: Path) -> str:
    predictor.config = predictor.config.model_copy(update={"max_source": longest})
    save(predictor, path)
    return str(path)


def test_each_model_reads_sources_as_long_as_it_was_trained_for(tmp_path: Path, model: str) -> None:
    short = with_max_source(text_writer(), 4, tmp_path / "short")
    options: dict[str, Any] = {"data": table(tmp_path, [*ROWS, ("abcd", "dcba")]), "search": SearchConfig(max_length=4)}
    assert load_text(short).config.longest_source == 4
    assert load_text(model).config.longest_source == 16
    assert measure_text(model, TextEvalOptions(**options)).result["count"] == 7
    for first, second in ((short, None), (model, short)):
        with pytest.raises(UserError, match=r"pairs\.tsv:8: a text is longer[\s\S]*at most 4") as caught:
            measure_text(first, TextEvalOptions(**options, compare=second))
        assert f"{short} was trained on shorter texts" in str(caught.value), "truncate is no key of `vitral eval`"
    with pytest.raises(UserError, match="max_source 17: the model reads texts of at most 16 ids"):
        load_text(with_max_source(text_writer(), 17, tmp_path / "wrong"))


def test_predict_refuses_sources_longer_than_trained(tmp_path: Path, model: str) -> None:
    short, search = load_text(with_max_source(text_writer(), 4, tmp_path / "short")), SearchConfig(max_length=4)
    assert [short.reads(text) for text in ("abc", "abcd")] == [True, False]
    assert short.write(["abc"], search) == load_text(model).write(["abc"], search)
    assert load_text(model).reads("abcd")
    with pytest.raises(UserError, match="at most 4"):
        short.write(["abcd"], search)


def test_a_run_keeps_the_limit_of_its_sources(tmp_path: Path) -> None:
    text_run(tmp_path, data__max_target=32, search__max_length=64, train__steps=1)
    config = load_text(tmp_path / "run").config
    assert (config.longest_source, config.architecture.max_length) == (8, 64)


def test_predict_reads_the_lines_of_parallel_files(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only line feeds end them; a text that is too long is answered without keys that `vitral predict` lacks."""
    lines = ["abc", "a\x0cb", "a\u2028b", "a" * 40, "b"]
    (tmp_path / "texts.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert main(["predict", model, str(tmp_path / "texts.txt"), "max_bad=3"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["source"] for row in rows] == read_lines(tmp_path / "texts.txt") == lines
    assert "at most 16" in rows[3]["error"]
    assert "truncate" not in rows[3]["error"]


def test_rates_that_are_undefined_meet_no_limit(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"data.path={table(tmp_path, [(source, '') for source, _ in ROWS]).path}"
    assert main(["eval", model, data, f"compare={model}", "max_cer=0.1", "search.max_length=4"]) == 3
    out, err = capsys.readouterr()
    assert "no difference in character error rate" in out
    assert "cer is undefined on these samples, so max_cer=0.1 is not met" in err
    pytest.importorskip("sacrebleu")
    assert main(["eval", model, data, "max_cer=0.1", "eval.translation={}", "search.max_length=4"]) == 3
    assert "cer was not measured by these evaluators, so max_cer=0.1 is not met" in capsys.readouterr().err


def test_models_that_cannot_be_compared_get_one_message(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(image_writer(), tmp_path / "image")
    data, strips = f"data.path={table(tmp_path).path}", ["data.source=digits_read", "data.count=16"]
    for words, says in (
        ([model, data, f"compare={tmp_path / 'image'}"], "the data are texts, and this model reads images"),
        ([str(tmp_path / "image"), *strips, f"compare={model}"], "the data are images, and this model reads texts"),
        ([model, data, "compare=vitral-digits"], "this model writes no text"),
        (["vitral-digits", f"compare={model}"], "this model writes text"),
        ([model, data, f"compare={tmp_path / 'nothing'}"], "nothing"),
        ([str(tmp_path / "image"), *strips, f"compare={tmp_path / 'image'}", "eval.pointing={}"], "nothing to compare"),
    ):
        assert main(["eval", *words]) == 2, words
        out, err = capsys.readouterr()
        assert not out
        assert err.count("error:") == 1
        assert says in err
