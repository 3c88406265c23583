"""Record of the training and the held-out images of a run, by content, in the run folder.

The file holds 64 bits per image over size and content (see `data.identity`), no names and no pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vitral.data.dataset import Carved, Dataset
from vitral.errors import UserError
from vitral.weights.folder import find_folder
from vitral.weights.stopped_run import SPLIT
from vitral.weights.tensors import DamagedFile, load_tensors, save_tensors


def save_split(folder: Path, dataset: Dataset) -> None:
    """Remember how the run's validation split was held out of train, if it was."""
    if dataset.carved is None:
        return
    ids = {"train": dataset.carved.train_N, "val": dataset.carved.val_N}
    tensors = {name: torch.from_numpy(np.sort(each).view(np.int64)) for name, each in ids.items()}
    save_tensors(folder / SPLIT, tensors, {"fingerprint": dataset.fingerprint}, checked=True)


def load_split(model: str, fingerprint: str) -> Carved | None:
    """What the run that made this model remembers of data with this fingerprint; None where there is nothing. Raises
    UserError where the file is damaged: other images than those held out would be drawn."""
    try:
        path = find_folder(model).parent / SPLIT
    except UserError:
        return None
    if not path.is_file():
        return None
    try:
        tensors, facts = load_tensors(path, checked=True)
    except DamagedFile as error:
        raise UserError(
            str(error),
            hint="It says which images the run held out. Evaluate on other images: data=FOLDER. Or remove the file: "
            "held-out images are then drawn again, and the run may have been trained on them.",
        ) from None
    if facts.get("fingerprint") != fingerprint or not {"train", "val"} <= tensors.keys():
        return None
    return Carved(*(tensors[name].numpy().view(np.uint64) for name in ("train", "val")))
