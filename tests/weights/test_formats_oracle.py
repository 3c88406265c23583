"""Files of transformers and timm, read by us, give the logits that they themselves give. Random weights, odd shapes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.models.test_vit_oracle import randomised
from vitral.models.resnet import ResNet
from vitral.models.vit import VisionTransformer
from vitral.weights.config import ReadOptions
from vitral.weights.convert import ExternalModel, read_external
from vitral.weights.google_npz import bit_rules, rules
from vitral.weights.keymap import invert

pytestmark = pytest.mark.oracle

HF: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "patch_size": 4,
    "image_size": 20, "num_channels": 1,
}  # fmt: skip
TIMM: dict[str, Any] = {
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 2,
    "patch_size": 4,
    "img_size": (20, 28),
}
NAMES = {"id2label": {0: "cat", 1: "dog", 2: "cow"}, "label2id": {"cat": 0, "dog": 1, "cow": 2}}
DINOV3: dict[str, Any] = {"layer_norm_eps": 1e-5, "num_register_tokens": 4}


def normal(found: ExternalModel, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images in [0,1], and normalized as a foreign model wants them."""
    c = found.config.architecture
    x = torch.rand(2, c.in_channels, *c.image_size, generator=torch.Generator().manual_seed(seed))
    return x, (x - found.model.mean) / found.model.std


def check(found: ExternalModel, other: nn.Module, pick: str | None = None, atol: float = 1e-4) -> None:
    x, normalized = normal(found)
    with torch.no_grad():
        expected: Any = other(normalized)
        torch.testing.assert_close(found.model(x), getattr(expected, pick) if pick else expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("kind", "options", "labels"),
    [
        ("ViT", {"hidden_act": "gelu_new", "image_size": (20, 28)}, True),
        ("ViT", {"qkv_bias": False, "layer_norm_eps": 1e-3}, True),
        ("DeiT", {}, True),
        ("Dinov2", {"mlp_ratio": 3}, True),
        ("Dinov2", {"use_swiglu_ffn": True}, True),
        ("Dinov2WithRegisters", {"num_register_tokens": 3}, True),
    ],
)
def test_classifiers_of_transformers(
    transformers: ModuleType, tmp_path: Path, kind: str, options: dict[str, Any], labels: bool
) -> None:
    config = getattr(transformers, f"{kind}Config")(**{**HF, **options, **NAMES})
    other = randomised(getattr(transformers, f"{kind}ForImageClassification")(config))
    other.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    found = read_external(tmp_path)
    check(found, other, "logits")
    assert found.config.classes == ("cat", "dog", "cow")


def test_distilled_classifier_of_transformers(transformers: ModuleType, tmp_path: Path) -> None:
    other = randomised(transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**HF, **NAMES)))
    other.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    check(read_external(tmp_path), other, "logits")


@pytest.mark.parametrize(("gated", "registers"), [(False, 1), (True, 4), (False, 0)])
@pytest.mark.parametrize("key_bias", [False, True])
def test_dinov3_of_transformers(
    transformers: ModuleType, tmp_path: Path, gated: bool, registers: int, key_bias: bool
) -> None:
    config = transformers.DINOv3ViTConfig(
        **{**HF, "num_channels": 3, "image_size": 24}, num_register_tokens=registers, use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu", key_bias=key_bias, rope_theta=50.0,
    )  # fmt: skip
    other = randomised(transformers.DINOv3ViTModel(config))
    other.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    found = read_external(tmp_path)
    check(found, other, "pooler_output")
    x = torch.rand(2, 3, 12, 36)
    with torch.no_grad():
        expected: Tensor = other((x - found.model.mean) / found.model.std).last_hidden_state  # pyright: ignore[reportCallIssue]
        assert isinstance(found.model, VisionTransformer)
        out = found.model.encode(x)
    torch.testing.assert_close(out.patches_BND, expected[:, 1 + registers :], rtol=0, atol=1e-4)


def test_encoder_of_transformers_mae(transformers: ModuleType, tmp_path: Path) -> None:
    """The whole pre-training model is saved; its encoder, shown every patch in order, is ours."""
    config = transformers.ViTMAEConfig(
        **HF, decoder_hidden_size=24, decoder_num_attention_heads=3, decoder_num_hidden_layers=1,
        decoder_intermediate_size=48, mask_ratio=0.0,
    )  # fmt: skip
    other = randomised(transformers.ViTMAEForPreTraining(config))
    other.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    found = read_external(tmp_path)
    x, normalized = normal(found)
    noise = torch.arange(25.0).expand(2, -1)
    with torch.no_grad():
        expected = other.vit(normalized, noise=noise).last_hidden_state  # pyright: ignore[reportCallIssue]
        out = found.model.encode(x)
    torch.testing.assert_close(out.patches_BND, expected[:, 1:], rtol=0, atol=1e-4)
    torch.testing.assert_close(out.cls_BD, expected[:, 0], rtol=0, atol=1e-4)


def test_names_in_memory_are_read_too(transformers: ModuleType, tmp_path: Path) -> None:
    for kind in ("ViT", "DeiT", "Dinov2"):
        config = getattr(transformers, f"{kind}Config")(**HF, **NAMES)
        other = randomised(getattr(transformers, f"{kind}ForImageClassification")(config))
        file = tmp_path / f"{kind}.pth"
        torch.save({"state_dict": other.state_dict()}, file)
        check(read_external(file, ReadOptions(heads=4)), other, "logits")


