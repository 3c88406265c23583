"""Training a part of a model: what moves, what stays, what the folder holds, and that stopping changes nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import TINY, assert_equal_tensors, random_model, weights
from vitral.data.loader import StreamLoader
from vitral.errors import Interrupted, UserError
from vitral.models.lora import add_lora
from vitral.models.parameters import is_head
from vitral.run.config import load_config
from vitral.run.train import run
from vitral.structs import Batch
from vitral.weights.folder import load_folder
from vitral.weights.tensors import load_tensors

NAMES = ("model.name", "model.width", "model.depth", "model.heads", "model.mlp_dim", "model.pool")
KEYS: dict[str, Any] = {**TINY, **dict.fromkeys(NAMES), "model.name": "auto", "init": "base", "train.ema": 0.9}
LORA = {"lora.rank": 2, "lora.alpha": 4.0, "optim.lr": 1e-2, "train.steps": 6, "train.eval_every": 0.02}


@pytest.fixture(autouse=True)
def _base() -> None:
    """A model of other classes than the digits, with the paper's pre-training head."""
    random_model(Path("base"), head="mlp")


def train(out: str, **more: Any) -> dict[str, Any]:
    return run(load_config("digits", {**KEYS, **more, "out": out}))


def architecture(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["architecture"]


def test_a_frozen_encoder_keeps_its_bits() -> None:
    train("a", **{"train.freeze": "encoder"})
    before, after = weights("base"), weights("a")
    for name, tensor in after.items():
        assert is_head(name) or torch.equal(tensor, before[name]), name
    assert after["head.weight"].abs().max() > 0
    assert "of them trained" in Path("a/train.log").read_text(encoding="utf-8")


def test_adapters_end_as_an_ordinary_folder_with_equal_logits() -> None:
    summary = train("a", **LORA)
    before, after = weights("base"), weights("a")
    assert {name for name in after if not is_head(name)} == {name for name in before if not is_head(name)}
    changed = {name for name, tensor in after.items() if not is_head(name) and not torch.equal(tensor, before[name])}
    ends = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert changed == {f"blocks.{i}.{end}.weight" for i in range(2) for end in ends}
    plain, _ = load_folder("a")
    assert summary["parameters"] == sum(parameter.numel() for parameter in plain.parameters())

    adapted, _ = load_folder("a")  # the same architecture, filled with the best checkpoint's base and adapters
    add_lora(adapted, 2, 4.0, "both")
    adapted.load_state_dict(load_tensors(Path("a/checkpoints/best.safetensors"))[0])
    images = torch.rand(64, 1, 8, 8)
    with torch.no_grad():
        assert (adapted(images) - plain(images)).abs().max() <= 1e-5
        assert (load_folder("base")[0].encode(images).patches_BND - plain.encode(images).patches_BND).abs().max() > 1e-4


def test_a_stopped_run_with_adapters_goes_on_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    train("whole", **LORA)
    make = StreamLoader.batch

    def batch(self: StreamLoader, at: int) -> Batch:
        if at == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return make(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(StreamLoader, "batch", batch)
        with pytest.raises(Interrupted):
            train("parts", **LORA)
    train("parts", **LORA, resume=True)
    assert_equal_tensors(weights("whole"), weights("parts"))
    assert_equal_tensors(*(load_tensors(Path(out) / "checkpoints/last.safetensors")[0] for out in ("whole", "parts")))


def test_a_new_head_is_zero_and_sits_on_the_bare_representation() -> None:
    """Section 3.2 of the paper: the pre-training head is removed whole."""
    train("a", **{"optim.lr": 1e-30, "train.steps": 1})
    assert architecture("base")["head"] == "mlp"
    assert architecture("a/model")["head"] == "linear"
    assert not any(name.startswith("pre_logits") for name in weights("a"))
    assert weights("a")["head.weight"].abs().max() < 1e-20
    train("b", **{"optim.lr": 1e-30, "train.steps": 1, "model.head": "mlp", "model.head_bias": -6.9})
    assert "pre_logits.fc.weight" in weights("b")
    torch.testing.assert_close(weights("b")["head.bias"], torch.full((10,), -6.9))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train.freeze": "encoder", "init": None, "model.name": "vit_micro_patch2_8"}, "train.freeze needs init"),
        ({"lora.rank": 2, "init": None, "model.name": "vit_micro_patch2_8"}, "lora.rank needs init"),
        ({"train.freeze": "encoder", "lora.rank": 2}, "no effect with train.freeze=encoder: lora.rank"),
        ({"train.freeze": "encoder", "objective.head_only_fraction": 0.2}, "Set objective.head_only_fraction=0$"),
        ({"train.freeze": "encoder", "optim.layer_decay": 0.5}, "no effect .*optim.layer_decay"),
        ({"train.freeze": "encoder", "model.dropout": 0.5}, "no effect .*model.dropout"),
        ({"objective.loss": "sigmoid", "objective.class_weights": "balanced"}, "objective.loss=softmax"),
        ({"data.validation": "none", "train.patience": 2}, "train.patience needs"),
        ({"train.eval_every": "end", "train.patience": 2}, "train.patience needs"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train("a", **keys)


def test_adam_with_a_decay_is_warned_of() -> None:
    train("a", **{"optim.name": "adam", "train.steps": 1})
    assert "adam adds the decay to the gradient" in Path("a/train.log").read_text(encoding="utf-8")
