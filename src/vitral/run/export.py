"""`vitral export`: export a model for another library or runtime, and compare it on the user's images."""

from __future__ import annotations

from vitral.data.dataset import spaced
from vitral.export.config import FOLDERS
from vitral.export.exporter import CALIBRATION, ExportResult, Samples, builtin_samples, export_network
from vitral.export.library_folders import Written, export
from vitral.files import read_text
from vitral.run.command_options import ExportCommandOptions
from vitral.run.inference_inputs import open_images, split_name
from vitral.training.metrics_log import console_logging
from vitral.weights.find_model import find_model, load_model
from vitral.weights.folder import CARD, FolderConfig, free_place


def export_model(model: str, options: ExportCommandOptions) -> Written | ExportResult:
    """What `vitral export` does. Raises UserError for what cannot be exported so, BeyondLimit where the export is not
    the model; nothing is written then."""
    console_logging()
    if options.format in FOLDERS:
        return export(model, options)
    free_place(options.out, options.overwrite)
    network, config = load_model(model, options.image_size)
    card = find_model(model) / CARD  # the model's own, where it has one
    text = read_text(card) if card.is_file() else f"# {config.name}\n"
    return export_network(network, config, text, options, _samples(config, options, model))


def _samples(config: FolderConfig, options: ExportCommandOptions, model: str) -> Samples:
    """Compare on evenly spaced images of the configured split; calibration takes train images that are not, where
    there are any."""
    if not options.data.named:
        return builtin_samples(options.images, config)
    dataset, _ = open_images(config, options.data, config, model)
    name = split_name(dataset, options.split)
    split, train = dataset.splits[name], dataset.splits["train"]
    compared = spaced(len(split), options.images)
    taken = set(compared) if split is train else set[int]()
    others = [place for place in range(len(train)) if place not in taken]
    left = others or compared
    calibration = [left[place] for place in spaced(len(left), CALIBRATION)]
    same = "" if others else ", the same that were compared: there are no others"
    return Samples(
        f"{name} images of {dataset.name}", [split.read(place) for place in compared],
        [train.read(place) for place in calibration] if options.precision == "int8" else [],
        f"train images of {dataset.name}{same}",
    )  # fmt: skip
