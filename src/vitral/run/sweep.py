"""Compare settings on a part of the train images, retrain the best one on all of them and evaluate it once.

The protocol of the ViT paper's fine-tuning (arXiv 2010.11929, appendix B.1.1).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vitral.atomic_files import LOCK, remove, tidy, write_json
from vitral.config import build, flatten
from vitral.config_keys import as_word
from vitral.data.dataset import Dataset
from vitral.data.sources import make_val_split, open_dataset
from vitral.errors import Interrupted, RunFailed, UserError, command, taken
from vitral.evaluate.metric import Metric
from vitral.files import read_json
from vitral.run.assembly import resolve_steps
from vitral.run.config import RunConfig, difference, draft_architecture, expand_data, load_config
from vitral.run.folder import occupied
from vitral.run.prepare import task_of
from vitral.run.train import run
from vitral.tasks.task import Task
from vitral.training.metrics_log import console_logging, log, write_csv
from vitral.training.signals import signum_of
from vitral.weights.stopped_run import SWEEP

TABLE, BEST = "sweep.csv", "best"
_POINT = {"data.validation": "dev", "train.eval_every": "end"}
_FINAL = {"data.validation": "none"}


def sweep(
    recipe: str | None,
    grid: Mapping[str, Sequence[Any]],
    overrides: Mapping[str, Any] | None = None,
    *,
    dev: float | str | None = None,
    retrain: bool = True,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train at every point of a grid: `sweep("digits", {"optim.lr": [1e-3, 3e-3]}, {"train.steps": 100}, dev=0.1)`.

    A point is trained without the share `dev` of the train images (None: data.val_fraction of the recipe), and its last
    weights are scored on them; the highest score wins, at equal scores the lower loss. The winner is trained again, on
    all train images, without validation, and evaluated on the test images (without a test split, on the validation
    images of the data); with `retrain` off the sweep ends before that. `overrides` are keys of `vitral train`. Returns
    what sweep.json in the folder `out` holds: "points", "best" (the winning values), "result" (the summary of the run
    in best/) and the settings. Raises UserError, before anything runs, for wrong keys, values or data;
    Interrupted after Ctrl-C, with everything saved for `resume`; RunFailed where every point fails.
    """
    console_logging()
    keys = _keys(grid, overrides or {}, dev)
    values = [dict(zip(grid, each, strict=True)) for each in itertools.product(*grid.values())]
    points = [load_config(recipe, {**keys, **each, **_POINT}) for each in values]
    final = [load_config(recipe, {**keys, **each, **_FINAL}) for each in values]
    dataset = _open_data(points[0], retrain)
    _check_points(points, dataset)
    task = task_of(points[0], dataset)
    score = _score(points[0], task, dataset)
    flat = [flatten(point.model_dump(mode="json")) for point in points]
    rows = [{"run": f"{number:02d}", **{key: each[key] for key in grid}} for number, each in enumerate(flat, 1)]
    found: dict[str, Any] = {
        "recipe": points[0].recipe, "dev": points[0].data.val_fraction, "task": task.name, "score": score.name,
        "grid": {key: list(dict.fromkeys(row[key] for row in rows)) for key in grid},
        "points": rows, "best": None, "result": None, "config": points[0].model_dump(mode="json"),
        "command": _command(recipe, grid, keys, retrain),
    }  # fmt: skip
    folder = Path(out or f"runs/sweep-{points[0].recipe}-{time.strftime('%Y%m%d-%H%M%S')}").expanduser()
    check = partial(_check, found=found, resume=resume, overwrite=overwrite)
    try:
        with occupied(folder, check, what="folder of the sweep"):
            _open(folder, found, overwrite)
            for row, point in zip(rows, points, strict=True):
                log.info("point %s of %d: %s", row["run"], len(rows), _values_text(row, grid))
                row |= _measure(folder / row["run"], point, score)
                _write(folder, found)
            best = _best(rows, score)
            found["best"] = {key: rows[best][key] for key in grid}
            log.info("best on the development images: %s", _values_text(rows[best], grid))
            if retrain:
                found["result"] = _run(folder / BEST, final[best])
            _write(folder, found)
    except (Interrupted, KeyboardInterrupt) as stopped:
        again = command(*found["command"], f"out={folder}", "resume=true")
        raise Interrupted(signum_of(stopped), f"the sweep was interrupted. Continue with:\n  {again}") from None
    return found


def _open_data(point: RunConfig, retrain: bool) -> Dataset:
    """Open the data of all points. Raises UserError where there are none to evaluate the best one on."""
    boxes = point.objective.learns_boxes
    dataset = open_dataset(point.data, hold_out=False, equal_classes=False, boxes=boxes)
    if retrain and len(dataset.splits) == 1:
        hint = "retrain=false only compares the points."
        raise UserError("the data have no test split to evaluate the best point on", where=dataset.name, hint=hint)
    return dataset


def _keys(grid: Mapping[str, Sequence[Any]], overrides: Mapping[str, Any], dev: float | str | None) -> dict[str, Any]:
    """Return the keys that all points share. Raises UserError for keys that a sweep sets, and for an empty grid."""
    keys = flatten(expand_data(overrides))
    if not grid or not all(grid.values()):
        raise UserError("no grid: at least one key needs values to compare", hint="For example optim.lr=1e-3,3e-3")
    for key in {*_POINT, "out", "resume", "overwrite", "finish"} & {*keys, *grid}:
        raise UserError("this key is set by the sweep", where=key)
    if "data.val_fraction" in grid:
        what, hint = (
            "points with different validation images cannot be compared",
            "dev=SHARE sets one share for all points.",
        )
        raise UserError(what, where="data.val_fraction", hint=hint)
    for key in keys.keys() & grid.keys():
        raise UserError("key given twice", where=key)
    if dev is not None:
        if "data.val_fraction" in keys:
            raise UserError("share given twice: as dev and as data.val_fraction", where="dev")
        keys["data.val_fraction"] = dev
    return keys


