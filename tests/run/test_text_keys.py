"""No option of a run that writes text is accepted and ignored: every key, set to another value, changes what the run
does, or is refused where it cannot.

A key without a line in `CASES`, `REFUSED` or `ELSEWHERE` fails the test. `CASES` are of generated texts.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.models.text_models import save, text_writer
from tests.run.outcomes import Case, files, logged, rows, summary, weights
from tests.run.test_keys import CASES as OF_IMAGES
from tests.run.text_runs import SMALL, text_config
from vitral.config import describe
from vitral.errors import UserError
from vitral.run.text_config import TextRunConfig
from vitral.run.text_run import TextRun
from vitral.run.train import run
from vitral.training.metrics_log import MetricsLog

pytest.importorskip("jiwer")
TEXTS: dict[str, Any] = {
    **SMALL, "data": {**SMALL["data"], "count": 64}, "optim": {"lr": 3e-3, "weight_decay": 0.01, "warmup": 0.0},
    "train": {"steps": 3, "batch_size": 16, "ema": None, "eval_every": "end"}, "check": {"skip": True},
}  # fmt: skip
IMAGES: dict[str, Any] = {
    "task": "text", "recipe": "pictures", "report": False, "check": {"skip": True}, "search": {"max_length": 8},
    "data": {"source": "image_names", "path": "pictures", "max_target": 8},
    "model": {"name": "vit_text_micro_patch2_8x40"}, "train": {"steps": 1, "batch_size": 8, "eval_every": "end"},
}  # fmt: skip
PAIRS: dict[str, Any] = {
    **TEXTS, "data": {"source": "pairs", "path": "pairs.tsv", "max_source": 16, "max_target": 16},
}  # fmt: skip
BASES = {"texts": TEXTS, "pairs": PAIRS, "images": IMAGES}


def batches(parts: Any) -> object:
    """The first batches, bit for bit."""
    loader, digest = parts.loader(), hashlib.sha256()
    for step in range(3):
        batch = loader.batch(step)["train"]
        for tensor in (*(view.images_BCHW for view in batch.views), *batch.targets.values()):
            digest.update(str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def architecture(parts: Any) -> object:
    """Shape and settings of the model."""
    return parts.architecture


def data(parts: Any) -> object:
    """Texts by split."""
    return parts.dataset.fingerprint, {name: len(split) for name, split in parts.dataset.splits.items()}


def vocabulary(parts: Any) -> object:
    """What decides about ids."""
    return parts.tokenizers.digest


def stores(parts: Any) -> object:
    """How images are kept."""
    return [(store.cached, store.workers) for store in parts.stores.values()]


def written(out: Path) -> object:
    """Written texts and their log-probabilities."""
    return (out / "predictions.csv").read_text(encoding="utf-8")


def kept(out: Path) -> object:
    """The search of the model folder, which `predict` and the server take."""
    return json.loads((out / "model/config.json").read_text(encoding="utf-8"))["search"]


def measured(out: Path) -> object:
    """All that the validations during the run found."""
    return [{key: row[key] for key in sorted(row) if key.startswith("val_")} for row in MetricsLog.read(out)]


def found(out: Path) -> object:
    """Names of the numbers of the summary."""
    return sorted(json.loads((out / "summary.json").read_text(encoding="utf-8")))


IN_PARTS = (batches, architecture, data, vocabulary, stores)  # the run's parts show them; the others need the run
OPTIM = {key: case for key, case in OF_IMAGES.items() if key.startswith("optim.") and key != "optim.layer_decay"}
# A model with decided outputs; the run leaves it as it is.
WRITER = {
    "init": "writer", "model.name": "auto", "model.width": None, "model.mlp_dim": None, "optim.lr": 1e-12,
    "optim.weight_decay": 0.0, "train.steps": 1, "data.count": 400,
}  # fmt: skip
BEAM, SAMPLE = {**WRITER, "search.search": "beam"}, {**WRITER, "search.search": "sample"}
LSTM = {"model.name": "lstm_tiny", "model.mlp_dim": None}

REFUSED: dict[str, tuple[object, str]] = {
    "train.freeze": ("encoder", "train.freeze has no effect"),
    "optim.layer_decay": (0.5, "optim.layer_decay has no effect"),
    "augment.mixup": (0.5, "not mixed"), "augment.cutmix": (1.0, "not mixed"),
    "augment.mix_prob": (0.5, "not mixed"),
    "augment.mosaic": (1.0, "texts have no boxes"), "augment.copy_paste": (1.0, "texts have no boxes"),
}  # fmt: skip
CASES: dict[str, Case] = {
    "recipe": Case("other", summary),
    "seed": Case(1, weights),
    "init": Case("other", weights, WRITER),
    "precision": Case("bfloat16"),
    "report": Case(True, files),
    **{
        key: case._replace(given={name: value for name, value in case.given.items() if name.startswith("optim.")})
        for key, case in OPTIM.items()
    },
    "train.epochs": Case(0.9, summary, {"train.steps": None, "train.epochs": 0.3}),
    "train.steps": Case(2, summary),
    "train.batch_size": Case(24),
    "train.micro_batch": Case(5),
    "train.ema": Case(0.5),
    "train.ema_warmup": Case(0.0, weights, {"train.ema": 0.9}),
    "train.eval_every": Case(0.25, rows),
    "train.patience": Case(1, summary, {"train.eval_every": 0.25, "train.steps": 6, "optim.lr": 1e-30}),
    "train.log_every": Case(1, rows),
    "data.max_source": Case(16, architecture, {"search.max_length": 8}),
    "data.max_target": Case(16, architecture, {"search.max_length": 8}),
    "data.window": Case(1, batches), "data.pad_multiple": Case(8, batches),
    "data.source": Case("copy", data), "data.count": Case(80, data), "data.lengths": Case([4, 5], data),
    "data.symbols": Case(6, data), "data.seed": Case(1, data),
    "data.tokenizer.kind": Case("bytes", vocabulary),
    "data.tokenizer.vocab_size": Case(
        300, vocabulary, {"data.tokenizer.kind": "bpe", "data.tokenizer.vocab_size": 258}
    ),
    "data.source_tokenizer.kind": Case("bytes", vocabulary),
    "data.source_tokenizer.vocab_size": Case(
        300, vocabulary, {"data.source_tokenizer.kind": "bpe", "data.source_tokenizer.vocab_size": 258}
    ),
    "augment.repeated_aug": Case(2, batches),
    "model.name": Case("transformer_small", architecture),
    "model.width": Case(16, architecture), "model.dropout": Case(0.3, architecture),
    "model.decoder_depth": Case(1, architecture), "model.encoder_depth": Case(1, architecture),
    "model.heads": Case(2, architecture), "model.mlp_dim": Case(32, architecture),
    "model.norm_first": Case(False, architecture), "model.activation": Case("gelu", architecture),
    "model.norm_eps": Case(1e-2, architecture), "model.positions": Case("learned", architecture),
    "model.scale_embeddings": Case(False, architecture), "model.embedding_norm": Case(True, architecture),
    "model.tie_output": Case(False, architecture), "model.output_bias": Case(True, architecture),
    "model.share_embeddings": Case(True, architecture),
    "model.layers": Case(2, architecture, LSTM), "model.cell": Case("rnn", architecture, LSTM),
    "model.bidirectional": Case(False, architecture, LSTM), "model.attention": Case("none", architecture, LSTM),
    "objective.label_smoothing": Case(0.4),
    "search.search": Case("sample", written, WRITER),
    "search.max_length": Case(4, written, WRITER),
    "search.min_length": Case(6, written, WRITER),
    "search.allowed": Case("ab", written, WRITER),
    "search.no_repeat_ngram": Case(1, written, WRITER),
    "search.beams": Case(2, written, BEAM),
    "search.length_penalty": Case(-3.0, written, BEAM),
    "search.length_penalty_kind": Case("gnmt", written, {**BEAM, "search.length_penalty": -1.0}),
    "search.early_stopping": Case(True, written, {**BEAM, "search.length_penalty": 3.0}),
    "search.n_best": Case(2, kept, BEAM),
    "search.temperature": Case(3.0, written, SAMPLE), "search.top_k": Case(1, written, SAMPLE),
    "search.top_p": Case(0.1, written, SAMPLE), "search.seed": Case(1, written, SAMPLE),
    "eval": Case({"clean": {}, "translation": {}}, found),
    "eval_samples": Case(3, measured),
}  # fmt: skip
PAIR_CASES: dict[str, Case] = {
    "data.path": Case("more.tsv", data), "data.columns": Case(["target", "source"], data),
    "data.target_path": Case("others.txt", data, {"data.path": "lines.txt", "data.target_path": "lines.txt"}),
    "data.split_column": Case("part", data),
}  # fmt: skip
IMAGE_CASES: dict[str, Case] = {
    "data.pattern": Case(r"(?P<text>[a-z]+)\.png", data),
    "data.image_size": Case([16, 40], architecture), "data.channels": Case(1, architecture),
    "data.resize_mode": Case("crop", batches),
    "data.workers": Case(2, stores, {"data.workers": 1}), "data.cache_mb": Case(0, stores),
    "model.project_memory": Case(False, architecture, {"model.width": 32}),
    "model.ctc_rows": Case("all", architecture, {"model.name": "vit_ctc_micro_patch2_8x40", "search.max_length": 128}),
    **{
        key: Case(case.value, batches, {name: v for name, v in case.given.items() if name.startswith("augment.")})
        for key, case in OF_IMAGES.items()
        if key.startswith("augment.") and key not in REFUSED
    },
}  # fmt: skip
# Keys of every run that have no effect here.
# What is read by one function for all runs (see test_keys.py), or has a test of its own, here or in the named file.
LOOP = (
    "device", "out", "overwrite", "finish", "deterministic", "train.compile", "train.parallel", "train.save_seconds",
    "train.max_nonfinite_steps", "train.tensorboard",
)  # fmt: skip
ELSEWHERE = {
    **dict.fromkeys(LOOP, ("test_keys.py", "test_every_key_has_its_case")),
    "resume": ("test_text.py", "test_a_resumed_run_ends_with_the_same_weights"),
    "memory": ("test_text_memory.py", "test_a_limit_sets_the_micro_batch"),
    "train.activation_checkpointing": ("test_text_memory.py", "test_checkpointing_reaches_the_model"),
    "task": ("test_text_keys.py", "test_the_task_chooses_the_kind_of_run"),
    "data.truncate": ("test_text_keys.py", "test_long_and_empty_texts_are_refused_unless_accepted"),
    **dict.fromkeys(
        ("check.allow", "check.skip"), ("test_text_keys.py", "test_long_and_empty_texts_are_refused_unless_accepted")
    ),
    "objective.check": ("test_overfit_check.py", "def test_"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and models that the cases name."""
    root = tmp_path_factory.mktemp("keys")
    for name, seed in (("writer", 0), ("other", 1)):
        save(text_writer(seed=seed, scale=2.0), root / name)
    for name, word in (("pairs", "one"), ("more", "two")):
        lines = [f"{word}{n}\tline {n}\t{'val' if n % 4 == 0 else 'train'}" for n in range(40)]
        (root / f"{name}.tsv").write_text("\n".join(["source\ttarget\tpart", *lines]), encoding="utf-8")
    (root / "lines.txt").write_text("".join(f"line {n}\n" for n in range(40)), encoding="utf-8")
    (root / "others.txt").write_text("".join(f"other {n}\n" for n in range(40)), encoding="utf-8")
    (root / "pictures").mkdir()
    for number in range(40):
        noise_HWC = np.random.default_rng(number).integers(0, 256, (12, 44, 3), np.uint8)
        Image.fromarray(noise_HWC).save(root / f"pictures/{number}_{'abc'[number % 3]}{'de'[number % 2]}.png")
    return root


