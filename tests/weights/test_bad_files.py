"""Files that are damaged, dangerous, foreign, or not of the architecture that they seem to be of: one message each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.weights.test_convert import small
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.weights.config import ReadOptions
from vitral.weights.convert import read_external

BAD = ("truncated.pth", "truncated.npz", "truncated.safetensors", "code.pth", "text.pth", "objects.npz", "empty.pth")


@pytest.mark.parametrize("name", BAD)
def test_damaged_and_dangerous_files_get_one_message(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, state = tmp_path / name, small().state_dict()
    kind, ending = name.split(".")
    if kind == "code":
        torch.save({"model": state, "hook": Bomb()}, path)
    elif kind == "text":
        path.write_text("<!DOCTYPE html> not found", encoding="utf-8")
    elif kind == "objects":
        np.savez(path, **{"embedding/kernel": np.array([{}], dtype=object)})  # pyright: ignore[reportArgumentType]
    elif kind == "empty":
        torch.save({"epoch": 3}, path)
    else:
        if ending == "npz":
            np.savez(path, allow_pickle=False, **{n: t.numpy() for n, t in state.items()})
        else:
            (save_file if ending == "safetensors" else torch.save)(state, path)  # pyright: ignore[reportArgumentType]
        path.write_bytes(path.read_bytes()[:-2000])
    assert main(["weights", "inspect", str(path)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert name in err
    assert not (tmp_path / "exploded").exists()


class Bomb:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path("exploded").touch, ()  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (
            {"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (64, 64, 1, 1), "fc.bias": (1000,)},
            "no known format",
        ),
        ({"bert.encoder.layer.0.attention.self.query.weight": (8, 8)}, "no known format"),
        (
            {"encoder.layer.0.attention.attention.query.weight": (8, 8), "embeddings.cls_token": (3,)},
            "Closest: transformers",
        ),
    ],
)
def test_weights_of_other_networks(tmp_path: Path, names: dict[str, tuple[int, ...]], part: str) -> None:
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, tmp_path / "other.safetensors")
    with pytest.raises(UserError) as caught:
        read_external(tmp_path / "other.safetensors")
    assert part in str(caught.value)
    assert next(iter(names)) in str(caught.value)


def test_two_tensors_that_would_have_one_name(tmp_path: Path) -> None:
    state = small().state_dict()
    torch.save(state | {"module.norm.bias": state["norm.bias"] + 1}, tmp_path / "vit.pt")
    with pytest.raises(UserError, match=r"two tensors of one name\n.*norm\.bias and module\.norm\.bias"):
        read_external(tmp_path / "vit.pt")


def test_what_is_missing_superfluous_or_of_another_shape_is_named(tmp_path: Path) -> None:
    state = small(num_classes=3).state_dict()
    del state["blocks.1.norm2.bias"]
    state |= {"blocks.0.norm1.weight": torch.zeros(63), "extra.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "vit.pt")
    with pytest.raises(UserError) as caught:
        read_external(tmp_path / "vit.pt")
    for part in (
        "1 missing (blocks.1.norm2.bias)",
        "1 unexpected (extra.weight)",
        "blocks.0.norm1.weight [63], not [64]",
    ):
        assert part in str(caught.value)
    allowed = ReadOptions(ignore=("extra.*", "blocks.1.norm2.bias", "blocks.0.norm1.weight"))
    found = read_external(tmp_path / "vit.pt", allowed)
    assert torch.equal(found.model.state_dict()["blocks.0.norm1.weight"], torch.ones(64))
    assert any("initial values: blocks.0.norm1.weight, blocks.1.norm2.bias" in note for note in found.notes)


def test_activations_and_rotations_that_are_not_computed_here_are_refused(tmp_path: Path) -> None:
    save_file(small().state_dict(), tmp_path / "model.safetensors")
    for tree, part in (
        ({"architecture": "vit_base_patch16_clip_quickgelu_224"}, "activation"),
        ({"architecture": "vit_base_patch16_224", "model_args": {"act_layer": "relu"}}, "relu"),
        ({"architecture": "vit_base_patch16_224", "global_pool": "max"}, "max"),
        ({"model_type": "vit", "hidden_act": "quick_gelu"}, "quick_gelu"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(tree), encoding="utf-8")
        with pytest.raises(UserError, match=part):
            read_external(tmp_path)
