"""Prune a model folder: remove the heads and hidden features of least importance, measured on images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from vitral.compression.prune_channels import choose_kept, measure_importance, prune
from vitral.data.dataset import spaced
from vitral.errors import UserError, command
from vitral.models.presets import changed_name
from vitral.models.registry import token_encoder
from vitral.models.summary import count_macs, count_parameters
from vitral.models.vit import VisionTransformer
from vitral.predictor import load
from vitral.run.command_options import PruneOptions
from vitral.run.inference_inputs import image_batches, open_images, split_name
from vitral.training.metrics_log import console_logging, log
from vitral.weights.card import model_card
from vitral.weights.folder import FolderConfig, free_place, save_folder

_MEASURED = ("metrics", "more_metrics", "worst_classes")  # of the old weights


def prune_model(model: str, options: PruneOptions) -> dict[str, Any]:
    """Write the smaller model folder; returns what `vitral prune --json` prints: `out`, `parameters` and `macs` of one
    image [before, after], heads and hidden features of each block, `images`.

    The new folder has temperature 1, since the old one was fitted to other logits, and no metrics. Raises
    UserError for a model without a head or without blocks to prune, and for data of other classes.
    """
    console_logging()
    if options.out is None:
        raise UserError("a folder for the smaller model is expected", where="out", hint="vitral prune MODEL out=DIR")
    out = free_place(options.out, options.overwrite)
    predictor = load(model, options.device)
    predictor.require_answers()
    if not predictor.task.has_classes:
        raise UserError("importance is measured by the loss of classes", where=model, got=predictor.task.name)
    network, folder = token_encoder(predictor.model), predictor.config
    if network is None:
        what = "this model has no heads and no MLPs to prune"
        raise UserError(what, where=model, got=predictor.model.config.description)
    dataset, skipped = open_images(folder, options.data, folder, model)
    name = split_name(dataset, options.split)
    split = predictor.task.match(dataset, dataset.splits[name])
    split = split.subset(spaced(len(split), options.images or len(split)))
    log.info("measuring importance on %d %s images", len(split), name)
    importance = measure_importance(network, image_batches(predictor, split, options.batch_size))
    kept = choose_kept(network.config, importance, options.flops)
    smaller = prune(network, kept)
    configs = network.config, smaller.config
    found = {
        "model": model, "out": str(out), "data": dataset.name, "split": name, "images": importance.images,
        "parameters": [count_parameters(c) for c in configs], "macs": [sum(count_macs(c).values()) for c in configs],
        "heads": list(smaller.config.heads_of_blocks), "mlp_dims": list(smaller.config.mlp_dims_of_blocks),
        "skipped": skipped.get(name, []), "next": _next(folder, options, out),
    }  # fmt: skip
    pruned = _folder(folder, smaller, found)
    save_folder(out, smaller.cpu(), pruned, model_card(pruned))
    return found


def _next(folder: FolderConfig, options: PruneOptions, out: Path) -> str:
    """Return the command that fine-tunes the smaller model, including its head, on the same images."""
    data = options.data if options.data.named else folder.provenance.get("data", {})
    get = data.get if isinstance(data, dict) else partial(getattr, data)
    words = ["vitral", "train", "finetune", f"init={out}", "init_head=true", "objective.head_only_fraction=0"]
    words.append(f"data={get('path') or ('digits' if get('source') == 'digits' else 'PHOTOS')}")
    return command(*words, f"out={out}-tuned")


def _folder(old: FolderConfig, smaller: VisionTransformer, found: dict[str, Any]) -> FolderConfig:
    provenance = {key: value for key, value in old.provenance.items() if key not in _MEASURED}
    provenance["pruned"] = {key: found[key] for key in ("model", "data", "split", "images", "parameters", "macs")}
    name = changed_name(old.name, smaller.config)
    update = {"name": name, "architecture": smaller.config, "temperature": 1.0, "provenance": provenance}
    return old.model_copy(update=update)
