"""A training run from configuration to model folder, in the order in which it happens."""

from __future__ import annotations

import os
import shlex
import signal
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from vitral.config import build, dump_yaml, load_yaml
from vitral.data.config import SourceConfig
from vitral.data.dataset import Dataset
from vitral.data.loader import ImageStore, TrainLoader, eval_batches
from vitral.data.sampling import class_shares
from vitral.data.workers import refuse_unguarded
from vitral.errors import Interrupted, RunFailed, UserError
from vitral.evaluate.classify import collect_logits
from vitral.evaluate.problems import PROBLEMS
from vitral.models.config import ViTConfig
from vitral.models.flops import count_macs
from vitral.models.lora import merge_lora
from vitral.objectives.balance import NO_BALANCE, ClassBalance, class_balance
from vitral.objectives.objective import Objective
from vitral.objectives.table import OBJECTIVES
from vitral.optim.ema import WeightEMA
from vitral.optim.masters import Bfloat16Copy
from vitral.optim.optimizer import make_optimizer
from vitral.optim.schedules import learning_rate
from vitral.report.html import write_report
from vitral.run import outputs
from vitral.run.config import RunConfig, difference, load_config
from vitral.run.memory import say_memory, smaller_plan
from vitral.run.prepare import EVAL_BATCH, Prepared, prepare
from vitral.training.journal import Journal, console_logging, log, log_file
from vitral.training.loggers import Logger, Loggers, TensorBoard
from vitral.training.loop import Plan, fit, total_steps
from vitral.training.state import Progress, TrainState
from vitral.weights.folder import FolderConfig, Preprocessing, save_folder
from vitral.weights.tensors import load_tensors

_OURS = (
    "config.yaml", "env.json", "train.log", "metrics.jsonl", "metrics.csv", "summary.json", "checkpoints", "model",
    "predictions.csv", "report.html", "bad", "tensorboard",
)  # fmt: skip


def train(
    recipe: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    loggers: Sequence[Logger] = (),
    **more: Any,
) -> dict[str, Any]:
    """Train by a recipe (or YAML file) and dotted overrides; returns what summary.json holds.

    `train("digits", {"optim.lr": 3e-4}, out="runs/a", seed=1)`: `more` takes undotted keys; `out` is the run folder;
    `loggers` get every row of metrics.jsonl.
    Raises UserError for wrong configuration or data (nothing written), Interrupted after Ctrl-C with the state saved.
    """
    keys = {**(overrides or {}), **more}
    if out is not None:
        keys["out"] = str(out)
    console_logging()
    return run(load_config(recipe, keys), loggers=loggers)


def run(config: RunConfig, dataset: Dataset | None = None, loggers: Sequence[Logger] = ()) -> dict[str, Any]:
    """The run that a configuration describes, on its data or on those given. Torch's settings are left as they were."""
    refuse_unguarded()
    folder = _choose_folder(config)
    if config.train.tensorboard:
        loggers = (*loggers, TensorBoard(folder / "tensorboard"))
    with torch.random.fork_rng(), _settings(config), closing(prepare(config, dataset)) as prepared:
        state, objective, steps = assemble(prepared)
        resuming = config.resume and (folder / "checkpoints" / "last.safetensors").is_file()
        if resuming:
            _resume(folder, prepared.config, state)
        try:
            _open_folder(folder, prepared, fresh=not resuming)
            with log_file(folder / "train.log"):
                if config.resume and not resuming:
                    log.info("nothing to resume in %s: the run starts anew", folder)
                _say_start(prepared, objective, steps, folder)
                if resuming:
                    log.info("going on at step %d", state.progress.step)
                _fit(prepared, state, objective, steps, folder, loggers)
                return _finish(prepared, state, objective, folder)
        except OSError as error:
            raise RunFailed(f"{error}. Checkpoints are in {folder / 'checkpoints'}") from error
        except KeyboardInterrupt:
            message = f"stopped outside of training. Go on with:\n  {_resume_command(folder)}"
            raise Interrupted(signal.SIGINT, message) from None
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                hint = smaller_plan(prepared.config, prepared.architecture, prepared.device, EVAL_BATCH)
                raise RunFailed(f"out of memory: {str(error).splitlines()[0]}\n  {hint}") from error
            raise


