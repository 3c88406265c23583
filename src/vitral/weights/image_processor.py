"""preprocessor_config.json of transformers: every key that changes the pixels is honored or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from vitral.errors import UserError

Fields = dict[str, Any]

FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
_FIRST_SQUASHED = 384  # of ConvNext: from this size on nothing is cut
_STEPS = ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb", "do_reduce_labels")
# Keys that are read below, and those that change no pixels alone (padding needs do_pad, which is refused).
_READ = {
    "rescale_factor", "image_mean", "image_std", "offset", "rescale_offset", "resample", "size", "crop_size",
    "crop_pct", "image_processor_type", "feature_extractor_type", "default_to_square", *_STEPS,
}  # fmt: skip
_NEUTRAL = {
    "processor_class", "auto_map", "transformers_version", "data_format", "input_data_format", "return_tensors",
    "device", "disable_grouping", "num_channels", "pad_size", "model_input_names", "include_top",
    "_valid_processor_keys",
}  # fmt: skip
# Keys of other processors that change pixels, and the values of them that say what is done here anyway.
_OTHERS: dict[str, tuple[Any, ...]] = {
    "keep_aspect_ratio": (False,), "resize_mode": (), "image_color": ("RGB",), "max_image_size": (),
    "min_image_size": (), "antialias": (True,), "ensure_multiple_of": (1,), "crop_mode": ("center",), "pad": (False,),
}  # fmt: skip
# Processors for which a single number is the shorter side, not both.
_SHORTER = ("Bit", "CLIP", "ConvNext", "ConvNeXT", "LeViT", "Levit", "PoolFormer")


def hf_looks(tree: Mapping[str, Any], where: str, notes: list[str]) -> Fields:
    """Return fit, interpolation, crop_pct, mean, std and the side in pixels that an image processor gives; {} of no
    file. Raises UserError, with the key, for steps that are not computed here."""
    if not tree:
        return {}
    where = f"{where}: preprocessor_config.json"
    for key, value in tree.items():
        if key.startswith("do_") and value and key not in _STEPS:
            refuse(where, key, value, "false")
        if value is not None and value not in _OTHERS.get(key, (value,)):
            refuse(where, key, value, ", ".join(map(str, _OTHERS[key])) or "no such key")
        if value and not key.startswith("do_") and key not in (*_READ, *_NEUTRAL, *_OTHERS, "interpolation"):
            notes.append(f"preprocessor_config.json: {key} is not known and not heeded: {str(value)[:40]}")
    looks = _normalization(tree, where)
    resample: Any = tree.get("resample")
    name = tree.get("interpolation")
    if name is not None:
        by_name = {word: key for key, filter_ in FILTERS.items() for word in (filter_, str(key))}
        found = by_name.get(str(name).lower())
        if found is None or resample not in (None, found):
            refuse(where, "interpolation", name, ", ".join(FILTERS.values()) + ", the same as resample")
        resample = found
    if resample is not None:
        if not _is_number(resample) or resample not in FILTERS:
            refuse(where, "resample", resample, ", ".join(f"{n} ({name})" for n, name in FILTERS.items()))
        looks["interpolation"] = FILTERS[int(resample)]
    if tree.get("do_resize") is False:
        if tree.get("do_center_crop"):
            refuse(where, "do_resize", False, "true: images are cut at the center after they are resized")
        notes.append("do_resize is false: transformers takes images of the model's size alone; here others are resized")
        return looks
    return looks | _geometry(tree, where, notes)


def refuse(where: str, key: str, got: object, expected: str) -> NoReturn:
    """Raise UserError for a key that changes pixels in a way that is not computed here."""
    hint = "Other preprocessing gives other answers; change the key to accept that."
    raise UserError("this preprocessing is not computed here", where=f"{where}: {key}", got=got, expected=expected,
                    hint=hint)  # fmt: skip


def _normalization(tree: Mapping[str, Any], where: str) -> Fields:
    """Mean and std in units of [0,1] images, of values that are scaled by another factor than 1/255.

    With x in [0,1] and k = 255 factor, (k x - offset - mean) / std = (x - (mean + offset) / k) / (std / k).
    """
    factor = tree.get("rescale_factor", 1 / 255) if tree.get("do_rescale") is not False else 1.0
    if not _is_number(factor):
        refuse(where, "rescale_factor", factor, "a number")
    scale = 255 * factor
    scale = 1.0 if abs(scale - 1) < 1e-6 else scale
    if not scale > 0:
        refuse(where, "rescale_factor", factor, "above 0")
    offset = 1.0 if tree.get("offset") or tree.get("rescale_offset") else 0.0
    if tree.get("do_normalize") is False:
        mean, std = (0.0,), (1.0,)
    else:
        mean, std = (numbers(tree, key, where) for key in ("image_mean", "image_std"))
    looks: Fields = {}
    for key, values, shift in (("mean", mean, offset), ("std", std, 0.0)):
        if values:
            looks[key] = tuple((value + shift) / scale for value in values)
        elif scale != 1 or offset:
            refuse(where, f"image_{key}", tree.get(f"image_{key}"), "a list, beside another rescale_factor than 1/255")
    if not all(0 <= value <= 1 for key in looks for value in looks[key]):
        shown = "; ".join(f"{key} {looks[key]}" for key in looks)
        refuse(where, "image_mean, image_std, rescale_factor", shown, "mean and std in [0,1], of images in [0,1]")
    return looks


def numbers(tree: Mapping[str, Any], key: str, where: str) -> tuple[float, ...]:
    """Return the numbers under a key, one or one per channel; none for null. Raises UserError, with the key, for
    anything else."""
    found = tree.get(key)
    if found is None:
        return ()
    values: list[Any] = list(found) if isinstance(found, list | tuple) else [found]
    if not all(map(_is_number, values)) or len(values) not in (1, 2, 3, 4):
        refuse(where, key, found, "a number, or a list of one per channel")
    return tuple(map(float, values))


def _is_number(found: Any) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)


def _geometry(tree: Mapping[str, Any], where: str, notes: list[str]) -> Fields:
    size, percent, cut = tree.get("size"), tree.get("crop_pct"), tree.get("crop_size")
    kind = str(tree.get("image_processor_type") or tree.get("feature_extractor_type") or "")
    if size is None and not tree.get("do_center_crop"):
        return {}
    is_shorter = kind.startswith(_SHORTER) or tree.get("default_to_square") is False
    height, width, shorter = _sides(size, where, is_shorter=is_shorter)
    if percent is not None and not (isinstance(percent, int | float) and 0 < percent <= 1):
        refuse(where, "crop_pct", percent, "above 0, at most 1")
    if kind.startswith(("ConvNext", "ConvNeXT")) and height >= _FIRST_SQUASHED:
        return {"resize_mode": "squash", "crop_pct": 1.0, "pixels": height}
    if percent not in (None, 1):
        if not shorter:
            refuse(where, "crop_pct", percent, "1, or size.shortest_edge")
        return {"resize_mode": "crop", "crop_pct": float(percent), "pixels": height}
    looks: Fields = {"resize_mode": "crop" if shorter else "squash"}
    if not tree.get("do_center_crop"):
        return looks | {"crop_pct": 1.0, "pixels": height if height == width else [height, width]}
    high, wide = _crop(cut, where)
    if shorter and high != wide and min(high, wide) == height:
        notes.append(
            f"crop_size {high} x {wide}: transformers pads images of another shape with black; here they are scaled up"
        )
        return looks | {"crop_pct": 1.0, "pixels": [high, wide]}
    if not (0 < high <= height and 0 < wide <= width):
        refuse(where, "crop_size", cut, f"at most {height} x {width}, the resized image")
    if high * width != wide * height:
        expected = "a square" if shorter else f"the shape of size, {height} x {width}"
        refuse(where, "crop_size", cut, expected)
    return looks | {"crop_pct": high / height, "pixels": high if high == wide else [high, wide]}


def _sides(size: Any, where: str, *, is_shorter: bool) -> tuple[int, int, bool]:
    """Height and width after the resize, and whether they are the shorter side of an image that keeps its aspect."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size, size, is_shorter
    match {key: value for key, value in size.items() if value is not None} if isinstance(size, dict) else {}:
        case {"shortest_edge": int(side), **others} if not others:
            return side, side, True
        case {"height": int(height), "width": int(width), **others} if not others:
            return height, width, False
        case _:
            pass
    refuse(where, "size", size, "shortest_edge, or height and width")


def _crop(cut: Any, where: str) -> tuple[int, int]:
    if isinstance(cut, dict) and isinstance(cut.get("height"), int):
        return cut["height"], cut.get("width", cut["height"])
    if isinstance(cut, int):
        return cut, cut
    refuse(where, "crop_size", cut, "height and width, since do_center_crop is true")
