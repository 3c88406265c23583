"""Replay the batch at which a run ended, from its run folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from vitral.errors import UserError
from vitral.run.folder import read_image_config
from vitral.run.image_run import assemble, train_loader
from vitral.run.prepare import prepare
from vitral.run.train import torch_settings
from vitral.structs import sample_places
from vitral.training.nonfinite import NONFINITE, STATE, by_stream, first_non_finite
from vitral.training.train_state import SHARDED, WHOLE


def bad_state(folder: Path) -> Path | None:
    """Return the state before the last bad step of the run in this folder; None where there is none."""
    found = (folder / NONFINITE / f"{STATE}{suffix}" for suffix in (WHOLE, SHARDED))
    return next((path for path in found if path.exists()), None)


def replay(folder: Path) -> dict[str, Any]:
    """Step, images, and what is first not finite of the last bad step of the run in this folder.

    Raises UserError where the run did not end by bad steps, or its data have changed.
    """
    path = bad_state(folder)
    if path is None:
        expected = "the folder of a run that ended after bad steps"
        raise UserError("this run had no NaN step; nothing to replay", where=str(folder), expected=expected)
    config = read_image_config(folder)
    # One process does what many did: it reads their parts, and has the whole batch.
    config = config.model_copy(update={"train": config.train.model_copy(update={"parallel": "none"})})
    with torch.random.fork_rng(), torch_settings(config), closing(prepare(config)) as prepared:
        state, objective = assemble(prepared, resuming=True)
        state.load(path)
        objective.train()
        step, loader = state.progress.step, train_loader(prepared)
        batches = loader.batch(step)
        micro = config.train.micro_batch
        found = first_non_finite(objective, batches, step, micro=micro, autocast=state.autocast)
        names = {
            stream: [str(prepared.stores[stream].split.names[place]) for place in sample_places(batch).tolist()]
            for stream, batch in batches.items()
        }
        return {"step": step + 1, "first_not_finite": found, **by_stream("images", names)}
