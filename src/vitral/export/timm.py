"""A folder of timm: `timm.create_model("local-dir:DIR", pretrained=True)`."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from vitral.export.package import Package, key_biases, misfits, refuse, with_biases, with_learned_positions
from vitral.models.config import ModelConfig, ViTConfig
from vitral.models.model import ImageModel
from vitral.models.presets import PRESETS, resolve
from vitral.models.registry import token_config
from vitral.models.vit_presets import HYBRIDS
from vitral.weights.folder import FolderConfig
from vitral.weights.keymap import invert
from vitral.weights.timm import eva_rules

_POOL = {"cls": "token", "avg": "avg", "map": "map"}


def package(model: ImageModel, config: FolderConfig) -> Package:
    """The files of a folder that timm's `create_model` reads, with equal outputs.

    Raises UserError for models that timm does not compute.
    """
    tensors, architecture = dict(model.state_dict()), config.architecture
    tokens = token_config(architecture)
    if tokens is None:
        name, arguments = _convolutional(architecture), dict[str, Any]()
    else:
        tensors, architecture = with_learned_positions(tensors, tokens)
        rope = architecture.positions == "rope"
        tensors = with_biases(tensors, architecture, of_keys=architecture.positions != "relative_bias")
        refuse("timm", _misfits(architecture, tensors))
        name, arguments = _name(architecture), _arguments(architecture)
        if architecture.positions == "relative_bias":
            tensors = {re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", each): tensors[each] for each in tensors}
        else:
            tensors = _eva(tensors, architecture) if rope else _with_register_rows(tensors, architecture)
    classes = architecture.num_classes
    tree = {
        "architecture": name, "num_classes": classes, "num_features": architecture.pooled_width,
        "global_pool": arguments.get("global_pool", "avg"),
        "model_args": {**arguments, "num_classes": classes, "in_chans": architecture.in_channels},
        "pretrained_cfg": _pretrained(config, name), **({"label_names": list(config.classes)} if classes else {}),
    }  # fmt: skip
    return Package(tensors, {"config.json": tree}, [f"timm {name}"])


def _convolutional(c: ModelConfig) -> str:
    known = {"num_classes", "image_size", "in_channels", "mean", "std"}
    mine = c.model_dump(exclude=known)
    for name in PRESETS:
        if name.endswith("_bit") and resolve(name).model_dump(exclude=known) == mine:
            return name
    refuse("timm", [f"{c.description}; of ours without tokens it has BiT's"])
    raise AssertionError


def _misfits(c: ViTConfig, tensors: dict[str, Tensor]) -> list[str]:
    beit = c.positions == "relative_bias"
    rope, hybrid, eps = c.positions == "rope", c.stem_blocks is not None, 1e-5 if c.positions == "rope" else 1e-6
    found = [
        (c.norm_eps != eps, f"norm_eps={c.norm_eps:g}, it has {eps:g}"),
        (c.pool not in _POOL, f"pool={c.pool}"),
        (c.pool == "map" and c.class_token, "attention pooling beside a class token"),
        (c.positions not in ("learned", "rope", "relative_bias", "none"), f"positions={c.positions}"),
        (beit and (not c.class_token or c.prefix_tokens > 1), "tables of offsets with other tokens than a class token"),
        (
            beit and (c.qk_norm or c.mlp == "swiglu" or c.gelu == "tanh"),
            "tables of offsets with qk_norm or another MLP",
        ),
        (beit and c.pool == "map", "tables of offsets with attention pooling"),
        (c.distill_token and (c.registers > 0 or not c.prefix_positions), "a distillation token beside registers"),
        (c.mlp == "swiglu" and (c.layer_scale is None or hybrid or c.distill_token), "mlp=swiglu without layer scale"),
        (c.mlp == "swiglu" and c.gelu == "tanh", "mlp=swiglu with gelu=tanh"),
        (hybrid and (c.stem_epsilons != "timm" or _hybrid(c) is None), f"this stem {c.stem_blocks}, {c.stem_epsilons}"),
        (rope and (not c.class_token or c.layer_scale is None or c.qk_norm), "rope without class token or layer scale"),
        (rope and (c.pool == "map" or c.norm_after_pool), "rope with this pooling"),
        (rope and c.gelu == "tanh" and c.mlp == "gelu", "rope with gelu=tanh"),
        (rope and bool(key_biases(tensors, c).any()), "rope with biases of keys"),
    ]
    return misfits(c, found)


def _hybrid(c: ViTConfig) -> str | None:
    stem = c.stem_blocks, c.patch_size
    return next((name for name, (_, blocks, patch) in HYBRIDS.items() if (blocks, patch) == stem), None)


def _name(c: ViTConfig) -> str:
    """An architecture there with the kinds of parts that this model has; sizes come as arguments."""
    if c.positions == "rope":
        return f"vit_small_{'plus_' * (c.mlp == 'swiglu')}patch16_dinov3_qkvb"
    if c.positions == "relative_bias":
        return "beit_base_patch16_224"
    if c.stem_blocks is not None:
        return f"{_hybrid(c)}_224"
    if c.distill_token:
        return "deit_tiny_distilled_patch16_224"
    return "vit_giant_patch14_dinov2" if c.mlp == "swiglu" else "vit_tiny_patch16_224"


def _arguments(c: ViTConfig) -> dict[str, Any]:
    packed = c.mlp == "swiglu" and c.positions != "rope"
    found: dict[str, Any] = {
        "img_size": list(c.image_size), "embed_dim": c.width, "depth": c.depth, "num_heads": c.heads,
        "mlp_ratio": _ratio(c.mlp_dim * (1 + packed), c.width), "global_pool": _POOL[c.pool],
    }  # fmt: skip
    if c.stem_blocks is None:
        found["patch_size"] = c.patch_size
    if c.layer_scale is not None:
        found["init_values"] = c.layer_scale
    if c.positions == "rope":
        return found | {"num_reg_tokens": c.registers, "rope_temperature": c.rope_theta}
    if c.positions == "relative_bias":
        shared = c.positions_at == "layers_shared"
        own = {"use_abs_pos_emb": False, "use_rel_pos_bias": not shared, "use_shared_rel_pos_bias": shared}
        return found | own | {"init_values": c.layer_scale, "use_fc_norm": c.norm_after_pool}
    if not c.distill_token:
        found |= {
            "class_token": c.class_token, "reg_tokens": c.registers, "qk_norm": c.qk_norm, "fc_norm": c.norm_after_pool,
            "no_embed_class": not c.prefix_positions, "pos_embed": "learn" if c.positions == "learned" else "none",
        }  # fmt: skip
    return found | ({"act_layer": "gelu_tanh"} if c.gelu == "tanh" else {})


def _ratio(hidden: int, width: int) -> float:
    """What gives exactly `hidden` when timm multiplies it with the width and rounds down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _eva(tensors: dict[str, Tensor], c: ViTConfig) -> dict[str, Tensor]:
    without = "fc1_g" if c.mlp == "gelu" else "no such part"
    rules = [each for each in eva_rules({}) if without not in each.source[0]]
    foreign = invert(rules, tensors, c.heads)
    return {name: tensor for name, tensor in foreign.items() if not name.endswith("attn.k_bias")}


