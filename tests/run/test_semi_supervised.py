"""Whole runs of semi-supervised objectives: hidden labels, resume, what is saved and reported, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import TINY, assert_equal_tensors, random_model, weights, write_colors, write_shapes
from tests.memory import kept_bytes
from tests.run.power_cut import killed_and_resumed
from vitral.cli.main import main
from vitral.config_keys import as_word
from vitral.data.dataset import Dataset
from vitral.data.few_labels import with_labels_per_class
from vitral.errors import UserError
from vitral.models.create import build_model
from vitral.models.presets import resolve
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.registry import OBJECTIVES
from vitral.run import prepare as preparing
from vitral.run.config import load_config
from vitral.run.fit_memory import make_job
from vitral.run.image_run import assemble
from vitral.run.prepare import prepare
from vitral.run.train import run
from vitral.structs import Batch, View
from vitral.training.metrics_log import MetricsLog
from vitral.weights.tensors import load_tensors

KINDS = ("vat", "consistency", "mean_teacher", "pseudo_label", "fixmatch", "semi_vit")
FEW = {**TINY, "data.labels_per_class": 4, "data.unlabeled_ratio": 2, "data.validation": "none"}


def start(out: str, kind: str, **more: Any) -> dict[str, Any]:
    named = {key.replace("__", "."): value for key, value in more.items()}
    return run(load_config("digits", {**FEW, "objective.kind": kind, **named, "out": out}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_a_model_and_what_it_says_of_unlabeled_images(kind: str) -> None:
    weaker = {"objective__strong": {"erase_fill": "noise"}} if kind == "mean_teacher" else {}
    found = start("a", kind, train__log_every=1, report=True, **weaker)
    log_text = Path("a/train.log").read_text(encoding="utf-8")
    assert log_text.count("no stronger than the weak one") == len(weaker)
    rows = [row for row in MetricsLog.read(Path("a")) if "loss" in row]
    assert all({"unlabeled_loss", "class_entropy", "train_top1"} <= row.keys() for row in rows)
    assert all(("pseudo_share" in row) == (kind in ("pseudo_label", "fixmatch", "semi_vit")) for row in rows)
    assert 0 <= found["pseudo_right"] <= 1
    assert found["pseudo_right_interval"][0] <= found["pseudo_right"] <= found["pseudo_right_interval"][1]
    assert "predicted as their hidden label" in Path("a/train.log").read_text(encoding="utf-8")
    page = Path("a/report.html").read_text(encoding="utf-8")
    assert "Unlabeled images" in page
    assert "Share of unlabeled images with a confidence of at most 0.5" in page
    assert "Pseudo unsure" not in page
    assert "Entropy of the mean prediction over the training steps" in page
    assert ("Unlabeled images that teach" in page) == (kind in ("pseudo_label", "fixmatch", "semi_vit"))
    teacher = kind in ("mean_teacher", "fixmatch", "semi_vit")
    assert found["weights"] == ("averaged (EMA) weights" if teacher else "plain weights")
    tensors = load_tensors(Path("a/checkpoints/last.safetensors"), checked=True)[0]
    prefix = "objective.teacher.module." if teacher else "objective.model."
    mine = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    assert_equal_tensors(weights("a"), mine)


@pytest.mark.parametrize("kind", ["vat", "fixmatch"])
def test_hidden_labels_change_the_report_only(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"objective__threshold": 0.11} if kind == "fixmatch" else {}
    first = start("a", kind, **keys)

    def shuffled(dataset: Dataset, count: int, seed: int) -> Dataset:
        found = with_labels_per_class(dataset, count, seed)
        assert found.hidden is not None
        assert found.unlabeled is not None
        assert not found.unlabeled.splits["train"].labels_N.any(), "the stream has no labels"
        other = np.random.default_rng(0).permutation(found.hidden.labels_N)
        return replace(found, hidden=replace(found.hidden, labels_N=other))

    monkeypatch.setattr(preparing, "with_labels_per_class", shuffled)
    second = start("b", kind, **keys)
    assert_equal_tensors(weights("a"), weights("b"))
    assert first["top1"] == second["top1"]
    assert first["pseudo_right"] != second["pseudo_right"]


def test_hidden_labels_are_those_of_the_images() -> None:
    prepared = prepare(load_config("digits", {**FEW, "objective.kind": "vat"}))
    hidden, store = prepared.dataset.hidden, prepared.stores["unlabeled"]
    assert hidden is not None
    assert len(hidden) == len(store.split) == 1397
    assert list(hidden.names) == list(store.split.names)
    assert hidden.class_counts(10).min() > 100
    assert prepared.dataset.splits["train"].class_counts(10).tolist() == [4] * 10
    prepared.close()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("vat", {"augment__mixup": 0.5}),
        ("fixmatch", {"objective__adaptive": "freematch", "train__micro_batch": 5}),
        ("semi_vit", {"objective__threshold": 0.11, "train__micro_batch": 4}),
    ],
)
def test_a_killed_run_continues_to_the_same_bits(
    kind: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {**more, "train__steps": 6, "train__save_seconds": 0.0}
    start("whole", kind, **more)
    killed_and_resumed(lambda: start("parts", kind, **more), "parts", 4, monkeypatch)
    assert_equal_tensors(weights("whole"), weights("parts"))
    whole, parts = (
        load_tensors(Path(f"{out}/checkpoints/last.safetensors"), checked=True)[0] for out in ("whole", "parts")
    )
    same = {name for name in whole if name.startswith("objective.")}
    assert all(torch.equal(whole[name], parts[name]) for name in same)


def test_workers_change_nothing() -> None:
    """With images that are files, read by threads ahead or at once."""
    photos()
    keys = {key.replace(".", "__"): value for key, value in PHOTOS.items()}
    keys |= {"data__cache_mb": 0, "train__batch_size": 8}
    for out, workers in (("a", 0), ("b", 2)):
        start(out, "fixmatch", **keys, data__workers=workers)
    assert_equal_tensors(weights("a"), weights("b"))


@pytest.mark.parametrize("kind", ["vat", "mean_teacher"])
def test_a_part_of_a_model_is_trained(kind: str) -> None:
    """LoRA, and a frozen encoder, from a trained model; the teacher has the same adapters."""
    init = str(random_model(Path("init"), tuple("0123456789")))
    model = {"model.name": "auto", **{f"model.{key}": None for key in ("width", "depth", "heads", "mlp_dim", "pool")}}
    for out, keys in (("a", {"lora.rank": 2}), ("b", {"train.freeze": "encoder"})):
        config = load_config("digits", {**FEW, **model, "objective.kind": kind, "init": init, **keys, "out": out})
        assert run(config)["steps"] == 3
    before, after = load_tensors(Path("init/model.safetensors"))[0], weights("b")
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(before[name], after[name])
    assert not torch.equal(before[name], weights("a")[name])


def test_a_residual_network_keeps_its_statistics_in_the_search() -> None:
    keys = {"model.name": "resnet20_cifar", "model.blocks": [1, 1, 1]}
    keys |= {f"model.{key}": None for key in ("depth", "heads", "mlp_dim", "pool")}
    prepared = prepare(load_config("digits", {**FEW, **keys, "objective.kind": "vat", "data.image_size": 8}))
    _, objective = assemble(prepared)
    objective.train()
    images = torch.rand(16, 1, 8, 8)
    batch = Batch((View(images, torch.eye(3).expand(16, 3, 3)),), {}, torch.arange(16))
    before = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    objective.unlabeled_part(batch, 2)  # type: ignore[attr-defined]
    assert all(torch.equal(before[name], buffer) for name, buffer in objective.named_buffers())
    prepared.close()


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_estimated_with_all_passes(kind: str) -> None:
    """What a step keeps, as autograd sees it; power iterations count too, though their graphs are freed."""
    model = resolve("vit_tiny_patch4_32", depth=2, num_classes=10)
    config = load_config("digits", {**FEW, "precision": "float32", "train.batch_size": 8, "objective.kind": kind})
    job = make_job(config, model, torch.device("cpu"), 0)
    real = OBJECTIVES[kind](lambda: build_model(model), config.objective, ObjectiveContext(1000)).train()
    batches: dict[str, Batch] = {}
    for name, views in config.objective.views(config.augment, model.image_size, model.stride).items():
        count = 8 if name == "labeled" else 16
        shown = tuple(View(torch.rand(count, 3, 32, 32), torch.eye(3).expand(count, 3, 3)) for _ in views)
        targets = {"label": torch.arange(count)} if name == "labeled" else {}
        batches[name] = Batch(shown, targets, torch.arange(count))
    assert job.kept(8).total() == pytest.approx(kept_bytes(lambda: real(batches, 999).loss, real), rel=0.02)


def multilabel() -> None:
    write_colors(Path("pets"), "cat dog", 8)
    rows = [f"cat/{n}.png,cat;dog" if n % 2 else f"cat/{n}.png,dog" for n in range(8)]
    Path("pets/many.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")


def photos() -> None:
    write_shapes(Path("photos/train"), 6)
    write_shapes(Path("photos/test"), 3, first=100)
    write_shapes(Path("others"), 8, first=200)


def one_class_less() -> None:
    photos()
    for path in Path("photos/train/cross").iterdir():
        path.unlink()
    Path("photos/train/cross").rmdir()


def without_labels() -> None:
    photos()
    Path("flat").mkdir()
    for number in range(20):
        Image.new("RGB", (16, 16), (number, 2 * number, 9)).save(f"flat/{number}.png")


def leak() -> None:
    photos()
    Path("others/cross/copy.png").write_bytes(Path("photos/test/cross/100.png").read_bytes())


PHOTOS = {
    "data.path": "photos", "data.source": "folder", "data.labels_per_class": None, "data.unlabeled": "others",
    "data.image_size": 16, "model.patch_size": 4, "train.batch_size": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "keys", "said", "given"),
    [
        ("vat", {"data.labels_per_class": None}, "expected data.unlabeled=PATH or data.labels_per_class=N", None),
        ("vat", {"data.labels_per_class": 500}, "at most", None),
        ("vat", {"data.unlabeled_ratio": 100}, "more unlabeled images than there are (1,397 images)", None),
        ("vat", {"objective.unlabeled_weight": 0.0, "objective.entropy_weight": 1.0}, "into one class", None),
        ("vat", {"objective.unlabeled_weight": 0.0}, "learns nothing from unlabeled images", None),
        ("vat", {"objective.supervised_warmup": 0.8}, "must leave a part of the run", None),
        ("vat", {"objective.strong.rotate": 10}, "objective.strong", None),
        ("vat", {"objective.threshold": 0.9}, "objective.threshold", None),
        ("vat", {"train.parallel": "fsdp"}, "needs complete models", None),
        ("vat", {"precision": "bfloat16_params"}, "needs complete models", None),
        ("vat", {"objective.kind": "mean_teacher", "objective.eps": 1.0}, "objective.eps", None),
        ("vat", {"data.balance": "class", "objective.class_weights": "balanced"}, "no effect with data.balance", None),
        ("consistency", {"objective.unlabeled_weight": 0.0}, "objective.unlabeled_weight", None),
        ("mean_teacher", {"train.ema": 0.9}, "Set train.ema=null", None),
        ("semi_vit", {"train.ema": 0.9}, "Set train.ema=null", None),
        ("fixmatch", {"train.ema": 0.9}, "Set train.ema=null", None),
        ("fixmatch", {"objective.threshold": 1.0}, "strictly between 0 and 1", None),
        ("pseudo_label", {"objective.threshold": 0.0}, "strictly between 0 and 1", None),
        ("semi_vit", {"objective.threshold": -0.1}, "strictly between 0 and 1", None),
        ("fixmatch", {"objective.teacher": "self", "objective.teacher_ema": 0.9}, "has no effect here", None),
        ("fixmatch", {"objective.adaptive": "freematch", "objective.threshold": 0.8}, "has no effect here", None),
        ("fixmatch", {"objective.threshold_momentum": 0.9}, "has no effect here", None),
        ("fixmatch", {"objective.strong.rotat": 10}, "rotat", None),
        ("fixmatch", {"objective.strong.rotate": 500}, "objective.strong", None),
        ("fixmatch", {"objective.strong.mixup": 0.5}, "belong to the labeled images", None),
        ("semi_vit", {"train.micro_batch": 3}, "groups of 8", None),
        ("vat", {"data.path": "pets/many.csv", "data.label_separator": ";", "data.labels_per_class": None,
                 "data.source": "table", "data.unlabeled": "pets/dog", "model.patch_size": 4, "train.batch_size": 8,
                 "data.image_size": 12, "data.validation": "own", "check.skip": True},
         "needs one class per image", multilabel),
        ("vat", {"data.labels_per_class": None, "data.unlabeled": "x", "data.target": ["digit"]}, "learns classes",
         None),
        ("vat", {**PHOTOS, "check.allow": ["split-classes", "empty-class"]},
         "classes without labeled images cannot be learned", one_class_less),
        ("vat", {**PHOTOS, "data.path": "flat", "data.source": "images", "data.validation": "own"}, "one-class",
         without_labels),
        ("vat", PHOTOS, "unlabeled-leak", leak),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(
    kind: str, keys: dict[str, Any], said: str, given: Callable[[], None] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if given is not None:
        given()
    words = [f"{key}={as_word(value)}" for key, value in {**FEW, "objective.kind": kind, **keys, "out": "a"}.items()]
    assert main(["train", "digits", *words]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert message.count("error:") == 1
    assert not Path("a").exists()


def test_every_image_labeled_leaves_none_without() -> None:
    photos()
    keys = {"data__path": "photos", "data__source": "folder", "data__image_size": 16, "model__patch_size": 4}
    with pytest.raises(UserError, match="none is left without"):
        start("a", "vat", **keys, data__labels_per_class=6)


def test_the_strong_view_changes_the_runs_augmentation() -> None:
    config = load_config("digits", {**FEW, "objective.kind": "fixmatch", "objective.strong.rotate": 25.0})
    weak, strong = config.objective.views(config.augment, (8, 8), 2)["unlabeled"]
    assert weak.augment == config.augment
    assert strong.augment == config.augment.model_copy(update={"rotate": 25.0})
    default = load_config("digits", {**FEW, "objective.kind": "fixmatch"}).objective
    assert default.views(config.augment, (8, 8), 2)["unlabeled"][1].augment.policy == "randaugment"
    saved = json.loads(config.model_dump_json())["objective"]["strong"]
    assert saved == {"rotate": 25.0}


def test_unlabeled_images_given_replace_the_recipes_labels_per_class() -> None:
    config = load_config("finetune_vat", {"init": "x", "data": "photos", "data.unlabeled": "more"})
    assert (config.data.unlabeled, config.data.labels_per_class) == ("more", None)
    assert load_config("finetune_vat", {"init": "x", "data": "photos"}).data.labels_per_class == 10
