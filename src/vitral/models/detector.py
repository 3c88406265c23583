"""Detectors: a plain Vision Transformer, a simple feature pyramid and a dense head.

Shape letters: B batch, C classes, D width of the encoder, H W image height and width, h w rows and columns of patches,
A locations (cells of all maps), 4 a box (x0, y0, x1, y1), X = 4 + C.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitral.data.box_ops import clip
from vitral.models.dense_head import DenseHead, HeadOutput, cell_centers, to_boxes
from vitral.models.detector_config import DetectorConfig
from vitral.models.pyramid import FeaturePyramid
from vitral.models.vit import VisionTransformer


class Detector(VisionTransformer):
    """`model(images)` gives every location's box and scores [B, A, 4 + C], before any is dropped.

    Boxes are in pixels of the image that the model gets, cut at its border. A score, in [0,1], is the square root of
    the probability of the class times the quality of the box (its predicted IoU). `models.select_boxes` turns them into
    detections. `encode` and `pool` are those of the encoder.
    """

    config: DetectorConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor
    twice_A2: Tensor  # the centers times two: whole numbers, which lower precisions leave as they are

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__(config)
        self.head = torch.nn.Identity()
        c = config
        self.pyramid = FeaturePyramid(c.width, c.pyramid_width, [c.patch_size / stride for stride in c.strides])
        self.dense_head = DenseHead(c.pyramid_width, c.tower_depth, c.num_classes, c.strides)
        self.pyramid.init_weights()
        self.dense_head.init_weights()

    def _set_constants(self, device: torch.device | None) -> None:
        super()._set_constants(device)
        centers_A2 = cell_centers(self.config.maps, self.config.strides, device)
        self.register_buffer("twice_A2", (2 * centers_A2).long(), persistent=False)

    @property
    def centers_A2(self) -> Tensor:
        """Center (x, y) in pixels of each location, float32."""
        return self.twice_A2.float() / 2

    def init_weights(self) -> None:
        """As a Vision Transformer; see `FeaturePyramid` and `DenseHead`."""
        super().init_weights()
        if "dense_head" in self._modules:  # not while the encoder is constructed
            self.pyramid.init_weights()
            self.dense_head.init_weights()

    def locate(self, images_BCHW: Tensor) -> HeadOutput:
        """What the head says at each location, as the loss takes it. Raises UserError for images of another size."""
        self.check_size(images_BCHW)
        out = self.encode(images_BCHW)
        map_BDhw = out.patches_BND.mT.unflatten(2, out.grid)
        return self.dense_head(self.pyramid(map_BDhw.contiguous(memory_format=torch.channels_last)))

    def decode(self, out: HeadOutput) -> Tensor:
        """Boxes in pixels and scores [B, A, 4 + C], float32 or better."""
        boxes_BA4 = clip(to_boxes(self.centers_A2, out.distances_BA4), self.config.image_size)
        scores_BAC = (out.logits_BAC.sigmoid() * out.quality_BA[..., None].sigmoid()).sqrt()
        return torch.cat([boxes_BA4, scores_BAC], dim=-1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Boxes and scores [B, A, 4 + C] of images of the model's own size. Raises UserError for another one."""
        return self.decode(self.locate(images_BCHW))

    def forward_all_tokens(self, *inputs: Tensor) -> Tensor:
        """The same: all patches are read."""
        return self(*inputs)

    def classify(self, pooled_BD: Tensor) -> Tensor:
        """The features themselves: no head answers for the whole image."""
        return pooled_BD

    def example_labels(self, samples: int) -> Tensor | None:
        """None: outputs are boxes and scores."""
        return None
