"""Folders of runs and sweeps without a model: the message and the next command. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitral import distributed
from vitral.archive_limits import tensors_metadata
from vitral.atomic_files import is_locked
from vitral.errors import UserError, command
from vitral.files import parse_json, read_json

CONFIG, ENVIRONMENT, CHECKPOINTS = "config.yaml", "env.json", "checkpoints"
SPLIT, SWEEP = "split.safetensors", "sweep.json"
# What runs write into `checkpoints`, also under the temporary names of `whole` and of safetensors (`.tmpXXXXXX`).
_CHECKPOINT = re.compile(r"\.?(last|previous|best|damaged)\.(safetensors|sharded)(\.partial|\.old)?|\.tmp.*")


def is_checkpoint(path: Path) -> bool:
    """Whether an entry of a folder of checkpoints has one of the names that runs write."""
    return _CHECKPOINT.fullmatch(path.name) is not None


def strangers(checkpoints: Path) -> list[str]:
    """Names in a folder of checkpoints that no run writes."""
    return sorted(path.name for path in checkpoints.iterdir() if not is_checkpoint(path))


def resume_command(folder: Path, *keys: str) -> str:
    """Return the command that resumes the run in this folder, on as many processes, with further keys."""
    return _train(folder, "resume=true", *keys)


def finish_command(folder: Path) -> str:
    """The command that ends the run in this folder where it is."""
    return _train(folder, "finish=true")


def _train(folder: Path, *keys: str) -> str:
    here = distributed.launch()
    start = [f"--nproc-per-node={here.local_world}", "-m", "vitral"] if here.world > 1 else []
    words = ["torchrun" if start else "vitral", *start, "train", str(folder / CONFIG)]
    return command(*words, f"out={folder}", *keys)


def refuse_stopped(folder: Path) -> None:
    """Raises UserError for the folder of a run that has not come to its end, and for that of a sweep."""
    if (folder / SWEEP).is_file():
        _refuse_sweep(folder)
    checkpoints = folder / CHECKPOINTS
    if not (checkpoints.is_dir() and (folder / CONFIG).is_file()):
        return
    if strangers(checkpoints) and not (folder / ENVIRONMENT).is_file():
        return
    at = _reached(checkpoints)
    step = f" step {at.step} of {at.steps}" if at is not None else ""
    if is_locked(folder):
        saved = f"; its last checkpoint is of{step}" if at is not None else ""
        hint = "Its model folder is written when it ends."
        raise UserError(f"this run is still working{saved}", where=str(folder), hint=hint)
    hint = f"Resume it: {resume_command(folder)}"
    if at is not None:
        which = "the best weights so far" if at.is_validated else "the last weights (none have been validated yet)"
        hint += f"\n  Or write its model folder from {which}: {finish_command(folder)}"
    raise UserError(f"this run was stopped{' at' + step if step else ''}", where=str(folder), hint=hint)


def _refuse_sweep(folder: Path) -> None:
    tree = read_json(folder / SWEEP, constants=True)
    if not isinstance(tree, dict) or "points" not in tree:
        return
    found: Mapping[str, Any] = tree
    if is_locked(folder):
        raise UserError("this sweep is still working", where=str(folder), hint="Its models are in its subfolders.")
    if found.get("best") is not None:
        model = next((path.parent for path in sorted(folder.glob("*/model"), reverse=True)), folder / "RUN")
        hint = f"Name one of its runs: {command('vitral', 'eval', str(model))}"
        raise UserError("this folder holds a sweep of several runs", where=str(folder), hint=hint)
    words = found.get("command")
    hint = "Resume it: the command of the sweep, with resume=true"
    if isinstance(words, list):
        hint = f"Resume it: {command(*map(str, words), f'out={folder}', 'resume=true')}"
    raise UserError("this sweep was stopped", where=str(folder), hint=hint)


class _Reached(NamedTuple):
    """The step of a checkpoint, the run's last one, and whether any weights have been validated."""

    step: int
    steps: int
    is_validated: bool


def _reached(checkpoints: Path) -> _Reached | None:
    """Of the newest checkpoint that says it."""
    for stem in ("last", "previous"):
        try:
            whole, sharded = checkpoints / f"{stem}.safetensors", checkpoints / f"{stem}.sharded/state.json"
            text = tensors_metadata(whole)["state"] if whole.exists() else str(read_json(sharded)["state"])
            facts = parse_json(text, where=stem, constants=True)
            progress = facts["progress"]
            return _Reached(int(progress["step"]), int(facts["steps"]), int(progress.get("best_step", -1)) >= 0)
        except (OSError, ValueError, TypeError, AttributeError, LookupError, OverflowError):
            continue
    return None
