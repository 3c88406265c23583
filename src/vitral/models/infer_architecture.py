"""Infer the architecture from tensor shapes; facts that shapes do not determine are given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitral.errors import UserError
from vitral.models.config import bias_table_size
from vitral.models.vit_presets import SIZES

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = Mapping[str, Tensor]
Fields = dict[str, Any]
Size = int | tuple[int, int]


def infer_vit(
    tensors: Tensors, facts: Mapping[str, Any], where: str, image_size: Size | None = None
) -> tuple[Fields, list[str]]:
    """Fields of a Vision Transformer; see `models.registry.infer`."""
    notes: list[str] = []
    proj, fc1, fc2 = (
        _need(tensors, name, where)
        for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight")
    )
    width, mlp_dim = proj.shape[0], fc2.shape[-1]
    fields: Fields = {
        "family": "vit", "width": width, "mlp_dim": mlp_dim,
        "depth": _count(tensors, "blocks."),
        "mlp": "swiglu" if fc1.shape[0] == 2 * mlp_dim else "gelu",
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "class_token": "cls_token" in tensors, "distill_token": "dist_token" in tensors,
        "registers": tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
    }  # fmt: skip
    fields |= {key: facts[key] for key in ("gelu", "norm_eps", "position_resize", "rope_theta") if key in facts}
    if "blocks.0.attn.q_bias" in tensors:
        fields["key_bias"] = False
    if "blocks.0.ls1.gamma" in tensors:
        fields["layer_scale"] = facts.get("layer_scale", 1e-5)
    fields |= _stem(tensors, facts)
    fields |= _head(tensors, facts, fields)
    fields["heads"] = _heads(tensors, facts, fields, where, notes)
    sizes = (facts.get("image_size"), image_size)
    return fields | _positions(tensors, fields, facts.get("positions", "none"), where, sizes, notes), notes


def _need(tensors: Tensors, name: str, where: str) -> Tensor:
    if name not in tensors:
        raise UserError("an essential tensor is missing", where=where, got=f"no {name}, by our names")
    return tensors[name]


def _count(tensors: Tensors, prefix: str) -> int:
    """How many different numbers stand behind the prefix."""
    return len({m[1] for name in tensors if (m := re.match(rf"{re.escape(prefix)}(\d+)\.", name))})


def _stem(tensors: Tensors, facts: Mapping[str, Any]) -> Fields:
    """Patches of pixels, or of a ResNet's map."""
    proj, backbone = tensors["patch_embed.proj.weight"], "patch_embed.backbone."
    alone = f"{backbone}conv.weight" in tensors
    root = tensors.get(f"{backbone}{'' if alone else 'stem.'}conv.weight")
    if root is None:
        return {"in_channels": proj.shape[1], "patch_size": proj.shape[-1]}
    stages = 0 if alone else _count(tensors, f"{backbone}stages.")
    fields = {
        "in_channels": root.shape[1],
        "stem_blocks": [_count(tensors, f"{backbone}stages.{i}.blocks.") for i in range(stages)],
        "patch_size": proj.shape[-1] * 4 * 2 ** max(stages - 1, 0),
    }
    return fields | ({"stem_epsilons": facts["stem_epsilons"]} if "stem_epsilons" in facts else {})


def _head(tensors: Tensors, facts: Mapping[str, Any], fields: Fields) -> Fields:
    head = tensors.get("head.weight")
    found: Fields = {"num_classes": 0 if head is None else head.shape[0]}
    found["head"] = "mlp" if "pre_logits.fc.weight" in tensors else "linear"
    late = "fc_norm.weight" in tensors
    if "attn_pool.latent" in tensors:
        found |= {"pool": "map", "fc_norm": late}
    elif fields["distill_token"]:
        found |= {"pool": "cls", "fc_norm": late}
    elif head is not None and head.shape[-1] == 2 * fields["width"]:
        found |= {"pool": "cls_avg"}
    else:
        usual = "avg" if late or not fields["class_token"] else "cls"
        found |= {"pool": facts.get("pool", usual), "fc_norm": late}
    return found


