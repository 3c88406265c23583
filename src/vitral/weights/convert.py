"""ExternalModel weights to a model and the config of its folder: format, names, architecture, all found and checked."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitral.config import build
from vitral.data.image_spec import ImageSpec, ResizeSpec
from vitral.errors import UserError
from vitral.models.config import ModelConfig
from vitral.models.create import build_model
from vitral.models.model import ImageModel
from vitral.models.registry import build_config, infer
from vitral.tasks.imagenet_names import LISTS, distinct_names, imagenet_names, numbered_names, renamed_classes
from vitral.weights.config import ReadOptions
from vitral.weights.folder import FolderConfig, resized
from vitral.weights.formats import FORMATS, Format, closest_format, find_format
from vitral.weights.google_npz import unstack
from vitral.weights.hf import as_beit_reads
from vitral.weights.keymap import Map, load_map, translate
from vitral.weights.read_files import Source, by_known_names, read
from vitral.weights.sidecar_config import SidecarConfig, read_sidecar
from vitral.weights.tensors import mismatches

_GOOGLE = ("google", "big_vision", "bit")
_SHOWN = 6


class ParsedCheckpoint(NamedTuple):
    """A checkpoint by our names, with the architecture that it seems to have; not yet checked against it."""

    source: Source
    format: Format
    tensors: dict[str, Tensor]
    architecture: ModelConfig
    unexpected: list[str]
    dropped: list[str]
    ignored: list[str]
    beside: SidecarConfig
    looks: Mapping[str, Any]
    notes: list[str]

    def faults(self) -> dict[str, list[str]]:
        """Names that are missing, unexpected, or of another shape than this architecture's."""
        with torch.device("meta"):
            found = mismatches(build_model(self.architecture).state_dict(), self.tensors)
        return {**found, "unexpected": self.unexpected + found["unexpected"]}


class ExternalModel(NamedTuple):
    """A model with a checkpoint's weights, in evaluation mode, the config of its folder, and what is worth saying."""

    model: ImageModel
    config: FolderConfig
    notes: list[str]


