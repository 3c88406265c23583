"""A folder of transformers' ImageGPT, with the palette as the clusters of its image processor."""

from __future__ import annotations

from typing import Any

from vitral.export.package import Package, refuse
from vitral.models.igpt import IGPT
from vitral.weights import imagegpt
from vitral.weights.folder import FolderConfig
from vitral.weights.image_processor import FILTERS
from vitral.weights.keymap import invert


def package(model: IGPT, config: FolderConfig) -> Package:
    """The files of a folder that `from_pretrained` of transformers reads, with equal codes and logits. Raises UserError
    for what ImageGPT does not compute."""
    c, shown = model.config, config.preprocessing
    (height, width), filters = c.image_size, {name: number for number, name in FILTERS.items()}
    misfits = [
        (not c.causal, "hidden pixels"),
        (c.tokenizer is not None, "codes of an image tokenizer"),
        (c.class_tokens > 0, "class tokens"),
        (c.num_classes > 0, "a head: model.num_classes has to be 0"),
        (c.in_channels != 3, f"images of {c.in_channels} channels, its own have 3"),
        (height != width, f"images of {height} x {width} pixels, its own are square"),
        (shown.resize_mode != "squash" or shown.crop_pct < 1, "images that are cut: data.resize_mode=squash"),
        (shown.interpolation not in filters, f"interpolation={shown.interpolation}"),
    ]
    refuse("transformers ImageGPT", [what for wrong, what in misfits if wrong])
    state = dict(model.state_dict())
    colors_KC = state.pop(imagegpt.PALETTE).double()
    tree: dict[str, Any] = {
        "model_type": imagegpt.MODEL_TYPE, "architectures": ["ImageGPTForCausalImageModeling"],
        "vocab_size": c.colors + 1, "n_positions": c.tokens, "n_embd": c.width, "n_layer": c.depth, "n_head": c.heads,
        "n_inner": c.mlp_dim, "activation_function": "quick_gelu", "layer_norm_epsilon": 1e-5,
        "resid_pdrop": c.dropout, "embd_pdrop": c.dropout, "attn_pdrop": 0.0, "tie_word_embeddings": False,
        "dtype": str(model.dtype).removeprefix("torch."),
    }  # fmt: skip
    processor: dict[str, Any] = {
        "image_processor_type": "ImageGPTImageProcessor", "do_resize": True, "size": {"height": height, "width": width},
        "resample": filters[shown.interpolation], "do_normalize": True, "do_color_quantize": True,
        "clusters": (2 * colors_KC - 1).tolist(),
    }  # fmt: skip
    files = {"config.json": tree, "preprocessor_config.json": processor}
    return Package(invert(imagegpt.rules({}), state, c.heads), files, ["transformers ImageGPT"])