def _check_points(points: Sequence[RunConfig], dataset: Dataset) -> None:
    """Raise UserError for a point with an invalid model or length before any point is trained."""
    data, samples = points[0].data, 0
    if any(point.train.steps is None for point in points):  # train.steps does not depend on the held-out images
        samples = len(make_val_split(dataset, data.val_fraction, data.validation).splits["train"])
    for point in points:
        draft_architecture(point)
        resolve_steps(point, samples)


def _values_text(row: Mapping[str, Any], grid: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={row[key]}" for key in grid)


def _measure(folder: Path, point: RunConfig, score: Metric) -> dict[str, Any]:
    """Return score, loss and cost of a point, or the error of a failed one (a high lr can end in NaN)."""
    try:
        summary = _run(folder, point)
    except RunFailed as error:
        log.error("%s", error)
        return {"error": str(error)}
    result = {f"val_{score.name}": summary[score.name], "val_loss": summary.get("loss")}
    return {**result, "steps": summary["steps"], "train_seconds": summary["train_seconds"]}


def _run(folder: Path, config: RunConfig) -> dict[str, Any]:
    """Return the summary of the finished run in this folder, or start or resume it."""
    if (folder / "summary.json").is_file():
        return read_json(folder / "summary.json", constants=True)
    summary = run(config.model_copy(update={"out": str(folder), "resume": (folder / "checkpoints").is_dir()}))
    return {key: value for key, value in summary.items() if key != "out"}


def _score(point: RunConfig, task: Task, dataset: Dataset) -> Metric:
    """Return the metric that compares points. Raises UserError for data without annotations to evaluate."""
    default = next(iter(task.evaluators))
    if not task.can_evaluate(dataset):
        what = "these data have no annotations to evaluate"
        raise UserError(what, where=dataset.name, expected="one class per image")
    if default not in task.evaluators_of(point.eval):
        raise UserError(f"points are compared by the evaluator {default}", where="eval", got=", ".join(point.eval))
    return task.metrics[0]


def _best(rows: Sequence[Mapping[str, Any]], score: Metric) -> int:
    done = [place for place, row in enumerate(rows) if "error" not in row]
    if not done:
        raise RunFailed("every point of the sweep failed")
    sign = 1 if score.higher_is_better else -1
    return max(done, key=lambda place: (sign * rows[place][f"val_{score.name}"], -(rows[place]["val_loss"] or 0)))


def _check(folder: Path, found: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """Raise UserError for a folder that is not empty, except to resume the same sweep or to overwrite any sweep."""
    tidy(folder, (SWEEP, TABLE))
    if not {entry.name for entry in folder.iterdir()} - {LOCK}:
        return
    if not (resume or overwrite):
        raise taken(folder, overwrite=True, resume=True)
    if not (folder / SWEEP).is_file():
        raise UserError("this folder contains no sweep", where="out", got=folder)
    if not overwrite:
        _check_same(_before(folder), found, folder)


def _before(folder: Path) -> dict[str, Any]:
    try:
        tree = read_json(folder / SWEEP, constants=True)
        return {"points": [{"run": str(row["run"])} for row in tree["points"]], **tree}
    except (OSError, ValueError, TypeError, LookupError) as error:
        hint = "Remove the folder or pass another one: out=DIR"
        raise UserError("this file is damaged", where=str(folder / SWEEP), got=error, hint=hint) from None


def _open(folder: Path, found: Mapping[str, Any], overwrite: bool) -> None:
    """Start the files of the sweep and remove those of an overwritten one. sweep.json, which identifies the folder, is
    replaced last: a kill before leaves the older sweep, some of whose points must be trained again."""
    if overwrite and (folder / SWEEP).is_file():
        for name in (BEST, *(row["run"] for row in _before(folder)["points"]), TABLE):
            remove(folder / name)
    _write(folder, found)


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    configs = [build(RunConfig, tree["config"], where=str(folder / SWEEP)) for tree in (before, now)]
    changed = [f"{key}: {old}, now {new}" for key, old, new in difference(configs[0], configs[1])]
    changed += [f"grid: {before['grid']}, now {now['grid']}"] if before["grid"] != now["grid"] else []
    if changed:
        raise UserError("the sweep has another configuration", where=str(folder), got="; ".join(changed))


def _write(folder: Path, found: Mapping[str, Any]) -> None:
    write_json(folder / SWEEP, found)
    write_csv(folder / TABLE, found["points"])


def _command(
    recipe: str | None, grid: Mapping[str, Sequence[Any]], keys: Mapping[str, Any], retrain: bool
) -> list[str]:
    """Return the command of a sweep without its folder."""
    word = partial(as_word, brackets=True)
    lines = {key: ",".join(map(word, line)) for key, line in grid.items()}
    words = [f"{key}={text}" for key, text in {**lines, **{key: word(keys[key]) for key in keys}}.items()]
    return ["vitral", "sweep", *([recipe] if recipe else []), *words, *([] if retrain else ["retrain=false"])]
