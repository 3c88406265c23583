"""A folder of transformers: ViT, DeiT with teacher, Dinov2, Dinov2WithRegisters, DINOv3ViT, Beit or ImageGPT,
whichever has the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitral.export import imagegpt
from vitral.export.package import (
    Package,
    key_biases,
    misfits,
    refuse,
    resized_sides,
    with_biases,
    with_learned_positions,
)
from vitral.models.config import ViTConfig
from vitral.models.model import ImageModel
from vitral.models.registry import code_model, token_config
from vitral.weights import hf
from vitral.weights.folder import FolderConfig
from vitral.weights.keymap import Rule, invert

_GELU = {"exact": "gelu", "tanh": "gelu_pytorch_tanh"}
_RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


class _Family(NamedTuple):
    """A kind of model there. without: parts of names that its rules have for other variants."""

    model_type: str
    name: str
    prefix: str
    rules: Callable[[Mapping[str, Tensor]], Sequence[Rule]]
    classifier: str | None
    without: tuple[str, ...] = ()


_VIT = _Family("vit", "ViT", "vit.", hf.vit_rules, "ViTForImageClassification")
_DEIT = _Family("deit", "DeiT", "deit.", hf.deit_rules, "DeiTForImageClassificationWithTeacher")
_DINOV2 = _Family("dinov2", "Dinov2", "dinov2.", hf.dinov2_rules, "Dinov2ForImageClassification", ("_proj.",))
_REGISTERS = _Family(
    "dinov2_with_registers", "Dinov2WithRegisters", "dinov2_with_registers.", hf.dinov2_rules,
    "Dinov2WithRegistersForImageClassification", ("_proj.",),
)  # fmt: skip
_BEIT = _Family("beit", "Beit", "beit.", hf.beit_rules, "BeitForImageClassification")
_DINOV3 = _Family("dinov3_vit", "DINOv3ViT", "", hf.dinov3_rules, None, (".projection.", "layernorm."))


def package(model: ImageModel, config: FolderConfig) -> Package:
    """The files of a folder that `from_pretrained` of transformers reads, with equal outputs.

    Raises UserError for models that no family there computes.
    """
    if (codes := code_model(model)) is not None:
        return imagegpt.package(codes, config)
    architecture = token_config(config.architecture)
    if architecture is None or architecture.has_convolutional_stem:
        refuse("transformers", ["networks of convolutions, alone or in front of a transformer"])
        raise AssertionError
    tensors, c = with_learned_positions(dict(model.state_dict()), architecture)
    family = _family(c)
    refuse(f"transformers {family.name}", _misfits(c, family))
    tensors = with_biases(tensors, c, of_keys=family is not _BEIT)
    key_bias = family is _DINOV3 and bool(key_biases(tensors, c).any())
    foreign = _renamed(tensors, c, family, key_bias)
    tree = _config(c, family, config, key_bias) | {"dtype": str(model.dtype).removeprefix("torch.")}
    files = {"config.json": tree, "preprocessor_config.json": _preprocessor(config)}
    notes = [f"transformers {family.name}"]
    if config.preprocessing.resize_mode == "crop" and c.image_size[0] != c.image_size[1]:
        notes.append("its image processor cannot cut the middle of another shape than a square: resize images before")
    return Package(foreign, files, notes)


def _family(c: ViTConfig) -> _Family:
    if c.positions == "rope":
        return _DINOV3
    if c.positions == "relative_bias":
        return _BEIT
    if c.distill_token:
        return _DEIT
    if c.layer_scale is not None:
        return _REGISTERS if c.registers else _DINOV2
    return _VIT


def _misfits(c: ViTConfig, family: _Family) -> list[str]:
    """What this family does not compute."""
    dinov2, dinov3, beit = family in (_DINOV2, _REGISTERS), family is _DINOV3, family is _BEIT
    pool = "cls_avg" if dinov2 and c.num_classes else "avg" if beit and c.norm_after_pool else "cls"
    place = "before" if pool == "avg" else "after"
    swiglu = c.mlp == "swiglu"
    found = [
        (c.num_classes > 0 and family.classifier is None, "a head: model.num_classes has to be 0"),
        (not c.class_token, "no class token"),
        (c.pool != pool or c.norm_after_pool != (pool == "avg"), f"pool={c.pool}, it has {pool} {place} the norm"),
        (c.qk_norm, "qk_norm"),
        (c.positions not in ("learned", "rope", "relative_bias"), f"positions={c.positions}"),
        (beit and c.grid[0] != c.grid[1], "tables of offsets on a grid that is not square"),
        (beit and c.distill_token, "a distillation token beside tables of offsets"),
        (c.registers > 0 and family not in (_REGISTERS, _DINOV3), "registers without layer scale or rotation"),
        (swiglu and not (dinov2 or dinov3), "mlp=swiglu"),
        (dinov3 and c.layer_scale is None, "no layer scale"),
        (dinov2 and c.image_size[0] != c.image_size[1], "images that are not square"),
        (dinov2 and _mlp_ratio(c) is None, f"mlp_dim={c.mlp_dim}, of no whole mlp_ratio"),
    ]
    return misfits(c, found)


def _mlp_ratio(c: ViTConfig) -> int | None:
    """Dinov2's whole number that gives mlp_dim; a gate has 2/3 of the values, rounded up to a multiple of 8."""
    for ratio in range(1, 33):
        hidden = c.width * ratio
        if c.mlp_dim == ((int(hidden * 2 / 3) + 7) // 8 * 8 if c.mlp == "swiglu" else hidden):
            return ratio
    return None


def _renamed(tensors: Mapping[str, Tensor], c: ViTConfig, family: _Family, key_bias: bool) -> dict[str, Tensor]:
    ours = dict(tensors)
    zero = ours["cls_token"].new_zeros
    if "pos_embed" in ours and not c.prefix_positions:  # there, class and distillation token always have a row
        ours["pos_embed"] = torch.cat([zero(1, 1 + c.distill_token, c.width), ours["pos_embed"]], dim=1)
    without = (*family.without, *(("weights_", "gate_proj") if c.mlp == "gelu" else ()))
    rules = [each for each in family.rules({}) if not any(part in name for part in without for name in each.source)]
    foreign = invert(rules, ours, c.heads)
    if family is _DINOV3:
        foreign["embeddings.mask_token"] = zero(1, 1, c.width)
        foreign.setdefault("embeddings.register_tokens", zero(1, 0, c.width))
        if not key_bias:
            foreign = {name: tensor for name, tensor in foreign.items() if not name.endswith("k_proj.bias")}
    elif family in (_DINOV2, _REGISTERS):
        foreign["embeddings.mask_token"] = zero(1, c.width)
    if not c.num_classes:
        return foreign
    return {name if "classifier" in name else family.prefix + name: tensor for name, tensor in foreign.items()}


def _config(c: ViTConfig, family: _Family, folder: FolderConfig, key_bias: bool) -> dict[str, Any]:
    height, width = c.image_size
    tree: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": [family.classifier if c.num_classes else f"{family.name}Model"],
        "hidden_size": c.width, "num_hidden_layers": c.depth, "num_attention_heads": c.heads,
        "intermediate_size": c.mlp_dim, "patch_size": c.patch_size, "num_channels": c.in_channels,
        "image_size": height if height == width else [height, width],
        "hidden_act": _GELU[c.gelu], "layer_norm_eps": c.norm_eps, "qkv_bias": True,
        "hidden_dropout_prob": c.dropout, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    gated = c.mlp == "swiglu"
    if family is _BEIT:
        shared = c.positions_at == "layers_shared"
        tree |= {
            "use_mean_pooling": c.pool == "avg", "layer_scale_init_value": c.layer_scale or 0.0,
            "use_relative_position_bias": not shared, "use_shared_relative_position_bias": shared,
            "drop_path_rate": c.drop_path,
        }  # fmt: skip
    if family in (_DINOV2, _REGISTERS):
        tree |= {"mlp_ratio": _mlp_ratio(c), "use_swiglu_ffn": gated, "layerscale_value": c.layer_scale}
    if family in (_REGISTERS, _DINOV3):
        tree["num_register_tokens"] = c.registers
    if family is _DINOV3:
        tree |= {"use_gated_mlp": gated, "key_bias": key_bias, "rope_theta": c.rope_theta}
        tree |= {"layerscale_value": c.layer_scale, **({"hidden_act": "silu"} if gated else {})}
    if c.num_classes:
        tree |= {
            "id2label": folder.id2label,
            "label2id": {name: int(index) for index, name in folder.id2label.items()},
            "problem_type": folder.make_task().hf_problem_type,
        }
    return tree


def _preprocessor(config: FolderConfig) -> dict[str, Any]:
    """Scale, cut the middle, divide by 255, normalize."""
    shown, architecture = config.preprocessing, config.architecture
    height, width = resized_sides(config)
    cut = shown.crop_pct < 1 or shown.resize_mode == "crop"
    sides = {"shortest_edge": min(height, width)} if shown.resize_mode == "crop" else {"height": height, "width": width}
    tree: dict[str, Any] = {
        "image_processor_type": "BitImageProcessor" if cut else "ViTImageProcessor",
        "do_resize": True, "size": sides, "resample": _RESAMPLE[shown.interpolation],
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(architecture.mean), "image_std": list(architecture.std),
        "do_convert_rgb": architecture.in_channels == 3,
    }  # fmt: skip
    crop = {"height": shown.image_size[0], "width": shown.image_size[1]}
    return tree | ({"do_center_crop": True, "crop_size": crop} if cut else {})
