"""What the JSON files beside foreign weights say: facts of the architecture, preprocessing, class names.

A key that changes what the other library computes is honored or refused; the others are listed here as such.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from vitral.errors import UserError
from vitral.models.presets import PRESETS, resolve
from vitral.models.registry import token_config
from vitral.weights import imagegpt
from vitral.weights.image_processor import hf_looks, numbers, refuse
from vitral.weights.read_files import Source

Fields = dict[str, Any]

_GELU = {"gelu": "exact", "gelu_python": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_tanh": "tanh"}
_POOL = {"token": "cls", "avg": "avg", "map": "map"}
_TIMM_FILTERS = ("bicubic", "bilinear", "lanczos")

# Model types of transformers that compute what their tensors' names say, and the epsilon of each one's class.
_HF_TYPES = {
    "vit": 1e-12, "deit": 1e-12, "vit_mae": 1e-12, "vit_msn": 1e-6, "dinov2": 1e-6, "dinov2_with_registers": 1e-6,
    "dinov3_vit": 1e-5, "beit": 1e-12, "data2vec-vision": 1e-12,
}  # fmt: skip

# timm's architectures with a plain ViT's tensors that compute something else: rotary positions, norms behind the
# branches, prefix tokens in the mean. Parts of a name between underscores (checked against all of timm 1.0.31).
_TIMM_OTHER = {
    "rope": "rotary positions", "rpn": "norms behind the branches", "test_vit3": "a mean over all tokens",
    "mci": "a convolutional stem",
}  # fmt: skip
# Those whose MLPs have the tanh form of GELU.
_TIMM_TANH = re.compile(
    r"vit_(base_patch32_siglip|large_patch16_siglip_(gap_)?512|giantopt_patch16_siglip|so400m_patch16_siglip)"
)
# Arguments of a timm model that follow from shapes, that act in training alone, or that are read below.
_TIMM_NEUTRAL = {
    "img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias",
    "qk_norm", "init_values", "class_token", "no_embed_class", "reg_tokens", "num_reg_tokens", "fc_norm",
    "use_fc_norm", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "drop_rate", "pos_drop_rate",
    "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init", "fix_init", "global_pool",
    "act_layer", "rope_temperature", "proj_bias", "pretrained", "checkpoint_path", "scriptable", "exportable",
}  # fmt: skip
# Further ones of Eva, which is read for DINOv3 alone, and these values of others that change nothing.
_TIMM_EVA = {"rope_type", "use_rot_pos_emb", "use_abs_pos_emb", "rope_rotate_half", "rope_grid_offset", "swiglu_mlp",
             "scale_mlp", "ref_feat_shape", "norm_layer", "use_post_norm", "rope_grid_indexing"}  # fmt: skip
_TIMM_BEIT = {"use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias", "head_init_scale"}
_TIMM_SAME: dict[str, tuple[Any, ...]] = {
    "pos_embed": ("learn", "none"), "norm_layer": ("layernorm",), "final_norm": (True,), "block_fn": ("block",),
}  # fmt: skip


class SidecarConfig(NamedTuple):
    """Facts of the architecture, of the preprocessing (mean, std, fit, interpolation, crop_pct), class names, and
    whether an image may have several classes (None: not stated). tensors: weights that the files beside hold."""

    facts: Fields
    looks: Fields
    labels: list[str] | None
    notes: list[str]
    multi_label: bool | None = None
    named: bool = False  # by hand, so that their number has to fit
    tensors: Mapping[str, Tensor] = {}


def read_sidecar(source: Source, gated: bool) -> SidecarConfig:
    """gated: whether the MLPs have a gate, whose activation config.json then names. Raises UserError for what ours does
    not compute."""
    config, notes = source.config, list[str]()
    several: bool | None = None
    if config.get("model_type") == imagegpt.MODEL_TYPE or "clusters" in source.preprocessor:
        looks = imagegpt.looks_of(source.preprocessor, source.where)
        palette = imagegpt.palette_of(source.preprocessor, source.where)
        return SidecarConfig(imagegpt.facts_of(config, source.where), looks, None, notes, tensors=palette)
    if "model_type" in config:
        facts, labels = _hf_facts(config, gated, source.where), _hf_labels(config)
        several = _hf_multi_label(config, labels, source.where)
    elif "architecture" in config:
        facts, labels = _timm_facts(config, source.where), _timm_labels(config)
        if "norm_eps" not in facts:
            notes.append(f"timm's {facts['architecture']} is not among ours: activation and epsilon are taken as usual")
        return SidecarConfig(facts, _timm_looks(config.get("pretrained_cfg", config), source.where), labels, notes)
    else:
        facts, labels = {}, None
    return SidecarConfig(facts, hf_looks(source.preprocessor, source.where, notes), labels, notes, several)


def _hf_facts(config: Mapping[str, Any], gated: bool, where: str) -> Fields:
    kind = config["model_type"]
    if kind not in _HF_TYPES:
        raise UserError(
            "this model type of transformers is not computed here", where=f"{where}: model_type", got=kind,
            expected=", ".join([*_HF_TYPES, imagegpt.MODEL_TYPE]),
        )  # fmt: skip
    facts = {"norm_eps": _HF_TYPES[kind]} | _renamed(config, {
        "num_attention_heads": "heads", "layer_norm_eps": "norm_eps", "image_size": "image_size",
        "layerscale_value": "layer_scale", "rope_theta": "rope_theta", "num_hidden_layers": "depth",
        "layer_scale_init_value": "layer_scale",
    })  # fmt: skip
    if kind in ("beit", "data2vec-vision"):
        facts["pool"] = "avg" if config.get("use_mean_pooling", True) else "cls"
    activation = config.get("hidden_act", "gelu")
    if not gated:
        if activation not in _GELU:
            raise UserError(
                "this activation is not computed here", where=where, got=activation, expected="gelu, gelu_new"
            )
        facts["gelu"] = _GELU[activation]
    elif config.get("use_gated_mlp") and activation != "silu":
        raise UserError("this gate is not computed here", where=where, got=activation, expected="silu")
    return facts


def _renamed(config: Mapping[str, Any], names: Mapping[str, str]) -> Fields:
    """The values that are there, by our names."""
    return {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}


def _hf_labels(config: Mapping[str, Any]) -> list[str] | None:
    names = config.get("id2label")
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        return None
    return [str(names[str(i)]) for i in range(len(names))]


def _hf_multi_label(config: Mapping[str, Any], labels: list[str] | None, where: str) -> bool | None:
    """Whether its pipeline takes a sigmoid of each class: also of a single one, where it is not configured
    otherwise."""
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification", "multi_label_classification"):
        raise UserError(
            "this kind of problem is not computed here", where=f"{where}: problem_type", got=problem,
            expected="single_label_classification or multi_label_classification",
        )  # fmt: skip
    if problem is not None:
        return problem == "multi_label_classification"
    return len(labels) == 1 if labels else None


def _timm_facts(config: Mapping[str, Any], where: str) -> Fields:
    architecture, arguments = str(config["architecture"]), config.get("model_args") or {}
    _refuse_other_computation(architecture, arguments, where)
    facts: Fields = {"architecture": architecture}
    if arguments.get("act_layer") in _GELU:
        facts["gelu"] = _GELU[arguments["act_layer"]]
    elif _TIMM_TANH.match(architecture):
        facts["gelu"] = "tanh"
    known = token_config(resolve(architecture)) if architecture in PRESETS else None
    if known is not None:
        facts |= {"heads": known.heads, "norm_eps": known.norm_eps}
    facts |= _renamed(arguments, {
        "num_heads": "heads", "img_size": "image_size", "init_values": "layer_scale", "rope_temperature": "rope_theta",
    })  # fmt: skip
    pool = arguments.get("global_pool", config.get("global_pool"))
    if pool and not architecture.startswith("resnetv2"):
        if pool not in _POOL:
            raise UserError("this pooling is not computed here", where=where, got=pool, expected=", ".join(_POOL))
        facts["pool"] = _POOL[pool]
    size = (config.get("pretrained_cfg") or config).get("input_size")
    if "image_size" not in facts and isinstance(size, list) and len(size) == 3:
        facts["image_size"] = size[1:]
    return facts


def _refuse_other_computation(architecture: str, arguments: Mapping[str, Any], where: str) -> None:
    """Raise UserError for an architecture, or an argument of it, that this package does not compute."""
    found = [what for part, what in _TIMM_OTHER.items() if f"_{part}_" in f"_{architecture.partition('.')[0]}_"]
    if found:
        raise UserError("this architecture of timm is not computed here", where=where,
                        got=f"{architecture}: {found[0]}")  # fmt: skip
    if "quickgelu" in architecture or arguments.get("act_layer", "gelu") not in (*_GELU, "silu", None):
        got = arguments.get("act_layer", architecture)
        raise UserError("this activation is not computed here", where=where, got=got, expected="gelu, gelu_tanh")
    neutral = _TIMM_NEUTRAL | (_TIMM_EVA if "dinov3" in architecture else set())
    neutral |= _TIMM_BEIT if architecture.startswith("beit") else set()
    for key, value in arguments.items():
        if key not in neutral and value not in (None, False, "") and value not in _TIMM_SAME.get(key, ()):
            hint = "Remove it from config.json if the outputs do not depend on it."
            raise UserError("this argument is not computed here", where=f"{where}: model_args.{key}", got=value,
                            hint=hint)  # fmt: skip


def _timm_looks(tree: Mapping[str, Any], where: str) -> Fields:
    looks: Fields = {key: value for key in ("mean", "std") if (value := numbers(tree, key, where))}
    filter_, ratio, mode = tree.get("interpolation"), tree.get("crop_pct"), tree.get("crop_mode") or "center"
    if filter_ not in (*_TIMM_FILTERS, None, ""):
        refuse(where, "interpolation", filter_, ", ".join(_TIMM_FILTERS))
    if ratio is not None and not (isinstance(ratio, int | float) and 0 < ratio <= 1):
        refuse(where, "crop_pct", ratio, "above 0, at most 1")
    if mode not in ("center", "squash"):
        refuse(where, "crop_mode", mode, "center, squash")
    if filter_:
        looks["interpolation"] = filter_
    if ratio is not None:
        looks["crop_pct"] = float(ratio)
    looks["resize_mode"] = "squash" if mode == "squash" else "crop"
    return looks


def _timm_labels(config: Mapping[str, Any]) -> list[str] | None:
    names, described = config.get("label_names"), config.get("label_descriptions")
    known = described if isinstance(described, dict) else {}
    return [str(known.get(name, name)) for name in names] if isinstance(names, list) else None
