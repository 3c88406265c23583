"""Checkpoints as training scripts and tutorials write them: what is around the weights, and what config files state."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import TINY, random_model, write_colors
from tests.weights.test_convert import same, small
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.export.hf import package
from vitral.models.model import ImageModel
from vitral.run.train import train
from vitral.weights.config import ReadOptions
from vitral.weights.convert import read_external
from vitral.weights.find_model import find_model, load_model
from vitral.weights.folder import load_folder

State = dict[str, Any]


def model() -> ImageModel:
    return small(num_classes=3)


def behind(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


WRAPPED: dict[str, Callable[[State], State]] = {
    "model_state_dict": lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": moments(s)},
    "net": lambda s: {"net": s, "acc": 91.2, "epoch": 7},
    "params": lambda s: {"params": s},
    "any_name": lambda s: {"my_vit": s, "history": [0.1, 0.2]},
    "nested": lambda s: {"checkpoint": {"network": {"weights": s}}},
    "a_vector_beside": lambda s: {"model": s, "best": torch.tensor([0.5, 0.6])},
    "lightning": lambda s: {
        "state_dict": behind("model.", s) | {"criterion.weight": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(9)}}}],
        "hyper_parameters": {"lr": 0.1},
    },
    "lightning_net": lambda s: {"state_dict": behind("net.", s)},
    "encoder": lambda s: behind("encoder.", s),
    "compiled_parallel": lambda s: {"model": behind("module._orig_mod.", s)},
    "any_prefixes": lambda s: {"state_dict": behind("lit.model.vit.", s)},
    "head_beside": lambda s: {
        **behind("backbone_net.", {n: t for n, t in s.items() if "head" not in n}),
        **{n: t for n, t in s.items() if "head" in n},
    },
    "student_and_teacher": lambda s: behind("student.", {n: t + 1 for n, t in s.items()}) | behind("teacher.", s),
    "ema": lambda s: {"model": {n: t + 1 for n, t in s.items()}, "ema": {"decay": 0.9, "module": s}},
}


def moments(state: State) -> State:
    return {"state": {i: {"exp_avg": torch.cat([t.flatten()] * 2)} for i, t in enumerate(state.values())}}


@pytest.mark.parametrize("name", WRAPPED)
def test_whatever_is_around_the_weights(name: str) -> None:
    found = model()
    torch.save(WRAPPED[name](dict(found.state_dict())), "vit.pth")
    same(read_external(Path("vit.pth")).model, found)


def test_what_is_taken_and_left_is_named() -> None:
    torch.save(WRAPPED["lightning"](dict(model().state_dict())), "vit.pth")
    notes = "\n".join(read_external(Path("vit.pth")).notes)
    assert "weights of 'state_dict'" in notes
    assert "names without 'model.', and none of criterion" in notes


@pytest.mark.parametrize(
    "beside",
    [
        np.float64(0.9), np.float32(0.9), np.int64(3), np.array([0.1, 0.2]), np.bool_(True),
        pathlib.PosixPath("/data/run"), argparse.Namespace(out=pathlib.PosixPath("a"), lr=0.1),
        collections.defaultdict(float, a=1.0), collections.defaultdict(list, a=[1]),
    ],
)  # fmt: skip
def test_harmless_values_beside_the_weights_are_read_past(beside: Any) -> None:
    found = model()
    torch.save({"model": found.state_dict(), "beside": beside}, "vit.pth")
    same(read_external(Path("vit.pth")).model, found)


class Callback:
    """A class that no list knows."""


def test_other_classes_are_still_refused() -> None:
    torch.save({"model": model().state_dict(), "callback": Callback()}, "vit.pth")
    with pytest.raises(UserError, match=r"(?s)wants to run code.*Callback"):
        read_external(Path("vit.pth"))


def hf_folder(model: ImageModel, config: dict[str, Any] | None = None, shown: dict[str, Any] | None = None) -> Path:
    """A folder of transformers with changes in both JSON files."""
    folder = random_model(Path("ours"), ("a", "b", "c"), in_channels=3, image_size=8, pool="cls")
    ours, settings = load_folder(str(folder))
    assert ours.config.num_classes == 3
    found = package(ours, settings)
    Path("theirs").mkdir(exist_ok=True)
    save_file(found.tensors, "theirs/model.safetensors")
    for name, changes in (("config.json", config), ("preprocessor_config.json", shown)):
        tree = {**found.files[name], **(changes or {})}
        text = json.dumps({key: value for key, value in tree.items() if value != "absent"})
        Path("theirs", name).write_text(text, encoding="utf-8")
    return Path("theirs")


@pytest.mark.parametrize(
    ("config", "several"),
    [
        ({"problem_type": "multi_label_classification"}, True),
        ({"problem_type": "single_label_classification"}, False),
        ({"problem_type": None}, False),
        ({"problem_type": "absent"}, False),
    ],
)
def test_problem_types_of_transformers(config: dict[str, Any], several: bool) -> None:
    found = read_external(hf_folder(model(), config)).config
    assert (found.task == "multilabel") == several


def test_several_labels_go_to_transformers_and_come_back() -> None:
    folder = random_model(Path("ours"), in_channels=3)
    ours, config = load_folder(str(folder))
    found = package(ours, config.model_copy(update={"task": "multilabel"}))
    Path("there").mkdir()
    save_file(found.tensors, "there/model.safetensors")
    for name, tree in found.files.items():
        Path("there", name).write_text(json.dumps(tree), encoding="utf-8")
    assert load_model("there")[1].task == "multilabel"


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"problem_type": "regression"}, "problem_type"),
        ({"model_type": "ijepa"}, "model_type"),
        ({"hidden_act": "relu"}, "relu"),
        ({"num_hidden_layers": 1}, "tensors of 2 blocks"),
    ],
)
def test_what_transformers_would_compute_otherwise_is_refused(config: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        read_external(hf_folder(model(), config))


@pytest.mark.parametrize(
    ("shown", "part"),
    [
        ({"resample": 0}, "resample"),
        ({"do_center_crop": True, "crop_size": "absent"}, "crop_size"),
        ({"do_center_crop": True, "crop_size": {"height": 9, "width": 9}}, "crop_size"),
        ({"do_center_crop": True, "crop_size": {"height": 4, "width": 8}}, "crop_size"),
        ({"do_resize": False, "do_center_crop": True}, "do_resize"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"do_pad": True}, "do_pad"),
        ({"size": {"longest_edge": 8}}, "size"),
        ({"size": {"height": 8, "width": 8}, "crop_pct": 0.9}, "crop_pct"),
        ({"rescale_factor": 1.0, "image_mean": "absent"}, "image_mean"),
        ({"rescale_factor": 1 / 65025}, "rescale_factor"),
        ({"rescale_factor": 0}, "rescale_factor"),
    ],
)
def test_preprocessing_that_is_not_computed_here_is_refused(shown: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        read_external(hf_folder(model(), {}, {"size": {"height": 8, "width": 8}, **shown}))


@pytest.mark.parametrize(
    "shown",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [63.75] * 3},
        {"rescale_factor": 2 / 255, "image_mean": [1.0] * 3, "image_std": [0.8] * 3},
        {"do_rescale": False, "do_normalize": False},
        {"image_mean": 0.25, "image_std": 0.5},
    ],
)
def test_pixels_are_scaled_as_transformers_does(shown: dict[str, Any]) -> None:
    """(255 x factor - mean) / std, by the steps that are on."""
    tree: dict[str, Any] = {"rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, **shown}
    found = read_external(hf_folder(model(), {}, tree)).model
    values: Tensor = torch.arange(0, 256, 5, dtype=torch.float64)
    expected = values * (tree["rescale_factor"] if tree.get("do_rescale", True) else 1)
    if tree.get("do_normalize", True):
        mean, std = (tree[key][0] if isinstance(tree[key], list) else tree[key] for key in ("image_mean", "image_std"))
        expected = (expected - mean) / std
    got = (values / 255 - found.config.mean[0]) / found.config.std[0]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def timm_folder(model: ImageModel, tree: dict[str, Any]) -> Path:
    Path("timm").mkdir()
    save_file(dict(model.state_dict()), "timm/model.safetensors")
    shown = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 0.9}
    shown |= tree.pop("pretrained_cfg", {})
    tree = {"architecture": "vit_wee_patch4_20", "model_args": {}, "pretrained_cfg": shown, **tree}
    Path("timm/config.json").write_text(json.dumps(tree), encoding="utf-8")
    return Path("timm")


@pytest.mark.parametrize(
    ("tree", "part"),
    [
        ({"architecture": "vit_small_patch16_rope_224"}, "rotary"),
        ({"architecture": "vit_small_patch16_rope_ape_224.naver_in1k"}, "rotary"),
        ({"architecture": "vit_base_patch16_rope_reg1_gap_256"}, "rotary"),
        ({"architecture": "vit_base_patch16_rpn_224"}, "norms behind"),
        ({"architecture": "test_vit3"}, "mean over all tokens"),
        ({"model_args": {"block_fn": "res_post"}}, "block_fn"),
        ({"model_args": {"pool_include_prefix": True}}, "pool_include_prefix"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "norm_layer"),
        ({"model_args": {"act_layer": "relu"}}, "relu"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode"),
        ({"pretrained_cfg": {"crop_pct": 1.2}}, "crop_pct"),
        ({"pretrained_cfg": {"interpolation": "nearest"}}, "interpolation"),
    ],
)
def test_look_alikes_of_timm_are_refused(tree: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        read_external(timm_folder(model(), tree))


@pytest.mark.parametrize(
    ("architecture", "gelu"),
    [("vit_base_patch16_siglip_224", "exact"), ("vit_so400m_patch16_siglip_256", "tanh"),
     ("vit_large_patch16_siglip_gap_512.v2_webli", "tanh"), ("vit_large_patch16_siglip_256", "exact")],
)  # fmt: skip
def test_forms_of_gelu_by_timms_names(architecture: str, gelu: str) -> None:
    found = read_external(timm_folder(model(), {"architecture": architecture})).model.config
    assert found.gelu == gelu  # pyright: ignore[reportAttributeAccessIssue]


def test_blocks_without_positions_are_remarked() -> None:
    torch.save(small(positions="none", pool="avg", num_classes=2).state_dict(), "vit.pth")
    assert any("no positions" in note for note in read_external(Path("vit.pth")).notes)


def test_a_square_is_assumed_aloud_or_not_at_all() -> None:
    wide = small(image_size=(8, 32), num_classes=2)  # 2 x 8 = 4 x 4 patches
    torch.save(wide.state_dict(), "line.pth")
    notes = read_external(Path("line.pth")).notes
    assert any("16 positions are taken for a square, images of 16 x 16" in note for note in notes)
    found = read_external(Path("line.pth"), ReadOptions(image_size=(8, 32)))
    same(found.model, wide)
    assert not any("square" in note for note in found.notes)
    same(load_model("line.pth", (8, 32))[0], wide)
    tree = {"architecture": "vit_wee", "model_args": {"img_size": [8, 32]}}
    Path("config.json").write_text(json.dumps(tree), encoding="utf-8")
    save_file(dict(wide.state_dict()), "model.safetensors")
    found = read_external(Path("model.safetensors"))
    same(found.model, wide)
    assert not any("square" in note for note in found.notes)
    square = read_external(Path("model.safetensors"), ReadOptions(image_size=16)).model
    assert square.config.image_size == (16, 16)
    assert not torch.equal(square.state_dict()["pos_embed"], wide.state_dict()["pos_embed"]), "resized, not renamed"


def test_one_name_of_two_classes(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"0": "crane", "1": "crane", "2": "heron"}
    folder = hf_folder(model(), {"id2label": names})
    found = read_external(folder)
    assert found.config.classes == ("crane", "crane (2)", "heron")
    assert any("'crane (2)' is class 1" in note for note in found.notes)
    write_colors(Path("data"), "crane heron", 3, (8, 8))
    assert main(["eval", "theirs", "data=data", "--json"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)["per_class"]
    assert [rows[name]["count"] for name in found.config.classes] == [3, 0, 3]
    assert "none for crane (2)" in err
    image = "data/crane/0.png"
    explain = ["explain", "theirs", image, "methods=[gradient_attention]"]
    assert main([*explain, "out=a", "class=crane"]) == 2
    assert "expected: 0, 1" in capsys.readouterr().err
    assert main([*explain, "out=a", "class=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["class"]["index"] == 1


def test_names_given_by_hand() -> None:
    torch.save(model().state_dict(), "vit.pth")
    found = read_external(Path("vit.pth"), ReadOptions(classes=("a", "b", "c")))
    assert found.config.classes == ("a", "b", "c")
    assert not any("class names" in note for note in found.notes)
    Path("names.txt").write_text("tench, Tinca\ngoldfish\n\nshark\n", encoding="utf-8")
    found = read_external(Path("vit.pth"), ReadOptions(classes=("names.txt",)))
    assert found.config.classes == ("tench, Tinca", "goldfish", "shark")
    with pytest.raises(UserError, match=r"(?s)classes: .*got:    2\n.*expected: 3"):
        read_external(Path("vit.pth"), ReadOptions(classes=("a", "b")))


def test_a_map_states_names_and_preprocessing(capsys: pytest.CaptureFixture[str]) -> None:
    found = model()
    torch.save({f"x.{name.replace('blocks', 'units')}": value for name, value in found.state_dict().items()}, "own.pt")
    text = "rules: [{from: 'x.units.{rest}', to: 'blocks.{rest}'}, {from: 'x.{rest}', to: '{rest}'}]\n"
    text += "preprocessing: {mean: [0.5], std: [0.5], resize_mode: squash, interpolation: bilinear, crop_pct: 1.0}\n"
    Path("map.yaml").write_text(text + "classes: [a, b, c]\n", encoding="utf-8")
    read = read_external(Path("own.pt"), ReadOptions(map="map.yaml"))
    same(read.model, found)
    assert read.config.classes == ("a", "b", "c")
    assert not any("preprocessing" in note or "class names" in note for note in read.notes)
    assert main(["weights", "inspect", "own.pt"]) == 2
    out, err = capsys.readouterr()
    assert all(f"x.{name.replace('blocks', 'units')}" in out for name in found.state_dict())
    assert "no known format" in err


def test_notes_are_shown_by_predict(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(model().state_dict(), "vit.pth")
    Image.new("RGB", (20, 20)).save("a.png")
    assert main(["predict", "vit.pth", "a.png"]) == 0
    err = capsys.readouterr().err
    for part in ("preprocessing is not in the files", "attention heads", "taken for a square"):
        assert part in err


def test_a_checkpoint_of_a_run_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    train("digits", TINY | {"train.steps": 2}, out="my run")
    Image.new("L", (8, 8)).save("a.png")
    for name in ("best", "last"):
        assert main(["predict", f"my run/checkpoints/{name}.safetensors", "a.png"]) == 2
        err = capsys.readouterr().err
        assert "a checkpoint of a Vitral run" in err
        assert f"vitral predict '{Path('my run').absolute()}' IMAGE" in err
    assert find_model("my run/model/model.safetensors") == Path("my run/model")
