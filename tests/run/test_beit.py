"""A run of BEiT from the command to what it leaves, fine-tuning after it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import TINY, assert_equal_tensors, random_model, weights
from tests.models.tokenizers import tokenizer
from tests.run.power_cut import counted, killed_and_resumed
from vitral.config import build
from vitral.data.image_spec import ImageSpec
from vitral.errors import UserError
from vitral.objectives import visual_tokens
from vitral.objectives.beit import BEiT
from vitral.run.config import load_config
from vitral.run.self_supervised import load_objective
from vitral.run.train import run
from vitral.weights.folder import FolderConfig, load_folder, save_folder
from vitral.weights.tensors import load_tensors

BIAS: dict[str, Any] = {
    "model.positions": "relative_bias", "model.positions_at": "layers_shared", "model.key_bias": False,
    "model.fc_norm": False, "model.weight_init": "beit", "model.layer_scale": 0.1,
}  # fmt: skip


def pretrain(out: str, **more: Any) -> dict[str, Any]:
    keys = {**TINY, "objective.codes": 6, "check.skip": True, **more, "out": out}
    return run(load_config("digits_beit", keys))


def test_the_folder_holds_the_encoder_and_the_checkpoint_the_rest() -> None:
    """Codes and head too, so that a resumed run goes on with them; and the report shows them."""
    pretrain("a", report=True)
    assert not any(name.startswith(("tokenizer", "mask", "predict")) for name in weights("a"))
    objective = load_objective("a")
    assert isinstance(objective, BEiT)
    tensors = load_tensors(Path("a/checkpoints/last.safetensors"))[0]
    codes = objective.state_dict()["tokenizer.model.quantizer.patches_KD"]
    assert torch.equal(codes, tensors["objective.tokenizer.model.quantizer.patches_KD"])
    assert len(codes.unique(dim=0)) == 6
    page = Path("a/report.html").read_text(encoding="utf-8")
    assert all(f">{name}</th>" in page for name in ("visible patches", "visual tokens", "masked ones predicted"))


@pytest.mark.parametrize("kind", ["kmeans", "teacher"])
def test_a_resumed_run_is_the_whole_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, codes too, which are found once."""
    found = counted(visual_tokens, "fit_patches" if kind == "kmeans" else "FeatureTokens.fit", monkeypatch)
    keys = {**BIAS, "train.steps": 4, "train.save_seconds": 0.0, "objective.tokenizer": kind}
    if kind == "teacher":
        random_model(Path("teacher"), ())
    pretrain("whole", **keys)
    killed_and_resumed(lambda: pretrain("cut", **keys), "cut", 2, monkeypatch)
    assert len(found) == 2, "of the whole run, and of the one that was cut"
    whole, cut = (load_tensors(Path(f"{out}/checkpoints/last.safetensors"))[0] for out in ("whole", "cut"))
    assert_equal_tensors(whole, cut)


def test_fine_tuning_starts_with_a_table_for_each_block(caplog: pytest.LogCaptureFixture) -> None:
    pretrain("a", **BIAS)
    keys = {**TINY, **dict.fromkeys(("model.width", "model.depth", "model.heads", "model.mlp_dim")), "check.skip": True}
    keys |= {"model.name": "auto", "init": "a", "train.steps": 1, "optim.lr": 1e-12, "model.positions_at": "layers"}
    run(load_config("digits", {**keys, "model.fc_norm": True, "optim.layer_decay": 0.5, "out": "b"}))
    assert "each block starts from the bias table that all of them shared" in caplog.text
    assert "fc_norm is initialized in place of norm" in caplog.text
    shared = weights("a")["rel_pos_bias.relative_position_bias_table"]
    for name, table in weights("b").items():
        if name.endswith("relative_position_bias_table"):
            torch.testing.assert_close(table, shared, rtol=0, atol=1e-6)


def test_an_encoder_gives_the_tokens(tmp_path: Path) -> None:
    """And another size of patch: 4 pixels of 16 x 16 for 2 of 8 x 8."""
    random_model(tmp_path / "teacher", (), patch_size=4, image_size=32)
    pretrain("a", **{"objective.tokenizer": str(tmp_path / "teacher")})
    objective = load_objective("a")
    assert isinstance(objective, BEiT)
    assert objective.tokenizer(torch.rand(2, 1, 8, 8)).shape == (2, 16)
    lengths = objective.tokenizer.state_dict()["directions_KD"].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(6), rtol=0, atol=1e-5)


def test_an_image_tokenizer_gives_the_tokens() -> None:
    """As many as it has; of a grid that is not that of the patches, none."""
    made = tokenizer("kmeans", image_size=(8, 8), in_channels=1, codes=5)
    shown = ImageSpec(image_size=(8, 8), channels=1, resize_mode="crop")
    tree = {"name": "t", "architecture": made.config, "id2label": {}, "preprocessing": shown, "provenance": {}}
    save_folder(Path("tokens"), made, build(FolderConfig, {**tree, "task": "image_tokenizer"}), "a card\n")
    pretrain("a", **{"objective.tokenizer": "tokens", "objective.codes": None})
    objective = load_objective("a")
    assert isinstance(objective, BEiT)
    images = torch.rand(2, 1, 8, 8)
    model: Any = load_folder("tokens")[0]
    assert torch.equal(objective.tokenizer(images), model.codes(images))
    assert len(objective.predict.bias) == 5
    assert Path(objective.config.tokenizer).is_absolute(), "the run is resumed from any folder"
    with pytest.raises(UserError, match=r"(?s)grid of codes.*got: *4 x 4 codes of 2 pixels.*expected: *2 x 2"):
        pretrain("b", **{"objective.tokenizer": "tokens", "objective.codes": None, "model.patch_size": 4})
    with pytest.raises(UserError, match=r"(?s)has its own codes.*got: *6.*expected: *null: 5"):
        pretrain("b", **{"objective.tokenizer": "tokens"})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"augment.brightness": 0.2, "augment.policy": "randaugment"}, "augment.policy=none augment.brightness=0"),
        ({"augment.random_erasing": 0.5}, "augment.random_erasing=0"),
        ({"augment.mixup": 0.5}, "no effect with objective.kind=beit: augment.mixup"),
        ({"augment.repeated_aug": 2}, "no effect with objective.kind=beit: augment.repeated_aug"),
        ({"objective.mask_ratio": 0.01}, r"(?s)masks no patch.*0.01 of 16 patches"),
        ({"objective.codes": 10**6}, r"(?s)more codes than the train images have.*at most [0-9,]+ different patches"),
        ({"model.name": "resnet20_cifar"}, "learns from patches"),
        ({"objective.tokenizer": "nowhere", "objective.codes": None}, "nowhere"),
    ],
)
def test_refusals(keys: dict[str, Any], words: str) -> None:
    sizes = ("width", "depth", "heads", "mlp_dim", "positions", "pool")
    narrow = {f"model.{key}": None for key in sizes}
    with pytest.raises((UserError, ValueError), match=words):
        pretrain("a", **{**(narrow if keys.get("model.name") else {}), **keys})
