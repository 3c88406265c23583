"""Visual tokens: the integer of each patch that a masked model predicts, from a tokenizer that is never trained.

Shape letters: B batch, C channels, H W image height and width, N patches, D width of the teacher, K codes, X rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral import distributed
from vitral.errors import UserError
from vitral.models.codebook import without_autocast
from vitral.models.config import ViTConfig
from vitral.models.create import build_model
from vitral.models.fit_codes import count_images, fit_patches
from vitral.models.image_tokenizer import ImageTokenizer
from vitral.models.image_tokenizer_config import ImageTokenizerConfig
from vitral.models.model import ImageModel, unit_images
from vitral.models.registry import image_tokenizer, token_encoder
from vitral.models.vit import VisionTransformer
from vitral.objectives.beit_config import KMEANS, BeitConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.weights.find_model import load_model

_CODES = 512
_VECTORS = 2**16  # of the teacher that are clustered, at least
_PER_CODE = 8  # of them for each code, at least


class VisualTokens(nn.Module, ABC):
    """Images to codes. Always in evaluation mode, without gradients, in float32 or better.

    count: how many codes there are. size: height and width in pixels that images are resized to, so that the grid of
    codes is that of the patches (BEiT, section 2.1: 112 pixels for 224).
    """

    count: int
    size: tuple[int, int]

    def train(self, mode: bool = True) -> VisualTokens:
        """A tokenizer is never trained."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The codes int64 [B, N], row by row, of images in [0,1] or uint8."""
        with without_autocast(images_BCHW.device):
            return self.codes(self.resized(images_BCHW))

    def resized(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0,1] of `size`, by an antialiased bilinear filter, in float32 or better."""
        images_BCHW = unit_images(images_BCHW)
        images_BCHW = images_BCHW.to(torch.promote_types(images_BCHW.dtype, torch.float32))
        if images_BCHW.shape[2:] == self.size:
            return images_BCHW
        return F.interpolate(images_BCHW, size=self.size, mode="bilinear", antialias=True)

    @abstractmethod
    def codes(self, images_BCHW: Tensor) -> Tensor:
        """The codes of images in [0,1] of `size`."""

    def images(self, codes_BN: Tensor) -> Tensor | None:
        """The images [B, C, H, W] in [0,1] of these codes, where codes are of pixels."""
        return None


class TokenizerTokens(VisualTokens):
    """Those of an image tokenizer."""

    def __init__(self, model: ImageTokenizer) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.count, self.size = model.config.codes, model.config.image_size

    def codes(self, images_BCHW: Tensor) -> Tensor:
        """See the base class."""
        return self.model.codes(images_BCHW)

    def images(self, codes_BN: Tensor) -> Tensor:
        """See the base class."""
        return self.model.images(codes_BN)


class FeatureTokens(VisualTokens):
    """The nearest of K directions, by cosine, to a teacher's features of each patch.

    BEiT v2 (arXiv 2208.06366) learns such directions with a decoder of the teacher's features; here k-means finds them.
    """

    directions_KD: Tensor

    def __init__(self, teacher: VisionTransformer, count: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False).eval()
        self.count, self.size = count, size
        self.register_buffer("directions_KD", torch.zeros(count, teacher.config.width))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Normalized features of the patches, [B, N, D] of length 1, of images in [0,1] of `size`."""
        patches_BND = self.teacher.fc_norm(self.teacher.encode(images_BCHW).patches_BND)
        return F.normalize(patches_BND.to(self.directions_KD.dtype), dim=-1)

    def codes(self, images_BCHW: Tensor) -> Tensor:
        """See the base class."""
        return (self.features(images_BCHW) @ self.directions_KD.T).argmax(-1)

    @torch.no_grad()
    def fit(self, context: ObjectiveContext) -> None:
        """Find the directions by k-means (scikit-learn) on features of train images of all processes. Raises UserError
        for more codes than features."""
        from sklearn.cluster import MiniBatchKMeans  # pyright: ignore[reportMissingTypeStubs]

        assert context.train_images is not None
        tokens = (self.size[0] // self.teacher.config.stride) * (self.size[1] // self.teacher.config.stride)
        wanted = math.ceil(max(_VECTORS, _PER_CODE * self.count) / tokens)
        device = self.directions_KD.device
        self.to(next(iter(context.train_images(1)))[0].device)
        parts = [self.features(self.resized(x)).flatten(0, 1).cpu() for x, _ in context.train_images(wanted) if len(x)]
        rows_XD = distributed.gather_rows(torch.cat(parts).numpy())
        if self.count > len(rows_XD):
            raise UserError("more codes than patches of train images", where="objective.codes", got=self.count,
                            expected=f"at most {len(rows_XD):,}")  # fmt: skip
        make: Any = MiniBatchKMeans
        found = make(self.count, random_state=context.seed, n_init=1, batch_size=max(4096, 4 * self.count))
        found.fit(rows_XD)
        self.to(device)
        self.directions_KD.copy_(F.normalize(torch.from_numpy(found.cluster_centers_), dim=-1))


def visual_tokens(config: BeitConfig, encoder: ViTConfig, context: ObjectiveContext) -> VisualTokens:
    """The tokenizer of a run that trains this encoder. Codes of train images are found where the context has any;
    without them, and of a resumed run, they are left to be read from the run's checkpoint.

    Raises UserError for a folder that is neither an image tokenizer nor an encoder of patches, other channels, and a
    grid that cannot be that of the patches.
    """
    if config.tokenizer == KMEANS:
        return TokenizerTokens(_patch_tokenizer(config.codes or _CODES, encoder, context))
    model, folder = load_model(config.tokenizer)
    if model.config.in_channels != encoder.in_channels:
        raise UserError("the tokenizer reads other channels than the model", where="objective.tokenizer",
                        got=model.config.in_channels, expected=encoder.in_channels)  # fmt: skip
    tokenizer, teacher = image_tokenizer(model), token_encoder(model)
    if tokenizer is not None:
        if config.codes not in (None, tokenizer.config.codes):
            raise UserError("an image tokenizer has its own codes", where="objective.codes", got=config.codes,
                            expected=f"null: {tokenizer.config.codes}")  # fmt: skip
        _check_grid(tokenizer, encoder)
        return TokenizerTokens(tokenizer)
    if teacher is None:
        raise UserError("gives no visual tokens", where="objective.tokenizer", got=folder.architecture.description,
                        expected="an image tokenizer, or a Vision Transformer")  # fmt: skip
    stride = teacher.config.stride
    rows, columns = encoder.grid
    tokens = FeatureTokens(teacher, config.codes or _CODES, (rows * stride, columns * stride))
    if context.train_images is not None and not context.resuming:
        tokens.fit(context)
    return tokens


def _patch_tokenizer(count: int, encoder: ViTConfig, context: ObjectiveContext) -> ImageTokenizer:
    """The image tokenizer whose codes are the mean patches of the train images of all processes."""
    config = ImageTokenizerConfig(
        quantizer="kmeans", codes=count, patch_size=encoder.patch_size, image_size=encoder.image_size,
        in_channels=encoder.in_channels, num_classes=0,
    )  # fmt: skip
    model = image_tokenizer(build_model(config))
    assert model is not None
    if context.train_images is not None and not context.resuming:
        parts = [(unit_images(x) * 255).round().byte().cpu() for x, _ in context.train_images(count_images(config))]
        images = torch.from_numpy(distributed.gather_rows(torch.cat(parts).numpy()))
        patches_KX, _ = fit_patches(config, images.split(256), context.seed)
        model.load_state_dict({"quantizer.patches_KD": patches_KX})
    return model


def _check_grid(tokenizer: ImageModel, encoder: ViTConfig) -> None:
    if tokenizer.grid == encoder.grid:
        return
    (rows, columns), stride = encoder.grid, tokenizer.config.stride
    theirs = f"{tokenizer.grid[0]} x {tokenizer.grid[1]} codes of {stride} pixels"
    fits = f"{rows * stride} x {columns * stride}"
    hint = f"A tokenizer of images of {fits} pixels fits, or another patch size: model.patch_size."
    raise UserError("the grid of codes is not that of the patches", where="objective.tokenizer", got=theirs,
                    expected=f"{rows} x {columns}, as patches of {encoder.patch_size} pixels", hint=hint)  # fmt: skip
