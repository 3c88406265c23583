"""transformers' ImageGPT out and in: equal weights, palette and size; and files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.igpt_models import colors_of, igpt
from vitral.data.image_spec import ImageSpec
from vitral.errors import UserError
from vitral.export.config import ExportOptions
from vitral.export.exporter import builtin_samples, export_network
from vitral.export.library_folders import export
from vitral.models.igpt import IGPT
from vitral.weights.config import ReadOptions
from vitral.weights.convert import read_external
from vitral.weights.folder import FolderConfig, load_folder, save_folder


def folder(path: str, **options: Any) -> IGPT:
    """An Image GPT of random colors and weights as a model folder."""
    keys: dict[str, Any] = {"in_channels": 3, "image_size": 4, **options}
    model = igpt(std=0.1, **keys)
    colors_of(model).copy_(torch.rand(model.config.colors, model.config.in_channels))
    shown = ImageSpec(image_size=model.config.image_size, channels=model.config.in_channels, resize_mode="squash")
    config = FolderConfig(
        name="mine", architecture=model.config, id2label={}, task="pixels", preprocessing=shown,
        task_state={"classes": ["a", "b"]}, provenance={},
    )  # fmt: skip
    save_folder(Path(path), model, config, "# mine\n")
    return model


def change(file: str, **keys: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    tree = json.loads(Path(file).read_text(encoding="utf-8")) | keys
    Path(file).write_text(json.dumps({k: v for k, v in tree.items() if v is not None}), encoding="utf-8")


def test_out_and_in_again_bit_for_bit() -> None:
    model = folder("mine")
    export("mine", ExportOptions(format="hf", out="hf"))
    found = read_external(Path("hf"))
    assert isinstance(found.model, IGPT)
    assert found.config.task == "pixels"
    assert found.config.preprocessing.resize_mode == "squash"
    assert found.model.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found.model.state_dict()[name]), name
    save_folder(Path("again"), found.model, found.config, "# again\n")
    assert isinstance(load_folder("again")[0], IGPT)


@pytest.mark.parametrize(
    ("file", "keys", "words"),
    [
        (
            "preprocessor_config.json",
            {"clusters": None},
            r"(?s)colors of the codes are missing.*none.*preprocessor_config",
        ),
        ("preprocessor_config.json", {"clusters": [[0.0, 0.0, 0.0]] * 4}, r"(?s)missing.*4 colors.*5 colors"),
        ("preprocessor_config.json", {"clusters": [[0, 0, 255]] * 5}, r"(?s)clusters.*0 to 255.*\[-1,1\]"),
        ("preprocessor_config.json", {"clusters": [[0, 0], [0]]}, "as many numbers for each color"),
        ("preprocessor_config.json", {"clusters": "none"}, "a list of colors"),
        ("preprocessor_config.json", {"do_color_quantize": False}, "do_color_quantize"),
        ("preprocessor_config.json", {"resample": 7}, "resample"),
        ("config.json", {"activation_function": "gelu"}, r"(?s)activation_function.*gelu.*quick_gelu"),
        ("config.json", {"n_head": None}, "heads=N"),
        ("config.json", {"n_layer": 5}, "another model than the weights"),
    ],
)
def test_what_cannot_be_read(file: str, keys: dict[str, Any], words: str) -> None:
    folder("mine")
    export("mine", ExportOptions(format="hf", out="hf"))
    change(f"hf/{file}", **keys)
    with pytest.raises(UserError, match=words):
        read_external(Path("hf"))


def test_another_shape_is_stated() -> None:
    folder("mine", image_size=6)
    export("mine", ExportOptions(format="hf", out="hf"))
    assert read_external(Path("hf"), ReadOptions(image_size=(4, 9))).config.architecture.image_size == (4, 9)
    with pytest.raises(UserError, match="36 positions for images of 5 x 5"):
        read_external(Path("hf"), ReadOptions(image_size=5))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_tokens": 2}, "class tokens"),
        ({"mask_ratio": 0.2}, "hidden pixels"),
        ({"in_channels": 1}, "1 channels"),
        ({"image_size": (4, 5)}, "square"),
    ],
)
def test_what_transformers_does_not_compute(options: dict[str, Any], words: str) -> None:
    folder("mine", **options)
    with pytest.raises(UserError, match=f"(?s)ImageGPT has no such model.*{words}"):
        export("mine", ExportOptions(format="hf", out="hf"))
    assert not Path("hf").exists()


@pytest.mark.parametrize("format", ["onnx", "pt2", "openvino"])
def test_no_graph_of_an_image_gpt(format: Any) -> None:
    model = folder("mine")
    _, config = load_folder("mine")
    options = ExportOptions(format=format, out="graph")
    with pytest.raises(UserError, match=rf"(?s)an Image GPT cannot be exported.*{format}.*vitral sample"):
        export_network(model, config, "", options, builtin_samples(1, config))
    with pytest.raises(UserError, match="timm has no such model"):
        export("mine", ExportOptions(format="timm", out="timm"))
    assert not Path("graph").exists()
