"""The model that comes with the package is the recipe's first run, and as good as its card says."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_digits

import vitral
from vitral.run.command_options import EvalOptions
from vitral.run.evaluate import evaluate
from vitral.weights.folder import bundled, load_config

FOLDER = Path(str(resources.files("vitral") / "bundled" / "vitral-digits"))


def test_it_is_small_and_whole() -> None:
    assert bundled() == ["vitral-digits"]
    assert {entry.name for entry in FOLDER.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert sum(entry.stat().st_size for entry in FOLDER.iterdir()) < 1_000_000


def test_it_is_the_run_of_seed_0_and_keeps_its_number() -> None:
    provenance = load_config(FOLDER).provenance
    assert (provenance["recipe"], provenance["seed"], provenance["init"]) == ("digits", 0, None)
    found, recorded = evaluate("vitral-digits"), provenance["metrics"]
    assert (found["split"], found["count"], found["top1"]) == (recorded["split"], 360, recorded["top1"])
    assert found["ece"] == pytest.approx(recorded["ece"], abs=1e-4)
    assert f"{100 * found['top1']:.2f} %" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_it_reads_a_digit_from_a_file_and_from_arrays(digits_png: Path) -> None:
    model = vitral.load("vitral-digits")
    assert model.predict([digits_png])[0]["predictions"][0]["label"] == "0"
    digits: Any = load_digits()
    images = digits.images / 16
    answers = [answer["predictions"][0]["index"] for answer in model.predict(list(images))]
    assert (digits.target == answers).mean() > 0.98


def test_compared_with_itself_nothing_differs() -> None:
    found = evaluate("vitral-digits", EvalOptions(compare="vitral-digits"))["compare"]
    assert (found["only_a"], found["only_b"], found["p_value"]) == (0, 0, 1.0)
