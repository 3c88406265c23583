"""FGSM, VAT and confidence: verdicts and statistics by hand, and tables that hold the runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitral
from vitral.cli.reproduce_text import confidence_text, fgsm_text, vat_text
from vitral.data.config import DataConfig
from vitral.data.few_labels import with_labels_per_class, with_shots
from vitral.data.sources import make_val_split, open_dataset
from vitral.errors import UserError
from vitral.files import read_json
from vitral.reproduce import confidence, fgsm, vat
from vitral.reproduce.config import ConfidenceOptions, FgsmOptions, VatOptions
from vitral.reproduce.runs import paired, verdict
from vitral.run.config import load_config

NARROW = {"model.width": 16, "model.depth": 1, "model.heads": 2, "model.mlp_dim": 32, "train.batch_size": 16}


def test_paired_by_hand() -> None:
    found = paired([0.3, 0.5], [0.1, 0.1])
    assert found["differences"] == pytest.approx([0.2, 0.4])
    assert found["difference"] == pytest.approx(0.3)
    assert found["interval"] == pytest.approx([0.3 - 1.27062, 0.3 + 1.27062], abs=1e-5)  # t of 97.5 %, 1 degree: 12.706
    three = paired([0.3, 0.5, 0.4], [0.0, 0.0, 0.0])
    assert three["interval"] == pytest.approx([0.4 - 4.30265 * 0.1 / 3**0.5, 0.4 + 4.30265 * 0.1 / 3**0.5], abs=1e-5)


@pytest.mark.parametrize(
    ("intervals", "found"),
    [
        ([(0.1, 0.2)], "holds"),
        ([(0.1, 0.2), (-0.1, 0.2)], "undecided"),
        ([(0.1, 0.2), (-0.2, -0.1)], "does not hold"),
        ([(-0.1, 0.2), (-0.2, -0.1)], "does not hold"),
        ([(0.0, 0.0)], "undecided"),
    ],
)
def test_verdicts(intervals: list[tuple[float, float]], found: str) -> None:
    assert verdict([{"interval": interval} for interval in intervals]) == found


def labels_table(gains: dict[int, list[float]]) -> list[dict[str, Any]]:
    """Rows of both methods with these gains."""
    return [
        {"method": method, "labels_per_class": count, "top1": [0.5 + (gain if method == "VAT" else 0) for gain in own]}
        for count, own in gains.items()
        for method in vat.METHODS
    ]


def test_gains_by_hand() -> None:
    few_best = vat.conclusions(labels_table({10: [0.01, 0.02, 0.0], 1: [0.2, 0.21, 0.19]}))
    assert [gain["labels_per_class"] for gain in few_best["gains"]] == [1, 10]
    assert few_best["gains"][1]["difference"] == pytest.approx(0.01)
    assert few_best["claim"]["largest_at"] == 1
    assert few_best["claim"]["excess"][0]["differences"] == pytest.approx([0.19, 0.19, 0.19])
    assert few_best["claim"]["verdict"] == "holds"
    many_best = vat.conclusions(labels_table({1: [0.01, 0.02, 0.0], 4: [0.2, 0.21, 0.19], 10: [0.0, 0.02, 0.01]}))
    assert (many_best["claim"]["largest_at"], many_best["claim"]["verdict"]) == (4, "does not hold")
    noisy = vat.conclusions(labels_table({1: [0.3, 0.1, -0.1], 4: [0.0, 0.0, 0.05]}))
    assert (noisy["claim"]["largest_at"], noisy["claim"]["verdict"]) == (1, "undecided")
    assert vat.conclusions(labels_table({4: [0.1, 0.2]}))["claim"]["verdict"] is None


def never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no run may start."""
    monkeypatch.setattr("vitral.reproduce.runs.run", lambda *_: pytest.fail("ran again"))


