"""Train variants of a run with several seeds in one folder, which a stopped comparison can resume."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitral.atomic_files import LOCK, tidy, whole_file, write_json
from vitral.config import flatten
from vitral.config_keys import as_word
from vitral.data.dataset import Dataset
from vitral.errors import Interrupted, UserError, command, taken
from vitral.files import read_json
from vitral.reproduce.config import ReproduceOptions
from vitral.run.assembly import resolve_steps
from vitral.run.check import open_checked
from vitral.run.config import RunConfig, difference, load_config
from vitral.run.folder import occupied
from vitral.run.prepare import prepare
from vitral.run.train import run
from vitral.training.metrics_log import log
from vitral.training.signals import signum_of

TABLE = "table.json"
# Keys of a run that every comparison sets, with a hint for the user.
SETS = {
    "seed": "seeds= is their number.",
    "out": "out= names the folder of all.",
    "resume": "resume=true continues all runs.",
    "overwrite": "out= names another folder.",
    "finish": "each run trains to its end.",
    **dict.fromkeys(("train.steps", "train.epochs"), "steps= is the length of each run."),
    **dict.fromkeys(("data", "data.path", "data.source"), "data= names the images."),
}


def base_keys(
    options: ReproduceOptions, overrides: Mapping[str, Any], sets: Mapping[str, str],
    defaults: Mapping[str, Any] | None = None, *, augment: bool = False,
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """The recipe (`digits` for the digits, else `small`), and the keys that all runs share: short, without an average
    of the weights, evaluated once; unless `augment`, without augmentation that is not configured. `overrides` replace
    these and `defaults`.

    Raises UserError for keys that this comparison (`sets`, each with a hint) or every one sets itself.
    """
    overrides, sets = flatten(overrides), {**SETS, **sets}
    for key in overrides.keys() & sets.keys():
        raise UserError("this key is set by the comparison", where=key, hint=sets[key])
    names = () if augment else ("rotate", "scale", "shear", "translate", "flip", "mixup")
    keys: dict[str, Any] = {
        "data.path": options.data, "train.steps": options.steps, "train.eval_every": "end", "train.ema": None,
        "report": False, **{f"augment.{name}": 0.0 for name in names}, **(defaults or {}), **overrides,
    }  # fmt: skip
    if options.data == "digits":
        keys |= {"data.source": "digits", "data.path": None}
    return "digits" if options.data == "digits" else "small", keys


def open_classes(recipe: str, keys: Mapping[str, Any]) -> Dataset:
    """The checked images of all runs. Raises UserError unless each has one class."""
    config = load_config(recipe, keys)
    dataset, _ = open_checked(config, config.data, None)
    if dataset.task != "classification":
        raise UserError("images with one class each are expected", where=dataset.name)
    return dataset


def check_run(recipe: str, keys: Mapping[str, Any], dataset: Dataset) -> tuple[int, int]:
    """The image size of a run, before anything is trained. Raises UserError for a run that cannot start."""
    config = load_config(recipe, keys)
    resolve_steps(config, len(dataset.splits["train"]))
    with closing(prepare(config, dataset)) as prepared:
        return prepared.architecture.image_size


@contextmanager
def comparison(name: str, options: ReproduceOptions, words: Mapping[str, Any]) -> Generator[Path]:
    """The folder of a comparison, for this process alone. `words`: further keys of the command.

    Raises UserError for a folder that is not empty, unless `resume` continues in it, and Interrupted after Ctrl-C,
    with the command that continues.
    """
    folder = Path(options.out or f"runs/reproduce-{name}-{time.strftime('%Y%m%d-%H%M%S')}").expanduser()
    try:
        with occupied(folder, partial(_check_empty, resume=options.resume), what="folder"):
            yield folder
    except (Interrupted, KeyboardInterrupt) as error:
        given = {key: value for key, value in options.model_dump().items() if key not in ("out", "resume")}
        pairs = [f"{key}={as_word(value)}" for key, value in {**given, **words}.items()]
        again = command("vitral", "reproduce", name, *pairs, f"out={folder}", "resume=true")
        raise Interrupted(signum_of(error), f"the comparison is stopped. Resume with:\n  {again}") from None


def _check_empty(folder: Path, resume: bool) -> None:
    tidy(folder, (TABLE,))
    if {entry.name for entry in folder.iterdir()} - {LOCK} and not resume:
        raise taken(folder, resume=True)


def finished(folder: Path, recipe: str, keys: Mapping[str, Any], dataset: Dataset | None = None) -> dict[str, Any]:
    """The summary of the run with these keys in this folder: of a finished one, or of one that starts or continues.

    Raises UserError where the finished one was configured otherwise.
    """
    config = load_config(recipe, {**keys, "out": str(folder), "resume": (folder / "checkpoints").is_dir()})
    if (folder / "summary.json").is_file():
        _check_same(folder, config)
        return read_json(folder / "summary.json", constants=True)
    return run(config, dataset)


def _check_same(folder: Path, config: RunConfig) -> None:
    """Where a key says `auto` or leaves it to a preset, the finished run says what that became."""
    before = load_config(str(folder / "config.yaml"), {})
    given = {key for key, value in flatten(config.model_dump()).items() if value not in (None, "auto", {})}
    changed = [f"{key}: {theirs}, now {mine}" for key, mine, theirs in difference(config, before) if key in given]
    if changed:
        raise UserError("a run in here was configured otherwise", where=str(folder), got="; ".join(changed))


def settings(options: ReproduceOptions) -> dict[str, Any]:
    """The options as JSON, for the table."""
    return options.model_dump(mode="json", exclude={"out", "resume"})


def write_table(folder: Path, found: Mapping[str, Any]) -> None:
    """table.json."""
    write_json(folder / TABLE, found)
    log.info("written to %s", folder / TABLE)


def write_plot(path: Path, content: bytes) -> None:
    """A figure beside the table."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def mean_and_std(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation (of the sample) of a variant's runs."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}


Verdict = Literal["holds", "does not hold", "undecided"]


def paired(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """`differences` of two variants seed by seed, their mean `difference`, and its 95 % `interval` [low, high] by
    Student's t distribution; two seeds give an interval of 18 standard deviations."""
    from scipy.stats import t

    differences_S = np.subtract(one, other)
    mean, count = float(differences_S.mean()), len(differences_S)
    half = float(t.ppf(0.975, count - 1) * differences_S.std(ddof=1) / count**0.5)
    return {"differences": differences_S.tolist(), "difference": mean, "interval": [mean - half, mean + half]}


def verdict(pairs: Sequence[Mapping[str, Any]]) -> Verdict:
    """Whether a claim that all of these `paired` differences are above 0 holds: it does if all intervals are above 0,
    it does not if one is below 0, and else it is undecided."""
    lows, highs = zip(*(pair["interval"] for pair in pairs), strict=True)
    if min(highs) < 0:
        return "does not hold"
    return "holds" if min(lows) > 0 else "undecided"
