"""Work and memory of a run that learns to write text, for `memory=` and `vitral estimate`.

Shape letters: B batch, T positions of the target, S of the source, C channels, H W image height and width.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitral.data.text.batches import SplitIds, padded_widths, split_ids
from vitral.data.text.sources import open_text
from vitral.data.text.tokenizer import END
from vitral.models.cost import Device, Kept, Precision, cached, recording
from vitral.models.create import build_sequence_model
from vitral.models.sequence_config import LSTMConfig, SequenceConfig
from vitral.models.summary import count_parameters, meta_model
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.sequence import SequenceLoss
from vitral.objectives.sequence_config import SequenceLossConfig
from vitral.run.fit_memory import STEPS, job_of, kept_by
from vitral.run.text_config import TextRunConfig
from vitral.run.text_init import load_init
from vitral.run.text_model import choose_sequence, make_tokenizers
from vitral.structs import Batch, View
from vitral.training import memory_estimate as memory


class _Step(NamedTuple):
    """What decides how much a step keeps for each sample. target, source: positions; source is 0 for images."""

    kind: SequenceLossConfig
    architecture: SequenceConfig
    target: int
    source: int
    precision: Precision
    device: Device

    @property
    def place(self) -> str:
        """Recurrent layers compute in earnest: what oneDNN keeps of them, only it knows."""
        return "cpu" if isinstance(self.architecture, LSTMConfig) else "meta"


def make_text_job(
    config: TextRunConfig, architecture: SequenceConfig, ids: SplitIds, device: torch.device
) -> memory.Job:
    """Return what the memory of this run depends on: a step on the longest texts of the training split, `ids`;
    `config.precision` is settled. Writing texts, as validation does, is not counted."""
    assert config.precision != "auto"
    target, source = padded_widths(ids, slice(None), config.data.pad_multiple)
    kind = config.objective.model_copy(update={"check": 0})
    at = "cuda" if device.type == "cuda" else "cpu"
    step = _Step(kind, architecture, target, source, config.precision, at)
    images = 2 * 4 * math.prod(architecture.input_shapes["image"]) if architecture.reads_images else 0
    kept = memory.interpolated(partial(_kept, step), config.train.batch_size)
    return job_of(_objective(step), config, architecture, kept, images + 8 * (target + source))


def text_architecture(config: TextRunConfig) -> tuple[SequenceConfig, SplitIds]:
    """Open the data and return the model's shape for them, and the training texts as ids."""
    dataset = open_text(config.data, config.data.images())
    init = load_init(config)
    tokenizers = make_tokenizers(config, dataset, init)
    ids = split_ids(dataset.splits["train"], tokenizers, config.data)
    return choose_sequence(config, dataset, tokenizers, init)[1], ids


def compute(architecture: SequenceConfig, target: int, source: int) -> dict[str, Any]:
    """Return parameters and multiply-accumulates of a forward pass of one sample with texts of so many positions, as
    it is trained: in total and per part."""
    model = meta_model(architecture).eval()
    step = _Step(SequenceLossConfig(), architecture, target, source, "float32", "cpu")
    inputs = _inputs(step, 1, "meta")
    with torch.no_grad(), recording(model) as recorder:
        recorder.ignore(inputs)
        model(*inputs) if architecture.decodes_steps else model(inputs[0])
    parts = Counter[str]()
    for name, macs in recorder.macs.items():
        parts[architecture.part_of(name)] += macs
    macs = parts.total()
    return {
        "parameters": count_parameters(architecture), "macs": macs, "flops": 2 * macs,
        "macs_parts": {name: count for name, count in parts.items() if count},
    }  # fmt: skip


@cached(8)
def _objective(step: _Step) -> SequenceLoss:
    with torch.device(step.place):
        return SequenceLoss(
            lambda: build_sequence_model(step.architecture), step.kind, ObjectiveContext(STEPS)
        ).train()  # fmt: skip


@cached(32)
def _kept(step: _Step, samples: int) -> Kept:
    source, text_BT = _inputs(step, samples, step.place)
    with torch.device(step.place):
        ids_B = torch.zeros(samples, dtype=torch.long)
        if step.architecture.reads_images:
            batch = Batch((View(source, torch.zeros(samples, 3, 3)),), {"text": text_BT}, ids_B)
        else:
            batch = Batch((), {"text": text_BT, "source": source}, ids_B)
    return kept_by(_objective(step), {"train": batch}, step.precision, step.device, step.place)


def _inputs(step: _Step, samples: int, place: str) -> tuple[Tensor, Tensor]:
    """A source, images [B, C, H, W] or ids [B, S], and a target [B, T], without padding."""
    text_BT = torch.full((samples, step.target), END, device=place)
    if not step.architecture.reads_images:
        return torch.full((samples, step.source), END, device=place), text_BT
    height, width, channels = step.architecture.input_shapes["image"]
    return torch.zeros(samples, channels, height, width, device=place), text_BT
