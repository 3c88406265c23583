"""Steps that are not finite: nothing moves, the module is named, too many in a row end the run, which is replayed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import TINY
from vitral.cli.main import main
from vitral.data.loader import StreamLoader
from vitral.errors import RunFailed
from vitral.models.create import create_model
from vitral.objectives.config import SupervisedConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.supervised import Supervised
from vitral.optim.config import OptimConfig
from vitral.optim.ema import WeightEMA
from vitral.optim.optimizer import make_optimizer
from vitral.run.config import load_config
from vitral.run.train import run
from vitral.structs import Batch, View
from vitral.training.config import TrainConfig
from vitral.training.loop import train_step
from vitral.training.metrics_log import MetricsLog, log
from vitral.training.nonfinite import NONFINITE, STATE, STEPS, NonFiniteGuard, first_non_finite
from vitral.training.train_state import Progress, TrainState
from vitral.weights.tensors import load_tensors

NAN, INF = float("nan"), float("inf")
OPTIM = OptimConfig(lr=0.01, schedule="constant", warmup=0)


def batch(step: int, bad: frozenset[int] = frozenset()) -> Batch:
    """Six images, one of them with a NaN where the step is bad."""
    generator = torch.Generator().manual_seed(step)
    images_BCHW = torch.rand(6, 3, 8, 8, generator=generator)
    if step in bad:
        images_BCHW[4, 1, 2, 3] = NAN
    return Batch((View(images_BCHW, torch.eye(3).expand(6, 3, 3)),), {"label": torch.arange(6)}, torch.arange(6) + 10)


def start(optimizer: str = "adamw", model: str = "vit_micro_patch2_8", **options: Any) -> TrainState:
    torch.manual_seed(0)
    objective = Supervised(
        lambda: create_model(model, num_classes=10, **options), SupervisedConfig(), ObjectiveContext(100)
    )
    for name, parameter in objective.model.named_parameters():
        if name.startswith("head.") and name.endswith("weight"):
            nn.init.normal_(parameter, std=0.1)
    moves = make_optimizer(objective, OptimConfig(name=optimizer, lr=0.01))  # type: ignore[arg-type]
    ema = WeightEMA(objective.model, create_model(model, num_classes=10, **options), 0.9)
    return TrainState(objective, moves, ema, Progress())


def train(
    state: TrainState, steps: list[int], bad: frozenset[int], folder: Path, *, late: bool, most: int = 3
) -> NonFiniteGuard:
    """Updates on the batches of these steps."""
    config = TrainConfig(micro_batch=4, max_nonfinite_steps=most)
    guard = NonFiniteGuard(state, lambda step: {"train": batch(step, bad)}, folder, config, late=late)
    folder.mkdir(exist_ok=True)
    state.objective.train()
    for step in steps:
        state.progress.step = step
        train_step(state, state.objective, {"train": batch(step, bad)}, config, OPTIM, guard)  # type: ignore[arg-type]
    guard.sync()
    return guard


def everything(state: TrainState) -> dict[str, Tensor]:
    """Weights, running statistics, optimizer and average."""
    found = {f"objective.{name}": tensor for name, tensor in state.objective.state_dict().items()}
    for number, entries in state.optimizer.state_dict()["state"].items():
        found |= {f"optim.{number}.{key}": value for key, value in entries.items()}
    assert state.ema is not None
    return found | {f"ema.{name}": tensor for name, tensor in state.ema.average.state_dict().items()}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "model"), [("adamw", "vit_micro_patch2_8"), ("muon", "vit_micro_patch2_8"), ("sgd", "resnet20_cifar")]
)
def test_a_run_with_bad_steps_equals_one_that_never_had_them(
    tmp_path: Path, optimizer: str, model: str, late: bool
) -> None:
    """Bit for bit: weights, batch norms' running statistics, optimizer, average; the very first step may be bad."""
    options = {"image_size": 8} if model.startswith("resnet") else {}
    clean, skipped = start(optimizer, model, **options), start(optimizer, model, **options)
    train(clean, [1, 2, 5], frozenset(), tmp_path / "a", late=late)
    guard = train(skipped, [0, 1, 2, 3, 4, 5], frozenset({0, 3, 4}), tmp_path / "b", late=late)
    one, other = everything(clean), everything(skipped)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert (skipped.progress.skipped, guard.streak, clean.progress.skipped) == (3, 0, 0)
    rows = [json.loads(line) for line in (tmp_path / "b" / NONFINITE / STEPS).read_text(encoding="utf-8").splitlines()]
    assert [(row["step"], row["found"], row["keys"]) for row in rows] == [
        (step, "the images, samples [14]", list(range(10, 16))) for step in (0, 3, 4)
    ]
    assert not (tmp_path / "a" / NONFINITE).exists()
    assert not (tmp_path / "b" / NONFINITE / f"{STATE}.safetensors").exists()


def test_the_average_stays_also_where_nobody_reads_the_flag() -> None:
    """As on CUDA, where the flag is a number that is computed with, and read by none."""
    state = start()
    assert state.ema is not None
    with torch.no_grad():
        for parameter in state.objective.parameters():
            parameter.add_(1)
    before = {name: tensor.clone() for name, tensor in state.ema.average.state_dict().items()}

    class OnDevice(Tensor):
        is_cpu = False  # type: ignore[assignment]

    state.ema.update(torch.ones(()).as_subclass(OnDevice))
    for name, tensor in state.ema.average.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    state.ema.updates = 0
    state.ema.update(torch.zeros(()).as_subclass(OnDevice))
    pairs = zip(state.ema.average.parameters(), state.objective.parameters(), strict=True)
    for (average, parameter), old in zip(pairs, before.values(), strict=True):
        torch.testing.assert_close(average, 0.1 * old + 0.9 * parameter.detach())