@contextmanager
def _settings(config: RunConfig) -> Generator[None]:
    """Determinism as asked for; it and the number of threads (which a resume sets) are as before afterwards."""
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)


def _choose_folder(config: RunConfig) -> Path:
    """The run folder. Refused, before anything is computed: a file, a folder that holds something (unless told), files
    of our names that no run of ours wrote, and a place that cannot be written."""
    start = f"runs/{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (start, *(f"{start}-{number}" for number in range(2, 1000)))
    folder = Path(config.out or next(name for name in names if not Path(name).exists())).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError("the run folder is a file", where="out", got=folder)
    inside = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set[str]()
    if inside and not (config.resume or config.overwrite):
        raise UserError(
            "the run folder is not empty", where="out", got=folder,
            hint="resume=true goes on with the run in it, overwrite=true replaces it.",
        )  # fmt: skip
    strangers = inside & set(_OURS) if "checkpoints" not in inside else set[str]()
    if strangers:
        raise UserError(
            "this is no run folder, and files in it would be replaced", where="out", got=", ".join(sorted(strangers))
        )
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError("the run folder cannot be written", where="out", got=f"{parent}: {error.strerror}") from None
    return folder


def assemble(prepared: Prepared) -> tuple[TrainState, Objective, int]:
    """What moves, what is minimised, and for how many steps."""
    config = prepared.config
    torch.manual_seed(config.seed)
    steps = settle_steps(config, len(prepared.train.split))
    make = OBJECTIVES[config.objective.kind]
    objective = make(prepared.build, config.objective, steps, _class_balance(prepared)).to(prepared.device)
    micro = min(config.train.micro_batch or config.train.batch_size, config.train.batch_size)
    architecture = prepared.architecture
    drop_path = architecture.drop_path if isinstance(architecture, ViTConfig) else 0.0
    if drop_path and round(micro * (1 - drop_path)) == micro:
        raise UserError(
            "has no effect: no whole sample of a micro-batch is dropped",
            where="model.drop_path",
            got=f"{drop_path} at {micro} images",
        )
    optimizer = make_optimizer(objective, config.optim)
    decay, ema = config.train.ema, None
    if decay is not None:
        ema = WeightEMA(objective.model, prepared.build(), decay, config.train.ema_warmup)
    low = Bfloat16Copy(objective) if config.precision == "bfloat16_params" else None
    return TrainState(objective, optimizer, ema, Progress(), prepared.dataset.fingerprint, low), objective, steps


def settle_steps(config: RunConfig, samples: int) -> int:
    """The weight updates of a run over so many train images. Raises UserError for a warm-up that is no shorter."""
    steps = total_steps(config.train, samples)
    if config.optim.warmup >= max(steps, 1):
        raise UserError(
            "the warm-up is longer than the run", where="optim.warmup", got=config.optim.warmup, wanted=f"below {steps}"
        )
    return steps


def _class_balance(prepared: Prepared) -> ClassBalance:
    """The loss's correction for classes of unequal size, from their shares among the images as training draws them."""
    config, dataset = prepared.config, prepared.dataset
    if config.objective.class_weights == "none" and not config.objective.logit_adjustment:
        return NO_BALANCE
    if dataset.multi_label:
        raise UserError(
            "class weights and logit adjustment need one class an image", where="objective", got="multi-label data",
            hint="Set objective.class_weights=none objective.logit_adjustment=0.",
        )  # fmt: skip
    shares_K = class_shares(dataset.splits["train"].labels_N, len(dataset.classes), config.data.balance)
    return class_balance(config.objective, shares_K.tolist(), dataset.classes)


def _resume(folder: Path, config: RunConfig, state: TrainState) -> None:
    before = build(RunConfig, load_yaml(folder / "config.yaml"), where=str(folder / "config.yaml"))
    changed = [f"{key}: {old}, now {new}" for key, old, new in difference(before, config)]
    if changed:
        hint = f"Go on with: {_resume_command(folder)}"
        raise UserError("the run was configured otherwise", where=str(folder), got="; ".join(changed), hint=hint)
    state.load(folder / "checkpoints" / "last.safetensors")


