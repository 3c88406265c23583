"""Non-maximum suppression at the end of an ONNX graph, as `models.select_boxes` computes it.

Shape letters: B batch, A locations, C classes, S = A times C, 4 a box (x0, y0, x1, y1), N candidates or boxes that
stay, K most detections, 6 a detection: box, score, class.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitral.models.detector_config import DetectorConfig
from vitral.models.select_boxes import CANDIDATES
from vitral.weights.folder import FolderConfig

NAME = "detections"


def append_suppression(onnx: Any, graph: Any, config: FolderConfig) -> None:
    """Replace the one output, dense boxes and scores [B, A, 4 + C], by detections [B, K, 6] by falling score, float32;
    rows without one have score 0 and class -1. The folder's task state says the limits.

    The standard operator takes at most K boxes of each class; the best K of all classes are among them. ONNX orders
    equal scores of `TopK` by place, as `select_boxes` does.
    """
    assert isinstance(config.architecture, DetectorConfig)
    state, dense, most = config.task_state, graph.output[0], config.task_state["most"]
    locations, classes = config.architecture.outputs, config.architecture.num_classes
    candidates = min(CANDIDATES, locations * classes)

    def add(kind: str, *inputs: str, results: int = 1, **attributes: Any) -> str:
        outputs = [f"suppression_{len(graph.node)}_{number}" for number in range(results)]
        graph.node.append(onnx.helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs[0]

    def constant(*values: float, kind: type[np.generic] = np.int64) -> str:
        return add("Constant", value=onnx.numpy_helper.from_array(np.array(values, kind)))

    def number(value: float) -> str:
        return constant(value, kind=np.float32)

    def second_of(name: str) -> str:
        return f"{name.removesuffix('0')}1"

    boxes_BA4 = add("Slice", dense.name, constant(0), constant(4), constant(2))
    scores_BAC = add("Slice", dense.name, constant(4), constant(4 + classes), constant(2))
    scores_BS = add("Reshape", scores_BAC, constant(0, -1))
    best_BN = add("TopK", scores_BS, constant(candidates), results=2)
    least_B1 = add("Slice", best_BN, constant(candidates - 1), constant(candidates), constant(1))
    candidates_BS = add("Where", add("GreaterOrEqual", scores_BS, least_B1), scores_BS, number(0))
    scores_BCA = add("Transpose", add("Reshape", candidates_BS, constant(0, locations, classes)), perm=[0, 2, 1])
    limits = (constant(most), number(state["max_iou"]), number(state["min_score"]))
    chosen_N3 = add("NonMaxSuppression", boxes_BA4, scores_BCA, *limits)
    nothing_BCA = add("Mul", scores_BCA, number(0))
    kept_BCA = add("ScatterND", nothing_BCA, chosen_N3, add("GatherND", scores_BCA, chosen_N3))
    kept_BS = add("Reshape", add("Transpose", kept_BCA, perm=[0, 2, 1]), constant(0, -1))
    score_BK = add("TopK", kept_BS, constant(most), results=2)
    place_BK, last = second_of(score_BK), constant(2)
    location_BK1 = add("Unsqueeze", add("Div", place_BK, constant(classes)), last)
    class_BK = add("Cast", add("Mod", place_BK, constant(classes)), to=onnx.TensorProto.FLOAT)
    is_found_BK = add("Greater", score_BK, number(0))
    class_BK = add("Where", is_found_BK, class_BK, number(-1))
    box_BK4 = add("GatherND", boxes_BA4, location_BK1, batch_dims=1)
    box_BK4 = add("Where", add("Unsqueeze", is_found_BK, last), box_BK4, number(0))
    columns = (box_BK4, add("Unsqueeze", score_BK, last), add("Unsqueeze", class_BK, last))
    graph.node.append(onnx.helper.make_node("Concat", list(columns), [NAME], axis=2))
    side = dense.type.tensor_type.shape.dim[0]
    shape = [side.dim_param or side.dim_value, most, 6]
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(NAME, onnx.TensorProto.FLOAT, shape))
