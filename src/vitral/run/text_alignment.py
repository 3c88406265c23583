"""What a model looked at while it wrote a text: the figures, and the section of a report.

Importing this file imports matplotlib. Shape letters: C channels, H W height and width, L layers, h heads, T written
tokens, r c rows and columns of patches, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vitral.data.image_store import ImageStore
from vitral.data.text.batches import SplitIds
from vitral.data.text.dataset import TextSplit
from vitral.data.text.tokenizer import END
from vitral.data.text.tokenizer_file import Tokenizers
from vitral.evaluate.text import is_right
from vitral.interpret.reading import Reading, read
from vitral.models.sequence_model import SequenceModel
from vitral.report import alignment_plots as plots
from vitral.report.explain_plots import as_picture
from vitral.report.sections import Figure, Note, Section
from vitral.run.text_pointing import source_at
from vitral.tasks.task import Array

_SHORT = 40  # ids of source and target together
CAUTION = (
    "Attention shows which tokens of the source a layer mixes into the step, not what the choice depends on: by then a "
    "token may hold information from any other one."
)


def picture_of(model: SequenceModel, source_1: Tensor) -> Array | None:
    """The image that is read, as uint8 [H, W, 3]; None for a text."""
    if not model.config.reads_images:
        return None
    image_CHW = source_1[0].float() / (255 if source_1.dtype == torch.uint8 else 1)
    return as_picture(image_CHW.permute(1, 2, 0).cpu().numpy())


def overview(found: Reading, picture: Array | None) -> bytes:
    """The figure of the mean over layers and heads; of images beside that of each layer."""
    layers = found.map_LhT.mean(1)
    if picture is None:
        return _drawn(found, picture, {"mean over layers and heads": layers.mean(0)})
    if found.frames is not None:
        return _drawn(found, picture, {"frame": layers[0]})
    each = {f"layer {number}": map_Trc for number, map_Trc in enumerate(layers, 1)} if len(layers) > 1 else {}
    return _drawn(found, picture, {"mean": layers.mean(0), **each})


def layer_figure(found: Reading, picture: Array | None, layer: int) -> bytes:
    """The figure of one layer: the mean over its heads, and each head."""
    map_hT = found.map_LhT[layer]
    heads = {f"head {number}": each for number, each in enumerate(map_hT)} if len(map_hT) > 1 else {}
    return _drawn(found, picture, {"mean": map_hT.mean(0), **heads})


def _drawn(found: Reading, picture: Array | None, maps: Mapping[str, Array]) -> bytes:
    if picture is not None:
        return plots.alignment_strips(picture, maps, found.written, scale=found.frames is None)
    return plots.alignment_matrices(maps, found.source, found.written)


def examples(texts: Sequence[str], rights: Sequence[Sequence[str]], lengths: Sequence[int]) -> list[tuple[int, str]]:
    """Return the places of up to three short samples, and what each is: the first right, the first wrong, then the next
    ones in order. lengths: ids of each sample; where none is short, the shortest tenth is taken."""
    limit = max(_SHORT, int(np.quantile(lengths, 0.1)))
    short = [place for place, length in enumerate(lengths) if length <= limit]
    chosen: dict[int, str] = {}
    for name, right in (("first right one", True), ("first wrong one", False)):
        place = next((place for place in short if is_right(texts[place], rights[place]) == right), None)
        if place is not None:
            chosen[place] = name
    for place in short:
        if len(chosen) == 3:
            break
        chosen.setdefault(place, "next one")
    return list(chosen.items())


def look_section(
    model: SequenceModel, split: TextSplit, ids: SplitIds, tokenizers: Tokenizers, outputs: tuple[Array, Array],
    *, store: ImageStore | None, device: torch.device,
) -> Section | None:  # fmt: skip
    """Return "What the model looks at" of three short samples of a split; None for a model without attention. outputs:
    of all of its samples, with the right texts, as a `Subject` has them."""
    if model.config.decodes_steps and not model.alignment_names:
        return None
    (outputs_N, rights), was_training = outputs, model.training
    texts = list(outputs_N["text"])
    shown: list[Figure] = []
    model.eval()
    try:
        for place, kind in examples(texts, list(rights), ids.length_N.tolist()):
            ends = [END] if outputs_N["finished"][place] else []
            tokens = [*outputs_N["written"][place], *ends]
            source_1 = source_at(ids, [place], store, device)
            found = read(model, tokenizers, source_1, tokens)
            if found.written:
                name = split.names[place] if split.sources is None else split.sources[place]
                figure = overview(found, picture_of(model, source_1))
                caption = f"{kind}: {name} \u2192 {texts[place]}"
                caption += "" if is_right(texts[place], rights[place]) else f", right: {rights[place][0]}"
                shown.append(Figure(figure, f"attention of {name}", caption, wide=True))
    finally:
        model.train(was_training)
    if not shown:
        return None
    what = "Attention of each written token over the source, mean over the heads and layers"
    if store is not None:
        what = "The image as each token is written, under the attention of its patches; the largest one is framed"
    if not model.config.decodes_steps:
        what = "The image, with the frame of the most probable alignment in which each token is written"
    caution = [Note(CAUTION)] if model.config.decodes_steps else []
    return Section("What the model looks at", [f"{what}.", *shown, *caution])