class Breaks(nn.Module):
    """Wraps a layer: puts out, or sends back, a number that is none."""

    def __init__(self, layer: nn.Module, forward: float | None = None, backward: float | None = None) -> None:
        super().__init__()
        self.layer, self.out, self.back = layer, forward, backward

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.out is not None:
            x = x + torch.where(torch.arange(x.shape[-1]) == 2, self.out, 0.0)
        if self.back is not None:
            x.register_hook(lambda grad: grad * self.back)
        return x


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"forward": NAN}, "the output of model.blocks.2.mlp.fc1"),
        ({"forward": INF}, "the output of model.blocks.2.mlp.fc1"),
        ({"backward": NAN}, "the gradient of the output of model.blocks.2.mlp.fc1"),
    ],
)
def test_the_first_module_is_named_and_nothing_is_touched(keys: dict[str, float], found: str) -> None:
    state = start()
    objective = state.objective
    objective.set_submodule("model.blocks.2.mlp.fc1", Breaks(objective.get_submodule("model.blocks.2.mlp.fc1"), **keys))
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    assert first_non_finite(objective, {"train": batch(0)}, 0, micro=4, autocast=None) == found
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert not any(module._forward_hooks for module in objective.modules()), "no hook stays"
    for name, tensor in objective.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_weights_images_and_good_batches_are_told_apart() -> None:
    state = start()
    assert "nothing in this batch" in first_non_finite(
        state.objective, {"train": batch(0)}, 0, micro=None, autocast=None
    )
    assert first_non_finite(state.objective, {"train": batch(0, frozenset({0}))}, 0, micro=2, autocast=None) == (
        "the images, samples [14]"
    )
    with torch.no_grad():
        state.objective.get_parameter("model.blocks.1.norm2.bias")[3] = INF
    found = first_non_finite(state.objective, {"train": batch(0)}, 0, micro=None, autocast=None)
    assert found == "the parameter model.blocks.1.norm2.bias"


@pytest.mark.parametrize("late", [False, True])
def test_steps_in_a_row_end_the_run_with_the_state_that_the_last_one_met(tmp_path: Path, late: bool) -> None:
    state = start()
    with pytest.raises(RunFailed, match=r"(?s)2 steps in a row.*at step 5 the loss is nan.*\[14\].*vitral doctor"):
        train(state, list(range(9)), frozenset({1, 3, 4}), tmp_path, late=late, most=2)
    saved, metadata = load_tensors(tmp_path / "nonfinite" / f"{STATE}.safetensors")
    assert json.loads(metadata["state"])["progress"]["step"] == 4
    for name, tensor in state.objective.state_dict().items():
        assert torch.equal(saved[f"objective.{name}"], tensor), name


@pytest.fixture
def _broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data whose images are not finite from step 2 on, as a whole run meets them."""
    make = StreamLoader.batch

    def broken(self: StreamLoader, step: int) -> Batch:
        made = make(self, step)
        if step >= 2:
            images_BCHW = made.views[0].images_BCHW.float().clone()
            images_BCHW[3] = INF
            made = made._replace(views=(made.views[0]._replace(images_BCHW=images_BCHW),))
        return made

    monkeypatch.setattr(StreamLoader, "batch", broken)


@pytest.mark.usefixtures("_broken")
def test_a_whole_run_stops_and_its_command_replays_the_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a run"
    tree = {**TINY, "train.steps": 9, "train.log_every": 1, "train.max_nonfinite_steps": 2}
    code = main(["train", "digits", *(f"{key}={json.dumps(value)}" for key, value in tree.items()), f"out={out}"])
    said = capsys.readouterr().err
    assert code == 1
    assert "2 steps in a row were not finite; at step 4" in said
    assert f"vitral doctor '{out}'" in said
    rows = MetricsLog.read(out)
    assert [("loss" in row, row.get("skipped")) for row in rows] == [(True, None), (True, None), (False, 1)]
    assert main(["doctor", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 4
    last = json.loads((out / "nonfinite" / STEPS).read_text(encoding="utf-8").splitlines()[-1])
    assert found["first_not_finite"] == last["found"] == f"the images, samples [{last['keys'][3]}]"
    assert len(found["images"]) == TINY["train.batch_size"]


@pytest.mark.usefixtures("_broken")
def test_a_run_that_bears_its_bad_steps_ends_with_the_weights_before_them(tmp_path: Path) -> None:
    def weights(out: str, **keys: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tree = {**TINY, "train.log_every": 1, "optim.schedule": "constant", "data.validation": "none"}
        del tree["train.eval_every"]
        summary = run(load_config("digits", {**tree, **keys, "out": str(tmp_path / out)}))
        return summary, load_tensors(tmp_path / out / "model/model.safetensors")[0]

    whole, one = weights("a", **{"train.steps": 5, "train.max_nonfinite_steps": 9})
    short, other = weights("b", **{"train.steps": 2})
    assert (whole["skipped_steps"], whole["steps"]) == (3, 5)
    assert "skipped_steps" not in short
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_doctor_says_where_there_is_nothing_to_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 2
    assert "no model here" in capsys.readouterr().err
    assert log.level == logging.INFO