def _resume_command(folder: Path) -> str:
    return f"vitral train {shlex.quote(str(folder / 'config.yaml'))} out={shlex.quote(str(folder))} resume=true"


def _open_folder(folder: Path, prepared: Prepared, *, fresh: bool) -> None:
    """Make the folder; of an overwritten run only our own files go."""
    if not fresh:
        return
    outputs.remove(folder, _OURS)
    (folder / "checkpoints").mkdir(parents=True)
    tree = prepared.config.model_copy(update={"resume": False, "overwrite": False, "out": None}).model_dump(mode="json")
    (folder / "config.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    outputs.write_json(folder / "env.json", outputs.environment(prepared.device))


def _say_start(prepared: Prepared, objective: Objective, steps: int, folder: Path) -> None:
    splits = ", ".join(f"{len(split)} {name}" for name, split in prepared.dataset.splits.items())
    height, width = prepared.architecture.image_size
    count = sum(parameter.numel() for parameter in objective.model.parameters())
    config = prepared.config
    for note in prepared.dataset.notes:
        log.info("data: %s", note)
    log.info(
        "data: %s: %s images, %d classes, %dx%dx%d",
        prepared.dataset.name,
        splits,
        len(prepared.dataset.classes),
        height,
        width,
        prepared.dataset.channels,
    )
    a = prepared.architecture
    cells = f"patch {a.patch_size}" if isinstance(a, ViTConfig) else f"stride {a.stride}"
    trained = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    part = f", {trained:,} of them trained" if trained != count else ""
    log.info("model: %s, %s, %s parameters%s", prepared.name, cells, f"{count:,}", part)
    if config.memory is not None:
        said = say_memory(config, prepared.architecture, prepared.device, EVAL_BATCH)
        log.info("memory: %s (limit: %s)", said, config.memory)
    if config.optim.name == "adam" and config.optim.weight_decay:
        log.warning("optim: adam adds the decay to the gradient and rescales both; values meant for adamw don't train")
    log.info(
        "run: %d steps of %d images on %s, %s, into %s",
        steps,
        config.train.batch_size,
        prepared.device,
        config.precision,
        folder,
    )


def _fit(
    prepared: Prepared, state: TrainState, objective: Objective, steps: int, folder: Path, loggers: Sequence[Logger]
) -> None:
    config, problem = prepared.config, PROBLEMS[prepared.dataset.problem_type]

    def validate(model: torch.nn.Module) -> dict[str, float]:
        logits_NC, labels_N = collect_logits(model, eval_batches(prepared.judged["val"], EVAL_BATCH))
        found = problem.metrics(logits_NC, labels_N, prepared.dataset.classes, 1.0)
        return {"val_loss": found["loss"], f"val_{problem.score}": found[problem.score]}

    plan = Plan(
        steps=steps,
        rate=lambda step: learning_rate(step, steps, config.optim),
        clip=config.optim.clip,
        autocast=torch.bfloat16 if config.precision == "bfloat16" else None,
        folder=folder / "checkpoints",
        resume_command=_resume_command(folder),
        score=(problem.score, problem.says),
        replay_command=f"vitral doctor {shlex.quote(str(folder))}",
        image_flops=_image_flops(prepared),
    )
    told = Loggers(loggers, config.model_dump(mode="json"))
    judged = validate if config.data.validation != "none" else None
    fit(state, objective, train_loader(prepared), config.train, plan, judged, told)


def train_loader(prepared: Prepared) -> TrainLoader:
    """The run's stream of batches."""
    config = prepared.config
    return TrainLoader(
        prepared.train, config.train.batch_size, config.augment, config.seed, balance=config.data.balance
    )


def _image_flops(prepared: Prepared) -> float:
    """Operations for one trained image: two a multiply-accumulate, and twice as many backward as forward. 0, unknown,
    where only a part is trained, and less is computed backward."""
    config = prepared.config
    is_whole = config.train.freeze == "none" and config.lora.rank is None
    return 6.0 * sum(count_macs(prepared.architecture).values()) if is_whole else 0.0


def _finish(prepared: Prepared, state: TrainState, objective: Objective, folder: Path) -> dict[str, Any]:
    """Judge the best weights (without validation the last), write what the run leaves, say the number."""
    config, progress, dataset = prepared.config, state.progress, prepared.dataset
    if progress.best_step < 0:
        raise RunFailed(f"no weights could be saved in {folder / 'checkpoints'}")
    model = objective.model
    model.load_state_dict(load_tensors(folder / "checkpoints" / "best.safetensors")[0])
    merge_lora(model)
    problem = PROBLEMS[dataset.problem_type]
    validated, temperature = config.data.validation != "none", 1.0
    if validated:
        temperature = problem.temperature(*collect_logits(model, eval_batches(prepared.judged["val"], EVAL_BATCH)))
    split = "test" if "test" in prepared.judged else "val"
    store: ImageStore = prepared.judged[split]
    logits_NC, labels_N = collect_logits(model, eval_batches(store, EVAL_BATCH))
    found = problem.metrics(logits_NC, labels_N, dataset.classes, temperature)
    probabilities_NC = problem.probabilities(logits_NC / temperature)
    summary = {
        "recipe": config.recipe, "split": split,
        **{key: value for key, value in found.items() if key not in ("per_class", "confusion")},
        **({f"val_{problem.score}": progress.best_score} if validated else {}),
        "train_seconds": round(progress.seconds, 1), "steps": progress.step, "best_step": progress.best_step,
        "weights": "averaged (EMA) weights" if state.ema else "plain weights",
        **({"skipped_steps": progress.skipped} if progress.skipped else {}),
        "seed": config.seed, "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "temperature": temperature,
    }  # fmt: skip
    card = outputs.model_card(summary, dataset.classes, dataset.notes, prepared.name)
    save_folder(folder / "model", model, _folder_config(prepared, summary, temperature), card)
    outputs.write_predictions(
        folder / "predictions.csv", list(store.split.names), dataset.classes, labels_N, probabilities_NC
    )
    outputs.write_json(folder / "summary.json", summary)
    if config.report:
        _report(prepared, folder, summary, found, probabilities_NC)
    log.info("%s %s, %.0f s", split, outputs.result_line(summary), progress.seconds)
    log.info("in %s: model, summary.json%s", folder, ", report.html" if config.report else "")
    return summary


def _report(
    prepared: Prepared, folder: Path, summary: dict[str, Any], found: dict[str, Any], probabilities_NC: Any
) -> None:
    config, dataset, store = prepared.config, prepared.dataset, prepared.judged[summary["split"]]
    write_report(
        folder / "report.html",
        title=f"{config.recipe}: {prepared.name} on {dataset.name}",
        summary=summary,
        metrics_rows=Journal.read(folder),
        evaluation={
            **found,
            "split": summary["split"],
            "probabilities": probabilities_NC,
            "labels": store.split.labels_N,
        },
        mistakes=outputs.worst_mistakes(store, dataset.classes, probabilities_NC),
        config_yaml=dump_yaml(config.model_dump(mode="json")),
        notes=list(dataset.notes),
    )


def _folder_config(prepared: Prepared, summary: dict[str, Any], temperature: float) -> FolderConfig:
    config, dataset = prepared.config, prepared.dataset
    shown = {
        key: getattr(config.data, key) for key in ("fit", "interpolation", "crop_ratio", "background", "max_pixels")
    }
    shown |= {"image_size": prepared.architecture.image_size, "channels": prepared.architecture.in_channels}
    return FolderConfig(
        name=prepared.name,
        architecture=prepared.architecture,
        id2label={str(index): name for index, name in enumerate(dataset.classes)},
        problem_type=dataset.problem_type,
        preprocessing=Preprocessing(**shown),
        temperature=temperature,
        provenance={
            "recipe": config.recipe, "seed": config.seed, "init": config.init,
            "data": {
                **config.data.model_dump(mode="json", include=set(SourceConfig.model_fields)),
                "val_fraction": config.data.val_fraction, "validation": config.data.validation,
                "fingerprint": dataset.fingerprint,
                "content": prepared.report.fingerprint if prepared.report else None, "notes": list(dataset.notes),
                "counts": {name: len(split) for name, split in dataset.splits.items()},
            },
            "weights": summary["weights"], "step": summary["best_step"], "versions": outputs.versions(),
            "metrics": {key: summary[key] for key in ("split", *PROBLEMS[dataset.problem_type].headline)},
        },
    )  # fmt: skip
