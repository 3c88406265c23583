"""What evaluators measure: the model of a run on its splits, or a loaded one on those that a command opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from torch import Tensor, nn

from vitral import distributed
from vitral.data.dataset import Split, spaced
from vitral.data.loader import ImageStore, eval_batches
from vitral.evaluate.classification import collect_logits
from vitral.predictor import Predictor
from vitral.run.inference_inputs import image_batches, split_logits
from vitral.run.prepare import EVAL_BATCH, RunContext, open_store
from vitral.tasks.task import Array, Subject


class EvalData:
    """The splits of a run as evaluation sees them; those that training does not open are opened when they are needed.
    To be closed."""

    def __init__(self, prepared: RunContext) -> None:
        self.prepared = prepared
        self._opened: dict[tuple[str, int | None], ImageStore] = {}

    def subject(self, model: nn.Module, split: str, *, in_training: bool = False) -> Subject:
        """The model, to be evaluated on a split, by all processes together."""
        return Subject(split, self.batches, partial(self._outputs, model, split), model, in_training=in_training)

    def batches(self, split: str, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the images of a split, or of `most` evenly spaced ones."""
        return eval_batches(self._store(split, most), EVAL_BATCH)

    def close(self) -> None:
        """End what reads images."""
        for store in self._opened.values():
            store.close()

    def _outputs(self, model: nn.Module, split: str) -> tuple[Array, Array]:
        """Outputs and annotations of every sample, once, on every process; each has computed its share."""
        outputs_NS, annotations = collect_logits(model, self.batches(split))
        return distributed.gather_rows(outputs_NS), distributed.gather_rows(annotations)

    def _store(self, split: str, most: int | None) -> ImageStore:
        whole, part = self.prepared.val_stores.get(split), self.prepared.dataset.splits[split]
        if whole is not None and (most is None or most >= len(part)):
            return whole
        if (split, most) not in self._opened:
            few = part if most is None else part.subset(spaced(len(part), most))
            data, device = self.prepared.config.data, self.prepared.device
            self._opened[split, most] = open_store(few, data, device, exact=True)
        return self._opened[split, most]


def loaded_subject(predictor: Predictor, splits: Mapping[str, Split], split: str, batch_size: int) -> Subject:
    """A loaded model, to be evaluated on a split."""

    def batches(name: str, most: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        part = splits[name]
        return image_batches(predictor, part if most is None else part.subset(spaced(len(part), most)), batch_size)

    model = None if predictor.is_export else predictor.model
    return Subject(split, batches, partial(split_logits, predictor, splits[split], batch_size), model)
