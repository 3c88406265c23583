"""Image tokenizers: an encoder, a quantizer and a decoder; one code for each patch of an image.

Shape letters: B batch, C channels, H W image height and width, h w rows and columns of codes, N = h w codes of an
image, row by row, P patch side, E numbers of what is quantized, D numbers of what is decoded, F width of the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitral.errors import UserError
from vitral.models import layers
from vitral.models.codebook import check_codes, wide
from vitral.models.image_tokenizer_config import ImageTokenizerConfig
from vitral.models.layers import ConvShaped, Linear, lecun_normal
from vitral.models.model import ImageModel, check_capture
from vitral.models.patches import Grid, patchify, unpatchify
from vitral.models.quantizers import Quantized, Relaxation, make_quantizer
from vitral.structs import EncoderOutput


class ImageTokenizer(ImageModel):
    """Images to codes (`codes`) and codes to images (`images`); `model(images)` is both: reconstructions [B, C, H, W]
    in [0,1].

    Encoder and decoder work on the grid of patches: patches to tokens by one dense layer, residual blocks, and back.
    Features are what is quantized. Without a network (quantizer=kmeans) these are the patches themselves.
    """

    config: ImageTokenizerConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        self.quantizer = make_quantizer(config)
        is_learned = config.quantizer != "kmeans"
        self.encoder = Encoder(config) if is_learned else None
        self.decoder = Decoder(config, self.quantizer.decode_width) if is_learned else None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialize every parameter again, from torch's global random state."""
        self.quantizer.init_weights()
        for module in (self.encoder, self.decoder):
            if module is not None:
                module.init_weights()

    def codes(self, images_BCHW: Tensor) -> Tensor:
        """The codes of images of the model's size, row by row: int64 [B, N]. Raises UserError for other images."""
        self.check_size(images_BCHW)
        return self.quantizer.encode(self.embed(images_BCHW))

    def images(self, codes_BN: Tensor) -> Tensor:
        """The images [B, C, H, W] in [0,1] of these codes. Raises UserError for codes that there are not, and for
        another number of them."""
        check_codes(codes_BN, self.config.codes)
        if codes_BN.shape[1] != self.config.tokens:
            by = " x ".join(map(str, self.grid))
            raise UserError("wrong number of codes for an image", got=codes_BN.shape[1],
                            expected=f"{self.config.tokens}, {by}")  # fmt: skip
        return self.render(self.quantizer.decode(codes_BN)).clamp(0, 1)

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """What is quantized, [B, N, E], of images of any size that is whole patches."""
        if self.encoder is None:
            return patchify(self.check_images(images_BCHW), self.config.patch_size)
        return self.encoder(self.normalize(images_BCHW, self.config.patch_size))

    def quantize(self, images_BCHW: Tensor, relaxation: Relaxation | None = None) -> Quantized:
        """The vectors for the decoder, with gradients for the encoder, the codes, and a penalty."""
        return self.quantizer(self.embed(images_BCHW), relaxation)

    def render(self, vectors_BND: Tensor) -> Tensor:
        """Images [B, C, H, W] in float32 or better, of the model's size; what is outside [0,1] is an error."""
        channels = self.config.in_channels
        if self.decoder is None:
            return wide(unpatchify(vectors_BND, self.grid, channels))
        patches_BNX = wide(self.decoder(vectors_BND.to(self.dtype), self.grid))
        return unpatchify(patches_BNX, self.grid, channels) * self.std + self.mean

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Reconstructions [B, C, H, W] in [0,1]. Raises UserError for images of another size."""
        self.check_size(images_BCHW)
        return self.render(self.quantize(images_BCHW).vectors_BND).clamp(0, 1)

    def encode(self, images_BCHW: Tensor, *, capture: Sequence[str] = ()) -> EncoderOutput:
        """What is quantized, as `patches_BND`."""
        check_capture(capture, [])
        x_BNE, P = self.embed(images_BCHW), self.config.patch_size
        grid = images_BCHW.shape[-2] // P, images_BCHW.shape[-1] // P
        return EncoderOutput(None, None, x_BNE, grid, None, None, {})

    def pool(self, out: EncoderOutput) -> Tensor:
        """The mean over all patches, [B, E]."""
        return out.patches_BND.mean(1)

    def classify(self, pooled_BD: Tensor) -> Tensor:
        """The features themselves: there is no head."""
        return pooled_BD


class Encoder(nn.Module):
    """Images to what is quantized."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.patch_embed = ConvShaped(config.in_channels, config.patch_size, config.width)
        self.blocks = Blocks(config)
        self.project = Linear(config.width, config.pooled_width)

    def init_weights(self) -> None:
        """LeCun normal, zero biases."""
        self.blocks.init_weights()
        lecun_normal(self.patch_embed.weight, self.patch_embed.bias)
        lecun_normal(self.project.weight, self.project.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to [B, N, E]."""
        grid = images_BCHW.shape[2] // self.patch_size, images_BCHW.shape[3] // self.patch_size
        return self.project(self.blocks(self.patch_embed(images_BCHW), grid))


class Decoder(nn.Module):
    """Vectors of codes to patches."""

    def __init__(self, config: ImageTokenizerConfig, decode_width: int) -> None:
        super().__init__()
        self.embed = Linear(decode_width, config.width)
        self.blocks = Blocks(config)
        self.project = Linear(config.width, config.in_channels * config.patch_size**2)

    def init_weights(self) -> None:
        """LeCun normal, zero biases."""
        self.blocks.init_weights()
        for layer in (self.embed, self.project):
            lecun_normal(layer.weight, layer.bias)

    def forward(self, vectors_BND: Tensor, grid: Grid) -> Tensor:
        """[B, N, D] to patches [B, N, C P P]."""
        return self.project(self.blocks(self.embed(vectors_BND), grid))


class Blocks(nn.Module):
    """Residual blocks on a grid of tokens: convolutions of any grid, or Transformer blocks behind learned positions of
    the configuration's grid."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        F, self.pos_embed = config.width, None
        if config.coder == "vit":
            self.pos_embed = nn.Parameter(torch.empty(config.tokens, F))
            self.blocks = nn.ModuleList(layers.Block(F, config.heads, 4 * F) for _ in range(config.depth))
            self.norm = nn.LayerNorm(F)
        else:
            self.blocks = nn.ModuleList(ConvBlock(F) for _ in range(config.depth))

    def init_weights(self) -> None:
        """Positions N(0, 0.02)."""
        if self.pos_embed is not None:
            nn.init.normal_(self.pos_embed, std=0.02)
            self.norm.reset_parameters()
        for block in self.blocks:
            assert isinstance(block, layers.Block | ConvBlock)
            block.init_weights()

    def forward(self, x_BNF: Tensor, grid: Grid) -> Tensor:
        """[B, N, F] to [B, N, F]."""
        if self.pos_embed is not None:
            x_BNF = x_BNF + self.pos_embed
            for block in self.blocks:
                x_BNF = block(x_BNF)
            return self.norm(x_BNF)
        x_BFhw = x_BNF.mT.unflatten(2, grid)
        for block in self.blocks:
            x_BFhw = block(x_BFhw)
        return x_BFhw.flatten(2).mT


class ConvBlock(nn.Module):
    """A residual block: ReLU, 3 x 3, ReLU, 1 x 1 (van den Oord et al. 2017, section 4.1), behind a norm of each image's
    map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)

    def init_weights(self) -> None:
        """LeCun normal, and zero at the end: at first encoder and decoder are linear functions of each patch, so that
        the first codebook is nearly that of k-means on patches."""
        self.norm.reset_parameters()
        lecun_normal(self.conv.weight, self.conv.bias)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)  # pyright: ignore[reportArgumentType] - there is one

    def forward(self, x_BFhw: Tensor) -> Tensor:
        """[B, F, h, w] to [B, F, h, w]."""
        return x_BFhw + self.mix(self.conv(self.norm(x_BFhw).relu()).relu())