def test_vat_and_the_labels_alone_learn_from_the_same_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = VatOptions(seeds=2, steps=2, labels=(2, 1, 2), supervised_lr=1e-3, out=str(tmp_path / "a"))
    found = vat.vat(options, NARROW)
    assert [(row["method"], row["labels_per_class"]) for row in found["rows"]] == [
        ("supervised", 1), ("VAT", 1), ("supervised", 2), ("VAT", 2),
    ]  # fmt: skip
    for row in found["rows"]:
        for seed, top1 in enumerate(row["top1"]):
            folder = tmp_path / "a" / f"{row['method'].lower()}-{row['labels_per_class']}-{seed}"
            assert read_json(folder / "summary.json")["top1"] == top1
            config = load_config(str(folder / "config.yaml"), {})
            assert (config.seed, config.train.steps, config.data.validation) == (seed, 2, "none")
            assert config.optim.lr == (1e-3 if row["method"] == "supervised" else 3e-3)
            assert config.augment.rotate == 10
    assert json.loads((tmp_path / "a/table.json").read_text(encoding="utf-8")) == found
    never_again(monkeypatch)
    assert vat.vat(options.model_copy(update={"resume": True}), NARROW) == found
    assert b"<svg" in (tmp_path / "a/labels.svg").read_bytes()
    assert "claim: the gain is largest with the fewest labels" in vat_text(found)
    dataset = open_dataset(DataConfig(source="digits", validation="none"))
    for seed in range(2):
        alone, beside = with_shots(dataset, 2, seed), with_labels_per_class(dataset, 2, seed)
        assert list(alone.splits["train"].names) == list(beside.splits["train"].names)


def test_collapse_by_hand() -> None:
    def rows(*pairs: tuple[float, float]) -> list[dict[str, float]]:
        return [{"step": 10 * i, "fgsm_top1": f, "pgd_top1": p} for i, (f, p) in enumerate(pairs, 1)]

    assert fgsm.collapsed(rows((0.9, 0.8), (0.81, 0.09), (0.9, 0.0))) == 20
    assert fgsm.collapsed(rows((0.8, 0.0), (0.9, 0.1), (0.1, 0.05))) is None
    assert fgsm.collapsed([]) is None


@pytest.mark.parametrize(
    ("without", "noise", "found"),
    [
        ([100, 200], [None, None], "holds"),
        ([100, None], [None, None], "undecided"),
        ([100, 200], [None, 300], "undecided"),
        ([100, 200], [100, 300], "does not hold"),
        ([None, None], [None, None], "does not hold"),
        ([100, 200], None, None),
    ],
)
def test_overfitting_claim(without: list[int | None], noise: list[int | None] | None, found: str | None) -> None:
    rows = [{"variant": "FGSM", "collapsed": without}]
    rows += [] if noise is None else [{"variant": "N-FGSM", "collapsed": noise}]
    claim = fgsm.conclusion(rows)
    assert claim["verdict"] == found
    assert claim["collapsed"]["FGSM"] == sum(step is not None for step in without)


def test_fgsm_variants_differ_in_their_attack_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = FgsmOptions(seeds=2, steps=2, samples=8, eps=0.25, attack_steps=2, out=str(tmp_path / "a"))
    found = fgsm.fgsm(options, NARROW)
    assert [row["variant"] for row in found["rows"]] == list(fgsm.NAMES.values())
    for variant, row in zip(options.variants, found["rows"], strict=True):
        for seed in range(2):
            folder = tmp_path / f"a/{variant}-{seed}"
            summary, objective = (
                read_json(folder / "summary.json"),
                load_config(str(folder / "config.yaml"), {}).objective,
            )
            assert (summary["top1"], summary["pgd_top1"]) == (row["clean"][seed], row["robust"][seed])
            own: Any = objective
            assert own.attack.kind == {"grad_align": "fgsm"}.get(variant, variant)
            assert own.attack.eps == 0.25
            assert own.align == (0.2 if variant == "grad_align" else 0)
            assert row["curves"]["step"][seed] == [1, 2]
            assert row["curves"]["pgd_top1"][seed][-1] == row["pgd_top1"][seed]
    assert b"<svg" in (tmp_path / "a/overfitting.svg").read_bytes()
    assert "FGSM + GradAlign" in fgsm_text(found)
    assert json.loads((tmp_path / "a/table.json").read_text(encoding="utf-8")) == found
    never_again(monkeypatch)
    assert fgsm.fgsm(options.model_copy(update={"resume": True}), NARROW) == found


