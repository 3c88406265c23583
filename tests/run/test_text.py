"""Runs that learn to write text: training, resume, the model folder, evaluation, prediction, bad input."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.models.text_models import image_writer, save, text_writer
from tests.processes import in_processes
from tests.run.power_cut import killed_and_resumed
from tests.run.text_runs import CTC_STRIPS, SMALL, STRIPS, text_config, text_run
from vitral.cli.main import main
from vitral.config import build
from vitral.data.text.batches import token_ids
from vitral.data.text.config import TokenizerConfig
from vitral.data.text.dataset import TextDataset, TextSplit
from vitral.data.text.tokenizer import END, PAD, Characters
from vitral.data.text.tokenizer_file import train_tokenizers
from vitral.errors import UserError
from vitral.models.ctc import ctc_beam, ctc_greedy
from vitral.models.image_to_text import ImageToText
from vitral.models.search_config import SearchConfig
from vitral.objectives.sequence import SequenceLoss, ctc_loss
from vitral.run import text_data
from vitral.run.config import keys_of, load_run, recipe_values, recipes
from vitral.run.text_config import TextRunConfig
from vitral.run.text_eval import measure_text
from vitral.run.text_init import TextInit
from vitral.run.text_model import make_tokenizers
from vitral.run.text_options import TextEvalOptions
from vitral.run.text_run import TextRun
from vitral.run.train import run
from vitral.structs import micro_batches
from vitral.tasks import text_writing
from vitral.tasks.text import worst
from vitral.text_predictor import TextPredictor, load_any, load_text
from vitral.weights.find_model import load_model
from vitral.weights.tensors import checksum, load_tensors
from vitral.weights.text_folder import load_text_folder

pytest.importorskip("jiwer")


@pytest.fixture(scope="module")
def reversed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model reverses short texts, mostly."""
    folder = tmp_path_factory.mktemp("reverse")
    text_run(folder, train__steps=250, train__batch_size=32, report=True)
    return folder / "run"


def test_a_run_learns_and_its_folder_gives_the_same_numbers(reversed_run: Path) -> None:
    summary = json.loads((reversed_run / "summary.json").read_text(encoding="utf-8"))
    assert summary["primary"]["name"] == "cer"
    assert summary["cer"] < 0.6  # copies of the most frequent symbol have about 0.75
    found = measure_text(str(reversed_run), TextEvalOptions()).result
    assert found["split"] == "test"
    assert found["cer"] == pytest.approx(summary["cer"], abs=1e-6)
    assert found["perplexity"] == pytest.approx(summary["perplexity"], rel=1e-4)
    card = (reversed_run / "model" / "README.md").read_text(encoding="utf-8")
    assert "character error rate" in card
    assert "On 50 test texts:" in card
    page = (reversed_run / "report.html").read_text(encoding="utf-8")
    assert "Most errors" in page
    assert "By length" in page
    lines = (reversed_run / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "name,text,predicted,log_prob"
    assert len(lines) == 1 + found["count"]


def test_texts_are_not_called_images(reversed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(reversed_run), "samples=20"]) == 0
    assert main(["predict", str(reversed_run), str(reversed_run / "summary.json"), "max_bad=100"]) == 0
    said = "".join(capsys.readouterr())
    assert "of 20 test texts" in said
    assert "texts cannot be read" in said
    for name in ("train.log", "metrics.jsonl", "summary.json", "model/README.md"):
        said += (reversed_run / name).read_text(encoding="utf-8")
    page = (reversed_run / "report.html").read_text(encoding="utf-8").partition("<pre")[0]
    page = re.sub(r"<style>.*?</style>|<img [^>]*>", "", page, flags=re.DOTALL)
    assert re.search(r"data: \d+% of the ids in batches are padding", said)
    assert [line for line in (said + page).splitlines() if re.search(r"\bimages?\b", line)] == []


