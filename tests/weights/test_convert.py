"""Checkpoints as the repositories lay them out, without their libraries; files that are damaged, foreign or wrong."""

from __future__ import annotations

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import random_model
from tests.models.test_vit_oracle import randomised
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.models.create import build_model
from vitral.models.model import ImageModel
from vitral.models.registry import build_config
from vitral.tasks.imagenet_names import imagenet_names
from vitral.weights.config import ReadOptions
from vitral.weights.convert import read_external
from vitral.weights.find_model import find_model, load_model
from vitral.weights.google_npz import big_vision_rules, rules
from vitral.weights.keymap import invert

SMALL: dict[str, Any] = {
    "width": 64,
    "depth": 2,
    "heads": 1,
    "mlp_dim": 96,
    "patch_size": 4,
    "image_size": 20,
    "num_classes": 0,
}


def small(**options: Any) -> ImageModel:
    model = randomised(build_model(build_config({**SMALL, **options})))
    assert isinstance(model, ImageModel)
    return model


def same(found: ImageModel, model: ImageModel) -> None:
    """The same weights, and the same function."""
    mine, theirs = model.state_dict(), found.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    x = torch.rand(2, model.config.in_channels, *model.config.image_size)
    normal = (x - model.mean) / model.std * found.std + found.mean
    with torch.no_grad():
        torch.testing.assert_close(found(normal), model(x), rtol=0, atol=1e-5)


def numbers(*shape: int) -> Tensor:
    return torch.zeros(shape)


def dino_head() -> dict[str, Tensor]:
    return {
        "head.mlp.0.weight": numbers(8, 64),
        "head.mlp.2.bias": numbers(8),
        "head.last_layer.weight_v": numbers(9, 8),
    }


