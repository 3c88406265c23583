"""Comparisons: the numbers in the table are those of the runs, and what follows from them is computed as it says."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitral
from vitral.cli.main import main
from vitral.cli.reproduce_text import bias_text, positions_text
from vitral.data.config import DataConfig
from vitral.data.sources import open_dataset
from vitral.errors import UserError
from vitral.models.config import ResNetConfig, ViTConfig
from vitral.models.presets import resolve
from vitral.reproduce import inductive_bias, position_embeddings
from vitral.reproduce.config import BiasOptions, ReproduceOptions
from vitral.run.evaluate import evaluate

NARROW = {"model.width": 16, "model.depth": 2, "model.heads": 2, "model.mlp_dim": 32}


def test_the_table_holds_the_runs(tmp_path: Path) -> None:
    options = ReproduceOptions(seeds=2, steps=3, out=str(tmp_path / "a"))
    found = position_embeddings.positions(options, NARROW)
    assert [row["variant"] for row in found["rows"]] == [variant.name for variant in position_embeddings.VARIANTS]
    for variant, row in zip(position_embeddings.VARIANTS, found["rows"], strict=True):
        for seed in range(2):
            folder = tmp_path / "a" / f"{variant.positions}-{variant.at or 'own'}-{seed}"
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            architecture = json.loads((folder / "model/config.json").read_text(encoding="utf-8"))["architecture"]
            assert (summary["top1"], summary["seed"], summary["steps"]) == (row["top1"][seed], seed, 3)
            assert architecture["positions"] == variant.positions
            assert architecture["positions_at"] == variant.at
        assert row["mean"] == pytest.approx(np.mean(row["top1"]))
        assert row["std"] == pytest.approx(np.std(row["top1"], ddof=1))
    assert json.loads((tmp_path / "a/table.json").read_text(encoding="utf-8")) == found
    assert "relative, shared" in positions_text(found)


def test_finished_runs_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"seeds": 2, "steps": 2, "out": str(tmp_path / "a")}
    found = position_embeddings.positions(ReproduceOptions(**options), NARROW)
    with pytest.raises(UserError, match="not empty"):
        position_embeddings.positions(ReproduceOptions(**options), NARROW)
    monkeypatch.setattr("vitral.reproduce.runs.run", lambda *_: pytest.fail("ran again"))
    again = position_embeddings.positions(ReproduceOptions(**options, resume=True), NARROW)
    assert again == found
    with pytest.raises(UserError, match=r"configured otherwise[\s\S]*model\.width: 16, now 32"):
        position_embeddings.positions(ReproduceOptions(**options, resume=True), {**NARROW, "model.width": 32})


def test_claims_by_hand() -> None:
    paper = [0.61, 0.64, 0.63]
    ours = [[0.5, 0.6], [0.7, 0.9], [0.6, 0.8]]
    rows: list[dict[str, Any]] = [
        {"top1": top1, "mean": float(np.mean(top1)), "paper": p} for top1, p in zip(ours, paper, strict=True)
    ]
    found = position_embeddings.claims([*rows, {"top1": [0.1, 0.1], "mean": 0.1, "paper": None}])
    assert found["none_is_worst"]
    assert found["gap"] == pytest.approx((0.65 - 0.5 + 0.85 - 0.6) / 2)
    assert found["gap_error"] == pytest.approx(np.std([0.15, 0.25], ddof=1) / 2**0.5)
    assert found["range"] == pytest.approx(0.1)
    assert found["gap_paper"] == pytest.approx(0.025)
    assert found["rank_correlation"] == pytest.approx(1)
    rows[0]["mean"] = 0.9
    assert not position_embeddings.claims(rows)["none_is_worst"]


def test_fractions_are_of_each_class_and_the_same_for_all() -> None:
    dataset = open_dataset(DataConfig(source="digits"))
    part = inductive_bias.fraction_of(dataset, 0.1)
    whole, tenth = (d.splits["train"].class_counts(10) for d in (dataset, part))
    assert (abs(tenth - 0.1 * whole) < 1).all()
    assert list(part.splits["train"].names) == list(inductive_bias.fraction_of(dataset, 0.1).splits["train"].names)
    assert part.splits["test"] is dataset.splits["test"]
    assert inductive_bias.fraction_of(dataset, 1.0) is dataset


def test_moved_by_hand() -> None:
    images = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 3, 4)
    assert inductive_bias.moved(images, 1, 0)[0, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert inductive_bias.moved(images, 0, -2)[0, 0].tolist() == [[2, 3, 3, 3], [6, 7, 7, 7], [10, 11, 11, 11]]
    assert inductive_bias.moved(images, 0, 0).equal(images)
    assert inductive_bias.moved(images / 255, 1, 1)[0, 0, 2, 3] == images[0, 0, 1, 2] / 255


def test_bias_of_both_kinds(tmp_path: Path) -> None:
    options = BiasOptions(seeds=2, steps=4, fractions=(0.1, 1.0), out=str(tmp_path / "a"))
    found = inductive_bias.inductive_bias(options, {"train.batch_size": 16})
    assert [(row["model"], row["fraction"], row["images"]) for row in found["rows"]] == [
        ("ViT", 0.1, 129), ("ViT", 1.0, 1293), ("CNN", 0.1, 129), ("CNN", 1.0, 1293),
    ]  # fmt: skip
    last = evaluate(str(tmp_path / "a/cnn-1-1"))
    assert last["top1"] == pytest.approx(found["rows"][3]["top1"][1])
    assert b"<svg" in (tmp_path / "a/fractions.svg").read_bytes()
    assert "lead of the CNN" in bias_text(found)
    assert "both models with the recipe's optimizer and learning rate" in bias_text(found)
    for row in found["rows"]:
        assert 0 <= min(row["consistency"]) <= max(row["consistency"]) <= 1


def test_consistency_counted_one_by_one(tmp_path: Path) -> None:
    """Whole arrays, moved by NumPy and predicted as anyone's images are."""
    options = BiasOptions(seeds=2, steps=40, fractions=(0.2,), out=str(tmp_path / "a"))
    found = inductive_bias.inductive_bias(options, NARROW)
    test = open_dataset(DataConfig(source="digits")).splits["test"]
    pixels = np.stack([test.read(i).numpy()[0] for i in range(len(test))])
    for row, kind in zip(found["rows"], ("vit", "cnn"), strict=True):
        predictor = vitral.load(tmp_path / f"a/{kind}-0.2-0")
        still = predictor.probabilities(list(pixels)).argmax(1)
        kept: list[float] = []
        for down, right in set(product((-1, 0, 1), repeat=2)) - {(0, 0)}:
            padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)), mode="edge")
            moved = padded[:, 1 - down : 9 - down, 1 - right : 9 - right]
            kept.append(float(np.mean(predictor.probabilities(list(moved)).argmax(1) == still)))
        assert row["consistency"][0] == pytest.approx(np.mean(kept), abs=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("positions seed=1", "seed: this key is set by the comparison"),
        ("positions train.epochs=2", "train.epochs: this key is set by the comparison"),
        ("positions data.path=/nonexistent", "data.path: this key is set by the comparison"),
        ("positions data.source=folder", "data.source: this key is set by the comparison"),
        ("positions model.positions=rope", "model.positions: this key is set by the comparison"),
        ("positions model.positions_at=layers", "model.positions_at: this key is set by the comparison"),
        ("positions fractions=[1]", "fractions: unknown key"),
        ("positions model.heads=7", "7 heads"),
        ("positions model.name=resnet20_cifar", "positions: unknown key"),
        ("positions optim.warmup=9 steps=9", "the warm-up is longer than the run"),
        ("inductive-bias model.name=vit_nano_patch4_32", "model.name: this key is set by the comparison"),
        ("inductive-bias cnn=typo", "typo: unknown model"),
        ("inductive-bias vit=typo", "typo: unknown model"),
        ("inductive-bias cnn=vit_micro_patch2_8", "cnn: a preset of the wrong model family"),
        ("inductive-bias vit=resnet20_cifar", "vit: a preset of the wrong model family"),
        ("inductive-bias model.heads=7", "7 heads"),
        ("inductive-bias optim.warmup=9 steps=9", "the warm-up is longer than the run"),
        ("fgsm eps=2", "eps: wrong value"),
        ("fgsm eps=0", "eps: wrong value"),
        ("fgsm variants=pdg", "variants"),
        ("fgsm objective.kind=vat", "objective.kind: this key is set by the comparison"),
        ("fgsm objective.attack.eps=0.1", "objective.attack.eps: this key is set by the comparison"),
        ("fgsm objective.align=1", "objective.align: this key is set by the comparison"),
        ("fgsm objective.loss=trades", "random start"),
        ("vat labels=0", "labels"),
        ("vat labels=200", "the class 8 has"),
        ("vat supervised_lr=0", "supervised_lr: wrong value"),
        ("vat data.shots=3", "data.shots: this key is set by the comparison"),
        ("vat unlabeled_ratio=99", "a step takes more unlabeled images than there are"),
        ("confidence outside=noise", "outside"),
        ("confidence objective.clean_weight=0", "objective.clean_weight: this key is set by the comparison"),
        ("confidence data.validation=none", "the temperature is fitted on validation images"),
        ("confidence model.heads=7", "7 heads"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_made(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_both_kinds_see_images_of_the_size_of_the_named_vit(tmp_path: Path) -> None:
    options = BiasOptions(seeds=2, steps=2, fractions=(0.1,), vit="vit_nano_patch4_32", out=str(tmp_path / "a"))
    inductive_bias.inductive_bias(options, {"train.batch_size": 8, "model.width": 16, "optim.warmup": 0})
    made = {kind: vitral.load(tmp_path / f"a/{kind}-0.1-1").config.architecture for kind in ("vit", "cnn")}
    assert isinstance(made["vit"], ViTConfig)
    assert isinstance(made["cnn"], ResNetConfig)
    assert (made["vit"].patch_size, made["vit"].width, made["vit"].depth, made["vit"].pool) == (4, 16, 6, "cls")
    assert made["cnn"] == resolve("resnet20_cifar", in_channels=1, mean=made["cnn"].mean, std=made["cnn"].std)
    assert made["vit"].image_size == made["cnn"].image_size == (32, 32)
