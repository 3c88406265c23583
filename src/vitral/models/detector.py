"""Detectors: a plain Vision Transformer, a simple feature pyramid, a dense head and perhaps a second stage.

Shape letters: B batch, C classes, D width of the encoder, H W image height and width, h w rows and columns of patches,
A locations (cells of all maps), R boxes of an image, 4 a box (x0, y0, x1, y1), X = 4 + C.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitral.data.box_ops import clip
from vitral.models.dense_head import DenseHead, HeadOutput, cell_centers, to_boxes
from vitral.models.detector_config import DetectorConfig
from vitral.models.pyramid import FeaturePyramid
from vitral.models.roi_align import take
from vitral.models.second_stage import SecondStage, refine
from vitral.models.vit import VisionTransformer


class Detector(VisionTransformer):
    """`model(images)` gives every location's box and scores [B, A, 4 + C], before any is dropped.

    Boxes are in pixels of the image that the model gets, cut at its border. A score, in [0,1], is the square root of
    the probability of the class times the quality of the box (its predicted IoU). `models.select_boxes` turns them into
    detections. `encode` and `pool` are those of the encoder.

    With `second_stage` the `proposals` best boxes of the dense head are refined, and these come out, [B, R, 4 + C]: a
    score is the square root of the second stage's probability of the class times the first stage's best score (as in
    the probabilistic two-stage detection of arXiv 2103.07461, equation 2).
    """

    config: DetectorConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor
    second_stage: SecondStage
    twice_A2: Tensor  # the centers times two: whole numbers, which lower precisions leave as they are

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__(config)
        self.head = torch.nn.Identity()
        c = config
        self.pyramid = FeaturePyramid(c.width, c.pyramid_width, [c.patch_size / stride for stride in c.strides])
        self.dense_head = DenseHead(c.pyramid_width, c.tower_depth, c.num_classes, c.strides)
        if c.second_stage:
            self.second_stage = SecondStage(c.pyramid_width, c.second_stage, c.num_classes, c.strides)
        self._init_heads()

    def _set_constants(self, device: torch.device | None) -> None:
        super()._set_constants(device)
        centers_A2 = cell_centers(self.config.maps, self.config.strides, device)
        self.register_buffer("twice_A2", (2 * centers_A2).long(), persistent=False)

    @property
    def centers_A2(self) -> Tensor:
        """Center (x, y) in pixels of each location, float32."""
        return self.twice_A2.float() / 2

    def init_weights(self) -> None:
        """As a Vision Transformer; see `FeaturePyramid`, `DenseHead` and `SecondStage`."""
        super().init_weights()
        self._init_heads()

    def _init_heads(self) -> None:
        for name in ("pyramid", "dense_head", "second_stage"):
            if name in self._modules:  # not while the encoder is constructed
                getattr(self, name).init_weights()

    def patch_map(self, images_BCHW: Tensor) -> Tensor:
        """The encoder's patches as a map [B, D, h, w]. Raises UserError for images of another size."""
        self.check_size(images_BCHW)
        out = self.encode(images_BCHW)
        return out.patches_BND.mT.unflatten(2, out.grid).contiguous(memory_format=torch.channels_last)

    def maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """The pyramid's maps, which `dense_head` and `second_stage` read. Raises UserError as `patch_map`."""
        return self.pyramid(self.patch_map(images_BCHW))

    def decode(self, out: HeadOutput) -> Tensor:
        """Boxes in pixels and scores [B, A, 4 + C], float32 or better."""
        boxes_BA4 = clip(to_boxes(self.centers_A2, out.distances_BA4), self.config.image_size)
        scores_BAC = (out.logits_BAC.sigmoid() * out.quality_BA[..., None].sigmoid()).sqrt()
        return torch.cat([boxes_BA4, scores_BAC], dim=-1)

    def propose(self, dense_BAX: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes [B, R, 4] of highest score, of any class, and these scores [B, R]."""
        score_BA = dense_BAX[..., 4:].amax(-1)
        score_BR, place_BR = score_BA.topk(min(self.config.proposals, score_BA.shape[1]), dim=1)
        return take(dense_BAX[..., :4], place_BR), score_BR

    def rescore(self, maps: Sequence[Tensor], boxes_BR4: Tensor) -> tuple[Tensor, Tensor]:
        """What the second stage says of any boxes: probabilities of the classes and, last, of the background,
        [B, R, C + 1], and refined boxes [B, R, 4], cut at the border of the image."""
        out = self.second_stage(maps, boxes_BR4)
        return out.logits_BRK.softmax(-1), clip(refine(boxes_BR4, out.offsets_BR4), self.config.image_size)

    def read(self, maps: Sequence[Tensor]) -> Tensor:
        """Boxes and scores from the pyramid's maps; see the class."""
        dense_BAX = self.decode(self.dense_head(maps))
        if not self.config.second_stage:
            return dense_BAX
        boxes_BR4, score_BR = self.propose(dense_BAX)
        p_BRK, refined_BR4 = self.rescore(maps, boxes_BR4)
        return torch.cat([refined_BR4, (p_BRK[..., :-1] * score_BR[..., None]).sqrt()], dim=-1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Boxes and scores of images of the model's own size; see the class. Raises UserError for another size."""
        return self.read(self.maps(images_BCHW))

    def forward_all_tokens(self, *inputs: Tensor) -> Tensor:
        """The same: all patches are read."""
        return self(*inputs)

    def classify(self, pooled_BD: Tensor) -> Tensor:
        """The features themselves: no head answers for the whole image."""
        return pooled_BD

    def example_labels(self, samples: int) -> Tensor | None:
        """None: outputs are boxes and scores."""
        return None
