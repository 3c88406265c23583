"""The encoder of a recurrent model as an ONNX graph, node by node: torch's exporter fixes the length of its loops.

ONNX orders the gates of an LSTM as input, output, forget, cell; torch as input, forget, cell, output.

Shape letters: R rows, S source tokens, D width, X width of the memory, L layers, N directions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitral.export.formats import OPSET
from vitral.models.layers import Linear
from vitral.models.lstm import RecurrentSeq2Seq
from vitral.text_engines import MEMORY, PAST, SOURCE

_GATES = (0, 3, 1, 2)  # torch's gates in ONNX's order
_IR_VERSION = 10


class _Graph:
    """Nodes and constants; every method returns the name of its result."""

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.nodes, self.constants = onnx, list[Any](), list[Any]()

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, *inputs: str, count: int = 1, **attributes: Any) -> list[str]:
        names = [f"{kind.lower()}_{len(self.nodes)}_{place}" for place in range(count)]
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, names, **attributes))
        return names

    def one(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.add(kind, *inputs, **attributes)[0]

    def linear(self, layer: Linear, x: str) -> str:
        found = self.one("MatMul", x, self.constant(layer.weight.T))
        bias = layer.state_dict().get("bias")
        return found if bias is None else self.one("Add", found, self.constant(bias))


def recurrent_encoder(onnx: Any, model: RecurrentSeq2Seq) -> tuple[Any, list[str]]:
    """The graph, and the names of its outputs: mask, keys and values of the memory, where there is attention, and the
    recurrent states that the decoder starts from, [R, L, D] each."""
    c, graph = model.config, _Graph(onnx)
    is_text = graph.one("Not", graph.one("Equal", SOURCE, graph.constant(np.int64(c.pad_id))))
    counted = graph.one("Cast", is_text, to=onnx.TensorProto.INT32)
    lengths = graph.one("ReduceSum", counted, graph.constant(np.array([1])), keepdims=0)
    x = graph.one("Gather", graph.constant(model.encoder.weight), SOURCE)
    x = graph.one("Transpose", x, perm=[1, 0, 2])
    lasts: list[list[str]] = [[], []] if c.cell == "lstm" else [[]]
    for layer in range(c.layers):
        x, *last = _layer(graph, model, layer, x, lengths)
        for kept, each in zip(lasts, last, strict=True):
            kept.append(each)
    outputs: dict[str, str] = {}
    if model.decoder.cross_attn is not None:
        memory = graph.one("Transpose", x, perm=[1, 0, 2])
        outputs = {"attend": is_text, "k_0": graph.linear(model.decoder.cross_attn.key, memory), "v_0": memory}
    found = {f"{MEMORY}{name}": value for name, value in outputs.items()}
    for place, parts in enumerate(lasts):
        cell = graph.one("Concat", *parts, axis=1)
        if len(model.bridge):
            bridge = model.bridge[place]
            assert isinstance(bridge, Linear)
            cell = graph.linear(bridge, cell)
            cell = graph.one("Tanh", cell) if place == 0 else cell
        found[f"{PAST}cell_{place}"] = cell
    return _proto(graph, model, found), list(found)


def _layer(graph: _Graph, model: RecurrentSeq2Seq, layer: int, x: str, lengths: str) -> list[str]:
    """One layer on [S, R, features]: its outputs [S, R, X] and last states [R, 1, X], those of both directions beside
    each other."""
    c, rnn = model.config, model.encoder.rnn
    directions = 1 + c.bidirectional
    suffixes = [f"l{layer}", f"l{layer}_reverse"][:directions]
    w = graph.constant(np.stack([_gates(getattr(rnn, f"weight_ih_{each}"), c.cell) for each in suffixes]))
    r = graph.constant(np.stack([_gates(getattr(rnn, f"weight_hh_{each}"), c.cell) for each in suffixes]))
    b = graph.constant(
        np.stack([
            np.concatenate([_gates(getattr(rnn, f"bias_{kind}_{each}"), c.cell) for kind in ("ih", "hh")])
            for each in suffixes
        ])
    )  # fmt: skip
    is_lstm, direction = c.cell == "lstm", "bidirectional" if c.bidirectional else "forward"
    y, *last = graph.add(
        "LSTM" if is_lstm else "RNN", x, w, r, b, lengths, count=3 if is_lstm else 2, hidden_size=c.width,
        direction=direction,
    )  # fmt: skip
    shape = graph.constant(np.array([0, 0, -1]))
    y = graph.one("Reshape", graph.one("Transpose", y, perm=[0, 2, 1, 3]), shape)  # [S, R, X] of [S, N, R, D]
    one = graph.constant(np.array([0, 1, -1]))
    return [y, *(graph.one("Reshape", graph.one("Transpose", each, perm=[1, 0, 2]), one) for each in last)]


def _gates(value: Tensor, cell: str) -> NDArray[np.float32]:
    parts = value.detach().float().chunk(4) if cell == "lstm" else (value.detach().float(),)
    return torch.cat([parts[place] for place in _GATES] if cell == "lstm" else list(parts)).numpy()


def _proto(graph: _Graph, model: RecurrentSeq2Seq, outputs: dict[str, str]) -> Any:
    """The model of these nodes, whose outputs get the names that they are known by."""
    helper, kinds, c = graph.onnx.helper, graph.onnx.TensorProto, model.config
    shapes: dict[str, tuple[int, list[Any]]] = {
        f"{MEMORY}attend": (kinds.BOOL, ["rows", "source"]), f"{MEMORY}k_0": (kinds.FLOAT, ["rows", "source", c.width]),
        f"{MEMORY}v_0": (kinds.FLOAT, ["rows", "source", c.memory_width]),
    }  # fmt: skip
    for place in range(2):
        shapes[f"{PAST}cell_{place}"] = (kinds.FLOAT, ["rows", c.layers, c.width])
    nodes = [*graph.nodes, *(helper.make_node("Identity", [value], [name]) for name, value in outputs.items())]
    source = helper.make_tensor_value_info(SOURCE, kinds.INT64, ["rows", "source"])
    results = [helper.make_tensor_value_info(name, *shapes[name]) for name in outputs]
    made = helper.make_graph(nodes, "encoder", [source], results, graph.constants)
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)])
    proto.ir_version = _IR_VERSION
    graph.onnx.checker.check_model(proto)
    return proto