def _with_register_rows(tensors: dict[str, Tensor], c: ViTConfig) -> dict[str, Tensor]:
    """Registers have positions there, where the class token has one."""
    if not (c.registers and c.position_rows):
        return tensors
    table, rows = tensors["pos_embed"], c.position_rows
    nowhere = table.new_zeros(1, c.registers, c.width)
    return tensors | {"pos_embed": torch.cat([table[:, :rows], nowhere, table[:, rows:]], dim=1)}


def _pretrained(config: FolderConfig, name: str) -> dict[str, Any]:
    architecture, shown = config.architecture, config.preprocessing
    tokens = token_config(architecture)
    first = "stem.conv" if tokens is None else "patch_embed.proj"
    if tokens is not None and tokens.stem_blocks is not None:
        first = f"patch_embed.backbone.{'stem.' if tokens.stem_blocks else ''}conv"
    return {
        "input_size": [architecture.in_channels, *architecture.image_size], "fixed_input_size": tokens is not None,
        "mean": list(architecture.mean), "std": list(architecture.std), "interpolation": shown.interpolation,
        "crop_pct": shown.crop_pct, "crop_mode": "center" if shown.resize_mode == "crop" else "squash",
        "num_classes": architecture.num_classes, "pool_size": None, "first_conv": first,
        "classifier": ["head", "head_dist"] if name.startswith("deit") else "head.fc" if tokens is None else "head",
    }  # fmt: skip
