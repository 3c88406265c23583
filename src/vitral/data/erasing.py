"""Random erasing (Zhong et al. 2020, arXiv 1708.04896): fill one rectangle of some samples.

Shape letters: B samples, C channels, H W height and width, E erased samples, P erased pixels, 2 4 as in crop.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitral.data.config import AugmentConfig
from vitral.data.counter_rng import Draws, Stream, bits, numbered
from vitral.data.crop import try_boxes

ERASE_STREAMS = (Stream.ERASE_AREA, Stream.ERASE_RATIO, Stream.ERASE_TOP, Stream.ERASE_LEFT)


def erase(images_BCHW: Tensor, config: AugmentConfig, draws: Draws) -> Tensor:
    """[0,1] float32 images, a share `config.random_erasing` of them with a rectangle painted over, all channels alike.

    Its area is uniform within `erase_scale` shares of the image, its height / width log-uniform within `erase_ratio`.
    Of ten tries the first smaller than the image in both directions is taken, and without one the image stays, as in
    torchvision. `erase_fill`: black, the sample's own mean of each channel, or uniform noise for each value, as in the
    paper.
    """
    index_E = torch.nonzero(draws.one(Stream.ERASE) < config.random_erasing)[:, 0]
    if len(index_E) == 0:
        return images_BCHW
    draws = _select(draws, index_E)
    height, width = images_BCHW.shape[-2:]
    inside_EHW = _inside(*_boxes(config, draws, height, width), height, width)
    images_ECHW = images_BCHW[index_E]
    if config.erase_fill == "noise":
        sample_P, row_P, column_P = inside_EHW.nonzero(as_tuple=True)
        noise_PC = _noise(_select(draws, sample_P), row_P * width + column_P, images_BCHW.shape[1])
        images_ECHW[sample_P, :, row_P, column_P] = noise_PC
    else:
        fill_EC11 = _mean(images_ECHW) if config.erase_fill == "mean" else torch.zeros_like(images_ECHW[:, :, :1, :1])
        images_ECHW = torch.where(inside_EHW[:, None], fill_EC11, images_ECHW)
    return images_BCHW.index_copy(0, index_E, images_ECHW)


def _select(draws: Draws, index: Tensor) -> Draws:
    """The draws of some of the samples."""
    epoch_B, view = (v[index] if isinstance(v, Tensor) and v.ndim else v for v in (draws.epoch_B, draws.view))
    return Draws(draws.seed, epoch_B, view, draws.sample_ids_B[index])


def _boxes(config: AugmentConfig, draws: Draws, height: int, width: int) -> tuple[Tensor, Tensor]:
    sizes_E2 = torch.tensor([height, width], device=draws.sample_ids_B.device).expand(len(draws.sample_ids_B), 2)
    # Boxes are drawn by width / height.
    ratio = (1 / config.erase_ratio[1], 1 / config.erase_ratio[0])
    return try_boxes(draws, sizes_E2, sizes_E2 - 1, config.erase_scale, ratio, ERASE_STREAMS)


def _inside(boxes_E4: Tensor, found_E: Tensor, height: int, width: int) -> Tensor:
    top_E1, left_E1, high_E1, wide_E1 = boxes_E4[:, :, None].unbind(1)
    row_H, column_W = (torch.arange(size, device=boxes_E4.device) for size in (height, width))
    rows_EH = (row_H >= top_E1) & (row_H < top_E1 + high_E1) & found_E[:, None]
    columns_EW = (column_W >= left_E1) & (column_W < left_E1 + wide_E1)
    return rows_EH[:, :, None] & columns_EW[:, None, :]


def _noise(draws: Draws, pixel_P: Tensor, channels: int) -> Tensor:
    """[P, C] in [0,1), by sample, pixel and channel."""
    number_CP = torch.arange(channels, device=pixel_P.device)[:, None] + channels * pixel_P
    words_CP = bits(draws.seed, draws.epoch_B, draws.view, draws.sample_ids_B, numbered(Stream.ERASE_NOISE, number_CP))
    return ((words_CP >> 8).float() * 2.0**-24).T


def _mean(images_ECHW: Tensor) -> Tensor:
    """Of each channel; summed in whole steps, so that the batch it comes in doesn't matter in a single bit."""
    total_EC = (images_ECHW * 2**24).long().sum((2, 3)).double()
    return (total_EC / images_ECHW[0, 0].numel() * 2.0**-24).float()[:, :, None, None]
