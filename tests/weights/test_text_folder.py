"""Hostile folders of models that write text: without digests, with parts that do not fit together."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models.text_models import image_writer, save, text_writer
from vitral.cli.main import main
from vitral.data.text.tokenizer import Characters
from vitral.data.text.tokenizer_file import Tokenizers, load_tokenizers
from vitral.errors import UserError
from vitral.text_predictor import TextPredictor, load_text
from vitral.weights.tensors import load_tensors, save_tensors

Tree = dict[str, Any]


def changed(folder: Path, change: Callable[[Tree], object], tokenizers: Tokenizers | None = None) -> None:
    """Change config.json (of an export: what it says of the model), without digests; and tokenizer.json, as if the
    model were trained with it."""
    path = folder / "config.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    del tree["digests"]
    model = tree.get("model", tree)
    change(model)
    if tokenizers is not None:
        tokenizers.save(folder)
        model["tokenizer"] = tokenizers.digest
    path.write_text(json.dumps(tree), encoding="utf-8")


LETTERS = Characters("abcde")
CASES: dict[str, tuple[Callable[[Tree], object], Tokenizers | None, str]] = {
    "tokenizer without source": (lambda tree: None, Tokenizers(LETTERS), "the source vocabulary does not fit"),
    "more source entries": (
        lambda tree: None, Tokenizers(LETTERS, Characters("abcdefgh")), "(?s)source vocabulary.*12 tokens.*9 tokens",
    ),
    "fewer source entries": (lambda tree: None, Tokenizers(LETTERS, Characters("ab")), "the source vocabulary"),
    "more target entries": (lambda tree: None, Tokenizers(Characters("abcdefgh"), LETTERS), "the vocabulary does not"),
    "a text as data": (lambda tree: tree["provenance"].update(data="x"), None, "provenance.data"),
    "another padding": (lambda tree: tree["architecture"].update(pad_id=3), None, "pad_id must be 0"),
    "larger vocabulary": (lambda tree: tree["architecture"].update(vocabulary=11), None, "vocabulary"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders") / "model"
    save(text_writer(), folder)
    return folder


@pytest.fixture(scope="module")
def onnx(model: Path) -> Path:
    pytest.importorskip("onnxruntime")
    out = model.with_name("onnx")
    assert main(["export", str(model), "format=onnx", f"out={out}", "samples=2"]) == 0
    return out


@pytest.mark.parametrize("kind", ["model", pytest.param("onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_parts_that_do_not_fit_are_refused(case: str, kind: str, request: pytest.FixtureRequest) -> None:
    change, tokenizers, says = CASES[case]
    folder: Path = request.getfixturevalue(kind)
    whole = {path: path.read_bytes() for path in folder.iterdir() if path.suffix == ".json"}
    try:
        changed(folder, change, tokenizers)
        with pytest.raises(UserError, match=says):
            load_text(folder)
    finally:
        for path, content in whole.items():
            path.write_bytes(content)


@pytest.mark.slow
def test_graphs_of_another_export_are_refused(onnx: Path, tmp_path: Path) -> None:
    """A graph is code of a stranger as well: its inputs, its outputs and its vocabulary are compared."""
    tree = json.loads((onnx / "config.json").read_text(encoding="utf-8"))
    del tree["digests"]
    other = tmp_path / "other"
    other.mkdir()
    for path in onnx.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "config.json").write_text(json.dumps(tree), encoding="utf-8")
    load_text(other)
    (other / "decoder_step.onnx").write_bytes((onnx / "encoder.onnx").read_bytes())
    with pytest.raises(UserError, match=r"(?s)do not fit together.*logits, source, token"):
        load_text(other)
    (other / "decoder_step.onnx").write_bytes((onnx / "decoder_step.onnx").read_bytes())
    tree["model"]["architecture"] |= {"vocabulary": 12}
    tokenizers = Tokenizers(Characters("abcdefgh"), load_tokenizers(onnx).source)
    tokenizers.save(other)
    tree["model"]["tokenizer"] = tokenizers.digest
    (other / "config.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(UserError, match=r"(?s)the vocabulary does not fit the graphs.*9.*12"):
        load_text(other)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    save(image_writer(), tmp_path / "model")
    changed(tmp_path / "model", lambda tree: tree["preprocessing"].update(image_size=[8, 48]))
    with pytest.raises(UserError, match="other images than the architecture takes"):
        load_text(tmp_path / "model")


HOSTILE: dict[str, tuple[Callable[[], TextPredictor], Callable[[Tree], object], str]] = {
    "table of positions": (
        text_writer, lambda tree: tree["architecture"].update(max_length=2 * 10**8), "max_length.*65536 or less",
    ),
    "blocks": (
        text_writer, lambda tree: tree["architecture"].update(encoder_depth=3 * 10**7), "does not fit the weights",
    ),
    "blocks of the stem": (
        image_writer, lambda tree: tree["architecture"]["encoder"].update(stem_blocks=[10**12], patch_size=4),
        "does not fit the weights",
    ),
    "samples": (
        text_writer, lambda tree: tree["search"].update(search="sample", n_best=10**7), "n_best.*1024 or less",
    ),
    "beams": (text_writer, lambda tree: tree["search"].update(search="beam", beams=10**7), "beams.*1024 or less"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_sizes_beyond_reason_are_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is built, also by `vitral summary`, which reads no weights."""
    make, change, says = HOSTILE[case]
    save(make(), tmp_path / "model")
    changed(tmp_path / "model", change)
    start = time.process_time()
    with pytest.raises(UserError, match=f"(?s){says}"):
        load_text(tmp_path / "model")
    assert main(["summary", str(tmp_path / "model")]) == 2
    assert re.search(says, capsys.readouterr().err, re.DOTALL)
    assert time.process_time() - start < 5


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    save(text_writer(), tmp_path / "model")
    tensors, _ = load_tensors(tmp_path / "model" / "model.safetensors")
    tensors["decoder.embed.weight"] = tensors["decoder.embed.weight"].long()
    save_tensors(tmp_path / "model" / "model.safetensors", tensors)
    changed(tmp_path / "model", lambda tree: None)
    with pytest.raises(UserError, match=r"1 not floating-point \(decoder\.embed\.weight int64\)"):
        load_text(tmp_path / "model")