def test_confidences_are_those_of_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ConfidenceOptions(seeds=2, steps=2, out=str(tmp_path / "a"))
    found = confidence.confidence(options, NARROW)
    assert [(row["variant"], row["steps"]) for row in found["rows"]] == [
        ("plain", 2), ("plain, equal compute", 6), ("FGM on embeddings", 2), ("FGSM on pixels", 2),
    ]  # fmt: skip
    test = open_dataset(DataConfig(source="digits")).splits["test"]
    pixels = np.stack([test.read(i).numpy()[0] for i in range(len(test))])
    predictor = vitral.load(tmp_path / "a/FGSM-on-pixels-1")
    row = found["rows"][3]
    turned = np.rot90(pixels, axes=(1, 2))
    kinds = {"confidence": pixels, "inverted_confidence": 255 - pixels, "rotated_confidence": turned}
    for key, images in kinds.items():
        scores = predictor.forward(list(torch.from_numpy(images.copy())[:, None])).double().softmax(-1)
        assert row[key][1] == pytest.approx(scores.amax(-1).mean().item(), abs=1e-6)
    for row in found["rows"]:
        assert set(row["histogram"]) == {"test images", "photos", "rotated", "inverted"}
        assert all(sum(shares) == pytest.approx(1) for shares in row["histogram"].values())
    assert b"<svg" in (tmp_path / "a/confidence.svg").read_bytes()
    assert "undecided" in confidence_text(found)
    assert json.loads((tmp_path / "a/table.json").read_text(encoding="utf-8")) == found
    never_again(monkeypatch)
    assert confidence.confidence(options.model_copy(update={"resume": True}), NARROW) == found


def test_pieces_of_photographs() -> None:
    color, gray = (confidence.photo_pieces(7, channels, (9, 12)) for channels in (3, 1))
    assert color.shape == (7, 3, 9, 12)
    assert gray.shape == (7, 1, 9, 12)
    torch.testing.assert_close(gray, color.mean(1, keepdim=True))
    assert 0 <= color.min() < 0.3 < 0.7 < color.max() <= 1
    assert color.std(dim=(1, 2, 3)).min() > 0
    assert confidence.photo_pieces(10**6, 4, (8, 8)).shape[1:] == (4, 8, 8)


def test_the_temperature_never_sees_evaluated_images() -> None:
    whole = open_dataset(DataConfig(source="digits"))
    parts = confidence.split_parts(make_val_split(whole, 0.1))
    assert (len(parts.fit), len(parts.test)) == (144, 360)
    without_test = make_val_split(replace(whole, splits={"train": whole.splits["train"]}), 0.1)
    halves = confidence.split_parts(without_test)
    assert not set(halves.fit.names) & set(halves.test.names)
    assert len(halves.fit) + len(halves.test) == len(without_test.splits["val"])
    with pytest.raises(UserError, match="no"):
        confidence.split_parts(replace(whole, splits={"train": whole.splits["train"]}))


def test_confidence_claims_by_hand() -> None:
    def row(name: str, level: float, ece: float) -> dict[str, Any]:
        return {"variant": name, **{k: [v, v + 0.001, v - 0.001] for k, v in (("confidence", level), ("ece", ece))}}

    rows = [row("plain", 0.99, 0.05), row("longer", 0.999, 0.02), row("FGM", 0.95, 0.02), row("FGSM", 0.6, 0.3)]
    found = {(claim["variant"], claim["against"]): claim for claim in confidence.conclusions(rows)}
    assert found["FGM", "plain"]["verdict"] == "holds"
    assert found["FGM", "plain"]["confidence"]["difference"] == pytest.approx(0.04)
    assert found["FGM", "longer"]["verdict"] == "undecided"
    assert found["FGSM", "plain"]["verdict"] == found["FGSM", "longer"]["verdict"] == "does not hold"
