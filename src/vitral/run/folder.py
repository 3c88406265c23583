"""The run folder: which one it is, that one run at a time works in it, and what of it is ours to replace."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from vitral import distributed
from vitral.config import dump_yaml
from vitral.errors import UserError
from vitral.run import outputs
from vitral.run.config import RunConfig

CHECKPOINTS = "checkpoints"
LOCK = ".lock"
PATIENCE = 2.0  # seconds for a run that was killed to let go of its folder
_OURS = (
    "config.yaml", "env.json", "train.log", "metrics.jsonl", "metrics.csv", "summary.json", CHECKPOINTS, "model",
    "predictions.csv", "split.safetensors", "report.html", "bad", "tensorboard",
)  # fmt: skip


@contextmanager
def claimed(config: RunConfig) -> Generator[Path]:
    """The run folder, for this run alone; folders that were made for it and stay empty are removed afterwards.

    Refused, before anything is computed: a file, a folder that holds something (unless told), files of our names that
    no run of ours wrote, a place that cannot be written, and a folder that another run works in.
    """
    for folder in _candidates(config):
        if folder.exists() and not folder.is_dir():
            raise UserError("the run folder is a file", where="out", got=folder)
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=config.out is not None)
            lock = _lock(folder)
        except FileExistsError:  # a name of our own choice that another run has just taken
            continue
        except OSError as error:
            raise UserError(
                "the run folder cannot be written", where="out", got=f"{folder}: {error.strerror}"
            ) from None
        try:
            _check_content(folder, config)
            yield folder
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(lock)
            with suppress(OSError):
                for path in made:
                    path.rmdir()
        return
    raise UserError("no free name for the run folder", where="out", hint="Name one: out=DIR")


def _candidates(config: RunConfig) -> Iterator[Path]:
    if config.out is not None:
        yield Path(config.out).expanduser()
        return
    start = f"runs/{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    yield from (Path(f"{start}-{number}" if number > 1 else start) for number in range(1, 1000))


def _lock(folder: Path) -> int:
    """A lock on the folder that the system takes back when the process ends, however it ends. Raises UserError where
    another run has it. Without flock (Windows) there is none."""
    path, end = folder / LOCK, time.monotonic() + PATIENCE
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if _is_locked(handle):
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
        os.close(handle)  # the run that had the lock is ending and has removed the file; or it still works
        if time.monotonic() > end:
            raise UserError("another run works in this folder", where="out", got=folder)
        time.sleep(0.05)


def _is_locked(handle: int) -> bool:
    if os.name == "nt":
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_content(folder: Path, config: RunConfig) -> None:
    inside = {entry.name for entry in folder.iterdir()} - {LOCK}
    if inside and not (config.resume or config.overwrite):
        raise UserError(
            "the run folder is not empty", where="out", got=folder,
            hint="resume=true goes on with the run in it, overwrite=true replaces it.",
        )  # fmt: skip
    strangers = inside & set(_OURS) if CHECKPOINTS not in inside else set[str]()
    if strangers:
        raise UserError(
            "this is no run folder, and files in it would be replaced", where="out", got=", ".join(sorted(strangers))
        )


def open_folder(folder: Path, config: RunConfig, device: torch.device) -> None:
    """Start the run's files; of an overwritten run only our own go. `config` has no `auto` left."""
    outputs.remove(folder, _OURS)
    (folder / CHECKPOINTS).mkdir(parents=True)
    tree = config.model_copy(update={"resume": False, "overwrite": False, "out": None}).model_dump(mode="json")
    (folder / "config.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    outputs.write_json(folder / "env.json", outputs.environment(device))


def tidy(folder: Path) -> None:
    """Remove what a killed run has left half written."""
    for place in (folder, folder / CHECKPOINTS):
        outputs.remove(place, tuple(path.name for path in place.glob(".*.partial")))


def resume_command(folder: Path) -> str:
    """What goes on with the run in this folder, on as many processes."""
    here = distributed.launch()
    vitral = f"torchrun --nproc-per-node={here.local_world} -m vitral" if here.world > 1 else "vitral"
    return f"{vitral} train {shlex.quote(str(folder / 'config.yaml'))} out={shlex.quote(str(folder))} resume=true"
