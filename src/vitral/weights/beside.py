"""What the JSON files beside foreign weights say: facts of the architecture, preprocessing, class names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vitral.errors import UserError
from vitral.models.config import ViTConfig
from vitral.models.presets import PRESETS, resolve
from vitral.weights.reading import Source

Fields = dict[str, Any]

_GELU = {"gelu": "exact", "gelu_python": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_tanh": "tanh"}
_POOL = {"token": "cls", "avg": "avg", "map": "map"}
_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


class Beside(NamedTuple):
    """Facts of the architecture, of the preprocessing (mean, std, fit, interpolation, crop_ratio), and class names."""

    facts: Fields
    looks: Fields
    labels: list[str] | None
    notes: list[str]


def read_beside(source: Source, gated: bool) -> Beside:
    """gated: whether the MLPs have a gate, whose activation config.json then names. Raises UserError for what ours does
    not compute."""
    config, notes = source.config, list[str]()
    if "model_type" in config:
        facts, labels = _hf_facts(config, gated, source.where), _hf_labels(config)
    elif "architecture" in config:
        facts, labels = _timm_facts(config, source.where), _timm_labels(config)
        if "norm_eps" not in facts:
            notes.append(f"timm's {facts['architecture']} is not among ours: activation and epsilon are taken as usual")
        return Beside(facts, _timm_looks(config.get("pretrained_cfg", config), notes), labels, notes)
    else:
        facts, labels = {}, None
    return Beside(facts, _hf_looks(source.preprocessor, notes), labels, notes)


def _hf_facts(config: Mapping[str, Any], gated: bool, where: str) -> Fields:
    keys = {
        "num_attention_heads": "heads", "layer_norm_eps": "norm_eps", "image_size": "image_size",
        "layerscale_value": "layer_scale", "rope_theta": "rope_theta",
    }  # fmt: skip
    facts = {ours: config[theirs] for theirs, ours in keys.items() if config.get(theirs) is not None}
    if isinstance(facts.get("rope_theta"), int):
        facts["rope_theta"] = float(facts["rope_theta"])
    activation = config.get("hidden_act", "gelu")
    if not gated:
        if activation not in _GELU:
            raise UserError(
                "this activation is not computed here", where=where, got=activation, wanted="gelu, gelu_new"
            )
        facts["gelu"] = _GELU[activation]
    elif config.get("use_gated_mlp") and activation != "silu":
        raise UserError("this gate is not computed here", where=where, got=activation, wanted="silu")
    return facts


def _hf_labels(config: Mapping[str, Any]) -> list[str] | None:
    names = config.get("id2label")
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        return None
    return [str(names[str(i)]) for i in range(len(names))]


def _hf_looks(tree: Mapping[str, Any], notes: list[str]) -> Fields:
    """preprocessor_config.json of ViT, DeiT, BiT and DINOv3 image processors."""
    if not tree:
        return {}
    looks: Fields = {}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if isinstance(tree.get(theirs), list):
            looks[ours] = tuple(float(value) for value in tree[theirs])
    if tree.get("do_normalize") is False:
        looks |= {"mean": (0.0,), "std": (1.0,)}
    resample = tree.get("resample")
    if resample in _FILTERS:
        looks["interpolation"] = _FILTERS[resample]
    elif resample is not None:
        looks["interpolation"] = "bicubic"
        notes.append(f"resample {resample} of preprocessor_config.json is not known here; bicubic instead")
    size, cut = tree.get("size"), tree.get("crop_size")
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    looks["fit"] = "squash" if edge is None else "crop"
    height = edge if edge is not None else size.get("height") if isinstance(size, dict) else size
    cut = cut.get("height") if isinstance(cut, dict) else cut
    if tree.get("do_center_crop") and isinstance(cut, int) and isinstance(height, int) and 0 < cut <= height:
        return looks | {"crop_ratio": cut / height, "pixels": cut}
    looks |= {"crop_ratio": 1.0, "pixels": height}
    return looks


def _timm_facts(config: Mapping[str, Any], where: str) -> Fields:
    architecture, arguments = str(config["architecture"]), config.get("model_args") or {}
    if "quickgelu" in architecture or arguments.get("act_layer", "gelu") not in (*_GELU, "silu"):
        got = arguments.get("act_layer", architecture)
        raise UserError("this activation is not computed here", where=where, got=got, wanted="gelu, gelu_tanh")
    facts: Fields = {"architecture": architecture}
    if arguments.get("act_layer") in _GELU:
        facts["gelu"] = _GELU[arguments["act_layer"]]
    preset = PRESETS.get(architecture)
    if preset is not None and preset.get("family") != "resnet":
        known = resolve(architecture)
        assert isinstance(known, ViTConfig)
        facts |= {"heads": known.heads, "norm_eps": known.norm_eps}
    names = {
        "num_heads": "heads", "img_size": "image_size", "init_values": "layer_scale", "rope_temperature": "rope_theta",
    }  # fmt: skip
    facts |= {ours: arguments[theirs] for theirs, ours in names.items() if arguments.get(theirs) is not None}
    if isinstance(facts.get("rope_theta"), int):
        facts["rope_theta"] = float(facts["rope_theta"])
    pool = arguments.get("global_pool", config.get("global_pool"))
    if pool and not architecture.startswith("resnetv2"):
        if pool not in _POOL:
            raise UserError("this pooling is not computed here", where=where, got=pool, wanted=", ".join(_POOL))
        facts["pool"] = _POOL[pool]
    size = (config.get("pretrained_cfg") or config).get("input_size")
    if "image_size" not in facts and isinstance(size, list) and len(size) == 3:
        facts["image_size"] = size[1:]
    return facts


def _timm_looks(tree: Mapping[str, Any], notes: list[str]) -> Fields:
    looks: Fields = {key: tuple(map(float, tree[key])) for key in ("mean", "std") if isinstance(tree.get(key), list)}
    if tree.get("interpolation") in _FILTERS.values():
        looks["interpolation"] = tree["interpolation"]
    if isinstance(tree.get("crop_pct"), int | float):
        looks["crop_ratio"] = min(float(tree["crop_pct"]), 1.0)
    mode = tree.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        notes.append(f"crop_mode {mode} of config.json is not known here; the centre is cut instead")
    looks["fit"] = "squash" if mode == "squash" else "crop"
    return looks


def _timm_labels(config: Mapping[str, Any]) -> list[str] | None:
    names = config.get("label_names")
    if not isinstance(names, list):
        return None
    described = config.get("label_descriptions")
    known = described if isinstance(described, dict) else {}
    return [str(known.get(name, name)) for name in names]