def test_mae_pretraining_checkpoint(tmp_path: Path) -> None:
    """Its sines and cosines are stored as a table, with a row of zeros for the class token."""
    model = small()
    decoder = {
        "mask_token": numbers(1, 1, 32), "decoder_pos_embed": numbers(1, 26, 32),
        "decoder_embed.weight": numbers(32, 64), "decoder_blocks.0.attn.qkv.weight": numbers(96, 32),
        "decoder_pred.bias": numbers(48),
    }  # fmt: skip
    tree = {"model": {**model.state_dict(), **decoder}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(tree, tmp_path / "mae.pth")
    found = read_external(tmp_path / "mae.pth")
    same(found.model, model)
    assert found.config.provenance["converted_from"]["format"] == "mae"
    assert any("decoder_pred.bias" in note or "decoder_embed" in note for note in found.notes)


def test_mae_finetuned_checkpoint(tmp_path: Path) -> None:
    """With its norm after the average."""
    model = small(pool="avg", num_classes=5)
    torch.save({"model": model.state_dict()}, tmp_path / "mae.pth")
    found = read_external(tmp_path / "mae.pth")
    assert found.model.config.pool == "avg"  # pyright: ignore[reportAttributeAccessIssue]
    same(found.model, model)


def test_dino_teacher_is_taken_before_its_student(tmp_path: Path) -> None:
    model, student = small(), small()
    tree = {
        "student": {f"module.backbone.{name}": value + 1 for name, value in student.state_dict().items()}
        | {f"module.{name}": value for name, value in dino_head().items()},
        "teacher": {f"backbone.{name}": value for name, value in model.state_dict().items()} | dino_head(),
        "args": argparse.Namespace(arch="vit_small"), "epoch": 100,
    }  # fmt: skip
    torch.save(tree, tmp_path / "dino.pth")
    found = read_external(tmp_path / "dino.pth")
    same(found.model, model)
    assert any("'teacher', not of 'student'" in note for note in found.notes)
    assert any("head.mlp.0.weight" in note for note in found.notes)


def test_ibot_checkpoint(tmp_path: Path) -> None:
    model = small(layer_scale=0.1)
    tree = {f"module.{name}": value for name, value in {**model.state_dict(), "masked_embed": numbers(1, 64)}.items()}
    torch.save({"state_dict": tree}, tmp_path / "ibot.pth")
    found = read_external(tmp_path / "ibot.pth", ReadOptions(heads=1))
    assert found.config.provenance["converted_from"]["format"] == "ibot"
    same(found.model, model)


@pytest.mark.parametrize("chunked", [False, True])
def test_dinov2_repository(tmp_path: Path, chunked: bool) -> None:
    model = small(layer_scale=0.1, registers=4, mlp="swiglu")
    tree: dict[str, Tensor] = {"mask_token": numbers(1, 64)}
    for name, value in model.state_dict().items():
        name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3").replace("reg_token", "register_tokens")
        tree[name.replace("blocks.", "blocks.0.") if chunked else name] = value
    torch.save(tree, tmp_path / "dinov2.pth")
    found = read_external(tmp_path / "dinov2.pth")
    assert found.config.provenance["converted_from"]["format"] == "dinov2"
    same(found.model, model)


def test_dinov3_repository_masks_the_biases_of_keys(tmp_path: Path) -> None:
    model = small(layer_scale=0.1, registers=4, mlp="swiglu", positions="rope", norm_eps=1e-5)
    mask = torch.cat([torch.ones(64), torch.zeros(64), torch.ones(64)])
    tree: dict[str, Tensor] = {"mask_token": numbers(1, 64), "rope_embed.periods": numbers(16)}
    for name, value in model.state_dict().items():
        if name.endswith(("fc1.weight", "fc1.bias")):
            gate, up = value.chunk(2)
            tree |= {name.replace("fc1", "w1"): gate.clone(), name.replace("fc1", "w2"): up.clone()}
            continue
        tree[name.replace("fc2", "w3").replace("reg_token", "storage_tokens")] = value.clone()
        if name.endswith("qkv.bias"):
            tree[f"{name}_mask"] = mask
            value.mul_(mask)
    torch.save(tree, tmp_path / "dinov3.pth")
    same(read_external(tmp_path / "dinov3.pth", ReadOptions(image_size=20)).model, model)


@pytest.mark.parametrize("classes", [5, 1000])
def test_google_file_with_its_tanh_layer(tmp_path: Path, classes: int) -> None:
    """timm leaves that layer out; its own logits need it. A thousand classes are ImageNet's."""
    model = small(head="mlp", num_classes=classes, gelu="tanh")
    write_npz(tmp_path / "vit.npz", rules, model, prefix="opt/target/", beside={"opt/state/step": np.zeros(())})
    found = read_external(tmp_path / "vit.npz")
    same(found.model, model)
    c, shown = found.config.architecture, found.config.preprocessing
    assert (c.head, c.gelu, c.norm_eps, c.position_resize) == ("mlp", "tanh", 1e-6, "google")  # pyright: ignore[reportAttributeAccessIssue]
    assert (c.mean, shown.resize_mode, shown.interpolation) == ((0.5,) * 3, "squash", "bilinear")
    assert found.config.classes[0] == ("tench, Tinca tinca" if classes == 1000 else "class 0")
    assert any("preprocessing is not in the files" in note for note in found.notes)


def test_a_tanh_layer_goes_with_the_head_when_a_run_starts_from_it(tmp_path: Path) -> None:
    """Section 3.2 of the paper: the whole pre-training head is removed, and one linear layer attached."""
    from vitral.run.config import load_config as load_run
    from vitral.run.prepare import prepare

    write_npz(tmp_path / "vit.npz", rules, small(head="mlp", num_classes=5, gelu="tanh"))
    started = {"data": "digits", "data.image_size": 20, "data.channels": 3, "init": str(tmp_path / "vit.npz")}
    prepared = prepare(load_run("finetune", started))
    assert prepared.architecture.head == "linear"  # pyright: ignore[reportAttributeAccessIssue]
    assert prepared.init is not None
    assert not any(name.startswith(("head", "pre_logits")) for name in prepared.init)
    prepared.close()


def test_google_hybrid_keeps_the_small_constants_of_the_paper(tmp_path: Path) -> None:
    model = small(stem_blocks=[1, 1], patch_size=8, image_size=40, stem_epsilons="google", gelu="tanh")
    write_npz(tmp_path / "r.npz", rules, model)
    same(read_external(tmp_path / "r.npz").model, model)


@pytest.mark.parametrize("stacked", [False, True])
def test_big_vision_file(tmp_path: Path, stacked: bool) -> None:
    """Attention pooling of SigLIP's image tower; blocks of a scan are stacked."""
    model = small(pool="map", class_token=False, gelu="tanh")
    arrays = {name: tensor.numpy() for name, tensor in invert(big_vision_rules({}), model.state_dict(), 1).items()}
    if stacked:
        ends = [name.split("encoderblock_0/")[1] for name in arrays if "encoderblock_0/" in name]
        stacks = {
            f"Transformer/encoderblock/{e}": np.stack([arrays[f"Transformer/encoderblock_{i}/{e}"] for i in (0, 1)])
            for e in ends
        }
        arrays = {name: array for name, array in arrays.items() if "encoderblock_" not in name} | stacks
    arrays = {f"params/img/{name}": array for name, array in arrays.items()} | {
        "params/txt/head/kernel": np.zeros((2, 2))
    }
    np.savez(tmp_path / "siglip.npz", allow_pickle=False, **arrays)
    same(read_external(tmp_path / "siglip.npz").model, model)


def write_npz(
    path: Path, layout: Any, model: ImageModel, prefix: str = "", beside: dict[str, Any] | None = None
) -> None:
    foreign = invert(layout({}), model.state_dict(), heads=1)
    arrays = {f"{prefix}{name}": tensor.numpy() for name, tensor in foreign.items()}
    np.savez(path, allow_pickle=False, **arrays, **(beside or {}))


def test_shards_of_safetensors_and_of_bin(tmp_path: Path) -> None:
    model = small(num_classes=3)
    state = list(model.state_dict().items())
    halves = dict(state[::2]), dict(state[1::2])
    for kind, index in (("safetensors", "model.safetensors.index.json"), ("bin", "pytorch_model.bin.index.json")):
        folder = tmp_path / kind
        folder.mkdir()
        where = {name: f"part-{n}.{kind}" for n, half in enumerate(halves) for name in half}
        for n, half in enumerate(halves):
            (save_file if kind == "safetensors" else torch.save)(half, folder / f"part-{n}.{kind}")  # pyright: ignore[reportArgumentType]
        (folder / index).write_text(json.dumps({"weight_map": where}), encoding="utf-8")
        same(read_external(folder).model, model)
        (folder / f"part-1.{kind}").unlink()
        with pytest.raises(UserError, match=r"shards are missing\n.*part-1"):
            read_external(folder)


def test_heads_of_published_sizes_and_of_others() -> None:
    from vitral.models.registry import infer

    for name, heads in (("vit_tiny_patch16_224", 3), ("vit_huge_patch14_224", 16), ("vit_micro_patch2_8", 4)):
        from vitral.models.presets import resolve

        with torch.device("meta"):
            state = build_model(resolve(name)).state_dict()
        fields, notes = infer(state, {}, "here")
        assert fields["heads"] == heads
        assert "attention heads" in notes[0]
    with pytest.raises(UserError, match="how many attention heads"):
        infer(small(width=48, heads=3).state_dict(), {}, "here")


def test_a_map_of_ones_own(tmp_path: Path) -> None:
    model = small(width=48, heads=3, num_classes=2)
    torch.save({f"net.{name}": value for name, value in model.state_dict().items()}, tmp_path / "own.pt")
    with pytest.raises(UserError, match="how many attention heads"):
        read_external(tmp_path / "own.pt")
    text = "rules: [{from: 'net.{rest}', to: '{rest}'}]\narchitecture: {heads: 3, mean: [0.4, 0.4, 0.3]}\n"
    text += "preprocessing: {resize_mode: squash, crop_pct: 0.5, mean: [0.4], std: [0.5]}\n"
    (tmp_path / "map.yaml").write_text(text, encoding="utf-8")
    found = read_external(tmp_path / "own.pt", ReadOptions(map=str(tmp_path / "map.yaml")))
    same(found.model, model)
    assert (found.config.preprocessing.crop_pct, found.config.architecture.mean) == (0.5, (0.4, 0.4, 0.3))


def test_a_map_says_nothing_in_vain(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "own.pt")
    rename = "rules: [{from: '{rest}', to: '{rest}'}]\n"
    for text, part in (
        ("architecture: {hedas: 3}", "hedas"),
        ("architecture: {width: 32}", "other shape"),
        ("preprocessing: {interpolaton: bicubic}", "interpolaton"),
        ("preprocessing: {crop_pct: 2}", "crop_pct"),
    ):
        (tmp_path / "map.yaml").write_text(rename + text, encoding="utf-8")
        with pytest.raises(UserError, match=part):
            read_external(tmp_path / "own.pt", ReadOptions(map=str(tmp_path / "map.yaml")))


def test_sizes_of_images_that_are_no_square(tmp_path: Path) -> None:
    """Said on the command line or by config.json; not to be guessed."""
    model = small(image_size=(20, 24))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"cannot be inferred.*\n.*31 positions"):
        read_external(tmp_path)
    same(read_external(tmp_path, ReadOptions(image_size=(20, 24))).model, model)
    said = {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": [20, 24], "num_heads": 1}}
    (tmp_path / "config.json").write_text(json.dumps(said), encoding="utf-8")
    same(read_external(tmp_path).model, model)
    assert read_external(tmp_path, ReadOptions(image_size=24)).model.config.image_size == (24, 24)


def test_an_absurd_number_of_a_block_builds_nothing(tmp_path: Path) -> None:
    state = small().state_dict() | {"blocks.1000000000.ls1.gamma": torch.zeros(64)}
    torch.save(state, tmp_path / "vit.pt")
    with pytest.raises(UserError, match=r"blocks\.1000000000"):
        read_external(tmp_path / "vit.pt")


def test_other_rotations_under_the_same_names_are_refused(tmp_path: Path) -> None:
    tree = {
        name.replace("ls1.gamma", "gamma_1"): value
        for name, value in small(layer_scale=1.0, registers=2).state_dict().items()
    }
    torch.save(tree, tmp_path / "eva.pt")
    with pytest.raises(UserError, match="only DINOv3's rotation"):
        read_external(tmp_path / "eva.pt")


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"size": 224, "resample": 2}, ("squash", "bilinear", 1.0)),
        ({"size": {"height": 224, "width": 224}, "resample": 3}, ("squash", "bicubic", 1.0)),
        ({"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3}, ("squash", "bicubic", 0.875)),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224}, "do_center_crop": True, "resample": 1},
            ("crop", "lanczos", 0.875),
        ),
        ({"size": {"shortest_edge": 224}, "resample": 3}, ("crop", "bicubic", 1.0)),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, ("crop", "bicubic", 0.875)),
        ({"size": {"shortest_edge": 384}, "image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875},
         ("squash", "bicubic", 1.0)),
        ({"size": 256, "crop_size": 224, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor"},
         ("crop", "bicubic", 0.875)),
    ],
)  # fmt: skip
def test_preprocessor_configs_of_transformers(tmp_path: Path, tree: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """As Google's ViT, DeiT and DINOv2 have them on the hub, older and newer."""
    save_file(small().state_dict(), tmp_path / "model.safetensors")
    tree |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tree), encoding="utf-8")
    found = read_external(tmp_path).config
    shown = found.preprocessing
    assert (shown.resize_mode, shown.interpolation, shown.crop_pct) == expected
    assert (found.architecture.mean, found.architecture.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"keep_aspect_ratio": True}, "keep_aspect_ratio"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"interpolation": "bicubic", "resample": 2}, "interpolation"),
        ({"resize_mode": "pad"}, "resize_mode"),
        ({"image_color": "BGR"}, "image_color"),
        ({"max_image_size": 100}, "max_image_size"),
        ({"antialias": False}, "antialias"),
        ({"rescale_factor": None}, "rescale_factor"),
        ({"rescale_factor": "1/255"}, "rescale_factor"),
        ({"image_mean": ["a"] * 3}, "image_mean"),
        ({"image_mean": [None] * 3}, "image_mean"),
        ({"image_mean": [0.1, 0.2]}, "mean"),
        ([], "not a JSON object"),
    ],
)
def test_preprocessor_configs_that_are_not_computed_name_the_key(tmp_path: Path, tree: Any, key: str) -> None:
    save_file(small().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(UserError, match=rf"(?s){tmp_path.name}.*{key}"):
        read_external(tmp_path)


def test_preprocessor_keys_that_are_not_known_are_noted(tmp_path: Path) -> None:
    save_file(small().state_dict(), tmp_path / "model.safetensors")
    tree = {"interpolation": "lanczos", "size": 224, "default_to_square": False, "antialias": True, "some_step": 3}
    tree |= {"processor_class": "X", "do_pad": False, "pad_size": None, "image_color": "RGB", "other_step": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tree), encoding="utf-8")
    found = read_external(tmp_path)
    assert (found.config.preprocessing.interpolation, found.config.preprocessing.resize_mode) == ("lanczos", "crop")
    assert [note for note in found.notes if "_step" in note] == [
        "preprocessor_config.json: some_step is not known and not heeded: 3"
    ]