@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({}, 4),
        ({"global_pool": "avg"}, 4),
        ({"qk_norm": True}, None),
        ({"reg_tokens": 3, "no_embed_class": True, "init_values": 0.1}, 4),
        ({"reg_tokens": 3, "img_size": (20, 20)}, 4),
        ({"class_token": False, "global_pool": "map"}, 4),
        ({"class_token": False, "global_pool": "avg", "pos_embed": "none"}, 4),
        ({"qkv_bias": False, "in_chans": 1}, 4),
    ],
)
def test_vit_of_timm(timm: ModuleType, tmp_path: Path, options: dict[str, Any], heads: int | None) -> None:
    other = randomised(timm.models.vision_transformer.VisionTransformer(**{**TIMM, "num_classes": 7, **options}))
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    check(read_external(tmp_path, ReadOptions(heads=heads, image_size=options.get("img_size", (20, 28)))), other)


def test_distilled_vit_of_timm(timm: ModuleType, tmp_path: Path) -> None:
    other = randomised(timm.models.deit.VisionTransformerDistilled(**TIMM, num_classes=7))
    torch.save({"model": other.state_dict()}, tmp_path / "deit.pth")
    check(read_external(tmp_path / "deit.pth", ReadOptions(heads=4, image_size=(20, 28))), other)


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3_qkvb"]
)
def test_dinov3_of_timm(timm: ModuleType, tmp_path: Path, name: str) -> None:
    """The folder that timm writes for the hub says the number of heads and the pooling."""
    arguments = {"embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 5, "global_pool": "token", "img_size": 32}
    other = randomised(timm.create_model(name, **arguments))
    timm.models.save_for_hf(other, tmp_path, model_args=arguments)
    check(read_external(tmp_path), other)


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224"])
def test_hybrids_of_timm(timm: ModuleType, tmp_path: Path, name: str) -> None:
    other = randomised(timm.create_model(name, num_classes=5, depth=1, embed_dim=64, num_heads=4, img_size=64))
    torch.save(other.state_dict(), tmp_path / "hybrid.pt")
    check(read_external(tmp_path / "hybrid.pt", ReadOptions(heads=4)), other)


def test_bit_of_timm(timm: ModuleType, tmp_path: Path) -> None:
    other = randomised(
        timm.models.resnetv2.ResNetV2(layers=(1, 2), channels=(256, 512), num_classes=5, stem_type="fixed")
    )
    torch.save(other.state_dict(), tmp_path / "bit.pt")
    check(read_external(tmp_path / "bit.pt", ReadOptions(image_size=(48, 80))), other)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224"])
def test_google_files_are_read_as_timm_reads_them(timm: ModuleType, tmp_path: Path, name: str) -> None:
    """One .npz, timm's reader and ours: equal logits where the small constants are equal."""
    small = {"depth": 2, "embed_dim": 64, "num_heads": 4, "img_size": 64, "num_classes": 5}
    ours = randomised(timm.create_model(name, **small))
    write_npz(ours, tmp_path / "vit.npz", rules, heads=4)
    other = timm.create_model(name, **small).eval()
    other.load_pretrained(str(tmp_path / "vit.npz"))
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[key]), key
    found = read_external(tmp_path / "vit.npz", ReadOptions(heads=4))
    assert set(found.model.state_dict()) == set(other.state_dict())
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in found.model.state_dict().items())
    config = found.config.architecture
    assert (config.gelu, config.norm_eps, config.position_resize) == ("tanh", 1e-6, "google")  # pyright: ignore[reportAttributeAccessIssue]


def test_a_google_vit_computes_what_timm_computes_with_tanh(timm: ModuleType, tmp_path: Path) -> None:
    other = randomised(
        timm.models.vision_transformer.VisionTransformer(
            **{**TIMM, "img_size": 20}, act_layer="gelu_tanh", num_classes=5
        )
    )
    write_npz(other, tmp_path / "vit.npz", rules, heads=4)
    check(read_external(tmp_path / "vit.npz", ReadOptions(heads=4)), other)


def test_bit_files_are_read_as_timm_reads_them(timm: ModuleType, tmp_path: Path) -> None:
    small = {"layers": (1, 2), "channels": (256, 512), "num_classes": 5, "stem_type": "fixed"}
    ours, other = (timm.models.resnetv2.ResNetV2(**small).eval() for _ in "ab")
    write_npz(randomised(ours), tmp_path / "bit.npz", bit_rules, heads=1)
    other.load_pretrained(str(tmp_path / "bit.npz"))
    found = read_external(tmp_path / "bit.npz", ReadOptions(image_size=64))
    assert isinstance(found.model, ResNet)
    check(found, other)


def write_npz(model: nn.Module, path: Path, layout: Any, heads: int) -> None:
    """A file in Google's layout; scales of group norms [1, 1, 1, C] as theirs."""
    tensors = (
        {"block1/": torch.zeros(0)}
        if hasattr(getattr(model, "patch_embed", None), "backbone")
        else {"x": torch.zeros(0)}
    )
    if hasattr(getattr(getattr(model, "patch_embed", None), "backbone", None), "conv"):
        tensors = {"conv_root/kernel": torch.zeros(0)}
    arrays = {name: tensor.numpy() for name, tensor in invert(layout(tensors), model.state_dict(), heads).items()}
    np.savez(
        path,
        allow_pickle=False,
        **{n: a.reshape(1, 1, 1, -1) if "gn" in n and "scale" in n else a for n, a in arrays.items()},
    )


def test_hub_folder_of_timm_says_its_preprocessing(timm: ModuleType, tmp_path: Path) -> None:
    other = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3)
    timm.models.save_for_hf(other, tmp_path, model_args={"depth": 1, "num_classes": 3})
    found = read_external(tmp_path).config
    theirs = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    assert list(found.architecture.mean) == theirs["mean"]
    assert (found.preprocessing.crop_pct, found.preprocessing.interpolation) == (theirs["crop_pct"], "bicubic")
