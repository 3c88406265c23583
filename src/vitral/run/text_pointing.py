"""Whether attention peaks on the character that is written, over the images of a split.

Shape letters: B batch, M boxes of a sample, 4 a box (x0, y0, x1, y1), 33 a matrix on pixel centers, L layers, K
characters with a box, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitral import distributed
from vitral.data.crop import box_matrix
from vitral.data.dataset import spaced
from vitral.data.geometry import transform_boxes
from vitral.data.image_store import ImageStore
from vitral.data.text.batches import SplitIds
from vitral.data.text.dataset import TextSplit
from vitral.interpret.alignment import pointing
from vitral.models.sequence_model import SequenceModel
from vitral.tasks.task import Array


def source_at(ids: SplitIds, places: Sequence[int], store: ImageStore | None, device: torch.device) -> Tensor:
    """The sources of these samples of a split as the model takes them."""
    index_B = np.array(places)
    if store is not None:
        return store.get(torch.from_numpy(index_B))
    assert ids.source is not None
    return ids.source.padded(index_B, int(ids.source.length_N[index_B].max())).to(device)


def peaks_of(
    model: SequenceModel, split: TextSplit, ids: SplitIds, store: ImageStore, device: torch.device, most: int,
    batch_size: int,
) -> Array:  # fmt: skip
    """Return `pointing` of up to `most` evenly spaced samples of a split, bool [1 + L, K], by all processes.

    Boxes are mapped as the image is: from edges in its own pixels to edges in the model's input, by the part of the
    image that the resize shows and its scale along each side, then clipped to the input.
    """
    assert split.boxes is not None
    places = spaced(len(split), most)
    first, last = distributed.shard_range(len(places))
    own, was_training = places[first:last], model.training
    parts: list[Array] = []
    model.eval()
    try:
        for start in range(0, len(own), batch_size):
            index_B = np.array(own[start : start + batch_size])
            seen = store.submit(index_B)()
            matrix_B33 = box_matrix(seen.boxes_BV4[:, 0], store.size)
            boxes = [
                transform_boxes(matrix_133, torch.from_numpy(split.boxes[place])[None].float(), store.size)[0][0]
                for place, matrix_133 in zip(index_B.tolist(), matrix_B33.split(1), strict=True)
            ]
            text_BT = ids.target.padded(index_B, int(ids.target.length_N[index_B].max())).to(device)
            parts.append(pointing(model, seen.views[0].to(device), text_BT, boxes).cpu().numpy())
    finally:
        model.train(was_training)
    return np.concatenate([part for each in distributed.gather(parts) for part in each], 1)
