"""`vitral attack` by its function: closed forms, agreement with eval and attacks by hand, tests of strength, files.

Shape letters: N images, B batch, D pixels, K classes, C H W channels, height and width of an image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vitral
from tests.attacks.models import Linear
from tests.helpers import random_model, write_colors
from vitral.attacks.config import AttackConfig, EnsembleConfig, FgsmConfig, PgdConfig, SquareConfig
from vitral.attacks.registry import attack_of, create_attack
from vitral.data.config import DataSource
from vitral.errors import UserError
from vitral.evaluate.attack_checks import CheckImages, attack_checks
from vitral.evaluate.robustness import attack_batch
from vitral.predictor import Predictor
from vitral.run.attack import Victim, _attacked, attack, measure
from vitral.run.command_options import AttackOptions, EvalOptions, ExportCommandOptions
from vitral.run.evaluate import evaluate
from vitral.run.export import export_model
from vitral.run.inference_inputs import open_images


def on(path: str | None = None, **more: Any) -> AttackOptions:
    keys: dict[str, Any] = {"check": "none", **more}
    if path:
        keys["data"] = DataSource(path=path)
    return AttackOptions(**keys)


@pytest.fixture
def pets() -> Path:
    random_model(Path("model"))
    write_colors(Path("pets"), "cat dog owl", count=12, size=(8, 8))
    return Path("pets")


def test_clean_accuracy_is_that_of_eval() -> None:
    found = attack("vitral-digits", on(attack=FgsmConfig(eps=0.05), curve=()))
    clean = evaluate("vitral-digits")
    assert found["count"] == clean["count"] == 360
    assert (found["split"], found["clean_top1"]) == ("test", clean["top1"])
    assert found["clean_top1_interval"] == clean["top1_interval"]
    assert [row["eps"] for row in found["curve"]] == [0, 0.05]
    assert found["curve"][0]["robust_top1"] == clean["top1"]
    assert found["curve"][0]["ece"] == pytest.approx(clean["ece"], abs=1e-6)
    by_class = found["per_class"]
    assert {name: row["count"] for name, row in by_class.items()} == {
        name: row["count"] for name, row in clean["per_class"].items()
    }
    assert sum(row["robust"] for row in by_class.values()) == round(360 * found["robust_top1"])
    assert found["primary"] == {
        "name": "robust_top1", "value": found["robust_top1"], "interval": found["robust_top1_interval"]
    }  # fmt: skip


def test_curve_of_a_linear_model_has_a_closed_form() -> None:
    """Two classes: the worst image of a ball moves each pixel against its weight, as far as [0,1] allows."""
    random_model(Path("two"), ("cat", "dog"))
    write_colors(Path("pets"), count=20, size=(8, 8))
    predictor = vitral.load("two", "cpu")
    options = on("pets", attack=PgdConfig(eps=0.1), curve=("0.25x", "0.5x", "1.5x"))
    split = open_images(predictor.config, options.data, predictor.config)[0].splits["train"]
    x_NCHW = torch.stack([predictor.preprocess(image.permute(1, 2, 0).numpy()) for image in map(split.read, range(40))])
    model = Linear((1, 8, 8)).float()
    weight_D = (model.weight_KD[1] - model.weight_KD[0]).detach().float()
    sign_N = torch.from_numpy(np.where(split.labels_N == 1, 1.0, -1.0)).float()
    with torch.no_grad():  # half of the answers are right
        model.bias_K[1] += -(sign_N * (model(x_NCHW)[:, 1] - model(x_NCHW)[:, 0])).median() * 0.5

    def margin(images_NCHW: Tensor) -> Tensor:
        logits_NK = model(images_NCHW).detach()
        return sign_N * (logits_NK[:, 1] - logits_NK[:, 0])

    assert 4 < int((margin(x_NCHW) > 0).sum()) < 40
    victim = Victim(predictor, model, model, None, [])
    left = list[int]()
    for eps in options.sizes():
        step_NCHW = (sign_N[:, None] * weight_D.sign()).reshape(x_NCHW.shape)
        expected_N = (margin(x_NCHW) > 0) & (margin((x_NCHW - eps * step_NCHW).clamp(0, 1)) > 0)
        rows = _attacked(victim, split, list(range(40)), eps, options)
        assert rows.robust_N.tolist() == expected_N.tolist(), eps
        left.append(int(expected_N.sum()))
    assert left == sorted(left, reverse=True)
    assert left[0] > left[2] > left[-1]


@pytest.mark.usefixtures("pets")
def test_batches_do_not_change_the_result() -> None:
    found = [
        attack("model", on("pets", attack=PgdConfig(eps=0.1, steps=4), curve=("0.5x",), batch_size=size))
        for size in (1, 7, 64)
    ]
    for one in found[1:]:
        for mine, other in zip(one["curve"], found[0]["curve"], strict=True):
            assert mine["robust_top1"] == pytest.approx(other["robust_top1"], abs=1.5 / 36)
            assert mine["mean_confidence"] == pytest.approx(other["mean_confidence"], abs=0.02)


@pytest.mark.usefixtures("pets")
def test_an_ensemble_is_its_attacks_in_a_row() -> None:
    config = EnsembleConfig(kind="ensemble", eps=0.15, steps=6, queries=20)
    found = attack("model", on("pets", attack=config, curve=()))
    same = evaluate(
        "model",
        EvalOptions(data=DataSource(path="pets"), eval={"ensemble": config.model_dump(exclude={"kind"})}),  # type: ignore[dict-item]
    )
    assert found["robust_top1"] == pytest.approx(same["ensemble_top1"], abs=1.5 / 36)
    assert [part["attack"].split(",")[0] for part in found["parts"]] == ["apgd", "apgd", "square"]
    fooled = sum(part["fooled"] for part in found["parts"])
    assert fooled == round(36 * (found["clean_top1"] - found["robust_top1"])) > 0


@pytest.mark.usefixtures("pets")
def test_transfer_shows_the_images_of_another_model() -> None:
    random_model(Path("other"), patch_size=4)
    found = attack("model", on("pets", attack=PgdConfig(eps=0.2), curve=(), transfer="other"))
    assert found["transfer"] == "other"
    model, other = (vitral.load(name, "cpu") for name in ("model", "other"))
    files = sorted(Path("pets").rglob("*.png"))
    x_NCHW = torch.stack([model.preprocess(str(path)) for path in files])
    labels_N = torch.tensor([model.classes.index(path.parent.name) for path in files])
    right_N = model.model(x_NCHW).argmax(1) == labels_N
    ids_B = torch.arange(36)[right_N]
    adversarial_BCHW = create_attack("pgd", eps=0.2)(
        other.model, x_NCHW[right_N], labels_N[right_N], sample_ids_B=ids_B
    )
    robust = int((model.model(adversarial_BCHW).argmax(1) == labels_N[right_N]).sum())
    assert found["robust_top1"] == pytest.approx(robust / 36, abs=1.5 / 36)
    assert found["robust_top1"] > attack("model", on("pets", attack=PgdConfig(eps=0.2), curve=()))["robust_top1"]
    square = SquareConfig(kind="square", eps=0.2, queries=1)
    notes = attack("model", on("pets", attack=square, curve=(), transfer="other", samples=2))["notes"]
    assert "no further once other answers wrongly" in notes[1]
    random_model(Path("wide"), image_size=12)
    with pytest.raises(UserError, match="same classes and the same size"):
        attack("model", on("pets", transfer="wide"))


class Brightness(nn.Module):
    """Class 1 is brighter than gray. The outputs have steps, so that the gradient is 0 everywhere."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits [B, 2]."""
        sum_B = (x_BCHW - 0.5).flatten(1).sum(1)
        return torch.stack([-sum_B, sum_B], dim=1).mul(2).round() / 2


