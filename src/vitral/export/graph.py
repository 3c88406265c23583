"""Capture the complete function as one graph: images in, logits and probabilities out, for every format.

Shape letters: B batch, C channels, H W height and width of the image, h w those of the model, S classes.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitral.engines import ExportMetadata
from vitral.export.resize import FitAnySize
from vitral.models.model import ImageModel
from vitral.weights.folder import FolderConfig


class Whole(nn.Module):
    """From images to (outputs [B, S], scores [B, S]), both float32; to the outputs alone where the task names one
    result.

    takes "pixels": uint8 [B, H, W, C] of any height and width; "resized": float32 [B, C, h, w] in [0,1] as
    `Predictor.preprocess` gives them. Scores are what the outputs mean, by the folder's task: probabilities, say.
    """

    def __init__(self, network: ImageModel, config: FolderConfig, takes: str) -> None:
        super().__init__()
        shown = config.preprocessing
        self.fit = FitAnySize(shown.image_size, shown) if takes == "pixels" else nn.Identity()
        self.network, self.task = network, config.make_task()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        logits_BS = self.network(self.fit(images)).float()
        return (logits_BS, self.task.scores(logits_BS)) if len(self.outputs) > 1 else (logits_BS,)

    @property
    def outputs(self) -> list[str]:
        """Their names, in order."""
        return list(self.task.export_names)


def capture(network: ImageModel, metadata: ExportMetadata) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The graph, with the batch, unless its size is given, and height and width of pixels left open, and the names of
    its outputs."""
    config, weights = metadata.model, copy.deepcopy(network).cpu().eval().requires_grad_(False)
    whole = Whole(weights.bfloat16() if metadata.precision == "bfloat16" else weights, config, metadata.takes).eval()
    channels, (h, w) = config.architecture.in_channels, config.preprocessing.image_size
    count, shapes = metadata.batch or 2, {} if metadata.batch else {0: torch.export.Dim("batch")}
    if metadata.takes == "pixels":
        # Sides that are neither equal nor the model's: nothing may be taken for a constant.
        example = torch.zeros(count, h + 5, w + 9, channels, dtype=torch.uint8)
        shapes |= {1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    else:
        example = torch.zeros(count, channels, h, w)
    with torch.no_grad(), quiet():
        program = torch.export.export(whole, (example,), dynamic_shapes={"images": shapes})
    return program, whole.outputs


@contextmanager
def quiet() -> Generator[None]:
    """Without the warnings of exporters about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
