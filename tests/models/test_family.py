"""A family is a module, a configuration, presets and one line of the registry: nothing else knows of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import vitral
from tests.helpers import TINY
from tests.memory import kept_bytes
from tests.models.toy_family import FAMILY, Toy, ToyConfig
from vitral.errors import UserError
from vitral.models import presets
from vitral.models.parameters import layer_of
from vitral.models.presets import resolve
from vitral.models.registry import FAMILIES
from vitral.models.summary import count_macs, count_parameters, kept_activations
from vitral.run.command_options import SummaryOptions
from vitral.run.config import load_config
from vitral.run.fit_memory import make_job
from vitral.run.summary import summarize
from vitral.run.train import run
from vitral.training.memory_estimate import predict
from vitral.weights.folder import FolderConfig


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(FAMILIES, "toy", FAMILY)
    monkeypatch.setitem(presets.PRESETS, "toy_8", {"family": "toy", **FAMILY.presets["toy_8"]})
    FolderConfig.model_rebuild(force=True)
    yield
    monkeypatch.undo()
    FolderConfig.model_rebuild(force=True)


def test_it_trains_is_saved_loaded_and_predicts(tmp_path: Path) -> None:
    keys = {key: value for key, value in TINY.items() if not key.startswith("model.")}
    keys |= {"model.name": "toy_8", "train.steps": 60, "out": str(tmp_path / "run")}
    found = run(load_config("digits", keys))
    assert found["top1"] > 0.5
    model = vitral.load(tmp_path / "run" / "model", device="cpu")
    assert isinstance(model.model, Toy)
    assert model.model.config.in_channels == 1
    rows = model.predict(torch.rand(1, 8, 8), topk=10)
    assert sum(row["score"] for row in rows[0]["predictions"]) == pytest.approx(1, abs=1e-4)


def test_its_numbers_are_those_of_the_module() -> None:
    config = resolve("toy_8", num_classes=10)
    model = Toy(config) if isinstance(config, ToyConfig) else None
    assert model is not None
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    assert count_macs(config) == {"stem": 16 * 12 * 32, "head": 512 * 10}
    images, labels = torch.rand(7, 3, 8, 8), torch.zeros(7, dtype=torch.long)
    seen = kept_bytes(lambda: torch.nn.functional.cross_entropy(model(images), labels), model)
    assert kept_activations(config, 7).total() == pytest.approx(seen, rel=0.01)
    assert layer_of("stem.weight", 0) == 0
    assert layer_of("head.weight", 0) == 1


def test_its_memory_is_estimated() -> None:
    config = load_config("digits", {"model.name": "toy_8", "precision": "float32", "train.ema": None})
    job = make_job(config, resolve("toy_8"), torch.device("cpu"), 0)
    assert sum(predict(job, 16)) > 16 * job.parameters
    found = summarize("toy_8", SummaryOptions())
    assert [row["stage"] for row in found["walk"]] == ["image", "stem", "head"]
    assert "formula" not in found


def test_what_needs_patches_says_so(tmp_path: Path) -> None:
    keys = {"model.name": "toy_8", "objective": {"kind": "mae"}, "train.ema": None, "out": str(tmp_path / "run")}
    with pytest.raises(UserError, match="learns from patches"):
        run(load_config("digits", keys))
