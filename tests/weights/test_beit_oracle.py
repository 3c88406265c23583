"""BEiT, BEiT v2 and Data2Vec-vision of transformers and timm: in and out with equal logits. Random weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.export.test_export_oracle import equal_outputs, round_trip, saved, written
from tests.models.test_vit_oracle import randomised
from tests.weights.test_formats_oracle import HF, NAMES, check
from vitral.errors import UserError
from vitral.models.create import create_model
from vitral.models.vit import VisionTransformer
from vitral.objectives.beit_checkpoint import load_beit
from vitral.weights.config import ReadOptions
from vitral.weights.convert import read_external

pytestmark = pytest.mark.oracle

KINDS = ("Beit", "Data2VecVision")
OWN, SHARED = {"use_relative_position_bias": True}, {"use_shared_relative_position_bias": True}
TABLES: dict[str, dict[str, Any]] = {
    "own": OWN, "shared": SHARED, "both": {**OWN, **SHARED}, "no scale": {**OWN, "layer_scale_init_value": 0.0},
    "class token": {**OWN, "use_mean_pooling": False}, "wide": {**OWN, "image_size": (12, 28)},
    "high": {**SHARED, "image_size": (24, 8)}, "absolute": {"use_absolute_position_embeddings": True},
}  # fmt: skip
TIMM: dict[str, Any] = {
    "embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4, "img_size": 20, "num_classes": 7,
    "use_abs_pos_emb": False,
}  # fmt: skip
BEIT: dict[str, Any] = {
    "positions": "relative_bias", "key_bias": False, "layer_scale": 0.1, "pool": "avg", "norm_eps": 1e-6
}  # fmt: skip


def made(transformers: ModuleType, kind: str, what: str, **options: Any) -> Any:
    return randomised(getattr(transformers, f"{kind}{what}")(getattr(transformers, f"{kind}Config")(**HF, **options)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", TABLES.values(), ids=list(TABLES))
def test_classifiers_of_transformers(
    transformers: ModuleType, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    """On grids that are not square too, where transformers takes a table's rows for its columns."""
    other = randomised(
        getattr(transformers, f"{kind}ForImageClassification")(
            getattr(transformers, f"{kind}Config")(**{**HF, **options, **NAMES})
        )
    )
    other.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    found = read_external(tmp_path)
    check(found, other, "logits", atol=1e-5)
    assert found.config.classes == ("cat", "dog", "cow")
    torch.save(other.state_dict(), tmp_path / "memory.pth")
    check(read_external(tmp_path / "memory.pth", ReadOptions(heads=4)), other, "logits", atol=1e-5)


@pytest.mark.parametrize("options", [OWN, SHARED], ids=str)
@pytest.mark.parametrize("size", [(12, 12), (28, 28), (20, 28), (8, 40)])
def test_other_image_sizes_equal_transformers(
    transformers: ModuleType, tmp_path: Path, options: dict[str, Any], size: tuple[int, int]
) -> None:
    """The table's offsets are resized as transformers does; what `image_size=` makes of them is the same."""
    other = made(transformers, "Beit", "ForImageClassification", **options)
    other.save_pretrained(tmp_path)
    found = read_external(tmp_path)
    x = torch.rand(2, 1, *size)
    assert isinstance(found.model, VisionTransformer)
    with torch.no_grad():
        expected: Tensor = other((x - 0.5) / 0.5).logits
        ours = found.model.classify(found.model.pool(found.model.encode(x)))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        resized = read_external(tmp_path, ReadOptions(image_size=size)).model
        torch.testing.assert_close(resized(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True, None])
