"""A compiled step equals the eager one, and is compiled once for each shape."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from tests.helpers import TINY, assert_equal_tensors, create_vit, weights
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.models.vit import VisionTransformer
from vitral.objectives.config import MaeConfig, MaskedPatchConfig, SupervisedConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.registry import OBJECTIVES
from vitral.objectives.supervised import Supervised
from vitral.optim.config import OptimConfig
from vitral.optim.ema import WeightEMA
from vitral.optim.master_weights import ComputeCopy
from vitral.optim.optimizer import make_optimizer
from vitral.run.config import load_config
from vitral.run.train import run
from vitral.structs import Batch, View
from vitral.training.compiled import Compiled
from vitral.training.config import TrainConfig
from vitral.training.loop import train_step
from vitral.training.nonfinite import NonFiniteGuard
from vitral.training.parallel import Parallel
from vitral.training.train_state import Progress, TrainState

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own use of torch.jit
SIZE = 50
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    labels_B = torch.randint(0, 10, (SIZE,), generator=generator)
    targets = {"label": labels_B, "partner": labels_B.flip(0), "weight": torch.rand(SIZE, generator=generator)}
    images_BCHW = torch.rand(SIZE, 3, 8, 8, generator=generator)
    return Batch((View(images_BCHW, torch.eye(3).expand(SIZE, 3, 3)),), targets, torch.arange(SIZE))


def build() -> VisionTransformer:
    return create_vit("vit_micro_patch2_8", width=32, depth=2, heads=2, mlp_dim=64, num_classes=10)


def updated(compiled: bool, head_only_fraction: float, low: bool) -> TrainState:
    """The state after five updates of micro-batches of 16, 16, 16 and 2."""
    torch.manual_seed(0)
    objective = Supervised(
        build, SupervisedConfig(head_only_fraction=head_only_fraction, label_smoothing=0.1), ObjectiveContext(10)
    )
    torch.nn.init.normal_(objective.model.get_parameter("head.weight"), std=0.1)
    copy = ComputeCopy(objective) if low else None
    called = copy.module if copy else objective
    assert isinstance(called, Supervised)
    parallel = Parallel(Compiled(called) if compiled else called, each=low)
    ema, optimizer = WeightEMA(objective.model, build(), 0.9), make_optimizer(objective, OptimConfig(name="sgd"))
    state = TrainState(objective, optimizer, ema, Progress(), compute_copy=copy, parallel=parallel)
    optim = OptimConfig(lr=0.1, schedule="constant", warmup=0)
    config = TrainConfig(batch_size=SIZE, micro_batch=16)
    guard = NonFiniteGuard(state, lambda step: {"train": batch(step)}, Path(), config)
    objective.train()
    for step in range(5):
        train_step(state, objective, {"train": batch(step)}, config, optim, guard)
        state.progress.step += 1
    return state


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("head_only_fraction", "low", "limit", "graphs"),
    [(0.0, False, 1e-5, 2), (0.0, True, 2e-2, 2), (0.3, False, 1e-5, 6)],
)
def test_compiled_steps_equal_eager_ones(head_only_fraction: float, low: bool, limit: float, graphs: int) -> None:
    """Weights and average after five updates of micro-batches of which the last is short. No break in a graph, and none
    compiled again: one for each size; where the head learns first, one more as each stage begins, in the other mode."""
    counters.clear()
    eager, compiled = (updated(how, head_only_fraction, low) for how in (False, True))
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
    for name, tensor in eager._tensors().items():
        assert (tensor - compiled._tensors()[name]).abs().max() < limit, name


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked_patch", "mae"])
def test_masks_follow_the_step_inside_one_graph(kind: str) -> None:
    """Losses and gradients of three steps, whole and short batches: as eager ones, by one graph a size."""
    small = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2} if kind == "mae" else {}
    config = (MaeConfig if kind == "mae" else MaskedPatchConfig)(kind=kind, **small)  # type: ignore[arg-type]
    torch.manual_seed(0)
    made = OBJECTIVES[kind](
        lambda: create_vit("vit_micro_patch2_8", depth=2, num_classes=0), config, ObjectiveContext(10)
    )
    compiled = Compiled(made)
    counters.clear()
    losses: list[float] = []
    for step in range(3):
        for part in (batch(step).slice(0, 16), batch(step).slice(0, 5)):
            mine, theirs = compiled({"train": part}, step).loss, made({"train": part}, step).loss
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
            grads = [torch.autograd.grad(loss, made.model.get_parameter("blocks.0.mlp.fc1.weight"))[0]
                      for loss in (mine, theirs)]  # fmt: skip
            torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)
            losses.append(mine.item())
    assert len(set(losses)) == 6
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


@needs_compiler
@pytest.mark.slow
def test_a_compiled_run_stopped_and_resumed_ends_alike(tmp_path: Path) -> None:
    """With drop-path and dropout, whose draws are those of the compiler: the same after a resume."""
    keys = {**TINY, "train.compile": "step", "train.steps": 6, "model.drop_path": 0.3, "model.dropout": 0.1}
    run(load_config("digits", {**keys, "out": "whole"}))
    stopped = {**keys, "train.save_seconds": 0.0, "out": "parts"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitral.training.loop.StopSignal", StopAtThree)
        with pytest.raises(Exception, match="stopped at step 3"):
            run(load_config("digits", stopped))
    run(load_config("digits", {**stopped, "resume": True}))
    assert_equal_tensors(weights("whole"), weights("parts"))


class StopAtThree:
    """In place of a signal: set when it is asked for the third time."""

    def __init__(self) -> None:
        self.asked = 0

    def __enter__(self) -> StopAtThree:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def signum(self) -> int | None:
        self.asked += 1
        return 15 if self.asked >= 3 else None


def test_what_cannot_be_compiled_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in (("parallel", "fsdp"), ("activation_checkpointing", "all"), ("activation_checkpointing", 1)):
        with pytest.raises(UserError, match=r"train\.compile=step does not support"):
            load_config("digits", {**TINY, "train.compile": "step", f"train.{key}": value})
    monkeypatch.setattr(Supervised, "compile_key", lambda *_: None)
    with pytest.raises(UserError, match=r"(?s)train\.compile: this step cannot be compiled"):
        run(load_config("digits", {**TINY, "train.compile": "step", "out": str(tmp_path / "a")}))


def test_a_compiler_that_fails_is_said_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise OSError("no compiler here")

    make = torch.compile
    monkeypatch.setattr(torch, "compile", lambda graph, **how: make(graph, backend=broken, **how))
    words = [f"{key}={json.dumps(value)}" for key, value in TINY.items()]
    assert main(["train", "digits", *words, "train.compile=step", f"out={tmp_path / 'a'}"]) == 1
    said = capsys.readouterr().err
    assert "the step could not be compiled" in said
    assert "train.compile=none" in said
    assert "Traceback" not in said
