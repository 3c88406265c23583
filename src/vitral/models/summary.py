"""Shapes, parameters, compute and memory of a model per layer, from one run on the meta device."""

from __future__ import annotations

import copy
from collections import Counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.errors import UserError
from vitral.models.architecture_config import ArchitectureConfig
from vitral.models.cost import Device, Kept, Precision, Recorder, cached, record_step, recording
from vitral.models.create import build_network
from vitral.models.network import Network
from vitral.models.parameters import compute_copy_of
from vitral.models.registry import token_encoder
from vitral.models.token_reduction import TokenReduction


class Row(NamedTuple):
    """One module, or the queries or the map of a fused attention ("blocks.0.attn.q": heads, tokens, features).

    shape: of what leaves it, for one sample, empty where that is no tensor. parameters, macs (multiply-accumulates of a
    forward pass) and activations (bytes kept for the backward pass, of one sample) are its own, without those of the
    modules in it, so that a column adds up to the whole.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    activations: int


@cached(64)
def summarize(config: ArchitectureConfig, precision: Precision = "float32", device: Device = "cpu") -> tuple[Row, ...]:
    """Return a row for each module that a forward pass runs, in the order in which they begin; the first are the inputs
    (an image: height, width, channels), the last, named "", what the model does itself."""
    own = Counter[str]()
    for name, parameter in meta_model(config).named_parameters():
        own[name.rpartition(".")[0]] += parameter.numel()
    step, work = _step(config, 1, precision, device), _forward(config, 1)
    names = [*dict.fromkeys([*step.shapes, *work.shapes])]
    loose = [name for name in [*own, *work.macs, *step.saved] if name not in names]  # never called, only held
    rows = [
        Row(name, step.shapes.get(name, ()), own[name], work.macs[name], step.saved[name])
        for name in [*names, *dict.fromkeys([*filter(None, loose), ""])]
    ]
    return (*(Row(name, shape, 0, 0, 0) for name, shape in config.input_shapes.items()), *rows)


def count_parameters(config: ArchitectureConfig) -> int:
    """Return the exact number of trained values, head included (table 1 of arXiv 2010.11929 rounds them)."""
    return sum(parameter.numel() for parameter in meta_model(config).parameters())


def count_macs(config: ArchitectureConfig, whole: bool = False, reduce: TokenReduction | None = None) -> dict[str, int]:
    """Return the multiply-accumulates of `model(images)` for one image of the model's own size (of other inputs: as
    `config.input_shapes` has them), by part; their sum is the whole.

    Counted are matrix products and convolutions, as torch's FlopCounterMode counts them (two operations each); norms,
    activations and additions are not. The parts are those of the family, of a Vision Transformer: stem (a hybrid's
    ResNet), patches, qkv, scores (queries times keys), values (attention times values), projection, mlp, positions
    (those inside the attention), pruner, pool, head. whole: the last block computes all tokens, as papers and other
    tools count, also where the head reads the class token alone. reduce: what makes the patch tokens fewer; the work of
    finding them is in the parts of their block.
    """
    parts = Counter[str]()
    recorder = _forward(config, 1, whole) if reduce is None else _reduced(config, whole, reduce)
    for name, macs in recorder.macs.items():
        parts[config.part_of(name)] += macs
    return dict(parts)


def module_macs(config: ArchitectureConfig) -> dict[str, int]:
    """Return the multiply-accumulates of one sample by module, named as in `summarize`."""
    return dict(_forward(config, 1).macs)


def kept_activations(
    config: ArchitectureConfig, samples: int, precision: Precision = "float32", device: Device = "cpu"
) -> Kept:
    """Return what training on `samples` samples at once keeps, logits and cross-entropy included."""
    return _step(config, samples, precision, device).kept()


def forward_bytes(config: ArchitectureConfig, samples: int) -> int:
    """Return the largest moment of a forward pass in float32 that keeps nothing, without parameters and inputs."""
    return _forward(config, samples).peak


@cached(16)
def meta_model(config: ArchitectureConfig) -> Network:
    """Return the model without memory for its values; to be looked at, not to be changed.

    Raises UserError for sizes that no tensor can have.
    """
    try:
        with torch.device("meta"):
            return build_network(config)
    except (RuntimeError, TypeError) as error:
        hint = str(error).splitlines()[0]
        raise UserError("this model is too large to be built", got=config.description, hint=hint) from error


@cached(64)
def _forward(config: ArchitectureConfig, samples: int, whole: bool = False) -> Recorder:
    return _recorded(meta_model(config), samples, whole)


def _reduced(config: ArchitectureConfig, whole: bool, reduce: TokenReduction) -> Recorder:
    encoder = token_encoder(model := copy.deepcopy(meta_model(config)))
    assert encoder is not None
    encoder.reduce = reduce
    return _recorded(model, 1, whole)


def _recorded(model: Network, samples: int, whole: bool) -> Recorder:
    inputs = model.eval().example_inputs(samples)
    with torch.no_grad(), recording(model) as recorder:
        recorder.ignore(inputs)
        if whole:
            model.forward_all_tokens(*inputs)
        else:
            model(*inputs)
    return recorder


@cached(64)
def _step(config: ArchitectureConfig, samples: int, precision: Precision, device: Device) -> Recorder:
    model = meta_model(config).train()
    if precision == "bfloat16_params":
        model = compute_copy_of(model)
    inputs, labels = model.example_inputs(samples), model.example_labels(samples)

    def loss() -> Tensor:
        logits = model(*inputs).float()
        return logits.sum() if labels is None else F.cross_entropy(logits.flatten(0, -2), labels.flatten())

    given = inputs if labels is None else (*inputs, labels)
    return record_step(model, model, loss, given, precision, device)
