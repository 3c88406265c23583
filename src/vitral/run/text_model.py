"""The tokenizers and the architecture that the keys of a text run and its data lead to."""

from __future__ import annotations

from typing import Any

from vitral.config import changed_keys
from vitral.config_keys import as_word
from vitral.data.config import AugmentConfig
from vitral.data.text.dataset import TextDataset
from vitral.data.text.tokenizer import PAD
from vitral.data.text.tokenizer_file import Tokenizers, train_tokenizers
from vitral.errors import UserError
from vitral.models.presets import PRESETS, changed_name, resolve_sequence
from vitral.models.registry import build_any
from vitral.models.sequence_config import SequenceConfig
from vitral.run.text_config import IMAGE_KEYS, TextData, TextRunConfig
from vitral.run.text_init import TextInit
from vitral.tasks.text_writing import unread_keys


def make_tokenizers(config: TextRunConfig, dataset: TextDataset, init: TextInit | None) -> Tokenizers:
    """Those of `init`, or tokenizers trained on the training split. Raises UserError where other ones are set, and for
    an `init` that reads the other kind of source."""
    train, data = dataset.splits["train"], config.data
    if init is not None:
        _require_kind(dataset, reads_images=init.encoder is not None, where="init", got=init.where, kind="model")
    if init is not None and init.tokenizers is not None:
        _check_tokenizers(data, init.tokenizers, init.where)
        return init.tokenizers
    shared = bool(config.model.options().get("share_embeddings", _preset(config).get("share_embeddings", False)))
    sources = None if train.sources is None else list(train.sources)
    return train_tokenizers(data.tokenizer, list(train.targets), data.source_tokenizer, sources, shared=shared)


def refuse_unread(config: TextRunConfig, architecture: SequenceConfig) -> None:
    """Raise UserError for keys that are set and have no effect: with this kind of source, and with this model."""
    data, shared = config.data, bool(getattr(architecture, "share_embeddings", False))
    if architecture.reads_images:
        unread = [(data, "data", ("max_source", "source_tokenizer"), "images are read, not texts")]
    else:
        augment = AugmentConfig.model_fields.keys() - {"repeated_aug"}
        unread = [
            (data, "data", IMAGE_KEYS, "texts are read, not images"),
            (config.augment, "augment", sorted(augment), "texts are read, not images"),
            (data, "data", ("source_tokenizer",) if shared else (), "model.share_embeddings=true: one vocabulary"),
        ]
    if not architecture.decodes_steps:
        names = unread_keys(config.search, architecture)
        unread += [
            (config.search, "search", names, "CTC gives all tokens at once"),
            (config.objective, "objective", ("label_smoothing",), "CTC's loss has no smoothing"),
        ]
    for part, group, names, why in unread:
        if found := changed_keys(part, names):
            words = " ".join(f"{group}.{key}={as_word(type(part).model_fields[key].default)}" for key in found)
            where = ", ".join(f"{group}.{key}" for key in found)
            raise UserError(f"no effect: {why}", where=where, expected=words)


def _require_kind(dataset: TextDataset, *, reads_images: bool, where: str, got: str, kind: str) -> None:
    """Raise UserError for a model, or a preset, that reads the other kind of source."""
    if reads_images != dataset.has_images:
        data, model = ("images", "texts") if dataset.has_images else ("texts", "images")
        raise UserError(
            f"the data are {data}, and this model reads {model}", where=where, got=got,
            expected=f"a {kind} that reads {data}: vitral models",
        )  # fmt: skip


def _check_tokenizers(data: TextData, tokenizers: Tokenizers, where: str) -> None:
    """Raise UserError for a kind of tokenizer or a size of its vocabulary that is set and is not that of init, whose
    ids the weights know."""
    sides = (
        ("tokenizer", data.tokenizer, tokenizers.target), ("source_tokenizer", data.source_tokenizer, tokenizers.source)
    )  # fmt: skip
    for key, asked, own in sides:
        if asked is None or own is None:
            continue
        for name, theirs in (("kind", own.kind), ("vocab_size", len(own.entries))):
            if name in asked.model_fields_set and getattr(asked, name) != theirs:
                raise UserError(
                    "a run that starts from a model keeps its tokenizers", where=f"data.{key}.{name}",
                    got=getattr(asked, name), expected=f"{theirs}, as in {where}",
                )  # fmt: skip


def _preset(config: TextRunConfig) -> dict[str, Any]:
    return PRESETS.get(config.model.name, {})


def choose_sequence(
    config: TextRunConfig, dataset: TextDataset, tokenizers: Tokenizers, init: TextInit | None
) -> tuple[str, SequenceConfig]:
    """The model's name, with what differs from a preset, and its shape for these data. Raises UserError for a model
    that reads the other kind of source."""
    data, base, name = config.data, _preset(config), config.model.name
    if name == "auto":
        if init is None or not isinstance(init.architecture, SequenceConfig):
            hint = "init=MODEL of one that writes text, or a preset: vitral models"
            raise UserError("no model to take the architecture of", where="model.name", got="auto", hint=hint)
        base, name = init.architecture.model_dump(), init.name
    reads_images = base.get("family") == "image_to_text"
    if base:
        _require_kind(dataset, reads_images=reads_images, where="model.name", got=name, kind="preset")
    options: dict[str, Any] = {**config.model.options(), "vocabulary": len(tokenizers.target), "pad_id": PAD}
    if reads_images:
        options["encoder"] = _encoder(data, base["encoder"], dataset, init)
    elif tokenizers.source is not None:
        options["source_vocabulary"] = len(tokenizers.source)
    is_auto = config.model.name == "auto"
    if base.get("decoder") != "ctc":
        longest = data.max_target if reads_images else max(data.max_target, data.max_source)
        options["max_length"] = max(longest, config.search.max_length, base["max_length"] if is_auto else 1)
    architecture = build_any(SequenceConfig, {**base, **options}) if is_auto else resolve_sequence(name, **options)
    return changed_name(name, architecture), architecture


def _encoder(data: TextData, base: dict[str, Any], dataset: TextDataset, init: TextInit | None) -> dict[str, Any]:
    """Keys of the encoder of images: those of the preset or of `init`, for images of these data."""
    found = dict(base)
    if init is not None and init.tokenizers is None:
        found = {**init.encoder_keys(), "image_size": base["image_size"]}
    if found.get("in_channels") != dataset.channels:
        found |= {"in_channels": dataset.channels, "mean": (), "std": ()}
    return found if data.image_size == "auto" else {**found, "image_size": data.image_size}
