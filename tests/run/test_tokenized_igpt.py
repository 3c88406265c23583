"""A run over the codes of a tokenizer: its folder needs nothing else, and samples, completions and resumes work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import TINY, random_model, weights
from vitral.errors import UserError
from vitral.models.igpt import IGPT
from vitral.run.command_options import EvalOptions, SampleOptions, SummaryOptions
from vitral.run.config import load_config
from vitral.run.estimate import estimate
from vitral.run.evaluate import evaluate
from vitral.run.sample import sample
from vitral.run.summary import summarize
from vitral.run.train import run
from vitral.weights.folder import load_folder

PLAIN = {**TINY, "check.skip": True, "eval": {}}


def tokenizer() -> None:
    """Patches of 2 x 2 pixels as 16 codes, in the folder `codes`."""
    keys = dict.fromkeys(("model.width", "model.depth", "model.heads", "model.mlp_dim", "model.mask_ratio"))
    found: dict[str, Any] = {
        **PLAIN, **keys, "objective.kind": "tokenizer", "model.name": "kmeans_patch2_8", "model.codes": 16,
        "train.steps": 1, "train.eval_every": "end", "optim.name": "adamw", "augment.rotate": 0.0, "augment.scale": 0.0,
        "augment.shear": 0.0, "augment.translate": 0.0,
    }  # fmt: skip
    run(load_config("digits_igpt", {**found, "out": "codes"}))


def pretrain(out: str, **more: Any) -> dict[str, Any]:
    return run(load_config("digits_igpt", {**PLAIN, "model.tokenizer": "codes", **more, "out": out}))


@pytest.mark.parametrize("mask_ratio", [0.0, "cosine"])
def test_the_folder_needs_no_other(mask_ratio: Any) -> None:
    tokenizer()
    codes = weights("codes")
    summary = pretrain("a", report=True, **{"model.mask_ratio": mask_ratio})
    keys = {"model.tokenizer": "codes", "model.mask_ratio": mask_ratio, "out": "b"}
    assert estimate(load_config("digits_igpt", {**PLAIN, **keys}))
    assert summarize("a", SummaryOptions())
    shutil.rmtree("codes")
    model, config = load_folder("a")
    assert isinstance(model, IGPT)
    assert (model.config.tokens, model.config.codes) == (16, 16)
    assert "tokenizer=kmeans" in config.name
    for name, tensor in codes.items():
        assert torch.equal(model.state_dict()[f"tokenizer.model.{name}"], tensor), "not trained"
    assert 0 < summary["bits_per_token"] < 5
    assert evaluate("a", EvalOptions())["bits_per_token"] == pytest.approx(summary["bits_per_token"], abs=1e-5)
    assert "lower half sampled" in Path("a/report.html").read_text(encoding="utf-8")
    found = sample("a", SampleOptions.model_validate({"out": "s", "n": 3, "data": {"source": "digits"}}))
    assert 0 < found["train"]["distance"] < 8
    assert len(found["samples"]) == 3


def test_a_resumed_run_reads_the_same_codes() -> None:
    tokenizer()
    keys: dict[str, Any] = {"train.eval_every": "end", "optim.schedule": "constant"}
    pretrain("straight", **keys, **{"train.steps": 4})
    pretrain("cut", **keys, **{"train.steps": 2})
    pretrain("cut", **keys, **{"train.steps": 4, "resume": True})
    for name, tensor in weights("straight").items():
        assert torch.equal(tensor, weights("cut")[name]), name


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model.tokenizer": "absent"}, "absent"),
        ({"model.tokenizer": "vit"}, "(?s)not an image tokenizer.*Vision Transformer|model.tokenizer"),
        ({"model.colors": 17}, "(?s)17.*16"),
        ({"data.image_size": 16}, "16 x 16.*8 x 8"),
        ({"model.name": "vit_micro_patch2_8", "objective.kind": "supervised"}, "tokenizer"),
    ],
)
def test_what_does_not_fit(keys: dict[str, Any], words: str) -> None:
    tokenizer()
    random_model(Path("vit"))
    with pytest.raises(UserError, match=words):
        pretrain("a", **keys)