def test_image_size_resizes_positions(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "vit.pt")
    found = read_external(tmp_path / "vit.pt", ReadOptions(image_size=(24, 40)))
    assert found.model.config.image_size == found.config.preprocessing.image_size == (24, 40)
    assert found.model.state_dict()["pos_embed"].shape == (1, 61, 64)


def test_imagenet_names() -> None:
    """WordNet's, in the order of Google's outputs: the lists have 1,000, 21,843 and 21,841 classes."""
    small_list, google, fall = (imagenet_names(count) for count in (1000, 21843, 21841))
    assert small_list is not None and google is not None and fall is not None  # noqa: PT018
    assert (small_list["0"], small_list["999"]) == (
        "tench, Tinca tinca",
        "toilet tissue, toilet paper, bathroom tissue",
    )
    assert small_list["134"].startswith("crane (n0201")
    assert google["0"] == fall["0"] == "organism, being"
    assert (len(google), len(fall)) == (21843, 21841)
    assert all(len(set(names.values())) == len(names) for names in (small_list, google, fall))
    assert imagenet_names(10) is None


def test_commands_take_foreign_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small(num_classes=10, in_channels=1, patch_size=2, image_size=8)
    torch.save(model.state_dict(), "vit.pt")
    assert main(["weights", "inspect", "vit.pt", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["format"], tree["missing"], tree["unexpected"]) == ("timm", [], [])
    assert tree["tensors"]["cls_token"] == {"shape": [1, 1, 64], "type": "float32"}
    assert main(["weights", "convert", "vit.pt", "out=mine"]) == 0
    same(load_model("mine")[0], model)
    same(load_model("vit.pt")[0], model)
    assert main(["weights", "convert", "vit.pt", "out=mine"]) == 2
    assert main(["weights", "convert", "vit.pt", "out=mine", "overwrite=true"]) == 0
    assert main(["eval", "vit.pt", "data=digits"]) == 0
    assert "taken for their numbers" in capsys.readouterr().err  # the model has no names, the data have 0 to 9
    assert main(["weights", "convert", "vit.pt", "out=named", "classes=a,b,c,d,e,f,g,h,i,j"]) == 0
    assert main(["eval", "named", "data=digits"]) == 2  # other class names
    assert main(["train", "finetune", "data=digits", "init=vit.pt", "out=run", "train.steps=2"]) == 0
    assert json.loads(Path("run/summary.json").read_text(encoding="utf-8"))["steps"] == 2


@pytest.mark.parametrize(
    "argv", ["weights", "weights melt x", "weights inspect", "weights inspect nowhere", "export x"]
)
def test_wrong_words(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv.split()) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err


class FakeHub(types.ModuleType):
    """A hub of one model, "owner/name"."""

    def __init__(self, folder: Path) -> None:
        super().__init__("huggingface_hub")
        self.folder, self.asked = folder, list[tuple[Any, ...]]()

    def snapshot_download(self, name: str, revision: str | None = None, allow_patterns: Any = ()) -> str:
        self.asked.append((name, revision, tuple(allow_patterns)))
        if name != "owner/name":
            raise OSError(f"401: no repository {name}")
        return str(self.folder)


def test_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(num_classes=2)
    folder = tmp_path / "cache"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    hub = FakeHub(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    same(load_model("owner/name@v2")[0], model)
    assert hub.asked == [("owner/name", "v2", ("*.json", "*.safetensors"))]
    with pytest.raises(UserError, match=r"the hub did not answer\n.*401"):
        load_model("owner/nameless")
    asked = len(hub.asked)
    Path("owner").mkdir()
    random_model(Path("owner/name"))
    assert find_model("owner/name") == Path("owner/name")  # what is here comes first
    with pytest.raises(UserError, match="no such model"):
        load_model("owner/nameless")
    assert len(hub.asked) == asked
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "vitral\[hub\]"'):
        load_model("somebody/name")
