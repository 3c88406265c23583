"""Judging a model's features: on which images, by which, and that no key is accepted and ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitral
from tests.helpers import random_model, write_colors, write_digits
from vitral.cli.main import main
from vitral.config import build, describe, with_overrides
from vitral.errors import UserError
from vitral.evaluate.config import KnnConfig
from vitral.evaluate.features import Embedded
from vitral.evaluate.knn import knn
from vitral.models.features import layer_features
from vitral.run.command_options import ProbeOptions
from vitral.run.probe import probe

Capture = pytest.CaptureFixture[str]


def on(path: str, **keys: Any) -> ProbeOptions:
    dotted = {key.replace("__", "."): value for key, value in keys.items()}
    return build(ProbeOptions, with_overrides(ProbeOptions, {}, {"data.path": path, **dotted}))


def three_splits(root: str) -> None:
    for split, first, count in (("train", 0, 9), ("val", 9, 3), ("test", 12, 4)):
        write_colors(Path(root) / split, "ant bee fly", count=count, first=first)


def test_it_judges_the_features_that_embed_gives() -> None:
    """The model has a head for other classes, which is not used."""
    random_model(Path("model"), ("cat", "dog"), in_channels=3)
    three_splits("data")
    predictor = vitral.load("model")
    parts: list[Embedded] = []
    for split in ("train", "test"):
        paths = sorted(Path("data", split).rglob("*.png"))
        labels = [("ant", "bee", "fly").index(path.parent.name) for path in paths]
        parts.append(Embedded(torch.from_numpy(predictor.embed(paths)), torch.tensor(labels)))
    expected = dict(knn(parts[0], parts[1], 3, KnnConfig(k=(1, 5))))
    found = probe("model", on("data", knn__k=(1, 5)))
    assert {key: found[key] for key in expected} == expected
    assert (found["split"], found["count"], found["train_count"], found["skipped"]) == ("test", 12, 27, [])
    assert probe("model", on("data", split="val"))["count"] == 9
    one_by_one = probe("model", on("data", knn__k=(1, 5), batch_size=1))
    assert one_by_one["per_k"] == found["per_k"]


def test_without_other_splits_a_tenth_of_train_judges(capsys: Capture) -> None:
    random_model(Path("model"), ())
    write_colors(Path("pets"), count=20)
    found = probe("model", on("pets", knn__k=[1]))
    assert (found["split"], found["count"], found["train_count"]) == ("val", 4, 36)
    assert "4 of 40 train images held out" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such split"):
        probe("model", on("pets", split="test"))


@pytest.mark.parametrize("kind", ["knn", "linear", "fewshot"])
def test_the_recorded_data_and_a_trained_model(trained: Path, kind: str) -> None:
    found = probe(str(trained), ProbeOptions(kind=kind))  # pyright: ignore
    assert (found["data"], found["split"], found["count"], found["train_count"]) == ("digits", "test", 360, 1293)
    assert found["top1"] > 0.85
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert probe(str(trained), ProbeOptions(kind=kind)) == found, "the same every time"  # pyright: ignore


CASES: dict[str, tuple[str, Any]] = {
    "kind": ("knn", "linear"),
    "split": ("knn", "val"),
    "features": ("knn", "avg"),
    "knn.k": ("knn", [3]),
    "knn.temperature": ("knn", 50.0),
    "linear.l2": ("linear", [1.0, 1e-3]),
    "linear.val_fraction": ("linear", 0.4),
    "linear.batchnorm": ("linear", False),
    "linear.steps": ("linear", 1),
    "fewshot.shots": ("fewshot", [2]),
    "fewshot.seeds": ("fewshot", 2),
}
# batch_size changes memory and no result; min_top1, layer and out have tests below, device one in test_predictor.py.
ELSEWHERE = {
    "layer",
    "out",
    "overwrite",
    "min_top1",
    "batch_size",
    "device",
    "image_size",
    "position_resize",
    "value_range",
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("probe")
    write_digits(root / "digits/train", range(200))
    write_digits(root / "digits/val", range(200, 260))
    write_digits(root / "digits/test", range(300, 400))
    random_model(root / "model", ())
    return root


@pytest.mark.parametrize("key", CASES)
def test_another_value_changes_the_outcome(key: str, digits: Path) -> None:
    kind, value = CASES[key]
    fast = {"knn": {"knn__k": [5, 20]}, "linear": {"linear__l2": [1e-1, 1e-2]}, "fewshot": {}}[kind]
    keys = {"kind": kind, **(fast if key != "kind" else {})}
    base = probe(str(digits / "model"), on(str(digits / "digits"), **keys))
    other = probe(str(digits / "model"), on(str(digits / "digits"), **{**keys, key.replace(".", "__"): value}))
    kept = ("top1", "count", "per_k", "val_top1", "per_shot")
    assert {name: base.get(name) for name in kept} != {name: other.get(name) for name in kept}


def test_every_key_has_its_case() -> None:
    names = {key.name for key in describe(ProbeOptions) if not key.name.startswith("data.")}
    reduced = {"reduce", "tome.r", "tome.schedule", "evit.share", "evit.after"}  # tests/cli/test_prune.py
    assert names == CASES.keys() | ELSEWHERE | reduced


def test_k_above_the_train_images_is_clipped_and_said(digits: Path, capsys: Capture) -> None:
    found = probe(str(digits / "model"), on(str(digits / "digits"), knn__k=[10, 500, 900]))
    assert list(found["per_k"]) == ["10", "200"]
    assert "knn.k: 500, 900 clipped to the 200 train samples" in capsys.readouterr().err


def test_few_shots_where_there_are_fewer_are_said(digits: Path, capsys: Capture) -> None:
    probe(str(digits / "model"), on(str(digits / "digits"), kind="fewshot", fewshot__shots=[50]))
    assert "fewshot.shots" in capsys.readouterr().err


def test_a_fit_that_did_not_converge_is_said(digits: Path, capsys: Capture) -> None:
    words = on(str(digits / "digits"), kind="linear", linear__l2=[0.01], linear__steps=3)
    probe(str(digits / "model"), words)
    assert "not converged after linear.steps=3" in capsys.readouterr().err


def test_below_the_threshold_is_exit_code_3(digits: Path, capsys: Capture) -> None:
    words = ["probe", str(digits / "model"), f"data={digits / 'digits'}"]
    assert main([*words, "min_top1=1", "--json"]) == 3
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["top1"] < 1
    assert "below min_top1=1" in err
    assert main([*words, "min_top1=0.1"]) == 0
    out = capsys.readouterr().out
    assert f"{100 * found['top1']:.2f} %" in out
    assert "the best of these on the evaluated images" in out
    for kind, says in (("linear", "chosen on held-out train images"), ("fewshot", "mean of 3 draws")):
        assert main([*words, f"kind={kind}"]) == 0
        assert says in capsys.readouterr().out


def test_what_cannot_be_judged_is_refused() -> None:
    random_model(Path("model"))
    write_colors(Path("pets/train"), "cat dog")
    write_colors(Path("pets/test"), "cat dog owl", first=4)
    with pytest.raises(UserError, match="no train image of owl"):
        probe("model", on("pets"))
    rows = [f"pets/train/{name}/{i}.png,{name};all" for name in ("cat", "dog") for i in range(4)]
    Path("many.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    with pytest.raises(UserError, match=r"(?s)one class per image.*multilabel.*vitral embed"):
        probe("model", on("many.csv", data__label_separator=";"))
    with pytest.raises(UserError, match="doesn't say what it was trained on"):
        probe("model")
    with pytest.raises(UserError, match=r"val_fraction has no effect with one linear\.l2"):
        on("pets", kind="linear", linear__l2=[1.0], linear__val_fraction=0.2)
    with pytest.raises(UserError, match=r"linear\.\* have no effect with kind=knn"):
        on("pets", linear__steps=3)


def test_damaged_images_are_left_out_and_named() -> None:
    random_model(Path("model"))
    three_splits("data")
    for name in ("train/ant/0.png", "test/bee/12.png"):
        Path("data", name).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"ant/0\.png"):
        probe("model", on("data"))
    found = probe("model", on("data", data__max_bad=2, knn__k=[1]))
    assert (found["count"], found["train_count"]) == (11, 26)
    assert [text.split(":")[0] for text in found["skipped"]] == ["train/ant/0.png", "test/bee/12.png"]


def test_a_model_without_a_head_is_for_probe_and_embed(capsys: Capture) -> None:
    random_model(Path("model"), ())
    path = write_digits(Path("digits"), range(30))[0][0]
    for words in (["predict", "model", str(path)], ["eval", "model", "data=digits"]):
        assert main(words) == 2
        assert "no head" in (err := capsys.readouterr().err)
        assert "vitral probe" in err
    assert vitral.load("model").embed(path).shape == (1, 16)
    assert np.isfinite(probe("model", on("digits", knn__k=[1]))["top1"])


def test_layers_are_those_that_encode_captures() -> None:
    """Of a Vision Transformer without its class token; the best by held-out images, whatever the test images say."""
    random_model(Path("model"), ("cat", "dog"), in_channels=3)
    three_splits("data")
    found = probe("model", on("data", kind="linear", layer="auto", out="layers.png"))
    rows = found["per_layer"]
    assert [*rows] == [f"blocks.{i}" for i in range(len(rows))]
    assert rows[found["features"]]["val_top1"] == max(row["val_top1"] for row in rows.values())
    assert rows[found["features"]]["top1"] == found["top1"]
    assert Path("layers.png").read_bytes()[:4] == b"\x89PNG"
    one = probe("model", on("data", kind="linear", layer=-1))
    assert (one["features"], one["top1"]) == ([*rows][-1], [*rows.values()][-1]["top1"])
    model = vitral.load("model").model
    images = torch.rand(2, 3, *model.config.image_size)
    captured = model.encode(images, capture=["blocks.1"]).captured["blocks.1"]
    torch.testing.assert_close(layer_features(model, images, ["blocks.1"])["blocks.1"], captured[:, 1:].mean(1))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"layer": "auto"}, "kind=linear"),
        ({"layer": "auto", "kind": "linear", "linear__l2": [0.1]}, "several linear.l2"),
        ({"layer": 1, "features": "avg"}, "features has no effect with layer=1"),
        ({"out": "a.png"}, "no effect without layer=auto"),
        ({"overwrite": True}, "no effect without out"),
        ({"layer": 9}, "no such layer"),
        ({"kind": "linear", "layer": "auto", "out": "a.jpg"}, "not a PNG file"),
    ],
)
def test_layers_that_are_refused(keys: dict[str, Any], words: str) -> None:
    random_model(Path("model"), ("cat", "dog"), in_channels=3)
    three_splits("data")
    with pytest.raises(UserError, match=words):
        probe("model", on("data", **keys))
