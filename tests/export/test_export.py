"""`vitral export`: what it writes and says, and what it refuses. That others load it: test_export_oracle.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.export.test_export_oracle import DINOV2, DINOV3, saved
from tests.helpers import edit_config
from vitral.cli.main import main
from vitral.errors import RunFailed, UserError
from vitral.export import library_folders
from vitral.export.config import ExportOptions
from vitral.export.library_folders import export
from vitral.weights.convert import read_external
from vitral.weights.folder import is_ours


@pytest.mark.parametrize("kind", ["hf", "timm"])
def test_the_command_says_how_far_the_outputs_are_apart(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, config = saved(Path("mine"), {"crop_pct": 0.875, "interpolation": "bilinear"})
    assert main(["export", "mine", f"format={kind}", "out=there"]) == 0
    out, err = capsys.readouterr()
    assert out == "there: read back, outputs differ by at most 0.0e+00 (4 images)\n"
    assert ("transformers ViT" if kind == "hf" else "vit_tiny_patch16_224") in err
    found = read_external(Path("there")).config
    assert (found.id2label, found.architecture.mean) == (config.id2label, config.architecture.mean)
    assert (found.preprocessing.resize_mode, found.preprocessing.interpolation) == ("crop", "bilinear")
    assert not is_ours(Path("there"))
    assert main(["export", "mine", f"format={kind}", "out=there"]) == 2  # not over what is there
    assert main(["export", "there", f"format={kind}", "out=there", "overwrite=true", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_difference"] == 0
    assert sorted(Path.cwd().iterdir()) == [Path.cwd() / "mine", Path.cwd() / "there"]


@pytest.mark.parametrize(
    ("kind", "options", "part"),
    [
        ("hf", {"pool": "avg"}, "pool=avg, it has cls"),
        ("hf", {"registers": 2}, "registers without layer scale"),
        ("hf", {**DINOV2, "mlp_dim": 100}, "mlp_dim=100"),
        ("hf", {**DINOV2, "image_size": (20, 28)}, "not square"),
        ("hf", DINOV3, "a head"),
        ("hf", {"positions": "relative", "qk_norm": True}, "qk_norm; positions=relative"),
        ("hf", {"stem_blocks": [], "patch_size": 20}, "convolutions"),
        ("timm", DINOV2, "pool=cls_avg"),
        ("timm", {"head": "mlp"}, "head=mlp"),
        ("timm", {"norm_eps": 1e-12}, "norm_eps=1e-12, it has 1e-06"),
        ("timm", {"stem_blocks": [3], "patch_size": 20}, "this stem (3,)"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_written(
    tmp_path: Path, kind: str, options: dict[str, Any], part: str
) -> None:
    saved(tmp_path / "mine", **options)
    with pytest.raises(UserError, match="has no such model") as caught:
        export(str(tmp_path / "mine"), ExportOptions(format=kind, out=str(tmp_path / "out")))  # pyright: ignore[reportArgumentType]
    assert part in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_export_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "mine")
    package = library_folders.FORMATS["hf"]

    def wrong(model: Any, config: Any) -> Any:
        packed = package(model, config)
        packed.tensors["classifier.bias"] = packed.tensors["classifier.bias"] + 1e-3
        return packed

    monkeypatch.setitem(library_folders.FORMATS, "hf", wrong)
    with pytest.raises(RunFailed, match=r"differs from the model by 1\.0e-03"):
        export(str(tmp_path / "mine"), ExportOptions(format="hf", out=str(tmp_path / "out")))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_another_size_and_the_temperature(tmp_path: Path) -> None:
    saved(tmp_path / "mine")
    edit_config(tmp_path / "mine", lambda tree: tree.update(temperature=2.0))
    found = export(str(tmp_path / "mine"), ExportOptions(format="hf", out=str(tmp_path / "out"), image_size=32))
    assert any("temperature 2 stays behind" in note for note in found.notes)
    assert read_external(found.out).model.config.image_size == (32, 32)
