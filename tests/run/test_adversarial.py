"""Whole runs of adversarial training: resume, precision, best weights, data that it cannot learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers import TINY
from tests.run.adversarial_cases import ADVERSARIAL
from tests.run.power_cut import killed_and_resumed
from vitral.errors import UserError
from vitral.run.config import load_config
from vitral.run.train import run
from vitral.training.metrics_log import MetricsLog
from vitral.weights.tensors import load_tensors

RUN = {**TINY, **ADVERSARIAL, "objective.clean_weight": 0.5, "augment.mixup": 0.5, "train.steps": 6}


def start(out: str, **more: Any) -> dict[str, Any]:
    keys = {key.replace("__", "."): value for key, value in more.items()}
    return run(load_config("digits", {**RUN, **keys, "out": out}))


def test_a_killed_run_goes_on_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"train__micro_batch": 5, "train__save_seconds": 0.0, "objective__monitor_images": 16}
    start("whole", **more)
    killed_and_resumed(lambda: start("parts", **more), "parts", 4, monkeypatch)
    one, other = (load_tensors(Path(name) / "model/model.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    last = [MetricsLog.read(Path(name))[-2:] for name in ("whole", "parts")]
    numbers = ("loss", "fgsm_top1", "pgd_top1", "grad_align", "adversarial_top1")
    rows = [[{name: row.get(name) for name in numbers} for row in part] for part in last]
    assert rows[0] == rows[1]
    assert rows[0][0]["pgd_top1"] is not None or rows[0][1]["pgd_top1"] is not None


def test_a_run_killed_between_replays_goes_on_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"objective.kind": "adversarial", "objective.attack.kind": "fgsm", "objective.attack.eps": 0.05}
    keys |= {"objective.replays": 3, "objective.monitor_images": 0, "augment.mixup": 0.5, "train.steps": 7}
    keys |= {"train.log_every": 1, "train.save_seconds": 0.0, "train.micro_batch": 5, "data.validation": "none"}

    def train(out: str) -> dict[str, Any]:
        return run(load_config("digits", {**TINY, **keys, "out": out}))

    assert train("whole")["steps"] == 7
    killed_and_resumed(lambda: train("parts"), "parts", 4, monkeypatch)
    one, other = (load_tensors(Path(name) / "checkpoints/last.safetensors")[0] for name in ("whole", "parts"))
    assert one["rows.delta_BCHW"].abs().max() == pytest.approx(0.05)
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows = [MetricsLog.read(Path(name)) for name in ("whole", "parts")]
    assert [row["loss"] for row in rows[0] if "loss" in row] == [row["loss"] for row in rows[1] if "loss" in row]
    log_text = Path("whole/train.log").read_text(encoding="utf-8")
    assert "7 steps of 16 images, 3 steps per batch, on" in log_text


def test_the_step_runs_in_half_precision_and_the_attack_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitral.attacks.attack import Problem

    kinds = list[torch.dtype]()
    gradient = Problem.gradient

    def spy(self: Problem, x_BCHW: torch.Tensor) -> Any:
        kinds.append(self.model(x_BCHW).dtype)
        return gradient(self, x_BCHW)

    monkeypatch.setattr(Problem, "gradient", spy)
    start("half", precision="bfloat16", train__steps=2)
    assert kinds == [torch.float32] * 4


@pytest.mark.parametrize("kind", ["embedding_fgm", "fgsm", "nfgsm"])
def test_every_attack_trains_and_logs(kind: str) -> None:
    keys = {key: value for key, value in RUN.items() if key != "objective.attack.steps"}
    keys |= {"objective.attack.kind": kind, "objective.attack.eps": 0.02}
    found = run(load_config("digits", {**keys, "out": kind}))
    assert found["steps"] == 6
    rows = [row for row in MetricsLog.read(Path(kind)) if "loss" in row]
    assert all(0 <= row["adversarial_top1"] <= 1 for row in rows)


def test_data_and_models_that_it_cannot_attack_are_refused() -> None:
    with pytest.raises(UserError, match="regression"):
        start("numbers", data__target=["ink"])
    keys = {key: value for key, value in RUN.items() if not key.startswith(("objective.attack", "model."))}
    keys |= {"objective.attack.kind": "embedding_fgm", "model.name": "resnet20_cifar", "data.image_size": 8}
    keys |= {"model.pool": None}
    with pytest.raises(UserError, match="no patch embeddings"):
        run(load_config("digits", {**keys, "out": "resnet"}))
    rows = ["path,label,split"]
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, 90, 40)).save(f"{number}.png")
        rows.append(f"{number}.png,{('a', 'b', 'a;b')[number % 3]},{('train', 'test')[number // 9]}")
    Path("tags.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(UserError, match=r"(?s)learns classification.*multilabel"):
        start("tags", data__path="tags.csv", data__source="table", data__label_separator=";", data__validation="none")
