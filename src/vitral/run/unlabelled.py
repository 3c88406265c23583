"""What a run without labels is judged by, where its data have classes, and what it leaves.

Shape letters: N images, D width of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitral import distributed
from vitral.config import build, dump_yaml, load_yaml
from vitral.data.dataset import spaced
from vitral.data.loader import ImageStore, eval_batches
from vitral.errors import UserError
from vitral.evaluate.config import KnnConfig
from vitral.evaluate.embedded import Embedded
from vitral.evaluate.knn import knn
from vitral.models.config import build_config
from vitral.models.create import build_model
from vitral.models.model import ImageModel
from vitral.objectives.config import SelfSupervisedConfig, SupervisedConfig
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.table import OBJECTIVES
from vitral.report.unlabelled_page import write_unlabelled_report
from vitral.run import outputs
from vitral.run.check import noted
from vitral.run.config import RunConfig
from vitral.run.folder import CHECKPOINTS
from vitral.run.prepare import EVAL_BATCH, Prepared, open_store
from vitral.training.journal import Journal, log
from vitral.training.state import LAST, WHOLE, TrainState
from vitral.weights.card import model_card
from vitral.weights.folder import save_folder
from vitral.weights.tensors import check_match, load_tensors
from vitral.whole import write_json

NEIGHBOURS = ("knn_top1", "k-NN top-1")
_PICTURES = 8


@contextmanager
def neighbours_judge(prepared: Prepared) -> Generator[Callable[[nn.Module], dict[str, float]] | None]:
    """A function that gives `val_knn_top1` of a model on the validation images; None where there is nothing to judge
    by: no validation split, or no one class an image out of several."""
    if "val" not in prepared.judged or not _has_classes(prepared):
        yield None
        return
    with ExitStack() as opened:
        stores = [opened.enter_context(_sampled(prepared, split)) for split in ("train", "val")]

        def judge(model: nn.Module) -> dict[str, float]:
            assert isinstance(model, ImageModel)
            return {f"val_{NEIGHBOURS[0]}": _neighbours(prepared, model, *stores)["top1"]}

        yield judge


def _has_classes(prepared: Prepared) -> bool:
    labels_N = prepared.train.split.labels_N
    return labels_N.ndim == 1 and len(np.unique(labels_N)) > 1


def _asked(prepared: Prepared) -> SelfSupervisedConfig:
    asked = prepared.config.objective
    assert isinstance(asked, SelfSupervisedConfig)
    return asked


def _sampled(prepared: Prepared, name: str) -> ImageStore:
    """A split's images as evaluation sees them, evenly spaced where there are too many."""
    split = prepared.dataset.splits[name]
    few = split.subset(spaced(len(split), _asked(prepared).knn_samples))
    return open_store(few, prepared.config.data, prepared.device, exact=True, batch=EVAL_BATCH)


def _neighbours(prepared: Prepared, model: ImageModel, train: ImageStore, judged: ImageStore) -> dict[str, Any]:
    """Accuracy of the vote of the nearest train images, by the features that a head would read."""
    voters, asked = _features(model, train), _features(model, judged)
    return dict(knn(voters, asked, len(prepared.dataset.classes), KnnConfig(k=(_asked(prepared).knn_k,))))


@torch.inference_mode()
def _features(model: ImageModel, store: ImageStore) -> Embedded:
    """Of every image, on every process; each has computed its share."""
    model.eval()
    rows = [model.pool(model.encode(images_BCHW)).float().cpu() for images_BCHW, _ in eval_batches(store, EVAL_BATCH)]
    features_ND = torch.from_numpy(distributed.gather_rows(torch.cat(rows).numpy()))
    return Embedded(features_ND.to(store.device), torch.from_numpy(store.split.labels_N).to(store.device))