def checks_of(model: nn.Module, config: AttackConfig) -> dict[str, bool | None]:
    torch.manual_seed(0)
    x_NCHW = torch.rand(40, 1, 8, 8)
    labels_N = model(x_NCHW).argmax(1)
    ids_N = torch.arange(40)
    batch = attack_batch([attack_of(config)], model, x_NCHW, labels_N, ids_N)
    images = CheckImages(model, x_NCHW, labels_N, ids_N, batch.robust_B, 0, has_gradients=True)
    curve = [(0.0, 1.0, 40), (config.radius, float(batch.robust_B.float().mean()), 40)]
    return {check.name: check.passed for check in attack_checks(images, config, curve)}


def test_masked_gradients_are_found() -> None:
    model = Linear((1, 8, 8), 4).float()
    plain = checks_of(model, PgdConfig(eps=0.03))
    assert all(plain.values()), plain
    masked = checks_of(Brightness(), PgdConfig(eps=0.06))
    failed = {name for name, passed in masked.items() if not passed}
    assert {"black_box", "loss_rises", "zero_gradient", "unbounded"} <= failed
    assert masked["eps_0"]


def test_square_inside_an_ensemble_does_not_hide_masked_gradients() -> None:
    config = EnsembleConfig(kind="ensemble", eps=0.06, steps=3, queries=200)
    assert all(checks_of(Linear((1, 8, 8), 4).float(), config.model_copy(update={"eps": 0.03})).values())
    found = checks_of(Brightness(), config)
    assert not found["black_box"]
    assert not found["unbounded"]


def test_a_weak_attack_is_found() -> None:
    """FGSM on a ViT is far weaker than PGD; a random start with steps too short is not converged."""
    options = on(attack=FgsmConfig(eps=0.1), samples=40, curve=(), check="strict")
    found = measure("vitral-digits", options)
    assert "converged" in {check.name for check in found.failed}
    assert {check["name"] for check in found.result["checks"]} == {
        "eps_0", "falls_with_eps", "one_step", "black_box", "loss_rises", "zero_gradient", "unbounded", "converged"
    }  # fmt: skip


