"""A run folder without a model: what is said of it, and what to type. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from vitral import distributed
from vitral.bounds import tensors_metadata
from vitral.errors import UserError, command
from vitral.files import parse_json, read_json
from vitral.whole import is_locked


def resume_command(folder: Path, *keys: str) -> str:
    """The command that goes on with the run in this folder, on as many processes, with further keys."""
    here = distributed.launch()
    start = [f"--nproc-per-node={here.local_world}", "-m", "vitral"] if here.world > 1 else []
    words = ["torchrun" if start else "vitral", *start, "train", str(folder / "config.yaml")]
    return command(*words, f"out={folder}", "resume=true", *keys)


def refuse_stopped(folder: Path) -> None:
    """Raises UserError for a run folder whose run has not come to its end."""
    if not ((folder / "checkpoints").is_dir() and (folder / "config.yaml").is_file()):
        return
    at = _reached(folder / "checkpoints")
    place = f" at step {at[0]} of {at[1]}" if at is not None else ""
    if is_locked(folder):
        saved = f"; its last checkpoint is of step {at[0]} of {at[1]}" if at is not None else ""
        hint = "Its model folder is written when it ends."
        raise UserError(f"this run is still working{saved}", where=str(folder), hint=hint)
    finish = (
        ""
        if at is None
        else (f"\n  Or write its model folder from the best weights so far: {resume_command(folder, 'finish=true')}")
    )
    raise UserError(
        f"this run was stopped{place}", where=str(folder), hint=f"Resume it: {resume_command(folder)}{finish}"
    )


def _reached(checkpoints: Path) -> tuple[int, int] | None:
    """The step of the newest checkpoint that says it, and the run's last one."""
    for stem in ("last", "previous"):
        try:
            facts = parse_json(_facts(checkpoints, stem), where=stem, constants=True)
            return int(facts["progress"]["step"]), int(facts["steps"])
        except (OSError, ValueError, TypeError, LookupError, OverflowError):
            continue
    return None


def _facts(checkpoints: Path, stem: str) -> str:
    whole, sharded = checkpoints / f"{stem}.safetensors", checkpoints / f"{stem}.sharded/state.json"
    if not whole.exists():
        return str(read_json(sharded)["state"])
    return tensors_metadata(whole)["state"]