def _heads(tensors: Tensors, facts: Mapping[str, Any], fields: Fields, where: str, notes: list[str]) -> int:
    width = int(fields["width"])
    if "heads" in facts:
        return int(facts["heads"])
    if (table := _bias_table(tensors)) is not None:
        return table[1].shape[1]
    if fields["qk_norm"]:
        return width // tensors["blocks.0.attn.q_norm.weight"].shape[0]
    known = {key: fields[key] for key in ("width", "depth", "mlp_dim")}
    for name, size in SIZES.items():
        if known.items() <= size.items():
            notes.append(f"{size['heads']} attention heads, as the published size {name!r} has; heads=N says otherwise")
            return size["heads"]
    if width % 64:
        raise UserError(
            "tensors do not say how many attention heads there are", where=where, got=f"width {width}",
            hint="Say it: heads=N",
        )  # fmt: skip
    notes.append(f"{width // 64} attention heads, as width / 64; heads=N says otherwise")
    return width // 64


def _bias_table(tensors: Tensors) -> tuple[str, Tensor] | None:
    """Where the positions are added, and a table of BEiT's."""
    places = {"layers": "blocks.0.attn.", "layers_shared": "rel_pos_bias."}
    found = ((at, tensors.get(f"{name}relative_position_bias_table")) for at, name in places.items())
    return next(((at, table) for at, table in found if table is not None), None)


