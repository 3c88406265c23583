"""transformers' ImageGPT: names of its tensors, its configuration, and the colors of its image processor.

Shape letters: K colors, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.weights.image_processor import FILTERS, numbers, refuse
from vitral.weights.keymap import Rule, rule

Fields = dict[str, Any]

MODEL_TYPE = "imagegpt"
PALETTE = "tokenizer.colors_KC"

# Keys of config.json that change what is computed, and the values that Image GPT has; absent ones have these too.
_COMPUTED: dict[str, Any] = {
    "activation_function": "quick_gelu", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False, "tie_word_embeddings": False, "add_cross_attention": False,
}  # fmt: skip
_STEPS = ("do_resize", "do_normalize", "do_color_quantize")


def rules(_: Mapping[str, Tensor]) -> list[Rule]:
    """ImageGPTForCausalImageModeling: dense layers of its blocks are [in, out]."""
    layer, block = "transformer.h.{i}", "blocks.{i}"
    dense = {"attn.c_attn": "attn.qkv", "attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    return [
        rule("transformer.wte.weight", "token_embed"),
        rule("transformer.wpe.weight", "pos_embed"),
        rule(f"{layer}.ln_{{n}}.weight", f"{block}.norm{{n}}.weight"),
        *(rule(f"{layer}.{theirs}.weight", f"{block}.{ours}.weight", "transpose") for theirs, ours in dense.items()),
        *(rule(f"{layer}.{theirs}.bias", f"{block}.{ours}.bias") for theirs, ours in dense.items()),
        *(rule(f"{layer}.attn.{buffer}", None) for buffer in ("bias", "masked_bias")),
        rule("transformer.ln_f.weight", "norm.weight"),
        rule("lm_head.weight", "code_head.weight"),
    ]


def facts_of(config: Mapping[str, Any], where: str) -> Fields:
    """What config.json says of the architecture. Raises UserError for another computation."""
    for key, value in _COMPUTED.items():
        if config.get(key, value) != value:
            raise UserError("this is not computed here", where=f"{where}: {key}", got=config[key], expected=value)
    names = {"n_head": "heads", "n_layer": "depth"}
    return {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}


def looks_of(tree: Mapping[str, Any], where: str) -> Fields:
    """How an ImageGPTImageProcessor prepares images: squashed to the model's size, its filter. Raises UserError for
    steps that are left out."""
    where = f"{where}: preprocessor_config.json"
    for key in _STEPS:
        if tree.get(key, True) is not True:
            refuse(where, key, tree[key], "true")
    resample = tree.get("resample", 2)
    if resample not in FILTERS:
        refuse(where, "resample", resample, ", ".join(f"{number} ({name})" for number, name in FILTERS.items()))
    return {"resize_mode": "squash", "crop_pct": 1.0, "interpolation": FILTERS[resample]}


def palette_of(tree: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The clusters of an image processor, colors in [-1,1], as the palette [K, C] in [0,1]; {} without any. Raises
    UserError for anything else."""
    rows = tree.get("clusters")
    if rows is None:
        return {}
    where = f"{where}: preprocessor_config.json"
    if not isinstance(rows, list) or not rows:
        refuse(where, "clusters", type(rows).__name__, "a list of colors")
    colors = [numbers({"clusters": row}, "clusters", where) for row in rows]
    if len({*map(len, colors)}) != 1:
        refuse(where, "clusters", "colors of different lengths", "as many numbers for each color as channels")
    colors_KC = torch.tensor(colors, dtype=torch.float64)
    if float(colors_KC.abs().max()) > 1:
        refuse(where, "clusters", f"{float(colors_KC.min()):.4g} to {float(colors_KC.max()):.4g}", "colors in [-1,1]")
    return {PALETTE: ((colors_KC + 1) / 2).float()}