def finish_unlabelled(prepared: Prepared, state: TrainState, objective: Objective, folder: Path) -> dict[str, Any]:
    """Judge the last weights, write what the run leaves, say the number."""
    config, progress, model = prepared.config, state.progress, objective.judged
    found: dict[str, Any] = {}
    split = next((name for name in ("test", "val") if name in prepared.judged), None)
    if split is not None and _has_classes(prepared):
        with _sampled(prepared, "train") as train, _sampled(prepared, split) as judged:
            metrics = _neighbours(prepared, model, train, judged)
        found = {
            "split": split, **{key: metrics[key] for key in ("top1", "top1_interval", "count")},
            "judged_by": f"{_asked(prepared).knn_k} nearest neighbours",
        }  # fmt: skip
    summary = {
        "recipe": config.recipe, "objective": config.objective.kind, **found,
        "train_seconds": round(progress.seconds, 1), "steps": progress.step, "best_step": progress.best_step,
        "weights": "averaged (EMA) weights" if state.ema or objective.judged is not objective.model
        else "plain weights",
        **({"skipped_steps": progress.skipped} if progress.skipped else {}),
        "seed": config.seed, "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }  # fmt: skip
    if not distributed.is_main():
        return summary
    kept = outputs.folder_config(prepared, summary)
    save_folder(folder / "model", model, kept, model_card(kept))
    if config.report:
        write_unlabelled_report(
            folder / "report.html",
            title=f"{config.recipe}: {prepared.name} on {prepared.dataset.name}, without labels",
            summary=summary,
            metrics_rows=Journal.read(folder),
            pictures=_pictures(prepared, objective),
            config_yaml=dump_yaml(config.model_dump(mode="json")),
            notes=noted(prepared.report, config, prepared.dataset),
        )
    write_json(folder / "summary.json", summary)  # last: a folder that has it is complete
    if found:
        log.info("%s %s by %s", split, outputs.result_line(summary), summary["judged_by"])
    log.info("in %s: model, summary.json%s", folder, ", report.html" if config.report else "")
    return summary


def load_objective(folder: str | Path) -> Objective:
    """The whole objective of a run without labels, decoder and heads too, as its last checkpoint has it, in evaluation
    mode on the CPU: to look at what the model folder, an encoder alone, no longer shows.

    Raises UserError for a folder that is no such run, or that has no checkpoint yet.
    """
    path = Path(folder).expanduser()
    if not (path / "config.yaml").is_file():
        raise UserError("no run here: config.yaml is missing", where=str(folder))
    config = build(RunConfig, load_yaml(path / "config.yaml"), where=str(path / "config.yaml"))
    if isinstance(config.objective, SupervisedConfig):
        hint = "vitral.load(folder) gives the model, which is all there is of it."
        raise UserError("a run with labels", where=str(folder), got=config.objective.kind, hint=hint)
    images = config.data.model_dump(include={"image_size", "mean", "std"}) | {"in_channels": config.data.channels}
    architecture = build_config({**config.model.options(), **images, "num_classes": 0})
    kind, context = OBJECTIVES[config.objective.kind], ObjectiveContext(1, seed=config.seed)
    objective = kind(lambda: build_model(architecture), config.objective, context)
    checkpoint, prefix = path / CHECKPOINTS / f"{LAST}{WHOLE}", "objective."
    tensors = load_tensors(checkpoint, checked=True)[0]
    mine = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    check_match(objective.state_dict(), mine, str(checkpoint))
    objective.load_state_dict(mine)
    return objective.eval()


@torch.inference_mode()
def _pictures(prepared: Prepared, objective: Objective) -> dict[str, Any]:
    """What the objective shows of a few images that it has not learned from, if there are any."""
    store = next((prepared.judged[name] for name in ("test", "val") if name in prepared.judged), prepared.train)
    images_BCHW: Tensor = store.get(torch.tensor(spaced(len(store.split), _PICTURES)))
    unit_BCHW = images_BCHW.float() / 255 if images_BCHW.dtype == torch.uint8 else images_BCHW
    columns = objective.eval().pictures(unit_BCHW.to(prepared.device))
    return {name: images.clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy() for name, images in columns.items()}