@contextmanager
def _values_as_expected(where: str) -> Generator[None]:
    """Turn what fails on a foreign configuration, whose keys may hold values of any kind, into a UserError with
    Python's own message."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, MemoryError) as error:
        got = str(error).split("\n")[0] or type(error).__name__
        raise UserError(
            "the configuration beside the weights holds a value that cannot be used", where=where, got=got[:300],
            hint="Look into config.json and preprocessor_config.json; --debug shows where it is read.",
        ) from error  # fmt: skip


def read_external(path: Path, options: ReadOptions | None = None, name: str | None = None) -> ExternalModel:
    """Weights of another code base as a model. Raises UserError for files that are damaged, unknown, or do not fit.

    name: what the model is called; default: the file's or folder's name.
    """
    options = options or ReadOptions()
    with _values_as_expected(str(path)):
        found = parse_checkpoint(read(path), options)
        _check(found, options)
        model = build_model(found.architecture).eval()
        absent = model.load_state_dict(found.tensors, strict=False).missing_keys
        notes = [*found.notes, *([f"left at their initial values: {_listed(absent)}"] if absent else [])]
        config = _folder_config(found, name or (path.resolve().stem if path.is_file() else path.resolve().name))
        if options.image_size is not None:
            model, config = resized(model, config, options.image_size, None, str(path))
        return ExternalModel(model, config, [*notes, *_guessed(found)])


def parse_checkpoint(source: Source, options: ReadOptions) -> ParsedCheckpoint:
    """Find the format, map the names, infer the architecture. Raises UserError where one of them is not possible."""
    with _values_as_expected(source.where):
        return _parsed(source, options)


def _parsed(source: Source, options: ReadOptions) -> ParsedCheckpoint:
    own = load_map(options.map) if options.map else None
    source = source if own else by_known_names(source)
    raw = unstack(source.tensors)
    ignored = [name for name in raw if _matches(name, options.ignore)]
    tensors = {name: tensor for name, tensor in raw.items() if name not in ignored}
    each = _format(tensors, own, source.where)
    found = translate(own.rules if own else each.rules(tensors), tensors)
    ours = {name: tensor for name, tensor in found.tensors.items() if tensor.numel()}
    if not ours:
        raise UserError("no rule of the map fits any tensor", where=source.where, got=_listed(list(tensors)))
    beside = read_sidecar(source, gated=_gated(ours))
    ours |= beside.tensors
    if names := class_names(options, own):
        beside = beside._replace(labels=names, named=True)
    given = (own.architecture if own else {}) | ({"heads": options.heads} if options.heads else {})
    if own:
        stated = own.preprocessing.model_dump(exclude_unset=True)
        stated |= {key: own.architecture[key] for key in ("mean", "std") if key in own.architecture}
        beside = beside._replace(looks={**beside.looks, **stated})
    looks = {**each.looks, **beside.looks}
    facts = {**each.facts, **beside.facts, **given}
    _refuse_other_rotation(each, facts, ours, source.where)
    fields, guesses = infer(ours, facts, source.where, options.image_size)
    if facts.get("depth", fields.get("depth")) != fields.get("depth"):
        got = f"num_hidden_layers {facts['depth']}, and tensors of {fields['depth']} blocks"
        raise UserError("config.json is of another model than the weights", where=source.where, got=got)
    fields |= _normalization(fields["in_channels"], looks, source.where) | given
    architecture = build_config(fields, where=source.where)
    if each.name == "hf_beit":
        ours = as_beit_reads(ours, architecture.grid)
    notes = [*source.notes, f"format: {each.what}" if own is None else f"names mapped by {options.map}", *guesses]
    if found.dropped:
        notes.append(f"not needed: {_listed(found.dropped)}")
    return ParsedCheckpoint(
        source, each, ours, architecture, found.unexpected, found.dropped, ignored, beside, looks,
        [*notes, *beside.notes],
    )  # fmt: skip


def _format(tensors: Mapping[str, Tensor], own: Map | None, where: str) -> Format:
    if own is not None:
        return Format("map", "a map of one's own", (), lambda _: own.rules, {}, {})
    each = find_format(tensors)
    if each is not None:
        return each
    closest, known = closest_format(tensors)
    near = f"Closest: {closest.what}, with {known} of {len(tensors)} names. " if known else ""
    raise UserError(
        "no known format has these names", where=where, got=_listed(list(tensors)),
        expected="; ".join(dict.fromkeys(each.what for each in FORMATS)),
        hint=f"{near}Rules for other names: map=map.yaml, see `vitral docs weights`",
    )  # fmt: skip


def class_names(options: ReadOptions, own: Map | None) -> list[str]:
    """Return the class names that are given by hand: of `classes=`, or else of the map."""
    names = options.classes or (own.classes if own else ())
    if len(names) == 1 and Path(names[0]).expanduser().is_file():
        try:
            text = Path(names[0]).expanduser().read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise UserError("not readable as a list of names", where="classes", got=error) from None
        return [line.strip() for line in text.splitlines() if line.strip()]
    return list(names)


def _gated(ours: Mapping[str, Tensor]) -> bool:
    first, second = (ours.get(f"blocks.0.mlp.fc{n}.weight") for n in (1, 2))
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[-1]


def _refuse_other_rotation(each: Format, facts: Mapping[str, Any], ours: Mapping[str, Tensor], where: str) -> None:
    """timm's other Eva models have the same names, and turn by other angles."""
    name = facts.get("architecture", "dinov3")
    if each.name == "timm_dinov3" and ("dinov3" not in name or "pos_embed" in ours):
        got = name if "dinov3" not in name else "learned positions"
        raise UserError("of timm's Eva models only DINOv3's rotation is computed here", where=where, got=got)


