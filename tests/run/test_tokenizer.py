"""A run of an image tokenizer from the command to its folder; codes to a file and back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import random_model, weights
from tests.run.power_cut import counted
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.models.image_tokenizer import ImageTokenizer
from vitral.run import prepare
from vitral.run.command_options import EvalOptions, ExportCommandOptions, PredictOptions, SampleOptions
from vitral.run.config import load_config
from vitral.run.evaluate import evaluate
from vitral.run.export import export_model
from vitral.run.predict import predictions
from vitral.run.sample import sample
from vitral.run.train import run
from vitral.weights.folder import load_folder

Capture = pytest.CaptureFixture[str]
TINY: dict[str, Any] = {
    "train.steps": 6, "train.batch_size": 16, "train.ema": None, "model.width": 16, "model.depth": 1,
    "optim.warmup": 0.0, "train.eval_every": 1.0, "report": False, "check.skip": True, "model.codes": 8,
    "objective.restart_every": 2,
    "objective.restart_below": 0.9,
}  # fmt: skip
KMEANS: dict[str, Any] = {
    "model.name": "kmeans_patch2_8", "train.steps": 1, "model.width": None, "model.depth": None,
    "objective.restart_every": 50, "objective.restart_below": 0.1,
}  # fmt: skip


def pretrain(out: str, **more: Any) -> dict[str, Any]:
    return run(load_config("digits_vq", {**TINY, **more, "out": out}))


def test_a_run_and_its_folder() -> None:
    summary = pretrain("a", report=True)
    assert summary["primary"]["name"] == "psnr"
    assert summary["split"] == "test"
    low, high = summary["psnr_interval"]
    assert low < summary["psnr"] < high
    assert summary["kmeans_psnr"] > 15
    assert summary["bits_per_image"] == pytest.approx(16 * 3)
    assert summary["bits_per_pixel"] == pytest.approx(16 * 3 / 64)
    assert summary["entropy_bits_per_image"] <= 48
    assert 0 < summary["codes_used"] <= 1
    assert 2 ** (summary["entropy_bits_per_image"] / 16) == pytest.approx(summary["code_perplexity"])
    model, config = load_folder("a")
    assert isinstance(model, ImageTokenizer)
    assert config.task == "image_tokenizer"
    found = evaluate("a", EvalOptions())
    assert found["psnr"] == pytest.approx(summary["psnr"], abs=1e-4)
    assert "vitral tokenize" in Path("a/model/README.md").read_text(encoding="utf-8")
    page = Path("a/report.html").read_text(encoding="utf-8")
    for words in (
        "from its codes",
        "Use of the codes",
        "not better than k-means",
        "What the decoder makes of each code",
    ):
        assert words in page
    assert "not better than k-means" in Path("a/train.log").read_text(encoding="utf-8")


def test_mean_patches_need_one_step() -> None:
    summary = pretrain("a", **KMEANS)
    assert summary["psnr"] > 15
    assert "kmeans_psnr" not in summary
    more = pretrain("b", **{**KMEANS, "model.codes": 16})
    assert more["psnr"] > summary["psnr"]
    with pytest.raises(UserError, match=r"train\.steps=1"):
        pretrain("c", **{**KMEANS, "train.steps": 2})


@pytest.mark.parametrize(
    "keys", [{}, {"model.quantizer": "gumbel", "objective.restart_every": 50, "objective.restart_below": 0.1}]
)
def test_a_resumed_run_ends_with_the_same_weights(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted(prepare, "fit_codes", monkeypatch)
    keys = {**keys, "train.eval_every": "end", "optim.schedule": "constant"}
    if "model.quantizer" in keys:
        keys |= {"objective.temperature_final": 1.0}  # a longer run falls more slowly
    pretrain("cut", **{**keys, "train.steps": 3})
    pretrain("straight", **keys)
    pretrain("cut", **{**keys, "resume": True})
    assert len(found) == 2, "a resumed run has its codebook"
    for name, tensor in weights("straight").items():
        assert torch.equal(tensor, weights("cut")[name]), name


def test_codes_of_data_and_of_files_come_back_as_images(capsys: Capture, tmp_path: Path) -> None:
    pretrain("a")
    capsys.readouterr()
    assert main(["tokenize", "a", "data=digits", "split=test", "out=codes.npz", "batch_size=100", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["count"], printed["grid"], printed["codes"], printed["failed"]) == (360, [4, 4], 8, 0)
    with np.load("codes.npz") as arrays:
        found = dict(arrays)
    assert found["codes"].shape == (360, 4, 4)
    assert found["codes"].dtype == np.int16
    assert {*found["splits"]} == {"test"}
    assert found["labels"].shape == (360,)
    assert main(["tokenize", "a", "codes.npz", "out=back", "--json"]) == 0
    decoded = json.loads(capsys.readouterr().out)
    assert decoded["images"][3] == {"image": str(found["images"][3]), "file": "image-0003.png"}
    assert sorted(path.name for path in Path("back").iterdir()) == [row["file"] for row in decoded["images"]]
    model = load_folder("a")[0]
    assert isinstance(model, ImageTokenizer)
    with torch.no_grad():
        expected = model.images(torch.from_numpy(found["codes"][3].reshape(1, 16)).long())[0, 0]
    assert np.abs(np.asarray(Image.open("back/image-0003.png")) - 255 * expected.numpy()).max() <= 0.51
    assert main(["tokenize", "a", "back", "out=again.npz"]) == 0
    with np.load("again.npz") as arrays:
        assert arrays["codes"].shape == (360, 4, 4)
    (tmp_path / "back/broken.png").parent.mkdir(exist_ok=True)
    Path("back/broken.png").write_bytes(b"no image")
    capsys.readouterr()
    assert main(["tokenize", "a", "back", "out=bad.npz"]) == 2
    assert "broken.png" in capsys.readouterr().err
    assert main(["tokenize", "a", "back", "out=fine.npz", "max_bad=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == 1


def _save(path: str, **changed: Any) -> None:
    with np.load("codes.npz") as arrays:
        kept = {name: value for name, value in {**arrays, **changed}.items() if value is not None}
    np.savez(path, **kept)


def test_codes_that_do_not_fit_are_refused(capsys: Capture) -> None:
    pretrain("a", **KMEANS)
    pretrain("b", **{**KMEANS, "seed": 1})
    random_model(Path("vit"))
    assert main(["tokenize", "a", "data=digits", "split=test", "out=codes.npz"]) == 0
    with np.load("codes.npz") as arrays:
        codes = arrays["codes"]
    _save("outside.npz", codes=np.where(codes == codes.max(), 99, codes))
    _save("grid.npz", codes=codes[:, :3])
    _save("shape.npz", codes=codes[:, 0])
    _save("short.npz", tokenizer=None)
    Path("noise.npz").write_bytes(b"PK\x03\x04 something else")
    wrong: dict[str, tuple[str, ...]] = {
        "tokenize b codes.npz out=x": ("codes of another tokenizer", "checksum"),
        "tokenize a outside.npz out=x": ("codes outside the codebook", "99", "0 to 7"),
        "tokenize a grid.npz out=x": ("codes of another grid", "3 x 4", "4 x 4"),
        "tokenize a shape.npz out=x": ("not a file of codes", "[360, 4]"),
        "tokenize a short.npz out=x": ("not a file of codes", "tokenizer"),
        "tokenize a noise.npz out=x": ("noise.npz",),
        "tokenize a absent.npz out=x": ("no such file",),
        "tokenize a codes.npz shape.npz out=x": ("one file of codes alone",),
        "tokenize a codes.npz": ("no place for the result",),
        "tokenize a out=x.npz": ("expected images or a file of codes, or data=",),
        "tokenize a data=digits out=x": ("cannot write this file",),
        "tokenize a data=digits out=codes.npz": ("output file exists", "overwrite=true"),
        "tokenize a codes.npz out=b": ("not empty",),
        "tokenize vit data=digits out=x.npz": ("no image tokenizer",),
        "tokenize a data=digits split=all2 out=x.npz": ("no such split",),
    }
    capsys.readouterr()
    for argv, parts in wrong.items():
        assert main(argv.split()) == 2, argv
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        for part in parts:
            assert part in err, (argv, err)
        assert not Path("x").exists()
        assert not Path("x.npz").exists()


def test_what_a_tokenizer_cannot_do() -> None:
    pretrain("a", **KMEANS)
    with pytest.raises(UserError, match=r"(?s)an image tokenizer cannot be exported.*vitral tokenize"):
        export_model("a", ExportCommandOptions(format="onnx", out="x"))
    with pytest.raises(UserError, match=r"(?s)predicts nothing about an image.*vitral tokenize"):
        next(predictions("a", ["image.png"], PredictOptions()))
    with pytest.raises(UserError, match="cannot draw images"):
        sample("a", SampleOptions(out="s"))
    for argv in (["serve", "a"], ["explain", "a", "image.png", "out=x"], ["attack", "a"]):
        assert main(argv) == 2, argv


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model.name": "vit_micro_patch2_8", "model.codes": None}, "trains image tokenizers"),
        ({"objective.kl_weight": 0.1}, r"(?s)objective\.kl_weight.*no effect with this quantizer.*gumbel"),
        ({**KMEANS, "model.codes": 20_000}, r"(?s)model\.codes.*20000.*different patches"),
        ({"lora.rank": 2, "init": "x"}, "no effect with objective.kind=tokenizer: lora.rank"),
        ({"objective.kind": "supervised"}, "no head for classes"),
        ({"model.name": "fsq_micro_patch2_8", "model.levels": [3, 3]}, "levels 3 x 3 make 9 codes, and codes is 8"),
    ],
)
def test_what_cannot_be_trained(keys: dict[str, Any], words: str) -> None:
    drop = ("objective.restart_every", "objective.restart_below") if keys.get("objective.kind") else ()
    tree = {key: value for key, value in {**TINY, **keys, "out": "a"}.items() if key not in drop}
    with pytest.raises(UserError, match=words):
        run(load_config("digits_vq", tree))