@pytest.mark.parametrize("size", [20, (12, 28)])
@pytest.mark.parametrize("pool", ["avg", "token"])
def test_classifiers_of_timm(timm: ModuleType, tmp_path: Path, shared: bool | None, size: Any, pool: str) -> None:
    options = {"use_rel_pos_bias": not shared, "use_shared_rel_pos_bias": shared is not False, "init_values": 0.1}
    other = randomised(timm.models.beit.Beit(**{**TIMM, **options, "img_size": size, "global_pool": pool}))
    state = {**other.state_dict(), "blocks.0.attn.relative_position_index": torch.zeros(2, 2, dtype=torch.int64)}
    save_file(state, tmp_path / "model.safetensors")
    found = read_external(tmp_path, ReadOptions(image_size=size))
    check(found, other, atol=1e-5)
    pre_training = {"mask_token": torch.zeros(1, 1, 48), "lm_head.weight": torch.zeros(9, 48)}
    save_file({**state, **pre_training}, tmp_path / "model.safetensors")
    check(read_external(tmp_path, ReadOptions(image_size=size)), other, atol=1e-5)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "beit_large_patch16_512", "beitv2_base_patch16_224"])
def test_parameters_are_timms(timm: ModuleType, name: str) -> None:
    with torch.device("meta"):
        ours, theirs = create_model(name, num_classes=1000), timm.create_model(name, num_classes=1000)
    renamed = {n.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): p.shape
               for n, p in ours.named_parameters()}  # fmt: skip
    assert renamed == {n: p.shape for n, p in theirs.named_parameters()}


VARIANTS: dict[str, dict[str, Any]] = {
    "own": {}, "shared": {"positions_at": "layers_shared"}, "class token": {"pool": "cls"},
    "no scale": {"layer_scale": None},
    "key biases": {"key_bias": True}, "features": {"num_classes": 0},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["hf", "timm"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=list(VARIANTS))
def test_exports_are_loaded(
    timm: ModuleType, transformers: ModuleType, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    model, _ = saved(tmp_path / "mine", **{**BEIT, **options})
    out = written(tmp_path, kind, exact=not options.get("key_bias")).out
    if kind == "timm":
        equal_outputs(model, timm.create_model(f"local-dir:{out}", pretrained=True))
    else:
        auto = transformers.AutoModelForImageClassification if model.config.num_classes else transformers.AutoModel
        other, info = auto.from_pretrained(out, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        equal_outputs(model, other, "logits" if model.config.num_classes else "pooler_output")
    if not options.get("key_bias"):
        round_trip(model, out)


def test_a_grid_that_is_not_square_is_for_timm_alone(timm: ModuleType, tmp_path: Path) -> None:
    model, _ = saved(tmp_path / "mine", **BEIT, image_size=(12, 28))
    with pytest.raises(UserError, match="not square"):
        written(tmp_path, "hf")
    equal_outputs(model, timm.create_model(f"local-dir:{written(tmp_path, 'timm').out}", pretrained=True))


@pytest.mark.parametrize("kind", ["hf", "timm"])
def test_other_models_without_key_biases_are_exported(
    timm: ModuleType, transformers: ModuleType, tmp_path: Path, kind: str
) -> None:
    model, _ = saved(tmp_path / "mine", key_bias=False)
    out = written(tmp_path, kind).out
    if kind == "timm":
        equal_outputs(model, timm.create_model(f"local-dir:{out}", pretrained=True))
    else:
        equal_outputs(model, transformers.AutoModelForImageClassification.from_pretrained(out), "logits")


@pytest.mark.parametrize("options", [OWN, SHARED, {**OWN, **SHARED}], ids=str)
def test_masked_image_modeling_of_transformers(
    transformers: ModuleType, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Logits of all patches; and the loss, which is of the masked ones."""
    other = made(transformers, "Beit", "ForMaskedImageModeling", use_mask_token=True, vocab_size=11, **options)
    other.save_pretrained(tmp_path)
    objective = load_beit(tmp_path)
    x, mask = torch.rand(2, 1, 20, 20), torch.rand(2, 25) < 0.4
    codes = torch.randint(0, 11, (2, 25))
    with torch.no_grad():
        expected = other((x - 0.5) / 0.5, bool_masked_pos=mask, labels=codes[mask])
        logits = objective.logits(x, mask)
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(logits[mask], codes[mask])
    torch.testing.assert_close(loss, expected.loss, rtol=0, atol=1e-5)


def test_what_has_no_head_of_visual_tokens(transformers: ModuleType, tmp_path: Path) -> None:
    made(transformers, "Beit", "ForImageClassification", **OWN).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no checkpoint of a BEiT in pre-training"):
        load_beit(tmp_path)
