"""explain: it says what the functions give, draws what was asked for, and leaves nothing behind a mistake."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitral
from tests.helpers import random_model, write_colors, write_digits
from vitral.cli.main import main
from vitral.compression.tome import ToMe
from vitral.config import build, describe, with_overrides
from vitral.data.config import DataConfig
from vitral.data.image_spec import ImageSpec
from vitral.data.sources import open_dataset
from vitral.errors import UserError
from vitral.interpret.attention import token_attention
from vitral.interpret.attention_distance import attention_distance
from vitral.interpret.gradients import gradient_attention, integrated_gradients
from vitral.interpret.logit_lens import logit_lens
from vitral.interpret.rollout import rollout
from vitral.models.create import build_model
from vitral.models.presets import resolve
from vitral.models.vit import VisionTransformer
from vitral.run.command_options import IMAGE_METHODS, MODEL_METHODS, ExplainOptions
from vitral.run.config import expand_data
from vitral.run.explain import explain
from vitral.weights.folder import FolderConfig, save_folder

Capture = pytest.CaptureFixture[str]


def keys(**more: Any) -> ExplainOptions:
    dotted = expand_data({key.replace("__", "."): value for key, value in more.items()})
    return build(ExplainOptions, with_overrides(ExplainOptions, {}, dotted))


def looked(capsys: Capture, *words: str) -> dict[str, Any]:
    code = main(["explain", *words, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


@pytest.fixture
def digit() -> str:
    """A model folder `model` with a class token, and a digit."""
    random_model(Path("model"), tuple("0123456789"))
    return str(write_digits(Path("numbers"), range(6))[0][0])


def test_numbers_are_those_of_the_functions(digit: str, capsys: Capture) -> None:
    found = looked(capsys, "model", digit, "out=seen", "class=3", "token=1,2", "fuse=max", "data=digits", "images=40",
                   "batch_size=7", "gradients.steps=9", "gradients.baseline=0.5")  # fmt: skip
    predictor = vitral.load("model")
    model, x = predictor.model, predictor.preprocess(digit)[None]
    assert isinstance(model, VisionTransformer)
    one = found["images"][0]
    assert one["class"]["label"] == "3"
    assert one["prediction"] == predictor.predict([digit], topk=1)[0]["predictions"][0]
    prefix = model.prefix_tokens
    for name, values_BT in (
        ("rollout", rollout(model, x, "1,2", "max")), ("gradient_attention", gradient_attention(model, x, 3, "1,2"))
    ):  # fmt: skip
        np.testing.assert_allclose(np.ravel(one[name]), values_BT[0, prefix:], rtol=1e-4, atol=1e-7)
    sums = integrated_gradients(model, x, 3, 0.5, 9)
    assert one["integrated_gradients"]["gap"] == pytest.approx(float(sums.gap_B[0]), rel=1e-3, abs=1e-5)
    assert one["integrated_gradients"]["steps"] == 9
    best_L = logit_lens(model, x)[0].argmax(1).tolist()
    assert [row["index"] for row in one["lens"]] == best_L
    share = token_attention(model, x, "1,2")[0].mean(1)[:, :prefix].sum(-1)
    np.testing.assert_allclose(one["attention"]["prefix_share"], share, atol=1e-5)
    far = found["views"]["distance"]
    assert (far["data"], far["split"], far["count"]) == ("digits", "test", 40)
    split = open_dataset(DataConfig(path="digits", channels=1), hold_out=False).splits["test"]
    places = [place * (len(split) - 1) // 39 for place in range(40)]
    images = torch.stack([predictor.preprocess(split.read(i).permute(1, 2, 0).numpy()) for i in places])
    np.testing.assert_allclose(far["layers"], attention_distance(model, [images]), rtol=1e-5)


def test_the_page_and_the_pictures(digit: str, capsys: Capture) -> None:
    found = looked(capsys, "model", digit, "numbers", "out=seen", "methods=[rollout,attention,filters]")
    folder = Path("seen")
    assert len(found["images"]) == 7
    assert sorted(found["files"]) == sorted(path.name for path in folder.iterdir())
    pictures = [name for name in found["files"] if name.endswith(".png")]
    assert len(pictures) == 7 * 2 + 1
    page = (folder / "explain.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "Attention is not an explanation" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert json.loads((folder / "explain.json").read_text(encoding="utf-8")) == found
    for name in pictures:
        content = (folder / name).read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            assert max(picture.size) < 1500
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10, "something is on it"


def test_views_without_an_image(digit: str, capsys: Capture) -> None:
    found = looked(capsys, "model", "out=seen", "data=digits")
    assert found["images"] == []
    assert found["views"].keys() == {"filters", "positions", "distance"}
    assert looked(capsys, "model", "out=other")["views"].keys() == {"filters", "positions"}


def test_two_models_are_compared_on_the_same_images(digit: str, capsys: Capture) -> None:
    """A model with itself: ones on the diagonal. A residual network has nothing else to show, and is compared."""
    found = looked(capsys, "model", "compare=model", "out=seen", "data=digits", "images=40")["views"]
    assert found.keys() == {"cka"}
    values = np.array(found["cka"]["values"])
    np.testing.assert_allclose(values.diagonal(), 1, atol=1e-6)
    np.testing.assert_allclose(values, values.T, atol=1e-6)
    architecture = resolve("resnet20_cifar", num_classes=1, image_size=(9, 9), in_channels=3)
    shown = ImageSpec(image_size=(9, 9), channels=3, resize_mode="crop")
    folder = {
        "name": "cnn",
        "task": "classification",
        "architecture": architecture,
        "id2label": {"0": "a"},
        "preprocessing": shown,
    }
    save_folder(Path("cnn"), build_model(architecture), build(FolderConfig, {**folder, "provenance": {}}), "a card\n")
    both = looked(capsys, "cnn", "compare=model", "out=cnns", "data=digits", "images=20")["views"]["cka"]
    assert np.shape(both["values"]) == (9, len(values))
    assert both["layers"][0][-1] == "stages.2.blocks.2"


def test_groups_are_those_of_the_encoder_and_the_other_pictures_of_the_whole_model(digit: str, capsys: Capture) -> None:
    plain = looked(capsys, "model", digit, "out=plain")["images"][0]
    found = looked(capsys, "model", digit, "out=seen", "reduce=tome", "tome.r=[3,2]")["images"][0]
    groups = found.pop("groups")
    assert groups["tokens"] == [13, 11]
    predictor = vitral.load("model")
    model = predictor.model
    assert isinstance(model, VisionTransformer)
    x = predictor.preprocess(digit)[None]
    out = model.encode_tokens(*model.embed(x), reduce=ToMe([3, 2]))
    assert out.groups_BN is not None
    assert groups["of_patches"] == out.groups_BN[0].view(4, 4).tolist()
    assert len(np.unique(groups["of_patches"])) == 11
    assert groups["prediction"]["label"] == predictor.classes[int(model.classify(model.pool(out)).argmax())]
    assert found == plain


def test_text_for_people(digit: str, capsys: Capture) -> None:
    assert main(["explain", "model", digit, "out=seen", "data=digits"]) == 0
    out, _ = capsys.readouterr()
    for part in (digit, "after each layer: ", "gap ", "attention distance", "seen/explain.html and 7 pictures"):
        assert part in out


@pytest.mark.parametrize(
    "options",
    [
        {"class_token": False, "pool": "avg", "positions": "rope", "registers": 2},
        {"distill_token": True, "positions": "relative"},
        {"pool": "map", "class_token": False, "positions": "sincos"},
        {"stem_blocks": [], "patch_size": 4},
        {"in_channels": 3, "pool": "cls_avg", "image_size": (10, 6)},
        {"in_channels": 4, "positions": "none"},
        {"block_heads": (2, 1)},
        {"pruner_blocks": (1,)},
    ],
)
def test_every_kind_of_transformer(options: dict[str, Any], capsys: Capture) -> None:
    random_model(Path("model"), **options)
    write_colors(Path("photos"), "a", 1, (70, 90))
    found = looked(capsys, "model", "photos", "out=seen")
    views = {"filters", "positions"} - ({"filters"} if "stem_blocks" in options else set())
    views -= {"positions"} if options.get("positions") in ("rope", "relative", "none") else set()
    assert found["views"].keys() == views
    assert found["images"][0].keys() >= {"rollout", "gradient_attention", "integrated_gradients", "attention", "lens"}


def test_a_model_without_a_head(capsys: Capture) -> None:
    random_model(Path("model"), ())
    write_colors(Path("photos"), "a", 1)
    found = looked(capsys, "model", "photos", "out=seen")
    assert found["images"][0].keys() == {"image", "rollout", "attention", "layers"}
    assert "no head" in found["notes"][0]
    with pytest.raises(UserError, match="no head"):
        explain("model", ["photos/a/0.png"], keys(out="other", methods=["lens"]))


def test_a_network_of_convolutions(capsys: Capture) -> None:
    architecture = resolve("resnet20_cifar", num_classes=2, image_size=8)
    shown = ImageSpec(image_size=(8, 8), channels=3, resize_mode="crop")
    config = FolderConfig(name="cnn", architecture=architecture, id2label={"0": "cat", "1": "dog"},
                          task="classification", preprocessing=shown, provenance={})  # fmt: skip
    save_folder(Path("cnn"), build_model(architecture), config, "a card\n")
    write_colors(Path("photos"), "a", 1)
    assert main(["explain", "cnn", "photos", "out=seen"]) == 2
    err = capsys.readouterr().err
    assert "for Vision Transformers" in err
    assert "methods=integrated_gradients" in err
    assert not Path("seen").exists()
    found = looked(capsys, "cnn", "photos", "out=seen", "methods=integrated_gradients")
    assert found["images"][0]["integrated_gradients"]["steps"] == 64


def test_a_folder_is_replaced_only_if_it_is_ours(digit: str, capsys: Capture) -> None:
    looked(capsys, "model", digit, "out=seen")
    Path("seen/mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="not empty"):
        explain("model", [digit], keys(out="seen"))
    found = looked(capsys, "model", digit, "out=seen", "overwrite=true", "methods=rollout")
    assert sorted(path.name for path in Path("seen").iterdir()) == sorted([*found["files"], "mine.txt"])
    with pytest.raises(UserError, match="was not written by vitral explain"):
        explain("model", [digit], keys(out="numbers", overwrite=True))
    Path("seen/explain.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"explain\.json"):
        explain("model", [digit], keys(out="seen", overwrite=True))
    with pytest.raises(UserError, match="out is a file"):
        explain("model", [digit], keys(out=digit))


def test_a_record_names_no_other_files(digit: str, capsys: Capture) -> None:
    looked(capsys, "model", digit, "out=seen")
    Path("keep.txt").write_text("keep", encoding="utf-8")
    record = json.loads(Path("seen/explain.json").read_text(encoding="utf-8"))
    record["files"].append("../keep.txt")
    Path("seen/explain.json").write_text(json.dumps(record), encoding="utf-8")
    looked(capsys, "model", digit, "out=seen", "overwrite=true")
    assert Path("keep.txt").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("", ("missing argument: MODEL",)),
        ("model DIGIT", ("out: no folder for the figures given", "out=DIR")),
        ("model DIGIT out=bad.png/seen", ("out: folder is not writable",)),
        ("model gone.png out=seen", ("gone.png: no such file",)),
        ("model bad.png out=seen", ("bad.png",)),
        ("nowhere DIGIT out=seen", ("nowhere",)),
        ("model DIGIT out=seen token=clss", ("token: this model has no such token", "did you mean 'cls'?")),
        ("model DIGIT out=seen token=4,0", ("token", "4,0", "0,0 to 3,3")),
        ("model DIGIT out=seen token=register:0", ("token", "register:0")),
        ("model DIGIT out=seen layers=[0,2]", ("layers: no such layer", "got:    2", "0 to 1")),
        ("model DIGIT out=seen heads=5", ("heads: no such head", "0 to 1")),
        ("model DIGIT out=seen class=owll", ("class: unknown class", "did you mean 'owl'?")),
        ("model DIGIT out=seen class=3", ("class: unknown class", "cat, dog, owl")),
        ("model DIGIT out=seen methods=rolout", ("methods: wrong value", "did you mean 'rollout'?")),
        ("model DIGIT out=seen methods=rollout heads=0", ("heads has no effect without attention",)),
        ("model DIGIT out=seen methods=attention class=cat", ("class has no effect without", "lens")),
        ("model DIGIT out=seen split=val", ("split has no effect without data= or methods=distance",)),
        ("model DIGIT out=seen methods=positions gradients.steps=0", ("gradients.steps", "1 or more")),
        ("model out=seen methods=rollout", ("this view needs an image", "rollout")),
        ("model out=seen class=cat", ("this view needs an image", "class")),
        ("model out=seen methods=distance", ("doesn't say what it was trained on", "data=DIR")),
        ("model out=seen data=nowhere", ("nowhere",)),
        ("model DIGIT out=seen methods=groups", ("no token reduction", "reduce=tome")),
        ("model DIGIT out=seen methods=rollout reduce=tome", ("reduce has no effect without groups",)),
        ("model out=seen compare=nowhere data=digits", ("nowhere",)),
        ("model out=seen compare=model data=digits batch_size=3", ("batch_size: too few images at once for cka",)),
        ("model DIGIT out=seen methods=rollout compare=model", ("compare has no effect without cka",)),
        ("model DIGIT out=seen fold=1", ("fold: unknown key",)),
        ("rope out=seen methods=positions", ("positions=rope",)),
    ],
)
def test_wrong_words_get_one_message(words: str, parts: tuple[str, ...], capsys: Capture) -> None:
    random_model(Path("model"))
    random_model(Path("rope"), positions="rope")
    Path("bad.png").write_bytes(b"no picture")
    digit = str(write_digits(Path("numbers"), range(1))[0][0])
    assert main(["explain", *words.replace("DIGIT", digit).split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(re.findall(r"^error: ", err, re.MULTILINE)) == 1
    for part in parts:
        assert part in err, err
    assert not Path("seen").exists()


# Another value of every key, and what has to be set for it to be read.
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "methods": (["norms"], {}),
    "token": ("0,0", {}),
    "layers": ([1], {}),
    "heads": ([1], {}),
    "fuse": ("max", {}),
    "class": ("3", {}),
    "gradients.steps": (3, {}),
    "gradients.baseline": (0.5, {}),
    "data.path": ("digits", {}),
    "split": ("train", {"data.path": "digits"}),
    "images": (9, {"data.path": "digits"}),
    "compare": ("vitral-digits", {"methods": ["cka"], "data.path": "digits", "images_of": []}),
    "reduce": ("tome", {}),
    "tome.r": (2, {"reduce": "tome"}),
    "tome.schedule": ("decreasing", {"reduce": "tome", "tome.r": 3}),
    "evit.share": (0.3, {"reduce": "evit"}),
    "evit.after": ([0], {"reduce": "evit"}),
    "image_size": (12, {}),
    "position_resize": ("google", {"image_size": 12, "methods": ["positions"], "images_of": []}),
}
ELSEWHERE = {"out", "overwrite", "batch_size", "device", "max_pixels", "value_range"}  # elsewhere


@pytest.mark.parametrize("key", CASES)
def test_every_key_is_read(key: str, digit: str) -> None:
    value, given = CASES[key]
    images = given.get("images_of", [digit])
    given = {name: each for name, each in given.items() if name != "images_of"}
    seen: list[str] = []
    for more in (given, {**given, key: value}):
        options = build(ExplainOptions, with_overrides(ExplainOptions, {}, {**more, "out": "seen"}))
        found = explain("model", images, options)
        pictures = [Path("seen", name).read_bytes() for name in sorted(found["files"]) if name.endswith(".png")]
        seen.append(f"{found} {[hash(each) for each in pictures]}")
        shutil.rmtree("seen")
    assert seen[0] != seen[1]


def test_every_key_has_its_case() -> None:
    names = {key.name for key in describe(ExplainOptions) if not key.name.startswith("data.")}
    assert names == {key for key in CASES if not key.startswith("data.")} | ELSEWHERE
    assert set(IMAGE_METHODS + MODEL_METHODS) == set(
        re.findall(r"\w+", next(key.type_text for key in describe(ExplainOptions) if key.name == "methods"))[2:]
    )


def test_steps_at_once_change_nothing(digit: str) -> None:
    both = [explain("model", [digit], keys(out=f"seen{size}", batch_size=size)) for size in (1, 64)]
    one, other = (each["images"][0]["integrated_gradients"]["gap"] for each in both)
    assert one == pytest.approx(other, abs=1e-4)
