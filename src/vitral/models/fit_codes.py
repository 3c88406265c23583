"""Codes found among the train images before the first step: the palette of an Image GPT, the mean patches of a
tokenizer without a network, the first codebook of a VQ-VAE.

Shape letters: B batch, C channels, H W image height and width, M distinct points, X values of a patch, E numbers of
what is quantized, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.models.config import ModelConfig
from vitral.models.create import build_model
from vitral.models.igpt_config import IGPTConfig
from vitral.models.image_tokenizer_config import ImageTokenizerConfig
from vitral.models.kmeans import kmeans, nearest
from vitral.models.palette import count_colors, fit_palette
from vitral.models.patches import patchify
from vitral.models.registry import code_config, image_tokenizer, tokenizer_config

Images = Callable[[int], Iterable[Tensor]]

_PIXELS = 2**18
_PATCHES = 2**16
_VECTORS = 2**14
_PER_CODE = 8  # vectors for each code at least
_WORK, _MOST_ROUNDS = 2**38, 50  # multiply-accumulates and rounds of k-means on patches
_ROUNDS = 10  # of a codebook that moves on in training


class FittedCodes(NamedTuple):
    """Weights by their names in the model, and a line for the log."""

    weights: dict[str, Tensor]
    note: str


def fit_codes(config: ModelConfig, images: Images, seed: int) -> FittedCodes | None:
    """The codes of a new model by k-means on train images, or None where there is nothing to find.

    images(n): batches uint8 [B, C, H, W] of n evenly spaced train images, or of all if they are fewer. Raises UserError
    for more codes than the images have different colors or patches.
    """
    if (of_codes := code_config(config)) is not None:
        return _fit_palette(of_codes, images, seed)
    tokenizer = tokenizer_config(config)
    if tokenizer is not None and tokenizer.quantizer == "kmeans":
        patches_KX, note = fit_patches(tokenizer, images(count_images(tokenizer)), seed)
        return FittedCodes({"quantizer.patches_KD": patches_KX}, note)
    if tokenizer is not None and tokenizer.quantizer == "vq":
        return _fit_codebook(tokenizer, images, seed)
    return None


def _fit_palette(config: IGPTConfig, images: Images, seed: int) -> FittedCodes:
    colors_MC, counts_M = count_colors(images(max(_PIXELS // config.tokens, 1)))
    colors_KC = fit_palette(colors_MC, counts_M, config.colors, seed)
    error = float((nearest(colors_MC, colors_KC)[1] * counts_M).sum() / counts_M.sum()) / config.in_channels
    note = (
        f"palette: {config.colors} of {len(colors_MC):,} colors in {int(counts_M.sum()) // config.tokens:,} train "
        f"images, root mean squared error {error**0.5:.2g} of [0,1]"
    )
    return FittedCodes({"tokenizer.colors_KC": colors_KC}, note)


def count_images(config: ImageTokenizerConfig) -> int:
    """Train images whose patches are enough for `fit_patches`."""
    return math.ceil(max(_PATCHES, _PER_CODE * config.codes) / config.tokens)


def fit_patches(config: ImageTokenizerConfig, images: Iterable[Tensor], seed: int) -> tuple[Tensor, str]:
    """Mean patches float32 [K, X] in [0,1], from dark to light, by k-means on the patches of images uint8
    [B, C, H, W], and a line for the log. Raises UserError for more codes than different patches."""
    rows = torch.cat([patchify(images_BCHW.cpu(), config.patch_size).flatten(0, 1) for images_BCHW in images])
    points_MX, counts_M = torch.unique(rows, dim=0, return_counts=True)
    if config.codes > len(points_MX):
        raise _too_many(config.codes, f"{len(points_MX):,} different patches")
    rounds = min(max(_WORK // (points_MX.numel() * config.codes), 1), _MOST_ROUNDS)
    centers_KX = kmeans(points_MX.double() / 255, counts_M, config.codes, seed, rounds)
    patches_KX = centers_KX[centers_KX.sum(1).argsort(stable=True)].float()
    return patches_KX, f"k-means: {config.codes} mean patches of {len(rows):,} patches, {len(points_MX):,} different"


def _fit_codebook(config: ImageTokenizerConfig, images: Images, seed: int) -> FittedCodes:
    """The whole new model, whose encoder makes the vectors that the codebook is found among."""
    torch.manual_seed(seed)
    model = image_tokenizer(build_model(config))
    assert model is not None
    wanted = max(_VECTORS, _PER_CODE * config.codes)
    with torch.no_grad():
        parts = [model.eval().embed(images_BCHW.cpu()).flatten(0, 1) for images_BCHW in
                 images(math.ceil(wanted / config.tokens))]  # fmt: skip
    points_ME, counts_M = torch.unique(torch.cat(parts), dim=0, return_counts=True)
    if config.codes > len(points_ME):
        raise _too_many(config.codes, f"{len(points_ME):,} different vectors from the encoder")
    codebook_KE = kmeans(points_ME.double(), counts_M, config.codes, seed, _ROUNDS)
    note = f"codebook: {config.codes} vectors by k-means on {int(counts_M.sum()):,} of the encoder"
    return FittedCodes({**model.state_dict(), "quantizer.codebook_KD": codebook_KE.float()}, note)


def _too_many(codes: int, most: str) -> UserError:
    return UserError("more codes than the train images have", where="model.codes", got=codes,
                     expected=f"at most {most}")  # fmt: skip