def _normalization(channels: int, looks: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Mean and std of so many channels; a single number counts for each, three colors are averaged for gray."""
    found: dict[str, Any] = {}
    for key in ("mean", "std"):
        values = tuple(looks.get(key, (0.5,)))
        if len(values) not in (1, 3, channels):
            raise UserError(
                f"{key} of the preprocessing has {len(values)} values", where=where, got=str(values),
                expected=f"1, or {channels} (one per channel)",
            )  # fmt: skip
        if len(values) != channels:
            values = (math.fsum(values) / len(values),) * channels
        found[key] = values
    return found


def _check(found: ParsedCheckpoint, options: ReadOptions) -> None:
    """Raises UserError that names what does not fit, unless `ignore` declares it."""
    wrong = {
        what: undeclared
        for what, names in found.faults().items()
        if (undeclared := [name for name in names if not _matches(name.split(" ")[0], options.ignore)])
    }
    if not wrong:
        return
    closest, known = closest_format(found.source.tensors)
    better = known > sum(name not in found.unexpected for name in found.source.tensors)
    hint = f"Closest format: {closest.what}, with {known} of {len(found.source.tensors)} names. " if better else ""
    raise UserError(
        "these weights do not fit the architecture that they seem to be of", where=found.source.where,
        got="; ".join(f"{len(names)} {what} ({_listed(names)})" for what, names in wrong.items()),
        expected=f"{found.architecture.description}, as {found.format.what}",
        hint=f"{hint}ignore=PATTERN declares names; vitral weights inspect shows all.",
    )  # fmt: skip


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _folder_config(found: ParsedCheckpoint, name: str) -> FolderConfig:
    architecture = found.architecture
    labels = _labels(found, architecture.num_classes)
    shown = {"image_size": architecture.image_size, "channels": architecture.in_channels, "resize_mode": "crop"}
    shown |= {key: found.looks[key] for key in ResizeSpec.model_fields if key in found.looks}
    preprocessing = build(ImageSpec, shown, where=found.source.where)
    several = bool(found.beside.multi_label) and bool(labels)
    headless = "pixels" if architecture.has_codes else "features"
    provenance = {"converted_from": {"file": Path(found.source.where).name, "format": found.format.name}}
    return FolderConfig(
        name=name, architecture=architecture, id2label=labels, preprocessing=preprocessing, provenance=provenance,
        task="multilabel" if several else "classification" if labels else headless,
    )  # fmt: skip


def _labels(found: ParsedCheckpoint, count: int) -> dict[str, str]:
    names, what = found.beside.labels, "the class names are not as many as the outputs"
    if names is not None and len(names) == count:
        return distinct_names({str(index): label for index, label in enumerate(names)})
    if names is not None and found.beside.named:
        raise UserError(what, where="classes", got=len(names), expected=count)
    google = imagenet_names(count) if found.format.name in _GOOGLE else None
    return google if google is not None else numbered_names(count)


def _guessed(found: ParsedCheckpoint) -> list[str]:
    """What no file says, and so is the custom of its family."""
    notes: list[str] = []
    stated, shown = found.beside.looks.keys(), found.looks
    guessed = [key for key in ("mean", "std", "resize_mode", "interpolation", "crop_pct") if key not in stated]
    if {"mean", "std", "resize_mode", "interpolation"} & set(guessed):
        values = ", ".join(f"{key} {shown[key]}" for key in guessed if key in shown)
        what = f"{', '.join(guessed)} of the preprocessing are" if stated else "preprocessing is"
        notes.append(f"{what} not in the files; {f'that of the family is used: {values}' if values else 'as usual'}")
    count = found.architecture.num_classes
    if found.beside.labels is None and count:
        named = LISTS[count][1] if count in LISTS and found.format.name in _GOOGLE else "numbered"
        notes.append(f"class names are not in the files: {named}")
    names = found.beside.labels or []
    if len(names) == count and (renamed := renamed_classes(names)):
        notes.append(f"class names that are there twice got a number: {_listed(renamed)}")
    pixels, (height, width) = found.beside.looks.get("pixels"), found.architecture.image_size
    if pixels and pixels not in ([height, width], height if height == width else None):
        notes.append(f"preprocessor_config.json cuts {pixels} pixels; image_size={pixels} gives a model of that size")
    return notes