def _bias_positions(
    at: str, entries: int, fields: Fields, where: str, sizes: Sequence[Size | None], notes: list[str]
) -> Fields:
    """Fields of a model whose bias tables have so many entries."""
    patch, prefix = int(fields["patch_size"]), int(fields["class_token"]) + int(fields["registers"])
    for size in sizes:
        height, width = (size, size) if isinstance(size, int) else size or (0, 0)
        if height and bias_table_size((height // patch, width // patch), prefix) == entries:
            return {"image_size": (height, width), "positions": "relative_bias", "positions_at": at}
    side = (round((entries - 3 * (prefix > 0)) ** 0.5) + 1) // 2
    if bias_table_size((side, side), prefix) != entries:
        got = f"a table of {entries} offsets, which are of no square"
        raise UserError("the image size cannot be inferred", where=where, got=got, hint="Say it: image_size=H,W")
    notes.append(f"the table of offsets is taken for a square, images of {side * patch} x {side * patch} pixels; "
                 "image_size=H,W states another shape")  # fmt: skip
    return {"image_size": side * patch, "positions": "relative_bias", "positions_at": at}


def _positions(
    tensors: Tensors, fields: Fields, kind: str, where: str, sizes: Sequence[Size | None], notes: list[str]
) -> Fields:
    patch = int(fields["patch_size"])
    prefix = int(fields["class_token"]) + int(fields["distill_token"])
    if (bias := _bias_table(tensors)) is not None:
        if "pos_embed" in tensors:
            raise UserError("positions of tokens beside those of offsets are not computed here", where=where,
                            got="pos_embed and relative_position_bias_table")  # fmt: skip
        return _bias_positions(bias[0], bias[1].shape[0], fields, where, sizes, notes)
    if "pos_embed" in tensors:
        table = tensors["pos_embed"]
        size, with_prefix, is_square = _size(table.shape[1], prefix, patch, sizes, where)
        if is_square:
            # Where no file states the size: 256 positions are 16 x 16, or 8 x 32.
            height, width = size
            notes.append(
                f"{table.shape[1] - prefix * with_prefix} positions are taken for a square, images of {height} x "
                f"{width} pixels{'' if with_prefix or not prefix else ', without one for the class token'}; "
                "image_size=H,W states another shape"
            )
        everywhere = {"positions_at": "layers"} if table.shape[0] > 1 else {}
        return {"image_size": size, "prefix_positions": with_prefix, "positions": "learned", **everywhere}
    for axis in ("pos_embed_y", "offset_embed"):
        if axis in tensors:
            raise UserError("these positions are known from model folders alone", where=where, got=axis)
    if kind == "none":
        notes.append(
            "these weights hold no positions, so the order of the patches has no effect; a model with rotary "
            "or relative positions that are computed, not stored, would give other outputs"
        )
    size = next((size for size in sizes if size is not None), None)
    if size is None:
        size = 256 if kind == "rope" else 16 * patch
        notes.append(f"images of {size} pixels a side; image_size=N says otherwise")
    return {"positions": kind, "image_size": size}


def _size(
    rows: int, prefix: int, patch: int, sizes: Sequence[Size | None], where: str
) -> tuple[tuple[int, int], bool, bool]:
    """Height and width in pixels, whether class and distillation token have rows in the table, and whether the shape is
    assumed to be square since none of `sizes` has as many patches."""
    counts = dict.fromkeys((rows - prefix, rows))
    for size in sizes:
        height, width = (size, size) if isinstance(size, int) else size or (0, 0)
        cells = (height // patch) * (width // patch)
        if cells in counts:
            return (height, width), cells != rows or not prefix, False
    for count in counts:
        side = round(max(count, 0) ** 0.5)
        if side and side * side == count:
            return (side * patch, side * patch), count != rows or not prefix, True
    got = f"{rows} positions, which are no square"
    raise UserError("the image size cannot be inferred", where=where, got=got, hint="Say it: image_size=H,W")


def infer_resnet(
    tensors: Tensors, facts: Mapping[str, Any], where: str, image_size: Size | None = None
) -> tuple[Fields, list[str]]:
    """Fields of a ResNet; see `models.registry.infer`."""
    stem, head = tensors["stem.conv.weight"], tensors.get("head.fc.weight")
    size = facts.get("image_size", image_size)
    fields: Fields = {
        "family": "resnet",
        "blocks": [_count(tensors, f"stages.{i}.blocks.") for i in range(_count(tensors, "stages."))],
        "block": "bottleneck" if "stages.0.blocks.0.conv3.weight" in tensors else "basic",
        "stem": "imagenet" if stem.shape[-1] == 7 else "cifar",
        "width": stem.shape[0],
        "in_channels": stem.shape[1],
        "norm": "batch" if any(name.endswith("running_mean") for name in tensors) else "group",
        "preactivation": "norm.weight" in tensors,
        "shortcut": "projection" if any("downsample" in name for name in tensors) else "zeros",
        "num_classes": 0 if head is None else head.shape[0],
        "image_size": 224 if size is None else size,
    }
    return fields, [] if size is not None else ["images of 224 pixels a side; image_size=N says otherwise"]


def infer_igpt(
    tensors: Tensors, facts: Mapping[str, Any], where: str, image_size: Size | None = None
) -> tuple[Fields, list[str]]:
    """Fields of an Image GPT; see `models.registry.infer`. The palette is one of the tensors."""
    names = ("token_embed", "pos_embed", "code_head.weight", "blocks.0.mlp.fc1.weight")
    embed, positions, output, fc1 = (_need(tensors, name, where) for name in names)
    colors = output.shape[0]
    if embed.shape[0] != colors + 1:
        got = f"{embed.shape[0]} embeddings of tokens, {colors} outputs"
        raise UserError("not an Image GPT", where=where, got=got, expected="one embedding more than outputs: the start")
    palette = tensors.get("tokenizer.colors_KC")
    if palette is None or palette.shape[0] != colors:
        got = "none" if palette is None else f"{palette.shape[0]} colors"
        hint = "preprocessor_config.json of the same model holds them as clusters; put it beside the weights."
        raise UserError("the colors of the codes are missing", where=where, got=got, expected=f"{colors} colors",
                        hint=hint)  # fmt: skip
    if "heads" not in facts:
        raise UserError("the number of heads is not in the files", where=where, hint="Say it: heads=N")
    count = positions.shape[0]
    side = round(count**0.5)
    size = image_size or side
    size = (size, size) if isinstance(size, int) else size
    if size[0] * size[1] != count:
        got = f"{count} positions for images of {size[0]} x {size[1]} pixels"
        raise UserError("the image size cannot be inferred", where=where, got=got, hint="Say it: image_size=H,W")
    return {
        "family": "igpt", "colors": colors, "width": embed.shape[1], "depth": _count(tensors, "blocks."),
        "heads": facts["heads"], "mlp_dim": fc1.shape[0], "image_size": size, "in_channels": palette.shape[1],
        "num_classes": 0,
    }, []  # fmt: skip
