"""Assemble a run that learns to write text."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import Module

from vitral import distributed
from vitral.atomic_files import write_json
from vitral.config import dump_yaml
from vitral.data.check_cache import cache_folder
from vitral.data.config import StreamConfig, ViewConfig
from vitral.data.dataset import spaced
from vitral.data.findings import CheckReport, in_order
from vitral.data.image_spec import ImageSpec
from vitral.data.loader import TrainLoader
from vitral.data.text.batches import SplitIds, TextStream, split_ids
from vitral.data.text.check import check_images, check_text
from vitral.data.text.dataset import TextDataset
from vitral.data.text.sources import open_text
from vitral.data.text.tokenizer import END
from vitral.data.text.tokenizer_file import Tokenizers
from vitral.errors import UserError, command, plural
from vitral.evaluate.metric import Metric
from vitral.models.create import build_sequence_model
from vitral.models.search_config import SearchConfig
from vitral.models.sequence_config import SequenceConfig
from vitral.models.sequence_model import SequenceModel
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.sequence import SequenceLoss
from vitral.optional_imports import require
from vitral.predictor import pick_device
from vitral.report.run_report import write_report
from vitral.run.assembly import Assembly, make_state, resolve_steps
from vitral.run.check import refuse, tell
from vitral.run.config import reproduce_command
from vitral.run.finish import versions, write_predictions
from vitral.run.fit_memory import checkpointed_blocks, describe_memory, resolve_memory, smaller_batch_hint
from vitral.run.folder import SUMMARY
from vitral.run.overfit_check import overfit_check
from vitral.run.prepare import absolute_path, resolve_precision
from vitral.run.resume import take_best
from vitral.run.text_alignment import look_section
from vitral.run.text_config import TextData, TextRunConfig
from vitral.run.text_data import open_store, text_subject
from vitral.run.text_init import load_init
from vitral.run.text_memory import make_text_job
from vitral.run.text_model import choose_sequence, make_tokenizers, refuse_unread
from vitral.run.text_pointing import source_at
from vitral.tasks.task import Array, Evaluation, Samples
from vitral.tasks.text import Text, worst, worst_section
from vitral.tasks.text_writing import check_search
from vitral.training.loop import Validation
from vitral.training.memory_estimate import Job
from vitral.training.metrics_log import MetricsLog, counted, log
from vitral.training.train_state import TrainState
from vitral.weights.text_card import text_card
from vitral.weights.text_folder import TextFolderConfig, save_text_folder

_LOOK = 100  # batches whose padding is counted


class TextRun(Assembly[TextRunConfig]):
    """A run on texts, or on images with texts."""

    def __init__(self, config: TextRunConfig, dataset: TextDataset | None = None) -> None:
        require("jiwer", "text", "task=text")  # the metrics need it: refused now, not after the first steps
        self.device = pick_device(distributed.own_device(config.device))
        self.dataset = open_text(config.data, config.data.images()) if dataset is None else dataset
        self.init = load_init(config)
        self.tokenizers = make_tokenizers(config, self.dataset, self.init)
        self.name, self.architecture = choose_sequence(config, self.dataset, self.tokenizers, self.init)
        self.report = _check(config, self.dataset, self.tokenizers)
        self.start = None if self.init is None else self.init.fitted(self.architecture)
        refuse_unread(config, self.architecture)
        check_search(config.search, self.architecture, self.tokenizers)
        self.task = Text(reads="image" if self.dataset.has_images else "text")
        settled = config.model_copy(
            update={
                "eval": self.task.evaluators_of(config.eval), "precision": resolve_precision(config, self.device),
                "data": config.data.model_copy(
                    update={key: absolute_path(getattr(config.data, key)) for key in ("path", "target_path")}
                ),
            }
        )  # fmt: skip
        self.ids = {name: split_ids(split, self.tokenizers, config.data) for name, split in self.dataset.splits.items()}
        _check_frames(self.architecture, self.ids, self.dataset)
        make = partial(make_text_job, settled, self.architecture, self.ids["train"], self.device)
        self.config = resolve_memory(settled, self.architecture, self.device, make)
        self.spec = _image_spec(config.data, self.architecture, self.dataset)
        with ExitStack() as opened:
            self.stores = {
                name: opened.enter_context(
                    open_store(split, self.spec, config.data, self.device, exact=name != "train")
                )
                for name, split in self.dataset.splits.items()
                if self.spec is not None
            }
            self._opened = opened.pop_all()
        self.samples = len(self.dataset.splits["train"])

    def close(self) -> None:
        """See the base class."""
        self._opened.close()

    def build(self) -> SequenceModel:
        """Return a model with weights of `init`, or random from the global seed."""
        model = build_sequence_model(self.architecture)
        if self.start is not None:
            model.load_state_dict(self.start, strict=False)
        model.checkpointed = checkpointed_blocks(self.config, self.architecture)
        return model.to(self.device)

    def state(self) -> tuple[TrainState, Objective]:
        """See the base class."""
        config = self.config
        torch.manual_seed(config.seed)
        steps = resolve_steps(config, self.samples)
        context = ObjectiveContext(steps, self.samples / config.train.batch_size, config.seed)
        objective = SequenceLoss(self.build, config.objective, context).to(self.device)
        started = self.dataset.fingerprint, "" if self.init is None else self.init.fingerprint
        state = make_state(config, objective, steps, self.build, started)
        if config.objective.check and not (config.resume or config.finish):
            self._check_by_heart(objective.model)
        return state, objective

    def _check_by_heart(self, model: SequenceModel) -> None:
        """`objective.check`: evenly spaced training samples, as the model gets them, without augmentation."""
        split, ids, store = self.dataset.splits["train"], self.ids["train"], self.stores.get("train")
        places = spaced(len(split), min(self.config.objective.check, len(split)))
        source = source_at(ids, places, store, self.device)
        overfit_check(model, source, ids, places, split, self.tokenizers, self.config.optim)

    def loader(self) -> TrainLoader:
        """See the base class."""
        config, spec = self.config, self.spec
        views = () if spec is None else (ViewConfig(config.augment, spec.image_size),)
        stream = StreamConfig(config.train.batch_size, config.augment, views=views)
        return TrainLoader({
            "train": TextStream(
                self.ids["train"], stream, config.data, config.seed, store=self.stores.get("train"),
                device=self.device, rank=distributed.rank(), world=distributed.world(),
            )
        })  # fmt: skip

    def _job(self) -> Job:
        return make_text_job(self.config, self.architecture, self.ids["train"], self.device)

    @property
    def smaller_hint(self) -> str:
        """See the base class."""
        return smaller_batch_hint(self.config, self._job)

    def remember(self, folder: Path) -> None:
        """Nothing: the data hold out by content and seed."""

    def log_start(self, objective: Objective, steps: int, folder: Path) -> None:
        """See the base class."""
        config, tokenizers = self.config, self.tokenizers
        for note in self.dataset.notes:
            log.info("data: %s", note)
        splits = ", ".join(f"{len(split):,} {name}" for name, split in self.dataset.splits.items())
        sizes = [f"{len(tokenizers.target)} target tokens ({tokenizers.target.kind})"]
        if tokenizers.source is not None and tokenizers.source is not tokenizers.target:
            sizes.insert(0, f"{len(tokenizers.source)} source tokens ({tokenizers.source.kind})")
        log.info("data: %s: %s, %s", self.dataset.name, splits, ", ".join(sizes))
        stream = self.loader().streams["train"]
        assert isinstance(stream, TextStream)
        log.info("data: %.0f%% of the ids in batches are padding", 100 * stream.padded_share(range(min(steps, _LOOK))))
        count = sum(parameter.numel() for parameter in objective.model.parameters())
        log.info("model: %s, %s, %s parameters", self.name, self.architecture.description, f"{count:,}")
        if config.memory is not None:
            log.info("memory: %s", describe_memory(config, self._job()))
        way = self.device, config.precision, folder
        batch = plural(config.train.batch_size, "sample")
        log.info("run: %s of %s on %s, %s, into %s", plural(steps, "step"), batch, *way)

    def validation(self) -> Validation | None:
        """By the first evaluator, on texts that are written greedily."""
        if "val" not in self.dataset.splits:
            return None
        evaluators = dict([next(iter(self.config.eval.items()))])
        most = min(self.config.eval_samples, len(self.dataset.splits["val"]))
        search = SearchConfig(max_length=self.config.search.max_length, allowed=self.config.search.allowed)

        def evaluate(model: Module) -> tuple[Metric, Metric | None]:
            found = self.task.evaluate(self._subject(model, "val", search, most), evaluators)
            return found.primary, found.metric(self.task.tie_breaker or "")

        return Validation(evaluate, most)

    def _subject(self, model: Module, name: str, search: SearchConfig, most: int | None = None) -> Any:
        return text_subject(
            model, name, self.dataset.splits[name], self.ids[name], self.tokenizers, search,
            store=self.stores.get(name), device=self.device, most=most, in_training=most is not None,
        )  # fmt: skip

    def finish(self, state: TrainState, objective: Objective, folder: Path) -> dict[str, Any]:
        """Evaluate the best weights on test (else on validation) data, and write the artifacts."""
        config, progress, task, model = self.config, state.progress, self.task, objective.eval_model
        take_best(model, state, objective, folder)
        split = next((name for name in ("test", "val") if name in self.dataset.splits), None)
        evaluation = outputs = None
        if split is not None:
            subject = self._subject(model, split, config.search)
            evaluation, outputs = task.evaluate(subject, config.eval), subject.outputs()
        summary: dict[str, Any] = {
            "recipe": config.recipe, "objective": "text", "model": self.name,
            **({"split": split, **evaluation.summary(task)} if evaluation else {}),
            "train_seconds": round(progress.seconds, 1), "steps": progress.step, "best_step": progress.best_step,
            "weights": "averaged (EMA) weights" if state.ema is not None else "plain weights",
            **({"skipped_steps": progress.skipped} if progress.skipped else {}),
            "seed": config.seed, "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }  # fmt: skip
        if not distributed.is_main():
            return summary
        kept = self._folder_config(summary, evaluation)
        assert isinstance(model, SequenceModel)
        save_text_folder(folder / "model", model, kept, self.tokenizers, text_card(kept))
        if outputs is not None and split is not None:
            rows = task.prediction_rows(self.dataset.splits[split].names, outputs[1], outputs[0])
            write_predictions(folder / "predictions.csv", rows)
        if config.report:
            self._write_report(folder, model, summary, evaluation, outputs)
        write_json(folder / SUMMARY, summary)  # last: a folder that has it is complete
        self._log_result(evaluation, progress.seconds, folder)
        return summary

    def _log_result(self, evaluation: Evaluation | None, seconds: float, folder: Path) -> None:
        if evaluation is not None:
            line, *more = self.task.log_lines(evaluation)
            for text in (f"{evaluation.split} {line}, {seconds:.0f} s", *more):
                log.info("%s", text)
        log.info("in %s: model, summary.json%s", folder, ", report.html" if self.config.report else "")
        what = ("IMAGE",) if self.dataset.has_images else ("--text", "TEXT")
        ways = command("vitral", "predict", str(folder), *what), command("vitral", "eval", str(folder))
        log.info("next: %s, or %s", *ways)

    def _write_report(
        self, folder: Path, model: SequenceModel, summary: dict[str, Any], evaluation: Evaluation | None,
        outputs: tuple[Array, Array] | None,
    ) -> None:  # fmt: skip
        task, sections = self.task, []
        if evaluation is not None and outputs is not None:
            split = self.dataset.splits[evaluation.split]
            samples = Samples(outputs[0], outputs[1], split.names, _no_image, {}, _no_image)
            named = split.sources or split.names
            rows = [(named[place], outputs[1][place][0], outputs[0]["text"][place]) for place in worst(*outputs)]
            sections = [*task.sections(evaluation, samples), worst_section(rows)]
            try:
                look = look_section(
                    model, split, self.ids[evaluation.split], self.tokenizers, outputs,
                    store=self.stores.get(evaluation.split), device=self.device,
                )  # fmt: skip
            except UserError as error:  # the run is done: a picture less is no reason to lose it
                log.warning("the report shows no attention: %s", error)
                look = None
            sections += [look] if look else []
        shown = self.report.shown(self.config.check.allow) if self.report else ()
        write_report(
            folder / "report.html", title=f"{self.config.recipe}: {self.name} on {self.dataset.name}",
            sections=sections, summary=summary, metrics_rows=MetricsLog.read(folder),
            primary=evaluation.primary if evaluation else task.metrics[0], loss_unit=task.loss_unit,
            loss_note=task.loss_note, config_yaml=dump_yaml(self.config.model_dump(mode="json")),
            notes=[*self.dataset.notes, *(f"{finding.message} [{finding.code}]" for finding in shown)],
        )  # fmt: skip

    def _folder_config(self, summary: dict[str, Any], evaluation: Evaluation | None) -> TextFolderConfig:
        config, data = self.config, self.config.data
        return TextFolderConfig(
            name=self.name, architecture=self.architecture, tokenizer=self.tokenizers.digest, search=config.search,
            preprocessing=self.spec, max_source=None if self.dataset.has_images else data.max_source,
            provenance={
                "recipe": config.recipe, "seed": config.seed, "objective": "text",
                "command": reproduce_command(config),
                "data": {
                    **data.model_dump(mode="json"), "name": self.dataset.name,
                    "fingerprint": self.dataset.fingerprint,
                    "counts": {name: len(split) for name, split in self.dataset.splits.items()},
                    "notes": list(self.dataset.notes),
                },
                "weights": summary["weights"], "step": summary["best_step"], "steps": summary["steps"],
                "validated": "val" in self.dataset.splits, "versions": versions(),
                **(self.task.provenance(evaluation) if evaluation else {"metrics": {}}),
            },
        )  # fmt: skip


def _no_image(place: int) -> Array:
    raise AssertionError("the sections of texts show no images")


def _check(config: TextRunConfig, dataset: TextDataset, tokenizers: Tokenizers) -> CheckReport | None:
    """Check the texts, and the images where these are read. Raises UserError that lists every error which
    `check.allow` does not name."""
    if config.check.skip:
        return None
    started = time.perf_counter()
    counts = {name: len(split) for name, split in dataset.splits.items()}
    found = check_text(dataset, tokenizers, config.data)
    if dataset.has_images:
        with counted("checking images", sum(counts.values())) as tick:
            found = in_order([*found, *check_images(dataset, config.data.images(), cache_folder(), tick).findings])
    report = CheckReport(dataset.name, dataset.fingerprint, counts, found, {}, (), ())
    tell(report, config, time.perf_counter() - started, "samples")
    refuse(report, config)
    return report


def _check_frames(architecture: SequenceConfig, ids: dict[str, SplitIds], dataset: TextDataset) -> None:
    """Raise UserError for a text that CTC cannot write: one frame per token, and one more between equal ones."""
    if architecture.decodes_steps:
        return
    frames = architecture.frames
    for name, split in ids.items():
        for place in range(len(split.target.length_N)):
            start, stop = split.target.start_N1[place : place + 2]
            own = split.target.ids_P[start:stop]
            own = own[own != END]  # a shortened text has none
            needed = len(own) + int(np.sum(own[1:] == own[:-1]))
            if needed > frames:
                raise UserError(
                    "a text needs more frames than CTC has, one per column of patches",
                    where=dataset.splits[name].names[place], got=needed, expected=f"at most {frames}",
                    hint="Take wider images (data.image_size=height,width), smaller patches, or a decoder.",
                )  # fmt: skip


def _image_spec(data: TextData, architecture: SequenceConfig, dataset: TextDataset) -> ImageSpec | None:
    if not dataset.has_images:
        return None
    height, width, channels = architecture.input_shapes["image"]
    return ImageSpec(resize_mode=data.resize_mode, image_size=(height, width), channels=channels)
