"""The speed-run's script does its first steps on a CPU, and says that they are no result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vitral
from tests.data.test_cifar import python10
from vitral.data.cifar import CIFAR10_CLASSES
from vitral.weights.folder import load_config
from vitral.weights.tensors import load_tensors

SCRIPT = Path(__file__).parents[2] / "benchmarks/speedrun.py"
SHORT = ["train.steps=2", "train.batch_size=16", "model.width=16", "model.depth=2", "model.heads=2", "model.mlp_dim=32"]


def speedrun(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, timeout=240)


@pytest.mark.slow
def test_first_steps_on_a_cpu(tmp_path: Path) -> None:
    done = speedrun(f"data={python10(tmp_path / 'c10')}", "seeds=2", "out=runs", "device=cpu", "save=a.json", *SHORT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads(Path("a.json").read_text(encoding="utf-8"))
    assert [(run["seed"], run["steps"], run["split"], run["count"]) for run in found["runs"]] == [
        (0, 2, "test", 40), (1, 2, "test", 40)
    ]  # fmt: skip
    assert found["top1_mean"] == sum(run["top1"] for run in found["runs"]) / 2
    assert all(run["seconds"] > run["train_seconds"] >= 0 for run in found["runs"]), "two steps may round to 0.0 s"
    assert "md5" in found["train_images"]
    assert found["changed"]["train.steps"] == "2"
    if not torch.cuda.is_available():
        assert not found["is_result"]
        assert "no CUDA device: this shows that the script works, and is no result" in done.stderr
    # Seed 0 is left as a folder to be bundled.
    folder = Path("runs/vitral-cifar10")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert load_config(folder).provenance["recipe"] == "cifar10_speedrun"
    whole, half = (load_tensors(path / "model.safetensors")[0] for path in (Path("runs/seed0/model"), folder))
    assert all(torch.equal(half[name], tensor.bfloat16()) for name, tensor in whole.items())
    answers = vitral.load(str(folder)).predict([torch.zeros(3, 32, 32).numpy().transpose(1, 2, 0)])
    assert answers[0]["predictions"][0]["label"] in CIFAR10_CLASSES


def test_wrong_words_end_before_the_first_seed(tmp_path: Path) -> None:
    done = speedrun(f"data={python10(tmp_path / 'c10')}", "train.stepps=3")
    assert done.returncode != 0
    assert "train.stepps" in done.stderr
    assert not Path("runs").exists()
    assert "data=DIR is needed" in speedrun().stderr
