"""ResNets of the ViT paper: the stem of a hybrid, and the convolutional baselines.

Shape letters: B batch, C channels, H W height and width, N cells of the last map or patches, D width, S classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.models.activation_checkpointing import checkpointed_call
from vitral.models.config import ResNetConfig, stage_channels
from vitral.models.convolution import Block, Conv, Stem, Style, init_norms, make_norm, make_stages
from vitral.models.layers import lecun_normal
from vitral.models.model import ImageModel, check_capture
from vitral.structs import EncoderOutput

HYBRID_WIDTH = 64


class HybridEmbed(nn.Module):
    """Patches cut from the map of a ResNet instead of from the image (arXiv 2010.11929, section 3.1, hybrids).

    The ResNet normalizes in groups after each convolution and pads as TensorFlow does, as the paper's code does.
    blocks: bottlenecks of each stage, () for the first layer alone. patch_size: pixels that a token stands for, a
    multiple of the ResNet's stride (4, 4, 8, 16, 32 for 0 to 4 stages). epsilons: timm's small constants, which its
    converted weights are used with, or those of the paper's code; see `Style`.
    """

    def __init__(
        self,
        in_channels: int,
        blocks: tuple[int, ...],
        patch_size: int,
        width: int,
        epsilons: Literal["timm", "google"] = "timm",
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        style = Style(preactivation=False, same=True, epsilons=epsilons)
        stem = Stem(in_channels, HYBRID_WIDTH, style)
        stages = make_stages(blocks, HYBRID_WIDTH, "bottleneck", style)
        named = OrderedDict[str, nn.Module](stem=stem, stages=stages)
        self.backbone = nn.Sequential(named) if blocks else stem
        cells = patch_size // (4 * 2 ** max(len(blocks) - 1, 0))
        channels = [HYBRID_WIDTH, *stage_channels(blocks, HYBRID_WIDTH)][-1]
        self.proj = nn.Conv2d(channels, width, cells, cells)

    @torch.no_grad()
    def init_weights(self) -> None:
        """As in the paper's code: convolutions LeCun normal (truncated), the last scale of each residual branch 0."""
        init_norms(self)
        for module in self.modules():
            if isinstance(module, Conv):
                lecun_normal(module.weight)
            elif isinstance(module, Block):
                nn.init.zeros_(module.last_norm.weight)
        lecun_normal(self.proj.weight, self.proj.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to [B, N, D], patches row by row.

        The map has ceil(H / stride) rows; what is left of it below and to the right of the last whole patch is cut off.
        """
        return self.proj(self.backbone(images_BCHW)).flatten(2).transpose(1, 2)


class ResNet(ImageModel):
    """A residual network; the cells of its last map are its patches.

    With norm and ReLU before each convolution, group norm and the large first layer it is BiT (arXiv 1912.11370), and
    timm's `resnetv2_50x1_bit` by names and shapes, the head's [S, D, 1, 1] too. Batch norm after each convolution and
    the small first layer make the networks of arXiv 1512.03385, section 4.2.
    """

    config: ResNetConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        c, width = config, config.pooled_width
        style = Style(c.preactivation, c.norm, shortcut=c.shortcut)
        self.stem = Stem(c.in_channels, c.width, style, small=c.stem == "cifar")
        self.stages = make_stages(c.blocks, c.width, c.block, style)
        self.norm = make_norm(width, style) if c.preactivation else None
        self.head = nn.ModuleDict({"fc": nn.Conv2d(width, c.num_classes, 1)} if c.num_classes else {})
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Convolutions He normal (arXiv 1502.01852, by fan-out), norms 1 and 0, the head 0; running statistics are
        reset."""
        init_norms(self)
        for module in self.modules():
            if isinstance(module, Conv):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def encode(self, images_BCHW: Tensor, *, capture: Sequence[str] = ()) -> EncoderOutput:
        """Images of any size to the cells of the last map, row by row, after the last norm and ReLU.

        The grid is the image over `config.stride`, rounded up. capture: "stages.1", "stages.1.blocks.0": maps
        [B, C, H, W]. Raises UserError for an unknown name to capture, or images that the model does not take.
        """
        if capture:
            blocks = [f"stages.{i}.blocks.{j}" for i, count in enumerate(self.config.blocks) for j in range(count)]
            check_capture(capture, [*(f"stages.{i}" for i in range(len(self.stages))), *blocks])
        captured: dict[str, Tensor] = {}
        maps_BCHW = self.stem(self.normalize(images_BCHW))
        for i, stage in enumerate(self.stages):
            for j, block in enumerate(stage.get_submodule("blocks").children()):
                again = self.recomputes(sum(self.config.blocks[:i]) + j)
                maps_BCHW = checkpointed_call(block, maps_BCHW) if again else block(maps_BCHW)
                _keep(captured, capture, f"stages.{i}.blocks.{j}", maps_BCHW)
            _keep(captured, capture, f"stages.{i}", maps_BCHW)
        if self.norm is not None:
            maps_BCHW = F.relu(self.norm(maps_BCHW), inplace=True)
        rows, columns = maps_BCHW.shape[-2:]
        return EncoderOutput(None, None, maps_BCHW.flatten(2).transpose(1, 2), (rows, columns), None, None, captured)

    @property
    def checkpointable(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.stages for block in stage.get_submodule("blocks").children()]

    def pool(self, out: EncoderOutput) -> Tensor:
        """The mean over the cells, [B, D]."""
        return out.patches_BND.mean(1)

    def classify(self, pooled_BD: Tensor) -> Tensor:
        """The head alone: pooled features [B, D] to logits [B, S]; the features themselves where there is no head."""
        return self.head["fc"](pooled_BD[..., None, None]).flatten(1) if len(self.head) else pooled_BD


def _keep(captured: dict[str, Tensor], capture: Sequence[str], name: str, maps_BCHW: Tensor) -> None:
    if name in capture:
        captured[name] = maps_BCHW