@pytest.fixture(autouse=True)
def _here(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(places)


@functools.cache
def outcome(root: Path, kind: str, keys: str, seen: Callable[[Any], object]) -> object:
    """What a run with these keys is made of, or leaves; runs that cases share are run once."""
    place = root / hashlib.sha256(f"{kind}{keys}".encode()).hexdigest()[:12]
    config = text_config(place, BASES[kind], out=str(place / "run"), **json.loads(keys))
    if seen in IN_PARTS:
        parts = TextRun(config)
        try:
            return seen(parts)
        finally:
            parts.close()
    if not (place / "run/summary.json").exists():
        run(config)
    return seen(place / "run")


def check(root: Path, kind: str, key: str, case: Case) -> None:
    base = json.dumps(dict(case.given), sort_keys=True)
    changed = json.dumps({**case.given, key: case.value}, sort_keys=True)
    assert outcome(root, kind, changed, case.seen) != outcome(root, kind, base, case.seen)


@pytest.mark.parametrize("key", CASES)
def test_another_value_changes_the_outcome(key: str, places: Path) -> None:
    check(places, "texts", key, CASES[key])


@pytest.mark.parametrize("key", PAIR_CASES)
def test_another_value_changes_what_is_read(key: str, places: Path) -> None:
    check(places, "pairs", key, PAIR_CASES[key])


@pytest.mark.parametrize("key", IMAGE_CASES)
def test_another_value_changes_what_images_become(key: str, places: Path) -> None:
    check(places, "images", key, IMAGE_CASES[key])


def test_every_key_has_its_case() -> None:
    names = {key.name for key in describe(TextRunConfig)}
    assert names == CASES.keys() | PAIR_CASES.keys() | IMAGE_CASES.keys() | REFUSED.keys() | ELSEWHERE.keys()
    for file, name in ELSEWHERE.values():
        assert name in Path(__file__).with_name(file).read_text(encoding="utf-8")


def test_equal_keys_give_equal_outcomes(places: Path) -> None:
    """Otherwise the differences above would prove nothing."""
    first = outcome(places, "texts", "{}", weights), outcome(places, "texts", "{}", written)
    again = text_config(places / "again", TEXTS, out=str(places / "again/run"))
    run(again)
    assert (weights(places / "again/run"), written(places / "again/run")) == first
    assert outcome(places, "images", "{}", batches) == outcome(places, "images", '{"seed": 0}', batches)
    assert logged(places / "again/run")


@pytest.mark.parametrize("key", REFUSED)
def test_what_no_text_run_reads_is_refused(key: str, tmp_path: Path) -> None:
    value, says = REFUSED[key]
    with pytest.raises(UserError, match=says):
        text_config(tmp_path, TEXTS, **{key: value})


OF_IMAGES_ALONE: dict[str, object] = {
    "data.image_size": 16,
    "data.resize_mode": "crop",
    "data.channels": 3,
    "data.workers": 1,
    "data.cache_mb": 7,
    **{
        key: case.value
        for key, case in IMAGE_CASES.items()
        if key.startswith("augment.") and key != "augment.repeated_aug"
    },
}


@pytest.mark.parametrize("key", OF_IMAGES_ALONE)
def test_keys_of_images_are_refused_for_texts(key: str, tmp_path: Path) -> None:
    keys = {**IMAGE_CASES[key].given, key: OF_IMAGES_ALONE[key]}
    with pytest.raises(UserError, match=rf"(?s){key}\b.*: no effect: texts are read.*expected: .*{key}="):
        TextRun(text_config(tmp_path, TEXTS, **keys))


@pytest.mark.parametrize(
    ("base", "keys", "says"),
    [
        (IMAGES, {"data.max_source": 9}, "data.max_source: no effect: images are read"),
        (IMAGES, {"data.source_tokenizer.kind": "bytes"}, "data.source_tokenizer: no effect: images are read"),
        (
            TEXTS,
            {"model.share_embeddings": True, "data.source_tokenizer.kind": "bytes"},
            "data.source_tokenizer: no effect: model.share_embeddings=true",
        ),
        (
            IMAGES,
            {"model.name": "vit_ctc_micro_patch2_8x40", "search.max_length": 128, "objective.label_smoothing": 0.2},
            "objective.label_smoothing: no effect: CTC",
        ),
    ],
)
def test_keys_without_effect_are_refused(base: dict[str, Any], keys: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        TextRun(text_config(tmp_path, base, **keys))


def test_the_task_chooses_the_kind_of_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task"):
        text_config(tmp_path, TEXTS, task="made_up")


def test_long_and_empty_texts_are_refused_unless_accepted(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"data.max_source": 5, "check.skip": False}
    with pytest.raises(UserError, match="text-long"):
        TextRun(text_config(tmp_path, TEXTS, **keys))
    with pytest.raises(UserError, match="longer than the model's positions"):
        TextRun(text_config(tmp_path, TEXTS, **keys, **{"check.allow": ["text-long"]}))
    with pytest.raises(UserError, match="longer than the model's positions"):
        TextRun(text_config(tmp_path, TEXTS, **{**keys, "check.skip": True}))
    TextRun(text_config(tmp_path, TEXTS, **keys, **{"data.truncate": True})).close()
