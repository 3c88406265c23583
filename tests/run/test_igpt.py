"""A run of Image GPT from the command to its folder; fine-tuning, sampling, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import TINY, random_model, weights
from tests.models.igpt_models import colors_of
from tests.run.power_cut import counted
from vitral.data.config import DataConfig
from vitral.data.sources import open_dataset
from vitral.errors import UserError
from vitral.models.igpt import IGPT
from vitral.run import prepare
from vitral.run.command_options import EvalOptions, ProbeOptions, SampleOptions
from vitral.run.config import load_config
from vitral.run.evaluate import evaluate
from vitral.run.probe import probe
from vitral.run.sample import sample
from vitral.run.self_supervised import load_objective
from vitral.run.train import run
from vitral.weights.folder import load_folder


def pretrain(out: str, **more: Any) -> dict[str, Any]:
    return run(load_config("digits_igpt", {**TINY, "check.skip": True, "eval": {}, **more, "out": out}))


def draw(model: str, out: str, **keys: Any) -> dict[str, Any]:
    return sample(model, SampleOptions.model_validate({"out": out, **keys}))


def test_a_run_and_its_folder() -> None:
    summary = pretrain("a", report=True)
    assert summary["primary"]["name"] == "bits_per_token"
    low, high = summary["bits_per_token_interval"]
    assert low < summary["bits_per_token"] < high
    assert summary["histogram_bits"] == pytest.approx(2.44, abs=0.05), "2.435 by an earlier count of all train images"
    model, config = load_folder("a")
    assert isinstance(model, IGPT)
    assert config.task == "pixels"
    gray = colors_of(model)[:, 0]
    torch.testing.assert_close(gray, (torch.arange(17) * 255 / 16).round() / 255, rtol=0, atol=1e-6)
    found = evaluate("a", EvalOptions())
    assert found["bits_per_token"] == pytest.approx(summary["bits_per_token"], abs=1e-6)
    card = Path("a/model/README.md").read_text(encoding="utf-8")
    assert "vitral sample . out=SAMPLES" in card
    assert "bits per token" in card
    page = Path("a/report.html").read_text(encoding="utf-8")
    assert "lower half sampled" in page
    loaded = load_objective("a").model
    assert isinstance(loaded, IGPT)
    assert torch.equal(colors_of(loaded), colors_of(model))


def test_classes_completions_and_layers_are_evaluated_after_the_run() -> None:
    keys: dict[str, Any] = {"eval": {"classify": {}, "completion": {"samples": 20, "draws": 1}, "layers": {}}}
    summary = pretrain("a", report=True, **{"model.class_tokens": 10, **keys})
    assert summary["primary"]["name"] == "bits_per_token", "checkpoints are chosen by it"
    low, high = summary["generative_top1_interval"]
    assert 0 <= low <= summary["generative_top1"] <= high
    assert summary["whole_top1"] > 0.9 > summary["completion_top1"]
    assert summary["best_layer"] in ("embed", "blocks.0", "blocks.1")
    page = Path("a/report.html").read_text(encoding="utf-8")
    assert "accuracy of each layer" in page
    assert "images with a drawn lower half" in page
    found = evaluate("a", EvalOptions.model_validate({"eval": {"classify": {}, "layers": {}}}))
    assert found["generative_top1"] == summary["generative_top1"]
    assert [*found["per_layer"]] == ["embed", "blocks.0", "blocks.1"]
    rows = probe("a", ProbeOptions(kind="linear", layer="auto"))["per_layer"]
    assert rows["blocks.1"]["top1"] == pytest.approx(found["per_layer"]["blocks.1"]["top1"], abs=0.01)


def test_a_resumed_run_ends_with_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted(prepare, "fit_codes", monkeypatch)
    keys: dict[str, Any] = {"model.class_tokens": 10, "train.steps": 6, "train.eval_every": "end"}
    pretrain("whole", **keys)
    pretrain("cut", **{**keys, "train.steps": 3, "optim.schedule": "constant"})
    pretrain("straight", **{**keys, "optim.schedule": "constant"})
    pretrain("cut", **{**keys, "optim.schedule": "constant", "resume": True})
    assert len(found) == 3, "a resumed run has its palette"
    for name, tensor in weights("straight").items():
        assert torch.equal(tensor, weights("cut")[name]), name
    assert not torch.equal(weights("whole")["pos_embed"], weights("cut")["pos_embed"])


def test_fine_tuning_starts_from_the_pixels_and_can_still_draw() -> None:
    pretrain("a")
    keys = {**dict.fromkeys(("model.width", "model.depth", "model.heads", "model.mlp_dim", "model.pool"))}
    tuned = {**TINY, **keys, "model.name": "auto", "init": "a", "check.skip": True, "optim.lr": 1e-9}
    for kind in ("igpt_finetune", "supervised"):
        summary = run(load_config("digits", {**tuned, "objective.kind": kind, "out": kind}))
        assert "top1" in summary
        assert torch.equal(weights(kind)["tokenizer.colors_KC"], weights("a")["tokenizer.colors_KC"])
        torch.testing.assert_close(
            weights(kind)["code_head.weight"], weights("a")["code_head.weight"], rtol=0, atol=1e-6
        )
        assert weights(kind)["head.weight"].shape == (10, 16)
    assert len(draw("igpt_finetune", "drawn", n=2)["samples"]) == 2


def test_samples_do_not_depend_on_how_many_are_drawn() -> None:
    pretrain("a", **{"model.class_tokens": 10})
    keys: dict[str, Any] = {"class": "3", "seed": 5, "top_k": 6, "temperature": 0.8}
    found = draw("a", "many", n=5, batch_size=2, **keys)
    draw("a", "few", n=2, **keys)
    draw("a", "other", n=2, **{**keys, "class": "4"})
    pictures = {out: [np.asarray(Image.open(f"{out}/sample-000{i}.png")) for i in (0, 1)] for out in ("many", "few")}
    assert all(map(np.array_equal, *pictures.values()))
    assert not np.array_equal(pictures["few"][0], pictures["few"][1])
    assert pictures["few"][0].shape == (8, 8)
    record = json.loads(Path("many/sample.json").read_text(encoding="utf-8"))
    assert record == found
    assert {*record["files"]} == {path.name for path in Path("many").iterdir()}
    assert "data=DATA" in Path("many/sample.html").read_text(encoding="utf-8")
    assert Path("other/sample-0000.png").read_bytes() != Path("few/sample-0000.png").read_bytes()


def test_neighbors_are_the_nearest_by_brute_force() -> None:
    pretrain("a")
    found = draw("a", "s", n=4, data={"source": "digits"})
    train = open_dataset(DataConfig(source="digits"), hold_out=False).splits["train"]
    images_NX = torch.stack([torch.as_tensor(train.read(i)).flatten() for i in range(len(train))]).double() / 255
    for row in found["samples"]:
        own_X = torch.from_numpy(np.asarray(Image.open(f"s/{row['file']}")).copy()).flatten().double() / 255
        distance_N = (images_NX - own_X).square().sum(1).sqrt()
        mine = float(distance_N[list(train.names).index(row["nearest"])])
        assert row["distance"] == pytest.approx(mine, abs=2e-3)
        assert (distance_N < mine - 1e-3).sum() <= 10, "but for images that are held out for validation"
    assert found["train"]["copies"] == 0
    assert 0.9 < found["train"]["reference"] < 1.3, "of test images: 17.1 of 16 levels"
    assert "Nearest train image" in Path("s/sample.html").read_text(encoding="utf-8")


def test_a_completion_begins_with_the_image(tmp_path: Path) -> None:
    pretrain("a")
    given = (np.arange(64).reshape(8, 8) * 4).astype(np.uint8)
    Image.fromarray(given).save(tmp_path / "given.png")
    draw("a", "s", n=2, complete=str(tmp_path / "given.png"))
    for i in (0, 1):
        made = np.asarray(Image.open(f"s/sample-000{i}.png")).astype(int)
        assert np.abs(made[:4] - given[:4]).max() <= 8, "its nearest gray levels"
        assert (made[4:] != given[4:]).any()


def test_hidden_pixels_are_drawn_in_steps(tmp_path: Path) -> None:
    summary = pretrain("a", report=True, **{"model.mask_ratio": "cosine", "model.class_tokens": 10})
    assert summary["bits_per_token"] == pytest.approx(evaluate("a", EvalOptions())["bits_per_token"])
    assert "lower half sampled" in Path("a/report.html").read_text(encoding="utf-8")
    given = (np.arange(64).reshape(8, 8) * 4).astype(np.uint8)
    Image.fromarray(given).save(tmp_path / "given.png")
    found = draw("a", "s", n=3, steps=4, choice_temperature=1, complete=str(tmp_path / "given.png"), **{"class": "7"})
    assert "bits_per_token" not in found, "it has no probability of an image"
    made = [np.asarray(Image.open(f"s/{row['file']}")).astype(int) for row in found["samples"]]
    assert all(np.abs(each[:4] - given[:4]).max() <= 8 for each in made)
    assert not np.array_equal(made[0], made[1])
    drawn = draw("a", "t", n=2, data={"source": "digits"})
    assert {*drawn["samples"][0]} == {"file", "nearest", "distance"}
    with pytest.raises(UserError, match=r"(?s)steps.*40.*at most 32"):
        draw("a", "u", n=3, steps=40, complete=str(tmp_path / "given.png"))


@pytest.mark.parametrize(
    ("model", "keys", "words"),
    [
        ("a", {"steps": 4}, "(?s)draws pixel by pixel.*a"),
        ("a", {"choice_temperature": 4}, "(?s)choice_temperature.*draws pixel by pixel|draws pixel by pixel.*choice"),
        ("vit", {}, "cannot draw images"),
        ("bert", {}, "cannot draw images"),
        ("a", {"class": "3"}, "has learned no classes"),
        ("classes", {"class": "eleven"}, r"(?s)unknown class.*eleven.*0, 1, 2"),
        ("a", {"out": None}, "no folder"),
        ("a", {"complete": "absent.png"}, "absent.png"),
        ("a", {"data": {"path": "absent"}}, "absent"),
    ],
)
def test_what_cannot_be_drawn(model: str, keys: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is drawn."""
    monkeypatch.setattr("vitral.run.sample.draw_codes", None)
    if model == "vit":
        random_model(Path("vit"))
    else:
        of = {"bert": {"model.mask_ratio": 0.2}, "classes": {"model.class_tokens": 10}}
        pretrain(model, **of.get(model, {}), **{"train.steps": 1})
    with pytest.raises(UserError, match=words):
        draw(model, **{"out": "s", **keys})
    assert not Path("s").exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model.colors": 40}, r"(?s)model\.colors.*40.*at most 17"),
        ({"model.class_tokens": 4}, r"(?s)model\.class_tokens.*4.*10"),
        ({"objective.label_dropout": 0.2}, "no effect without model.class_tokens"),
        ({"model.name": "vit_micro_patch2_8"}, "learns from the colors of pixels"),
        ({"eval": {"classify": {}}}, r"(?s)eval\.classify.*model\.class_tokens|model\.class_tokens.*eval\.classify"),
        ({"eval": {"classify": {}}, "model.class_tokens": 10, "model.mask_ratio": "cosine"}, "probability of an image"),
        ({"eval": {"completion": {}}, "model.mask_ratio": 0.2}, "a model that draws images"),
        ({"model.class_tokens": 10, "model.mask_ratio": 0.2}, "class_tokens=0"),
        ({"data.mean": [0.3]}, "data.mean=auto"),
        ({"data.image_size": 70}, "4,900 pixels"),
        ({"lora.rank": 2, "init": "x"}, "no effect with objective.kind=igpt: lora.rank"),
        ({"augment.mixup": 0.5}, "mixes no images"),
        ({"augment.mosaic": 0.5}, "learns no boxes"),
        ({"model.mask_ratio": 0.2, "objective.kind": "igpt_finetune"}, "fine-tuned by its classes alone"),
    ],
)
def test_what_cannot_be_trained(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        pretrain("a", **keys)


def test_the_probe_begins_with_the_embedding() -> None:
    pretrain("a")
    found = probe("a", ProbeOptions(kind="linear", layer="auto"))
    assert [*found["per_layer"]] == ["embed", "blocks.0", "blocks.1"]


def test_another_size_is_refused() -> None:
    pretrain("a", **{"train.steps": 1})
    with pytest.raises(UserError, match=r"(?s)keeps the size.*16 x 16.*8 x 8"):
        load_folder("a", 16)


def test_the_bert_variant_is_evaluated_by_hidden_pixels() -> None:
    summary = pretrain("a", report=True, **{"model.mask_ratio": 0.15})
    assert summary["bits_per_token"] == pytest.approx(evaluate("a", EvalOptions())["bits_per_token"])
    assert "hidden codes predicted" in Path("a/report.html").read_text(encoding="utf-8")
