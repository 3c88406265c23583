"""Load the complete objective of a self-supervised run, including parts that the model folder does not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitral.data.dataset import spaced
from vitral.data.image_store import ImageStore
from vitral.errors import UserError
from vitral.models.config import ModelConfig
from vitral.models.create import build_model
from vitral.models.registry import build_config, families_of
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.registry import OBJECTIVES
from vitral.run.folder import CHECKPOINTS, read_image_config
from vitral.training.train_state import LAST, WHOLE
from vitral.weights.tensors import check_match, load_tensors

_PICTURES = 8


def load_objective(folder: str | Path) -> Objective:
    """The whole objective of a run without labels, decoder and heads too, as its last checkpoint has it, in evaluation
    mode on the CPU: to look at what the model folder, an encoder alone, no longer shows.

    Raises UserError for a folder that is no such run, or that has no checkpoint yet.
    """
    path = Path(folder).expanduser()
    if not (path / "config.yaml").is_file():
        raise UserError("no run here: config.yaml is missing", where=str(folder))
    config = read_image_config(path)
    if config.objective.needs_labels:
        hint = "vitral.load(folder) gives the model, which is all there is of it."
        raise UserError("a run with labels", where=str(folder), got=config.objective.kind, hint=hint)
    images = config.data.model_dump(include={"image_size", "mean", "std"}) | {"in_channels": config.data.channels}
    options = config.model.options()
    family = next(name for name, kind in families_of(ModelConfig).items() if options.keys() <= kind.model_fields.keys())
    architecture = build_config({"family": family, **options, **images, "num_classes": 0})
    kind, context = OBJECTIVES[config.objective.kind], ObjectiveContext(1, seed=config.seed)
    objective = kind(lambda: build_model(architecture), config.objective, context)
    checkpoint, prefix = path / CHECKPOINTS / f"{LAST}{WHOLE}", "objective."
    tensors = load_tensors(checkpoint, checked=True)[0]
    mine = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    check_match(objective.state_dict(), mine, str(checkpoint))
    objective.load_state_dict(mine)
    return objective.eval()


@torch.inference_mode()
def pictures_of(store: ImageStore, objective: Objective) -> dict[str, Any]:
    """What the objective shows of a few images that it has not learned from, if there are any."""
    images_BCHW: Tensor = store.get(torch.tensor(spaced(len(store.split), _PICTURES)))
    unit_BCHW = images_BCHW.float() / 255 if images_BCHW.dtype == torch.uint8 else images_BCHW
    columns = objective.eval().pictures(unit_BCHW)
    return {name: images.clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy() for name, images in columns.items()}