@pytest.mark.usefixtures("pets")
def test_page_and_files() -> None:
    options = on("pets", attack=PgdConfig(eps=0.2, steps=5), out="attacked", check="warn")
    found = attack("model", options)
    folder = Path("attacked")
    assert json.loads((folder / "attack.json").read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    assert sorted(found["files"]) == sorted(path.name for path in folder.iterdir())
    examples = found["examples"]
    assert len(examples) == sum(name.startswith("example-") for name in found["files"]) > 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in ("Strength of the attack", "Accuracy over the size", "least robust first", "Attention after"):
        assert text in page
    for example in examples:
        assert example["before"]["label"] == example["label"] != example["after"]["label"]
        assert 0 < example["change"] <= 0.2 + 1e-6
        assert example["image"] in page
    scores = [example["after"]["score"] for example in examples]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(UserError, match="overwrite=true"):
        attack("model", options)
    again = attack("model", on("pets", attack=PgdConfig(eps=0.2, steps=5), out="attacked", overwrite=True, curve=()))
    assert again["robust_top1"] == found["robust_top1"]
    assert sorted(again["files"]) == sorted(path.name for path in folder.iterdir())


class Closed:
    """An engine without gradients: a model that takes floats, or pixels as an export does."""

    name, precision = "closed", "float32"

    def __init__(self, model: nn.Module, takes: Any) -> None:
        self.model, self.takes = model, takes

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, K]."""
        if self.takes == "resized":
            return self.model(images)
        assert images.dtype == torch.uint8
        return self.model(images.permute(0, 3, 1, 2) / 255)


@pytest.mark.slow
def test_an_onnx_file_is_attacked_as_the_model_is() -> None:
    """The export of a trained model, both ways it may take images."""
    for module in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(module)
    digits: dict[str, Any] = {"path": "digits", "curve": (), "samples": 40, "check": "none"}
    linf = SquareConfig(kind="square", eps=40 / 255, queries=20)
    l2 = SquareConfig(kind="square", norm="l2", eps=0.8, queries=20)
    for takes in ("pixels", "resized"):
        keys = ExportCommandOptions(format="onnx", out=takes, takes=takes, images=8, data=DataSource(path="digits"))
        export_model("vitral-digits", keys)
    for attacked, norm, names in ((linf, "linf", ("pixels", "resized")), (l2, "l2", ("resized",))):
        model = attack("vitral-digits", on(**digits, attack=attacked))
        assert model["robust_top1"] < model["clean_top1"]
        for name in names:
            found = attack(f"{name}/model.onnx", on(**digits, attack=attacked))
            assert found["clean_top1"] == pytest.approx(model["clean_top1"], abs=1.5 / 40), (norm, name)
            assert found["robust_top1"] == pytest.approx(model["robust_top1"], abs=3.5 / 40), (norm, name)
    for config in (PgdConfig(eps=0.1), EnsembleConfig(kind="ensemble", eps=0.1)):
        with pytest.raises(UserError, match=r"(?s)^attack.kind: this attack needs gradients.*expected: square"):
            attack("pixels/model.onnx", on(**digits, attack=config))
    with pytest.raises(UserError, match=r"(?s)8 bits.*got: +l2.*takes=resized"):
        attack("pixels/model.onnx", on(**digits, attack=l2))


@pytest.mark.parametrize("takes", ["resized", "pixels"])
@pytest.mark.usefixtures("pets")
def test_an_export_is_attacked_by_square_alone(takes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    square = SquareConfig(kind="square", eps=20 / 255, queries=10)
    model = attack("model", on("pets", attack=square, curve=("0.51x",)))
    predictor = vitral.load("model", "cpu")
    export = Predictor(None, predictor.config, "cpu", Closed(predictor.model, takes))

    def load(name: str, options: Any) -> Predictor:
        return export if name == "there" else predictor

    monkeypatch.setattr("vitral.run.attack.load_used", load)
    monkeypatch.setattr("vitral.run.evaluate.load_used", load)
    found = attack("there", on("pets", attack=square, curve=("0.51x",), check="warn"))
    assert found["clean_top1"] == model["clean_top1"]
    assert found["robust_top1"] == pytest.approx(model["robust_top1"], abs=1.5 / 36)
    assert found["robust_top1"] < found["clean_top1"]
    assert "only Square" in found["notes"][0]
    assert {check["name"] for check in found["checks"] if check["passed"] is None} >= {"zero_gradient", "loss_rises"}
    assert [round(255 * row["eps"], 6) for row in found["curve"]] == [0, 10.2 if takes == "resized" else 10, 20]
    assert all(example["change"] <= 20 / 255 + 1e-6 for example in found["examples"])

    def by_eval(**evaluators: Any) -> dict[str, Any]:
        return evaluate("there", EvalOptions(data=DataSource(path="pets"), eval=evaluators))

    assert by_eval(square={"eps": "20/255", "queries": 10})["square_top1"] == pytest.approx(
        found["robust_top1"], abs=1.5 / 36
    )
    with pytest.raises(UserError, match=r"(?s)needs gradients.*square"):
        attack("there", on("pets"))
    with pytest.raises(UserError, match=r"(?s)needs gradients.*square"):
        by_eval(pgd={})
    by_model = attack("there", on("pets", attack=PgdConfig(eps=20 / 255), curve=(), transfer="model"))
    assert by_model["robust_top1"] <= found["robust_top1"]
