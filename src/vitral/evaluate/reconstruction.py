"""Quality of reconstructed images, and use of the codes between them and the originals.

Shape letters: N images, B batch, C channels, H W image height and width, T codes of an image, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitral import distributed
from vitral.errors import UserError
from vitral.models.create import build_model
from vitral.models.fit_codes import fit_patches
from vitral.models.image_tokenizer_config import ImageTokenizerConfig
from vitral.models.model import unit_images
from vitral.models.registry import image_tokenizer

if TYPE_CHECKING:
    from vitral.models.image_tokenizer import ImageTokenizer

Array = np.ndarray[Any, np.dtype[Any]]
Batches = Iterable[tuple[Tensor, Tensor]]

MOST_DB = 100.0  # PSNR of equal images
_WINDOW, _SIGMA = 11, 1.5  # of SSIM, in pixels
_C1, _C2 = 0.01**2, 0.03**2


def psnr(images_BCHW: Tensor, others_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in [0,1], in dB, [B]: -10 log10 of the mean squared error; at most
    100."""
    error_B = (images_BCHW - others_BCHW).square().flatten(1).mean(1)
    return -10 * error_B.clamp(min=10 ** (-MOST_DB / 10)).log10()


def ssim(images_BCHW: Tensor, others_BCHW: Tensor) -> Tensor:
    """Structural similarity of each image in [0,1], [B], 1 for equal ones (Wang et al. 2004, equation 13).

    A Gaussian window of 11 pixels and standard deviation 1.5, as published, at all places where it lies inside; of
    smaller images the largest odd window that fits. Mean over places and channels.
    """
    side = min(_WINDOW, (min(images_BCHW.shape[2:]) - 1) // 2 * 2 + 1)
    offset_P = torch.arange(side, dtype=images_BCHW.dtype, device=images_BCHW.device) - side // 2
    window_P = (-offset_P.square() / (2 * _SIGMA**2)).exp()
    window_P = window_P / window_P.sum()

    def local_mean(x_BCHW: Tensor) -> Tensor:
        maps_X1HW = x_BCHW.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(maps_X1HW, window_P.view(1, 1, -1, 1)), window_P.view(1, 1, 1, -1))

    x, y = images_BCHW, others_BCHW.to(images_BCHW.dtype)
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    similar = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    similar = similar / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))
    return similar.view(*images_BCHW.shape[:2], -1).mean((1, 2))


class Reconstruction(NamedTuple):
    """Of each image of a split, float64 [N]: PSNR in dB, SSIM, and mean absolute error; and how often each code
    occurs, int64 [K]."""

    psnr_N: Array
    ssim_N: Array
    mae_N: Array
    counts_K: Array

    @property
    def used(self) -> float:
        """The share of the codes that occur."""
        return float((self.counts_K > 0).mean())

    @property
    def entropy(self) -> float:
        """Bits per code, by the share of each code in the split."""
        return entropy_bits(self.counts_K)


def entropy_bits(counts_K: Array) -> float:
    """Entropy of codes that occur so often, in bits; 2 to it is their perplexity."""
    share_K = counts_K[counts_K > 0] / counts_K.sum()
    return float(-(share_K * np.log2(share_K)).sum())


@torch.inference_mode()
def reconstruct(model: ImageTokenizer, batches: Batches) -> Reconstruction:
    """Encode and decode all images; every process gives its share, and gets the result of all."""
    model.eval()
    rows, counts_K = list[Array](), np.zeros(model.config.codes, np.int64)
    for images_BCHW, _ in batches:
        images_BCHW = unit_images(images_BCHW).to(model.device, torch.float32)
        codes_BT = model.codes(images_BCHW)
        made_BCHW = model.images(codes_BT).float()
        mae_B = (made_BCHW - images_BCHW).abs().flatten(1).mean(1)
        found = torch.stack([psnr(images_BCHW, made_BCHW), ssim(images_BCHW, made_BCHW), mae_B], 1)
        rows.append(found.double().cpu().numpy())
        counts_K += np.bincount(codes_BT.flatten().cpu().numpy(), minlength=len(counts_K))
    found_N3 = distributed.gather_rows(np.concatenate(rows))
    counts_K = distributed.gather_rows(counts_K[None]).sum(0)
    return Reconstruction(found_N3[:, 0], found_N3[:, 1], found_N3[:, 2], counts_K)


@torch.no_grad()
def kmeans_tokenizer(model: ImageTokenizer, train: Iterable[Tensor], seed: int = 0) -> ImageTokenizer | None:
    """A tokenizer of as many codes on the same grid, by k-means of the patches of these images; None where these have
    fewer different patches. Every process gives its share of the images, and gets the result of all."""
    c = model.config
    config = ImageTokenizerConfig(
        image_size=c.image_size, in_channels=c.in_channels, patch_size=c.patch_size, codes=c.codes, quantizer="kmeans"
    )
    images_NCHW = distributed.gather_rows(np.concatenate([_bytes(images_BCHW) for images_BCHW in train]))
    try:
        patches_KX, _ = fit_patches(config, torch.from_numpy(images_NCHW).split(64), seed)
    except UserError:
        return None
    made = image_tokenizer(build_model(config))
    assert made is not None
    made.load_state_dict({"quantizer.patches_KD": patches_KX})
    return made.to(model.device)


def _bytes(images_BCHW: Tensor) -> Array:
    return (unit_images(images_BCHW) * 255).round().byte().cpu().numpy()


def bits_per_image(codes: int, tokens: int) -> float:
    """Bits of an image whose codes are stored at equal length."""
    return tokens * math.log2(codes)
