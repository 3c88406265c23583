"""The run folder: its name, its lock, and the files that a run may replace.

Imports no torch: a folder is claimed, or refused, before that is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from vitral.atomic_files import LOCK, locked, remove, tidy, write_json, write_text
from vitral.config import build, dump_yaml, flatten, load_yaml
from vitral.config_keys import as_word
from vitral.errors import UserError, taken
from vitral.run.config import FREE, RunConfig, run_class
from vitral.run.run_keys import RunKeys
from vitral.weights.stopped_run import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    SPLIT,
    SWEEP,
    is_checkpoint,
    resume_command,
    strangers,
)

SUMMARY = "summary.json"
_OURS = (
    "train.log", "metrics.jsonl", "metrics.csv", SUMMARY, "model", "predictions.csv", SPLIT, "report.html", "nonfinite",
    "tensorboard", CONFIG, ENVIRONMENT,
)  # fmt: skip
_OF_ONE_COMMAND = {"resume", "overwrite", "finish", "out", "recipe"}


@contextmanager
def claimed(config: RunKeys) -> Generator[Path]:
    """The run folder, for this run alone; folders that were made for it and stay empty are removed afterwards.

    Refused, before anything is computed: a file, a folder that is not empty (unless allowed), files of our names that
    no run of ours wrote, a place that cannot be written, and a folder that another run works in.
    """
    start = f"runs/{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [start, *(f"{start}-{number}" for number in range(2, 1000))] if config.out is None else [config.out]
    for folder in (Path(name).expanduser() for name in names):
        with ExitStack() as held:
            try:
                check = partial(_check_content, config=config)
                held.enter_context(occupied(folder, check, fresh=config.out is None))
            except FileExistsError:  # a name of our own choice that another run has just taken
                continue
            yield folder
            return
    raise UserError("no free name for the run folder", where="out", hint="Name one: out=DIR")


@contextmanager
def occupied(
    folder: Path, check: Callable[[Path], None], *, what: str = "run folder", fresh: bool = False
) -> Generator[None]:
    """A folder, made if need be, with its lock; `check` then looks at what it holds, before anything changes. fresh:
    raises FileExistsError for a folder that is there."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"the {what} is a file", where="out", got=folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with ExitStack() as held:
            try:
                folder.mkdir(parents=True, exist_ok=not fresh)
                held.enter_context(locked(folder))
            except FileExistsError:
                made.clear()
                raise
            except OSError as error:
                got = f"{folder}: {error.strerror}"
                raise UserError(f"the {what} cannot be written", where="out", got=got) from None
            check(folder)
            yield
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _check_content(folder: Path, config: RunKeys) -> None:
    if (folder / SWEEP).is_file():
        raise UserError("this folder holds a sweep", where="out", got=folder, hint="Name another folder: out=DIR")
    tidy(folder, (*_OURS, CHECKPOINTS))
    inside = {entry.name for entry in folder.iterdir()} - {LOCK}
    if inside and not (config.resume or config.overwrite or config.finish):
        raise taken(folder, overwrite=True, resume=True)
    if found := _not_ours(folder, inside):
        raise UserError(
            "this is no run folder, but holds files where a run writes", where="out", got=", ".join(found),
            hint="Name another folder, out=DIR, or move these files.",
        )  # fmt: skip
    if (folder / CHECKPOINTS).is_dir():
        for path in (folder / CHECKPOINTS).glob(".*"):
            if is_checkpoint(path):
                remove(path)


def _not_ours(folder: Path, inside: set[str]) -> list[str]:
    """What no run has written where a run would write. A run is known by config.yaml and env.json, or by its
    checkpoints; a folder of that name with other files is not its."""
    if {CONFIG, ENVIRONMENT} <= inside:
        return []
    if CHECKPOINTS not in inside:
        return sorted(inside & set(_OURS))
    checkpoints = folder / CHECKPOINTS
    if not checkpoints.is_dir():
        return sorted(inside & {CHECKPOINTS, *_OURS})
    others = [f"{CHECKPOINTS}/{name}" for name in strangers(checkpoints)]
    return sorted([*(inside & set(_OURS)), *others]) if others else []


def open_folder(folder: Path, config: RunKeys, environment: Mapping[str, Any]) -> None:
    """Start the run's files; of an overwritten run only our own go. `config` has no `auto` left.

    A kill at any moment leaves a folder that is resumed (from an old checkpoint or from the start) or overwritten: the
    checkpoints go first, and the files that identify a run folder are replaced last.
    """
    (folder / CHECKPOINTS).mkdir(exist_ok=True)
    for path in (folder / CHECKPOINTS).iterdir():
        if is_checkpoint(path):
            remove(path)
    for name in _OURS:
        if name not in (CONFIG, ENVIRONMENT):
            remove(folder / name)
    write_config(folder, config)
    write_json(folder / ENVIRONMENT, environment)


def write_config(folder: Path, config: RunKeys) -> None:
    """config.yaml, which replays the run elsewhere."""
    own = {"resume": False, "overwrite": False, "finish": False, "out": None}
    write_text(folder / CONFIG, dump_yaml(config.model_copy(update=own).model_dump(mode="json")))


def write_length(folder: Path, config: RunKeys) -> None:
    """Let config.yaml end the run where `config` does."""
    before = read_config(folder)
    length = {"steps": config.train.steps, "epochs": config.train.epochs}
    if before.train.model_copy(update=length) != before.train:
        write_config(folder, before.model_copy(update={"train": before.train.model_copy(update=length)}))


def read_config(folder: Path) -> RunKeys:
    """What config.yaml says."""
    tree = load_yaml(folder / CONFIG)
    return build(run_class(tree), tree, where=str(folder / CONFIG))


def read_image_config(folder: Path) -> RunConfig:
    """What config.yaml of a run on images says. Raises UserError for another run."""
    config = read_config(folder)
    if not isinstance(config, RunConfig):
        raise UserError("not a run on images", where=str(folder))
    return config


def resume_with(folder: Path, config: RunKeys) -> str:
    """Return the command that resumes the run in this folder, with the keys of this command that may be others than at
    the run's start, and are."""
    try:
        before, now = (flatten(each.model_dump(mode="json")) for each in (read_config(folder), config))
    except (UserError, OSError):  # reported when the run is resumed
        return resume_command(folder)
    keys = [key for key in now if key in FREE - _OF_ONE_COMMAND and now[key] not in (None, "auto", before.get(key))]
    return resume_command(folder, *(f"{key}={as_word(now[key])}" for key in keys))
