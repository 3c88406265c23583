"""Subjects of evaluation: the model of a run on its splits, or a loaded model on opened data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from torch import Tensor, nn

from vitral import distributed
from vitral.data.config import UNLABELED
from vitral.data.dataset import Split, spaced
from vitral.data.image_store import ImageStore
from vitral.data.loader import eval_batches
from vitral.engines import TorchEngine
from vitral.evaluate.classification import collect_logits
from vitral.predictor import Predictor
from vitral.run.fit_memory import EVAL_BATCH
from vitral.run.inference_inputs import image_batches, split_logits
from vitral.run.prepare import RunContext, open_store
from vitral.tasks.task import Array, Subject


class EvalData:
    """The splits of a run for evaluation; splits that training does not use are opened on first use. Call `close`
    afterwards."""

    def __init__(self, prepared: RunContext) -> None:
        self.prepared = prepared
        self._opened: dict[tuple[str, int | None], ImageStore] = {}

    def subject(self, model: nn.Module, split: str, *, in_training: bool = False, most: int | None = None) -> Subject:
        """Return the model as subject of an evaluation on a split, or on `most` of its images, evenly spaced, by all
        processes together."""
        sizes = {name: len(part) for name, part in self.prepared.dataset.splits.items()}
        outputs = partial(self._outputs, model, split, most)
        return Subject(split, self.batches, outputs, model, in_training=in_training, sizes=sizes)

    def batches(self, split: str, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's share of the images of a split, or of `most` evenly spaced ones."""
        return eval_batches(self._store(split, most), EVAL_BATCH)

    def close(self) -> None:
        """Close all image stores."""
        for store in self._opened.values():
            store.close()

    def _outputs(self, model: nn.Module, split: str, most: int | None) -> tuple[Array, Array]:
        """Return outputs and annotations of all samples on every process; each process computes its share."""
        task, store = self.prepared.task, self._store(split, most)
        outputs_NS, annotations = collect_logits(model, self.batches(split, most), task.compact)
        whole = distributed.gather_rows(outputs_NS), distributed.gather_rows(annotations)
        return task.annotated(*whole, store.split, self.prepared.image_spec)

    def _store(self, split: str, most: int | None) -> ImageStore:
        dataset = self.prepared.dataset
        whole = self.prepared.val_stores.get(split)
        part = dataset.hidden if split == UNLABELED and dataset.hidden is not None else dataset.parts[split]
        if whole is not None and (most is None or most >= len(part)):
            return whole
        if (split, most) not in self._opened:
            few = part if most is None else part.subset(spaced(len(part), most))
            data, device = self.prepared.config.data, self.prepared.device
            self._opened[split, most] = open_store(few, data, device, exact=True)
        return self._opened[split, most]


def loaded_subject(predictor: Predictor, splits: Mapping[str, Split], split: str, batch_size: int) -> Subject:
    """Return a loaded model as subject of an evaluation on a split."""

    def batches(name: str, most: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        part = splits[name]
        return image_batches(predictor, part if most is None else part.subset(spaced(len(part), most)), batch_size)

    model = None if predictor.is_export else predictor.model
    return Subject(
        split, batches, partial(split_logits, predictor, splits[split], batch_size), model,
        sizes={name: len(part) for name, part in splits.items()}, classifier=classifier_of(predictor),
    )  # fmt: skip


def classifier_of(predictor: Predictor) -> nn.Module | Callable[[Tensor], Tensor]:
    """Return the function from images in [0,1] to logits that the predictor's engine computes: a module if it has
    gradients. An engine that takes pixels gets images of 8 bits, so these are rounded."""
    engine = predictor.engine
    if isinstance(engine, TorchEngine):
        return engine.model

    def rounded(images_BCHW: Tensor) -> Tensor:
        return engine.logits((images_BCHW * 255).round().byte().permute(0, 2, 3, 1).contiguous())

    return engine.logits if engine.takes == "resized" else rounded
