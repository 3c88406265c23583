"""Figures and numbers of `vitral explain` for a model: filters, positions, attention distance, similarity of layers."""

from __future__ import annotations

from typing import Any

from vitral.data.dataset import Dataset, Split, spaced
from vitral.errors import UserError
from vitral.interpret.attention_distance import attention_distance, patch_distances
from vitral.interpret.cka import LEAST, compare_layers, layer_names
from vitral.interpret.patch_filters import filter_components, position_similarity
from vitral.interpret.tokens import require_transformer
from vitral.predictor import Predictor, load
from vitral.report import explain_plots as plots
from vitral.report.sections import Figure, Section, Table
from vitral.run.command_options import ExplainOptions
from vitral.run.inference_inputs import image_batches, open_images, split_name
from vitral.training.metrics_log import log

View = tuple[Section, dict[str, Any]]  # with its part of the JSON output


def explain_model(
    model: str, predictor: Predictor, methods: set[str], options: ExplainOptions, notes: list[str]
) -> list[View]:
    """Return the configured views with their numbers. A view that the model lacks becomes a note, or a UserError if it
    was configured by name.

    model: its name as given by the user.
    """
    views = {"filters": _filters, "positions": _positions, "distance": _distance, "cka": _cka}
    found: list[View] = []
    for name in (name for name in views if name in methods):
        try:
            found.append(views[name](model, predictor, options))
        except UserError as error:
            if options.methods or name in ("distance", "cka"):
                raise
            notes.append(f"{name}: {error.what}.")
    return found


def _filters(model: str, predictor: Predictor, options: ExplainOptions) -> View:
    found = filter_components(require_transformer(predictor.model, "filters"))
    shares = found.shares_K.tolist()
    caption = (
        f"The first {len(shares)} principal components of the patch filters, row by row (figure 7, left, of arXiv "
        f"2010.11929). They explain {100 * sum(shares):.1f} % of the filters' variance, the first one "
        f"{100 * shares[0]:.1f} %. The sign of a component has no meaning."
    )
    png = plots.filter_sheet(found.filters_KCPP.float().cpu().numpy())
    alt = f"{len(shares)} principal components of the patch filters"
    figure = Figure(png, alt, caption, wide=True, name="filters.png")
    return Section("Patch filters", [figure]), {"filters": {"variance_shares": [round(s, 6) for s in shares]}}


def _positions(model: str, predictor: Predictor, options: ExplainOptions) -> View:
    vit = require_transformer(predictor.model, "positions")
    similarity_NN = position_similarity(vit).cpu().numpy()
    rows, columns = vit.grid
    caption = (
        f"Cosine similarity of position embeddings: one tile per patch, at its position, compares it with all {rows} x "
        f"{columns} patches (figure 7, center, of arXiv 2010.11929). Where the model has learned the positions, a "
        "bright spot follows the tile."
    )
    alt = f"Similarity of the position embeddings of {rows} x {columns} patches"
    figure = Figure(plots.position_sheet(similarity_NN, vit.grid), alt, caption, wide=True, name="positions.png")
    count = rows * columns
    mean = (similarity_NN.sum() - count) / max(count * (count - 1), 1)
    return Section("Positions", [figure]), {"positions": {"grid": [rows, columns], "mean_cosine": mean}}


def _distance(model: str, predictor: Predictor, options: ExplainOptions) -> View:
    vit = require_transformer(predictor.model, "attention distance")
    dataset, name, split = _some_images(model, predictor, predictor, options)
    log.info("attention distance over %d %s images", len(split), name)

    batches = (images_BCHW for images_BCHW, _ in image_batches(predictor, split, options.batch_size))
    distances_Lh = attention_distance(vit, batches).numpy()
    between_NN = patch_distances(vit.grid, vit.config.patch_size)
    uniform = float(between_NN.mean())
    caption = (
        f"Mean distance in pixels between a patch and the patches it attends to, weighted by attention, over "
        f"{len(split)} {name} images of {dataset.name}, for every head of every layer (figure 7, right, and figure 11 "
        f"of arXiv 2010.11929). Uniform attention gives {uniform:.1f} px."
    )
    png = plots.distance_plot(distances_Lh, uniform, float(between_NN.max()))
    figure = Figure(png, "Mean attention distance of every head over its layer", caption, name="distance.png")
    numbers = ((each.min(), each.mean(), each.max()) for each in distances_Lh)
    rows = [[str(layer), *(f"{number:.1f}" for number in each)] for layer, each in enumerate(numbers)]
    table = Table(["Layer", "Min px", "Mean px", "Max px"], rows, "Mean attention distance of the heads per layer.")
    found = {
        "data": dataset.name, "split": name, "count": len(split), "unit": "px", "uniform": uniform,
        "layers": distances_Lh.tolist(),
    }  # fmt: skip
    return Section("Attention distance", [figure, table]), {"distance": found}


def _some_images(
    model: str, predictor: Predictor, reader: Predictor, options: ExplainOptions
) -> tuple[Dataset, str, Split]:
    """Return the data, the name of the split, and the chosen images, with the channels that `reader` takes."""
    dataset, skipped = open_images(predictor.config, options.data, reader.config, model)
    for name in (text for texts in skipped.values() for text in texts):
        log.warning("damaged, left out: %s", name)
    name = split_name(dataset, options.split)
    whole = dataset.splits[name]
    return dataset, name, whole.subset(spaced(len(whole), options.images))


def _cka(model: str, predictor: Predictor, options: ExplainOptions) -> View:
    if options.batch_size < LEAST:
        raise UserError("too few images at once for cka", where="batch_size", got=options.batch_size, expected=LEAST)
    other, second = predictor, model
    if options.compare is not None:
        other, second = load(options.compare, options.device), options.compare
    dataset, name, mine = _some_images(model, predictor, predictor, options)
    theirs = _some_images(model, predictor, other, options)[2]
    log.info("layers compared over %d %s images", len(mine), name)

    both = (image_batches(*each, options.batch_size) for each in ((predictor, mine), (other, theirs)))
    batches = ((mine_BCHW, theirs_BCHW) for (mine_BCHW, _), (theirs_BCHW, _) in zip(*both, strict=True))
    similar_LM = compare_layers(batches, predictor.model, other.model).numpy()
    names = [layer_names(each.model) for each in (predictor, other)]
    caption = (
        f"Linear CKA of every block with every block, unbiased, over {len(mine)} {name} images of {dataset.name} in "
        f"batches of {options.batch_size}: 1 where two blocks represent the images in the same way, about 0 where "
        "their representations are unrelated. The input is at the bottom left."
    )
    png = plots.cka_plot(similar_LM, [model, second])
    alt = f"Similarity of {similar_LM.shape[0]} layers with {similar_LM.shape[1]} of {second}"
    best = similar_LM.argmax(axis=1).tolist()
    rows = [
        [mine_name, names[1][column], f"{similar_LM[row, column]:.3f}"]
        for row, (mine_name, column) in enumerate(zip(names[0], best, strict=True))
    ]
    table = Table(["Block", f"Most similar of {second}", "CKA"], rows, "The most similar block for each block.")
    found = {
        "compare": second, "data": dataset.name, "split": name, "count": len(mine), "layers": names,
        "values": similar_LM.tolist(),
    }  # fmt: skip
    return Section("Similarity of blocks (CKA)", [Figure(png, alt, caption, name="cka.png"), table]), {"cka": found}
