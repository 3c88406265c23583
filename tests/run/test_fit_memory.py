"""Long runs take no more memory than short ones; a run that has too little says what would fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import TINY
from tests.memory import kept_bytes
from vitral.errors import RunFailed
from vitral.models.config import ModelConfig
from vitral.models.create import build_model
from vitral.models.presets import resolve
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.registry import OBJECTIVES
from vitral.optim.optimizer import make_optimizer
from vitral.run.config import load_config
from vitral.run.fit_memory import make_job, smaller_batch_hint
from vitral.run.train import run
from vitral.structs import Batch, View
from vitral.training import loop

STATM = Path("/proc/self/statm")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
def test_a_hundred_epochs_leave_memory_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resident: dict[int, int] = {}
    step = loop.train_step

    def watched(state: Any, *arguments: Any) -> Any:
        result = step(state, *arguments)
        resident[state.progress.step] = 4096 * int(STATM.read_text(encoding="ascii").split()[1])
        return result

    monkeypatch.setattr(loop, "train_step", watched)
    keys = {**TINY, "train.steps": None, "train.epochs": 100.0, "train.batch_size": 720, "train.ema": 0.9}
    run(load_config("digits", {**keys, "train.eval_every": 5.0, "out": str(tmp_path / "a")}))
    last = max(resident)
    assert last >= 150
    assert resident[last] - resident[last // 5] < 6e6


@pytest.mark.parametrize("message", ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"])
def test_out_of_memory_says_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(loop, "train_step", fail)
    with pytest.raises(RunFailed, match=r"(?s)out of memory.*same result: train\.micro_batch=\d+ train\.act"):
        run(load_config("digits", {**TINY, "train.batch_size": 1024, "out": str(tmp_path / "a")}))


@pytest.mark.parametrize("recipe", ["digits_dino", "digits_ibot", "cifar10_mae", "digits_masked_patch", "digits_beit"])
def test_out_of_memory_counts_all_that_an_objective_holds(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Teachers, decoders, heads and several views take memory too."""

    def fail(*_: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(loop, "train_step", fail)
    keys = {"data.source": "digits", "data.path": None, "data.image_size": 8, "model.patch_size": 2, "report": False}
    keys |= {key: value for key, value in TINY.items() if key.startswith("model.")} | {"train.batch_size": 720}
    with pytest.raises(RunFailed, match=r"(?s)About [\d.]+ MB .*result.*: train\.micro_batch=\d+ train\.act"):
        run(load_config(recipe, {**keys, "out": str(tmp_path / "a")}))


def test_where_micro_batches_do_not_add_up_the_hint_says_so() -> None:
    objective = {"kind": "dino", "out_dim": 64, "head_hidden": 64, "centering": "sinkhorn"}
    keys = {**SMALL, "train.batch_size": 128, "objective": objective}
    config = load_config("digits", keys)
    text = smaller_batch_hint(config, lambda: make_job(config, architecture(False), torch.device("cpu")))
    assert "results differ a little" in text
    assert "same result" not in text


SMALL: dict[str, Any] = {"precision": "float32", "train.ema": None, "train.batch_size": 8}
OBJECTIVES_TRIED: tuple[dict[str, Any], ...] = (
    {"kind": "supervised"},
    {"kind": "mae", "decoder_width": 64, "decoder_depth": 2, "decoder_heads": 4},
    {"kind": "masked_patch"},
    {"kind": "dino", "out_dim": 64, "head_hidden": 64, "local_crops": 3},
    {"kind": "dino", "out_dim": 64, "centering": "sinkhorn", "koleo": 0.1, "head_norm": "batch"},
    {"kind": "ibot", "out_dim": 64, "head_hidden": 64, "local_crops": 3},
    {"kind": "ibot", "out_dim": 64, "patch_head": "own", "mask": "random", "mask_spread": True},
    {"kind": "dynamic_vit"},
)


def architecture(labeled: bool, pruned: bool = False) -> ModelConfig:
    options: dict[str, Any] = {"pruner_blocks": (1, 2)} if pruned else {}
    return resolve("vit_tiny_patch4_32", depth=4, num_classes=10 * labeled, **options)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("objective", OBJECTIVES_TRIED, ids=str)
def test_what_a_step_keeps_is_what_autograd_keeps(objective: dict[str, Any], precision: str) -> None:
    """Of the real objective, with all views; and nothing of it is computed to say so."""
    pruned = objective["kind"] == "dynamic_vit"
    keys = {**SMALL, "precision": precision, "objective": objective}
    config = load_config("digits", keys | ({"init": "any", "init_head": True} if pruned else {}))
    model = architecture(objective["kind"] in ("supervised", "dynamic_vit"), pruned)
    job = make_job(config, model, torch.device("cpu"), 0)
    real = OBJECTIVES[config.objective.kind](
        lambda: build_model(model), config.objective, ObjectiveContext(1000)
    ).train()
    views = config.objective.views(config.augment, model.image_size, model.stride)["train"]
    images = tuple(View(torch.rand(8, 3, *view.size), torch.eye(3).expand(8, 3, 3)) for view in views)
    batch = Batch(images, {"label": torch.randint(0, 10, (8,))}, torch.arange(8))

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return real({"train": batch}, 999).loss

    assert job.kept(8).total() == pytest.approx(kept_bytes(loss, real), rel=0.02)
    assert job.parameters == sum(parameter.numel() for parameter in real.parameters())
    assert job.trained == sum(parameter.numel() for parameter in real.parameters() if parameter.requires_grad)
    optimizer = make_optimizer(real, config.optim)
    for parameter in real.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert job.optimizer == sum(value.numel() for value in kept if value.ndim)


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "muon", "adam"])
def test_state_of_every_optimizer(optimizer: str) -> None:
    config = load_config("digits", {**SMALL, "optim.name": optimizer, "optim.weight_decay": 0.0})
    model = architecture(True)
    job = make_job(config, model, torch.device("cpu"), 0)
    real = OBJECTIVES["supervised"](lambda: build_model(model), config.objective, ObjectiveContext(1000))
    made = make_optimizer(real, config.optim)
    for parameter in real.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    kept = [value for state in made.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert job.optimizer == sum(value.numel() for value in kept if value.ndim)


def test_a_frozen_encoder_keeps_nothing_and_adapters_little() -> None:
    model = architecture(True)
    config = load_config("digits", SMALL)
    changes = (
        {}, {"train": config.train.model_copy(update={"freeze": "encoder"})},
        {"lora": config.lora.model_copy(update={"rank": 4})},
    )  # fmt: skip
    whole, frozen, adapted = (
        make_job(config.model_copy(update=change), model, torch.device("cpu"), 0) for change in changes
    )
    assert frozen.trained == 192 * 10 + 10
    assert frozen.kept(8).total() < 0.01 * whole.kept(8).total()
    assert adapted.trained < whole.trained / 10
    assert adapted.optimizer == 2 * adapted.trained
    assert 0.3 < adapted.kept(8).total() / whole.kept(8).total() < 1


def test_two_measurements_stand_for_all_sizes() -> None:
    keys = {**SMALL, "objective": {"kind": "ibot", "out_dim": 64}}
    job = make_job(load_config("digits", {**keys, "train.batch_size": 24}), architecture(False), torch.device("cpu"), 0)
    for size in (24, 16, 5):
        other = load_config("digits", {**keys, "train.batch_size": size})
        exact = make_job(other, architecture(False), torch.device("cpu"), 0).kept(size)
        assert job.kept(size).total() == pytest.approx(exact.total(), rel=0.03)
        assert job.kept(size).passing == pytest.approx(exact.passing, rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
@pytest.mark.parametrize("checkpointed", [0, 6])
@pytest.mark.parametrize("objective", [each for each in OBJECTIVES_TRIED if len(each) < 5], ids=str)
def test_the_peak_is_what_a_process_takes(objective: dict[str, Any], checkpointed: int) -> None:
    """Resident memory of two steps beside the prediction, in a process whose large blocks go back to the system."""
    script = [sys.executable, "-m", "tests.run.peak", json.dumps(objective), str(checkpointed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    environment |= {"MALLOC_TRIM_THRESHOLD_": "65536", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(script, env=environment, capture_output=True, encoding="utf-8", check=True, cwd=ROOT)
    taken, predicted = map(float, found.stdout.split())
    assert 0.85 < predicted / taken < 1.2  # kernels of some processors need less room for their work