def test_the_batch_size_of_an_evaluation_is_kept(reversed_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = list[int]()
    monkeypatch.setattr(
        text_data, "write", lambda *given: (sizes.append(len(given[2])), text_writing.write(*given))[1]
    )  # fmt: skip
    large, small = (measure_text(str(reversed_run), TextEvalOptions(batch_size=n)).result for n in (64, 7))
    assert sizes == [50, *[7] * 7, 1]
    assert (large["cer"], large["count"]) == (small["cer"], small["count"])


@pytest.mark.parametrize("keys", [{}, {"search": "beam", "beams": 3, "n_best": 3}, {"search": "sample", "seed": 5}])
def test_texts_do_not_depend_on_the_batch(reversed_run: Path, keys: dict[str, Any]) -> None:
    predictor, search = load_text(reversed_run), SearchConfig(max_length=8, **keys)
    sources = ["abc", "edcba", "aab", "bbbb", "cdeab"]
    together = list(predictor.predict(sources, search))
    for number, (source, row) in enumerate(zip(sources, together, strict=True)):
        (alone,) = predictor.write([source], search, first=number)
        assert [each.text for each in alone] == [each["text"] for each in row.get("n_best", [row])]
        assert alone[0].score == pytest.approx(row["score"], abs=1e-4)


def test_the_stream_of_a_text_is_the_text(reversed_run: Path) -> None:
    predictor = load_any(reversed_run)
    assert isinstance(predictor, TextPredictor)
    whole = predictor.write(["abcd"])[0][0].text
    assert "".join(predictor.stream("abcd")) == whole
    assert "".join(predictor.stream("abcd", SearchConfig(max_length=8))) == whole


def test_a_bad_source_is_named_by_its_place(reversed_run: Path) -> None:
    sources = ["abc", "a b", "ab", ""]
    rows = list(load_text(reversed_run).predict(sources, batch_size=3, tolerant=True))
    assert [row.get("error", "").partition(":")[0] for row in rows] == ["", "text 1", "", "text 3"]
    assert "' '" in rows[1]["error"]


@pytest.mark.parametrize("search", ["sample", "beam"])
def test_special_tokens_are_never_written(
    reversed_run: Path, search: Literal["sample", "beam"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However likely they are; that of padding, start and unknown characters among them."""
    predictor = load_text(reversed_run)
    bias_V = torch.tensor([9.0, 9.0, 0.0, 9.0] + [0.0] * (len(predictor.tokenizers.target) - 4))
    step = predictor.model.step
    monkeypatch.setattr(predictor.model, "step", lambda *given: step(*given) + bias_V)
    keys: dict[str, Any] = {"beams": 4} if search == "beam" else {}
    config = SearchConfig(search=search, n_best=4, max_length=8, **keys)
    written = [each for found in predictor.write(["abc", "de"], config) for each in found]
    assert not {token for each in written for token in each.tokens} & {0, 1, 2, 3}


def test_special_tokens_are_never_written_by_ctc() -> None:
    logits_BTV = torch.randn(3, 6, 9)
    logits_BTV[:, :, :4] += 9
    allowed_V = torch.arange(9) > 3
    beams = ctc_beam(logits_BTV, blank=8, beams=4, n_best=4, allowed_V=allowed_V)
    for found in (*ctc_greedy(logits_BTV, blank=8, allowed_V=allowed_V), *chain(*beams)):
        assert not set(found.tokens) & {0, 1, 2, 3}
        assert found.log_prob < -9, "scores stay the model's own"


def test_commands(reversed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("abc\nXYZ\n", encoding="utf-8")
    assert main(["predict", str(reversed_run), str(file), "--text", "abcde", "max_bad=1"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["source"] for row in rows] == ["abcde", "abc", "XYZ"]
    assert "no such characters" in rows[2]["error"]
    assert main(["eval", str(reversed_run), "samples=20", f"compare={reversed_run}", "max_cer=0"]) == 3
    out = capsys.readouterr().out
    assert "character error rate" in out
    assert "+0.00 points" in out


@pytest.mark.parametrize("keys", [{"search": "beam"}, {"search": "sample", "top_k": 2}, {"length_penalty": 0.0}])
def test_texts_of_any_search_are_as_long_as_the_models(
    reversed_run: Path, tmp_path: Path, keys: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"search.{name}={value}" for name, value in keys.items()]
    search, whole = SearchConfig(**keys), SearchConfig(max_length=8, **keys)
    predictor = load_text(reversed_run)
    assert predictor.resolve_search(search) == whole
    assert predictor.write(["abcd"], search) == predictor.write(["abcd"], whole)
    assert main(["predict", str(reversed_run), "--text", "abcd", *words]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == predictor.write(["abcd"], whole)[0][0].text
    assert main(["eval", str(reversed_run), "samples=5", *words]) == 0
    assert main(["explain", str(reversed_run), "--text", "abcd", f"out={tmp_path / 'page'}", *words]) == 0


def test_a_search_that_the_model_cannot_do_is_refused_once(
    reversed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("abc\nabd\n", encoding="utf-8")
    for words, says in (
        (["search.search=beam", "search.beams=99"], "more beams than tokens"),
        (["search.max_length=99"], "longer than the model's texts"),
        (["search.min_length=9"], "min_length=9 leaves no place"),
    ):
        assert main(["predict", str(reversed_run), str(file), *words]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.count(says) == 1


def test_characters_that_the_model_lacks_are_named(
    reversed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("source\ttarget\tsplit\nab\tba\ttrain\naXb\tbYa\ttest\n", encoding="utf-8")
    assert main(["eval", str(reversed_run), "data.source=pairs", f"data.path={file}"]) == 0
    out, err = capsys.readouterr()
    assert "1 test texts" in out
    found = [line for line in err.splitlines() if "text-unknown" in line]
    assert len(found) == 2
    assert "X (1)" in found[1]
    (tmp_path / "texts.txt").write_text("ab\nab\nX\n", encoding="utf-8")
    assert main(["predict", str(reversed_run), str(tmp_path / "texts.txt")]) == 2
    err = capsys.readouterr().err
    assert "text 2: X" in err
    assert "1 of 3 texts" in err


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: dict[str, Any] = {"train__steps": 6, "data__window": 2, "train__save_seconds": 1e-9}
    text_run(tmp_path, **keys)
    cut = tmp_path / "cut"
    killed_and_resumed(lambda: text_run(tmp_path, **keys, out=str(cut)), str(cut), 4, monkeypatch)
    whole, resumed = (load_tensors(each / "model" / "model.safetensors")[0] for each in (tmp_path / "run", cut))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def in_one_group(folder: str) -> dict[str, Any]:
    """The summary of a run in each process; texts of one window differ in length, so that tokens per process do. Plain
    SGD: Adam makes steps of rounding errors where a gradient is 0, as that of the bias of keys is."""
    keys: dict[str, Any] = {"data__lengths": [1, 7], "data__window": 1, "train__micro_batch": 4}
    return text_run(Path(folder), model__dropout=0.0, optim__name="sgd", optim__lr=0.1, **keys)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    found = in_processes(2, "tests.run.test_text:in_one_group", str(tmp_path / "two"))
    alone = in_one_group(str(tmp_path / "one"))
    for summary in found:
        assert summary["count"] == alone["count"]
        assert summary["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-4)
    one, two = (load_tensors(tmp_path / each / "run/model/model.safetensors")[0] for each in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    first, second = (
        [json.loads(line) for line in (tmp_path / each / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for each in ("one", "two")
    )
    assert [row["loss"] for row in second if "loss" in row] == pytest.approx(
        [row["loss"] for row in first if "loss" in row], rel=1e-5
    )


@pytest.mark.parametrize("base", [SMALL, CTC_STRIPS])
def test_micro_batches_add_up_to_the_batch(tmp_path: Path, base: dict[str, Any]) -> None:
    parts = TextRun(text_config(tmp_path, base, objective__label_smoothing=0.1, model__dropout=0.0))
    objective, loader = parts.state()[1].double(), parts.loader()
    batches = loader.batch(0)

    def gradients(size: int | None) -> list[torch.Tensor]:
        objective.zero_grad()
        outs = [objective(part, 0) for part in micro_batches(batches, size)]
        total = torch.stack([out.loss_sum for out in outs]).sum()
        (total / sum(out.weight for out in outs)).backward()
        return [p.grad.clone() for p in objective.parameters() if p.grad is not None]

    for whole, cut in zip(gradients(None), gradients(3), strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-7)
    parts.close()


def test_padding_takes_no_part_in_the_loss(tmp_path: Path) -> None:
    parts = TextRun(text_config(tmp_path, model__dropout=0.0))
    objective = parts.state()[1].eval()
    batch = parts.loader().batch(0)["train"]
    more = {name: torch.nn.functional.pad(ids, (0, 1), value=PAD) for name, ids in batch.targets.items()}
    short = {name: ids[:, : int((ids != PAD).sum(1).max())] for name, ids in batch.targets.items()}
    losses = [objective({"train": batch._replace(targets=t)}, 0).loss_sum for t in (batch.targets, more, short)]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


def test_the_loss_of_ctc_is_the_sum_over_all_alignments() -> None:
    logits_BFV = torch.randn(1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).float()
    probs = logits_BFV[0].softmax(-1).double()
    blank, total = 5, 0.0
    for path in np.ndindex(6, 6, 6, 6):
        merged = [token for place, token in enumerate(path) if place == 0 or token != path[place - 1]]
        if [token for token in merged if token != blank] == [4, 4]:
            total += float(torch.stack([probs[f, token] for f, token in enumerate(path)]).prod())
    for text in ([4, 4, END], [4, 4, END, 0], [4, 4], [4, 4, 0]):  # a shortened text has no end
        loss, tokens = ctc_loss(logits_BFV, torch.tensor([text]), blank)
        assert int(tokens) == 2
        assert float(loss) == pytest.approx(-np.log(total), rel=1e-4)
    cut = token_ids(["abcdef"], ["one"], Characters("abcdef"), 4, truncate=True, cut_end=True)
    text_1T = cut.padded(np.arange(1), 4)
    assert text_1T.tolist() == [[4, 5, 6, 7]]
    assert int(ctc_loss(torch.zeros(1, 4, 11), text_1T, 10)[1]) == 4


def test_images_are_read(tmp_path: Path) -> None:
    summary = text_run(tmp_path, STRIPS)
    assert summary["count"] > 0
    predictor = load_text(tmp_path / "run")
    assert predictor.reads_images
    rows = list(predictor.predict([np.zeros((8, 40), np.uint8)]))
    assert set(rows[0]) >= {"image", "text", "score"}


def test_the_worst_texts_come_first() -> None:
    from vitral.tasks.text import ANSWER

    outputs = np.array([(text, 0, 0, True, 0, 0, 0, ()) for text in ("abc", "xyz", "ab")], ANSWER)
    right = np.empty(3, object)
    right[:] = [("abc",), ("abc",), ("abx", "abc")]
    assert worst(outputs, right) == [1, 2]


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (SMALL, {"data__max_target": 3}, "text-long"),
    (SMALL, {"model__name": "vit_text_micro_patch2_8x40"}, "reads images"),
    (STRIPS, {"model__name": "transformer_tiny"}, "reads texts"),
    (SMALL, {"model__name": "vit_tiny_patch16_224"}, "wrong kind of model"),
    (SMALL, {"search__search": "beam", "search__beams": 99}, "more beams than tokens"),
    (SMALL, {"eval": {"pgd": {}}}, "unknown evaluator"),
    (CTC_STRIPS, {"data__image_size": [8, 4]}, "more frames"),
    (SMALL, {"train__parallel": "fsdp"}, "fsdp"),
    (SMALL, {"train__freeze": "encoder"}, "freeze"),
]


@pytest.mark.parametrize(("base", "keys", "says"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_bad_input_gets_one_message(tmp_path: Path, base: dict[str, Any], keys: dict[str, Any], says: str) -> None:
    if keys.get("model__name", "").startswith(("vit_", "transformer")):
        base = {**base, "model": {}}
    with pytest.raises(UserError, match=says):
        text_run(tmp_path, base, **keys)
    assert not (tmp_path / "run").exists()


def test_no_error_of_texts_names_a_command_for_images(tmp_path: Path) -> None:
    """`vitral data check` reads images alone."""
    rows = "".join(f"{source}\t{source[::-1]}\t{split}\n" for split in ("train", "test") for source in ("abc", "abd"))
    (tmp_path / "pairs.tsv").write_text("source\ttarget\tsplit\n" + rows, encoding="utf-8")
    data = {"source": "pairs", "path": str(tmp_path / "pairs.tsv")}
    with pytest.raises(UserError, match="text-across") as caught:
        text_run(tmp_path, {**SMALL, "data": data})
    assert "check.allow=text-across" in str(caught.value)
    assert "vitral data" not in str(caught.value)


def test_the_vocabulary_of_another_model_is_refused(reversed_run: Path, tmp_path: Path) -> None:
    text_run(tmp_path, data__symbols=6, train__steps=1)
    other = tmp_path / "run" / "model"
    (other / "tokenizer.json").write_bytes((reversed_run / "model" / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="another model's"):
        load_text(other)


@pytest.mark.parametrize("text", ["", "  ", "aXb", "abcdeabcdeabcde"])
def test_a_source_that_cannot_be_read_is_refused(reversed_run: Path, text: str) -> None:
    with pytest.raises(UserError):
        load_text(reversed_run).write([text])


def test_image_commands_refuse_a_model_that_writes_text(reversed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", str(reversed_run), __file__, "out=x.npz"]) == 2
    assert "writes text" in capsys.readouterr().err


def test_the_objective_needs_no_configuration_of_images(tmp_path: Path) -> None:
    parts = TextRun(text_config(tmp_path))
    state, objective = parts.state()
    assert isinstance(objective, SequenceLoss)
    assert state.steps == 6
    assert build(TextEvalOptions, {}).missed({"cer": 1.0}) == []


TEXT_RECIPES = [name for name in sorted(recipes()) if keys_of(name) is TextRunConfig]


@pytest.mark.parametrize("name", TEXT_RECIPES)
def test_every_recipe_of_texts_runs(name: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"train.steps": 2, "train.batch_size": 8, "eval_samples": 4, "report": False}
    source = recipe_values(name)["data.source"]
    if source in ("reverse", "copy", "digits_read"):
        keys["data.count"] = 64
    elif source in ("image_names", "image_text_files"):
        for number in range(40):
            image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (60, 160), np.uint8))
            image.save(tmp_path / f"{number % 7}{number % 9}_{number}.png")
            (tmp_path / f"{number % 7}{number % 9}_{number}.gt.txt").write_text(
                "ab"[: number % 2 + 1], encoding="utf-8"
            )
        keys |= {"data.path": str(tmp_path), "check.allow": ["text-unknown"]}
    else:  # data that are not installed everywhere: texts of the same kind
        rows = "".join(f"{'abcdefgh'[n % 8]}{'xyz'[n % 3]}{n % 10}\tA B {n % 7}\n" for n in range(60))
        (tmp_path / "pairs.tsv").write_text("source\ttarget\n" + rows, encoding="utf-8")
        keys |= {"data.source": "pairs", "data.path": str(tmp_path / "pairs.tsv"), "check.skip": True}
        keys |= {"model.width": 64, "model.mlp_dim": 64, "optim.warmup": 1} if name == "translate_de_en" else {}
    assert run(load_run(name, {**keys, "out": str(tmp_path / "run")}))["steps"] == 2


def test_a_run_starts_from_a_model_that_writes_text(reversed_run: Path, tmp_path: Path) -> None:
    """Weights, vocabulary and shape are those of init; a longer text fits, as sinusoidal positions have no weights."""
    keys: dict[str, Any] = {"init": str(reversed_run), "model__name": "auto", "data__symbols": 4}
    started = TextRun(text_config(tmp_path, **keys, data__lengths=[9, 12], data__max_source=16, data__max_target=16))
    theirs, config, tokenizers = load_text_folder(str(reversed_run))
    assert started.tokenizers.digest == tokenizers.digest
    assert started.architecture == config.architecture.model_copy(update={"max_length": 16})
    state, mine = theirs.state_dict(), started.build().state_dict()
    assert state.keys() == mine.keys()
    assert all(torch.equal(tensor, mine[name]) for name, tensor in state.items())
    assert started.state()[0].init == checksum(state, {})
    summary = text_run(tmp_path, SMALL, **{**keys, "train__steps": 1, "optim__lr": 1e-9})
    assert summary["cer"] < 0.7  # from random weights about 1


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"model__name": "auto", "data__tokenizer__kind": "bytes"}, "keeps its tokenizers"),
        ({"model__name": "transformer_small"}, "another architecture"),
        ({"model__name": "auto", "model__width": 64}, "another architecture"),
        ({"model__name": "auto", "init": "vitral-digits"}, "the data are texts, and this model reads images"),
        ({"init": "vitral-digits"}, "(?s)init: the data are texts, and this model reads images.*vitral-digits"),
        ({"model__name": "auto", "init": None}, "init"),
    ],
)
def test_what_does_not_fit_init(reversed_run: Path, tmp_path: Path, keys: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        TextRun(text_config(tmp_path, SMALL, **{"init": str(reversed_run), **keys}))
    for name in ("auto", STRIPS["model"]["name"]):
        with pytest.raises(UserError, match="init: the data are images, and this model reads texts"):
            TextRun(text_config(tmp_path, STRIPS, init=str(reversed_run), model__name=name))
    with pytest.raises(UserError, match="no model to take the architecture of"):
        TextRun(text_config(tmp_path, STRIPS, init="vitral-digits", model__name="auto"))


def test_a_model_that_reads_images_does_not_start_one_that_reads_texts(tmp_path: Path) -> None:
    save(image_writer(), tmp_path / "strips")
    for keys in ({}, {"model__name": "auto", "model__width": None, "model__mlp_dim": None}):
        with pytest.raises(UserError, match="init: the data are texts, and this model reads images"):
            TextRun(text_config(tmp_path, SMALL, init=str(tmp_path / "strips"), **keys))


@pytest.mark.parametrize("size", [300, None])
def test_the_size_of_the_vocabulary_of_init_is_not_changed(size: int | None) -> None:
    pytest.importorskip("tokenizers")
    text, given = "abc abd bcd", TokenizerConfig(kind="bpe", vocab_size=260)
    own = train_tokenizers(given, [text], given, [text])
    init = TextInit("runs/a", "a", text_writer().config.architecture, {}, own)
    split = TextSplit([text], ["one"], [text])
    dataset = TextDataset("texts", {"train": split}, (), "")
    keys: dict[str, Any] = {"kind": "bpe", **({"vocab_size": size} if size else {})}
    config = TextRunConfig.model_validate({**SMALL, "data": {**SMALL["data"], "tokenizer": keys}})
    if size is None:
        assert make_tokenizers(config, dataset, init) is own
        return
    with pytest.raises(UserError, match=r"(?s)data\.tokenizer\.vocab_size.*got: +300.*expected: +260, as in runs/a"):
        make_tokenizers(config, dataset, init)


def test_an_encoder_of_images_reads_for_a_decoder(tmp_path: Path) -> None:
    """Where the images are of the encoder's own size, its tokens are what the decoder reads."""
    parts = TextRun(text_config(tmp_path, STRIPS, init="vitral-digits", data__image_size=[8, 8]))
    (model, folder), mine = load_model("vitral-digits"), parts.build()
    assert isinstance(mine, ImageToText)
    assert mine.config.encoder.mean == folder.architecture.mean
    images_B1HW = torch.rand(2, 1, 8, 8)
    theirs, own = model.encode(images_B1HW), mine.eval().encoder.encode(images_B1HW)
    normed_BND = F.layer_norm(theirs.patches_BND, theirs.patches_BND.shape[-1:], eps=mine.config.encoder.norm_eps)
    torch.testing.assert_close(own.patches_BND, normed_BND, rtol=1e-5, atol=1e-5)  # a final norm that starts anew
    parts.close()


@pytest.mark.parametrize("base", [STRIPS, CTC_STRIPS])
def test_positions_of_an_encoder_are_brought_to_lines(tmp_path: Path, base: dict[str, Any]) -> None:
    text_run(tmp_path, base, init="vitral-digits", train__steps=1)
    encoder = load_text_folder(str(tmp_path / "run"))[1].architecture.model_dump()["encoder"]
    assert (encoder["image_size"], encoder["patch_size"], encoder["num_classes"]) == ((8, 40), 2, 0)
