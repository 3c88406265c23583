"""Texts, models and finished runs that the parts of the comparison share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vitral.atomic_files import write_json
from vitral.config import flatten
from vitral.data.dataset import spaced
from vitral.data.text.sources import open_text
from vitral.errors import UserError
from vitral.files import read_json
from vitral.models.sequence_config import SequenceConfig
from vitral.reproduce.lstm.config import LstmOptions
from vitral.reproduce.lstm.training import Inspect, Keys, Task, architecture_of, buckets, equal_lstm, train
from vitral.reproduce.lstm.verdicts import ADDITIVE, DOT, NONE, RNN, TRANSFORMER
from vitral.reproduce.runs import SETS as SHARED_SETS
from vitral.reproduce.runs import mean_and_std
from vitral.run.config import load_run
from vitral.run.text_config import TextRunConfig
from vitral.training.metrics_log import log

SETS = {
    **SHARED_SETS,
    **dict.fromkeys(("data", "data.source", "data.path"), "data= names the texts of the part accuracy."),
    **dict.fromkeys(("data.lengths", "data.max_source", "data.max_target"), "the tasks have lengths of their own."),
    "model.name": "the models are Transformer, RNN and LSTMs.",
    "model.attention": "the LSTMs have dot, additive and no attention.",
    "device": "times are those of the processor.",
}
# What the recurrent models are, besides their width; one direction where gradients are measured.
RECURRENT: dict[str, dict[str, Any]] = {
    DOT: {"attention": "dot"}, ADDITIVE: {"attention": "additive"}, NONE: {"attention": "none"},
}  # fmt: skip
ONE_WAY: dict[str, dict[str, Any]] = {
    RNN: {"attention": "none", "cell": "rnn", "bidirectional": False},
    NONE: {"attention": "none", "bidirectional": False},
}
# The comparison has its own sizes, whatever the recipe's are.
_REVERSE: dict[str, Any] = {
    "data.count": 8000, "data.lengths": [4, 12], "data.max_source": 16, "data.max_target": 16, "search.max_length": 16,
    "model.dropout": 0.1, "objective.label_smoothing": 0.1, "optim.lr": 2e-3, "train.batch_size": 64,
}  # fmt: skip
_HELD = 2048  # most test texts that a run reads


class Model(NamedTuple):
    """One of the models on the texts of a task: the keys of its runs, its architecture, the number of parameters."""

    keys: Keys
    architecture: SequenceConfig
    parameters: int


class Comparison(NamedTuple):
    """A comparison in its folder. keys: those of the user, for all runs."""

    options: LstmOptions
    keys: Keys
    folder: Path

    def task(self, recipe: str, keys: Keys, ranges: tuple[tuple[int, int], ...], steps: int) -> Task:
        """Texts of a recipe, with the keys of all runs on them."""
        shared: dict[str, Any] = {
            "train.steps": steps, "train.ema": None, "train.eval_every": "end", "report": False, "check.skip": True,
            "device": "cpu", **(_REVERSE if recipe == "reverse" else {}), **keys, **self.keys,
        }  # fmt: skip
        config = load_run(recipe, shared)
        assert isinstance(config, TextRunConfig)
        dataset = open_text(config.data)
        test = dataset.splits["test"]
        splits = {"train": dataset.splits["train"], "test": test.subset(spaced(len(test), min(_HELD, len(test))))}
        return Task(recipe, shared, replace(dataset, splits=splits), ranges)

    def reverse(self, keys: Keys | None = None) -> Task:
        """Texts to reverse."""
        return self.task("reverse", keys or {}, ((1, 5), (6, 8), (9, 12)), self.options.steps)

    def copy(self, longest: int, steps: int) -> Task:
        """Texts of up to so many symbols to copy."""
        keys = {
            "data.source": "copy", "data.lengths": [longest // 8, longest], "data.max_source": longest + 4,
            "data.max_target": longest + 4, "search.max_length": longest + 4, "optim.schedule": "constant",
        }  # fmt: skip
        return self.task("reverse", keys, buckets(longest // 8, longest, 4), steps)

    def models(self, task: Task, recurrent: Mapping[str, Mapping[str, Any]]) -> dict[str, Model]:
        """The Transformer, and recurrent models with as many parameters, by name."""
        transformer = architecture_of(task, {})
        found = {TRANSFORMER: _transformer(transformer)}
        without = dict.fromkeys(key for key in flatten(task.config({}).model_dump()) if key.startswith("model."))
        for name, own in recurrent.items():
            architecture, count = equal_lstm(transformer, own)
            keys = {f"model.{key}": value for key, value in {**own, "width": architecture.width}.items()}
            model = {**without, "model.dropout": transformer.dropout, **keys, "model.name": "lstm_tiny"}
            found[name] = Model({**model, "optim.lr": self.options.lstm_lr}, architecture, count)
        return found

    def finished(self, name: str, keys: Keys, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `compute` returns, from the file of this name if it is there. Raises UserError where that was made with
        other keys, or with another number of threads, on which times depend, and the last digits of weights."""
        path, threads = self.folder / "runs" / f"{name}.json", torch.get_num_threads()
        given = _plain({**keys, "threads": threads})
        if path.is_file():
            before = read_json(path)
            if before["keys"] != given:
                changed = [
                    key for key in sorted({*given, *before["keys"]}) if given.get(key) != before["keys"].get(key)
                ]
                own = before["keys"].get("threads")
                hint = None if own in (None, threads) else f"It was computed with OMP_NUM_THREADS={own}."
                got = ", ".join(changed)
                raise UserError("a run in here was configured otherwise", where=str(path), got=got, hint=hint)
            return before["found"]
        log.info("%s", name)
        path.parent.mkdir(exist_ok=True)
        found = compute()
        write_json(path, {"keys": given, "found": found})
        return found

    def trained(
        self, name: str, task: Task, keys: Keys, *, points: int = 1, changed: Any = None, inspect: Inspect | None = None
    ) -> list[dict[str, Any]]:  # fmt: skip
        """A model's run for each seed: `parameters`, `curve` and what is found at the end."""
        runs: list[dict[str, Any]] = []
        for seed in range(self.options.seeds):
            own = {**keys, "seed": seed}
            settings = {**task.keys, **own, "change": changed, "points": points, "samples": self.options.samples}

            def compute(own: Keys = own) -> dict[str, Any]:
                run = train(
                    task, own, self.folder, samples=self.options.samples, changed=changed, points=points,
                    inspect=inspect,
                )  # fmt: skip
                return {"parameters": run.parameters, "curve": run.curve, **run.found}

            runs.append(self.finished(f"{name}-{seed}", settings, compute))
        return runs


def _transformer(architecture: SequenceConfig) -> Model:
    from vitral.reproduce.lstm.training import counted

    return Model({}, architecture, counted(architecture))


def _plain(keys: Keys) -> dict[str, Any]:
    """Keys as JSON gives them back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in sorted(keys.items())}


def row(name: str, runs: Iterable[Mapping[str, Any]], keys: Iterable[str]) -> dict[str, Any]:
    """A row of a table: values of all runs by key, with mean and standard deviation."""
    runs = list(runs)
    values = {key: [run[key] for run in runs] for key in keys}
    spread = {f"{key}_{part}": value for key, own in values.items() for part, value in mean_and_std(own).items()}
    return {"model": name, **values, **spread}
