"""ONNX files of a model that writes text: encoder and decoder step, with all that a step remembers as tensors.

The first axis of every input and output counts rows, so that a search reorders all of them alike.

Shape letters: R rows, S source tokens, M tokens of the memory, L tokens so far, h heads, d features of a head, D width,
V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitral.export.formats import OPSET, write_proto
from vitral.export.graph import quiet
from vitral.export.recurrent_graph import recurrent_encoder
from vitral.models.attention import KVCache
from vitral.models.lstm import RecurrentSeq2Seq
from vitral.models.sequence_model import SequenceModel, State
from vitral.optional_imports import require
from vitral.text_engines import ENCODER, LOGITS, MEMORY, PAST, PRESENT, SOURCE, STEP, TOKEN

_ATTEND = f"{MEMORY}attend"


class GrowingCache(KVCache):
    """Keys and values that are joined to those before them, [R, h, L, d], instead of written into a place."""

    def __init__(self, k_RhLd: Tensor, v_RhLd: Tensor) -> None:
        self.k_BhLd, self.v_BhLd, self.length = k_RhLd, v_RhLd, k_RhLd.shape[2]

    def append(self, k_BhTd: Tensor, v_BhTd: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVCache`."""
        self.k_BhLd, self.v_BhLd = torch.cat([self.k_BhLd, k_BhTd], 2), torch.cat([self.v_BhLd, v_BhTd], 2)
        self.length = self.k_BhLd.shape[2]
        return self.k_BhLd, self.v_BhLd

    def read(self) -> tuple[Tensor, Tensor]:
        """See `KVCache`."""
        return self.k_BhLd, self.v_BhLd


class EncoderGraph(nn.Module):
    """A source to what every step reads: a mask of the memory, where there is padding, keys and values of each decoder
    block, [R, h, M, d]; or to the logits of CTC."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model
        self.with_mask = not model.config.reads_images

    def forward(self, source: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        if not self.model.config.decodes_steps:
            return (self.model(source),)
        memory = self.model.encode(source)
        state = self.model.start(memory, 1, 1)
        kept = [part for pair in state.memory_kv for part in pair]
        return (memory.attend_BM, *kept) if memory.attend_BM is not None else tuple(kept)


class StepGraph(nn.Module):
    """One token, [R], what the encoder gave, and caches or recurrent states, to logits [R, V] and the next of these.

    Recurrent states are [R, L, D], L layers.
    """

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model, self.recurrent = model, isinstance(model, RecurrentSeq2Seq)

    def forward(self, token: Tensor, memory: tuple[Tensor, ...], past: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See the class."""
        has_mask = len(memory) % 2 == 1
        kept = memory[1:] if has_mask else memory
        state = State(token.shape[0], 1, memory[0] if has_mask else None, list(zip(kept[::2], kept[1::2], strict=True)))
        if self.recurrent:
            state.cells = tuple(cell.transpose(0, 1) for cell in past)
        else:
            state.caches = [GrowingCache(k, v) for k, v in zip(past[::2], past[1::2], strict=True)]
            state.length = past[0].shape[2]
        logits_RV = self.model.step(token, state)
        if self.recurrent:
            return logits_RV, *(cell.transpose(0, 1) for cell in state.cells)
        return logits_RV, *(part for cache in state.caches for part in cache.read())


def write_graphs(folder: Path, model: SequenceModel) -> None:
    """Write encoder.onnx and, unless the model is read by CTC, decoder_step.onnx. model: on the CPU, in evaluation
    mode, without gradients."""
    onnx = require("onnx", "export")
    require("onnxscript", "export")
    rows, source = torch.export.Dim("rows"), torch.export.Dim("source", max=model.config.max_length)
    source_example = model.example_inputs(2)[0]
    with torch.no_grad(), quiet():
        if isinstance(model, RecurrentSeq2Seq):
            proto, outputs = recurrent_encoder(onnx, model)
        else:
            open_sides = {0: rows} if model.config.reads_images else {0: rows, 1: source}
            encoder = EncoderGraph(model).eval()
            outputs = _names(model, len(encoder(source_example)))
            proto = _exported(encoder, (source_example,), {"source": open_sides}, [SOURCE], outputs)
        write_proto(onnx, proto, folder / ENCODER)
        if model.config.decodes_steps:
            write_proto(onnx, _step_proto(model, source_example, outputs), folder / STEP)


def _names(model: SequenceModel, count: int) -> list[str]:
    if not model.config.decodes_steps:
        return [LOGITS]
    mask = [] if model.config.reads_images else [_ATTEND]
    pairs = [f"{MEMORY}{part}_{i}" for i in range(count // 2) for part in ("k", "v")]
    return mask + pairs


def _step_proto(model: SequenceModel, source_example: Tensor, outputs: list[str]) -> Any:
    rows, tokens = torch.export.Dim("rows"), torch.export.Dim("memory")
    past_tokens = torch.export.Dim("past", max=model.config.max_length - 1)
    memory = model.encode(source_example)
    state = model.start(memory, 1, 4)
    names = [name for name in outputs if name.startswith(MEMORY)]
    kept = [part for pair in state.memory_kv for part in pair]
    given = tuple(([] if memory.attend_BM is None or not kept else [memory.attend_BM]) + kept)
    if isinstance(model, RecurrentSeq2Seq):
        past = tuple(cell.transpose(0, 1).contiguous() for cell in state.cells)
        past_names = [f"{PAST}cell_{i}" for i in range(len(past))]
        past_sides: Any = tuple({0: rows} for _ in past)
    else:
        for _ in range(3):
            model.step(torch.full((2,), 2), state)
        past = tuple(part.clone() for cache in state.caches for part in cache.read())
        past_names = [f"{PAST}{part}_{i}" for i in range(len(past) // 2) for part in ("k", "v")]
        past_sides = tuple({0: rows, 2: past_tokens} for _ in past)
    # Images have one size, so their memory has one length.
    open_memory = {} if model.config.reads_images else {"tokens": tokens}
    sides = tuple({0: rows, **{(2 if part.dim() == 4 else 1): each for each in open_memory.values()}} for part in given)
    inputs = [TOKEN, *names[: len(given)], *past_names]
    results = [LOGITS, *(name.replace(PAST, PRESENT, 1) for name in past_names)]
    shapes = {"token": {0: rows}, "memory": sides, "past": past_sides}
    return _exported(StepGraph(model).eval(), (torch.full((2,), 2), given, past), shapes, inputs, results)


def _exported(graph: nn.Module, example: Any, shapes: Any, inputs: list[str], outputs: list[str]) -> Any:
    """The ONNX graph of a module, without what the exporter notes of inner shapes."""
    program = torch.export.export(graph, example, dynamic_shapes=shapes)
    exported: Any = torch.onnx.export(
        program, (), dynamo=True, input_names=inputs, output_names=outputs, opset_version=OPSET, verbose=False
    )
    del exported.model_proto.graph.value_info[:]
    return exported.model_proto
