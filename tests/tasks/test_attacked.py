"""Evaluators that attack: their numbers, their share of the images, training by them, and bad input.

Shape letters: N samples, B batch, D pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vitral
from tests.attacks.models import Linear
from tests.helpers import TINY, random_model, write_colors
from tests.processes import in_processes
from vitral import distributed
from vitral.attacks.registry import create_attack
from vitral.cli.main import main
from vitral.data.config import DataSource
from vitral.data.dataset import spaced
from vitral.evaluate.config import ATTACKED
from vitral.evaluate.metric import eps_text
from vitral.run.command_options import EvalOptions
from vitral.run.config import load_config
from vitral.run.evaluate import evaluate
from vitral.run.train import run
from vitral.tasks.classification import Classification, attacked
from vitral.tasks.task import Subject
from vitral.training.metrics_log import MetricsLog


def subject(model: torch.nn.Module, images_NCHW: Tensor, labels_N: Tensor, share: slice = slice(None)) -> Subject:
    """A subject that gives the images of a share of all places, three in a batch."""

    def batches(split: str, most: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        places = torch.tensor(spaced(len(labels_N), most or len(labels_N)))[share]
        yield from ((images_NCHW[part], labels_N[part]) for part in places.split(3))

    return Subject("test", batches, lambda: (np.zeros(0), np.zeros(0)), model, sizes={"test": len(labels_N)})


def found(which: Subject, kind: str, **keys: Any) -> dict[str, Any]:
    return Classification(("a", "b", "c")).evaluate(which, {kind: ATTACKED[kind](**keys)}).values


@pytest.mark.parametrize(
    ("kind", "keys"),
    [("fgsm", {}), ("pgd", {"steps": 3}), ("apgd", {"steps": 8}), ("mifgsm", {"steps": 2})],
)
def test_top1_of_a_linear_model_has_a_closed_form(kind: str, keys: dict[str, Any]) -> None:
    """Two classes: robust are the images whose margin is more than eps |w_y - w_k|_1; no pixel is near 0 or 1, and no
    margin at 0, where rounding decides."""
    model = Linear((1, 4, 4)).float()
    x_NCHW = 0.5 + 0.2 * torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.bias_K += torch.tensor([0.0, 1.0]) * -(model(x_NCHW) @ torch.tensor([-1.0, 1.0])).quantile(0.5)
    logits_NK = model(x_NCHW).detach()
    labels_N = logits_NK.argmax(1) ^ (torch.arange(40) % 5 == 0).long()
    margin_N = torch.where(labels_N == 1, 1.0, -1.0) * (logits_NK[:, 1] - logits_NK[:, 0])
    length = float((model.weight_KD[1] - model.weight_KD[0]).detach().abs().sum())
    values = found(subject(model, x_NCHW, labels_N), kind, eps=0.02, **keys)
    right, robust = int((margin_N > 0).sum()), int((margin_N > 0.02 * length).sum())
    assert 0 < robust < right < 40
    assert values[f"{kind}_count"] == 40
    assert values[f"{kind}_clean_top1"] == right / 40
    assert values[f"{kind}_top1"] == robust / 40


def test_samples_are_the_most_that_are_attacked() -> None:
    torch.manual_seed(2)
    model, x_NCHW = Linear((1, 4, 4), 3), torch.rand(30, 1, 4, 4).double()
    few = subject(model, x_NCHW, model(x_NCHW).argmax(1))
    assert [found(few, "pgd", eps=0.03, samples=most)["pgd_count"] for most in (1, 7, 30, 99)] == [1, 7, 30, 30]


def shared_top1() -> dict[str, Any]:
    """In one of several processes: what PGD leaves of 30 images, of which each process has its share."""
    torch.manual_seed(2)
    model, x_NCHW = Linear((1, 4, 4), 3), torch.rand(30, 1, 4, 4).double()
    first, last = distributed.shard_range(30)
    return found(subject(model, x_NCHW, model(x_NCHW).argmax(1), slice(first, last)), "pgd", eps=0.03, steps=1)


def test_two_processes_find_what_one_finds() -> None:
    one = shared_top1()
    assert 0 < one["pgd_top1"] < 1
    assert in_processes(2, "tests.tasks.test_attacked:shared_top1") == [one, one]


def test_eval_attacks_as_by_hand() -> None:
    random_model(Path("model"), ("cat", "dog", "owl"))
    write_colors(Path("pets"), "cat dog owl", count=6)
    options = EvalOptions(data=DataSource(path="pets"), eval={"pgd": {"eps": "4/255", "samples": 10}})  # type: ignore[dict-item]
    values = evaluate("model", options)
    predictor = vitral.load("model")
    files = sorted(Path("pets").rglob("*.png"))
    places = spaced(18, 10)
    x_BCHW = torch.stack([predictor.preprocess(str(files[place])) for place in places])
    labels_B = torch.tensor([predictor.classes.index(files[place].parent.name) for place in places])
    attack = create_attack("pgd", eps=4 / 255)
    right_B = predictor.model(x_BCHW).argmax(1) == labels_B
    ids_B = torch.tensor(places)[right_B]
    adversarial_BCHW = attack(predictor.model, x_BCHW[right_B], labels_B[right_B], sample_ids_B=ids_B)
    robust = int((predictor.model(adversarial_BCHW).argmax(1) == labels_B[right_B]).sum())
    assert values["pgd_count"] == 10
    assert values["pgd_clean_top1"] == int(right_B.sum()) / 10
    assert values["pgd_top1"] == robust / 10
    assert values["primary"]["name"] == "pgd_top1"


def test_training_chooses_the_checkpoint_by_it(tmp_path: Path) -> None:
    keys = {**TINY, "out": str(tmp_path / "a"), "train.steps": 6, "report": True}
    summary = run(load_config("digits", {**keys, "eval": {"fgsm": {"eps": 0.02, "samples": 30}, "clean": {}}}))
    rows = [row["val_fgsm_top1"] for row in MetricsLog.read(tmp_path / "a") if "val_fgsm_top1" in row]
    assert summary["val_fgsm_top1"] == max(rows)
    assert summary["fgsm_count"] == 30
    assert "top1" in summary
    for path in ("train.log", "report.html", "model/README.md"):
        assert "top-1 under fgsm (linf, eps 0.02)" in (tmp_path / "a" / path).read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["eval.pgd.eps=8"], ("eps=8 is more than the whole range", "8/255")),
        (["eval.pgd.eps=0"], ("eps", "greater than 0")),
        (["eval.pgd.norm=l2", "eval.pgd.eps=1000"], ("longer than any change", "eval.pgd.eps", "at most 8")),
        (
            ["objective.kind=adversarial", "objective.attack.norm=l2", "objective.attack.eps=9"],
            ("longer than any change", "objective.attack.eps", "at most 8"),
        ),
        (["eval.pgd.stepz=3"], ("stepz", "unknown key", "step")),
        (["eval.nfgsm.eps=8/255"], ("more than eps", "for training only", "nfgsm")),
        (["eval.embedding_fgm.eps=1"], ("unknown evaluator", "embedding_fgm")),
        (["objective.kind=mae", "eval.pgd.eps=0.1"], ("unknown evaluator of the task features", "pgd")),
        (["train.parallel=fsdp", "eval.pgd.eps=0.1"], ("needs all weights", "pgd", "vitral eval MODEL")),
    ],
)
def test_wrong_keys_are_one_message(words: list[str], says: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "out=a", "augment.rotate=0", *words]) == 2
    err = capfd.readouterr().err
    assert all(text in err for text in says), err
    assert "Traceback" not in err


def test_dlr_needs_three_classes(capfd: pytest.CaptureFixture[str]) -> None:
    random_model(Path("model"), ("cat", "dog"))
    write_colors(Path("pets"), count=4)
    assert main(["eval", "model", "data=pets", "eval.apgd.loss=dlr"]) == 2
    err = capfd.readouterr().err
    assert all(text in err for text in ("eval.apgd.loss", "2 classes", "at least 3 classes", "loss=ce")), err


def test_text_of_eps() -> None:
    assert [eps_text(eps) for eps in (8 / 255, 0.1, 1.0, 0.0, 1 / 510)] == ["8/255", "0.1", "1", "0", "0.001961"]


def test_every_name_is_an_evaluator_of_classification() -> None:
    assert all(Classification.evaluators[name] is attacked for name in ATTACKED)
