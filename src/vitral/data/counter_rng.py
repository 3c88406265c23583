"""Counter-based random numbers: one hash of seed, sample and purpose for every random choice about data.

Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). The counter is (sample, epoch,
view, purpose), the key is the seed; so a batch is the same for any number of workers or processes and after a resume.
Samples are numbered over all streams of a run: those of its second stream from `structs.STREAM_SPAN` on, so that the
fifth samples of two data sets are not varied alike.
Arithmetic is on int64 arrays with the low 32 bits in use, the same bits in NumPy and torch, on CPU and CUDA.
Shape letters: B samples; every argument may also be a plain int.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Stream(IntEnum):
    """What a number is for. Two choices about one sample never share a stream."""

    SHUFFLE = 0
    CROP_X = 1
    CROP_Y = 2
    FLIP = 3
    ROTATE = 4
    SCALE = 5
    SHEAR = 6
    TRANSLATE_X = 7
    TRANSLATE_Y = 8
    PARTNER = 9
    MIX_WEIGHT = 10
    MIX_KIND = 11
    CUT_X = 12
    CUT_Y = 13
    FLIP_VERTICAL = 15
    CROP_AREA = 16
    CROP_RATIO = 17
    CROP_TOP = 18
    CROP_LEFT = 19
    POLICY_OP = 20
    POLICY_SIZE = 21
    POLICY_SIGN = 22
    POLICY_ANGLE = 23
    JITTER = 24
    JITTER_ORDER = 25
    BRIGHTNESS = 26
    CONTRAST = 27
    SATURATION = 28
    HUE = 29
    GREY = 30
    SOLARIZE = 31
    POSTERIZE = 32
    EQUALIZE = 33
    AUTOCONTRAST = 34
    INVERT = 35
    SHARPEN = 36
    BLUR = 37
    BLUR_SIGMA = 38
    ERASE = 39
    ERASE_AREA = 40
    ERASE_RATIO = 41
    ERASE_TOP = 42
    ERASE_LEFT = 43
    ERASE_NOISE = 44
    MASK = 48
    MASK_AREA = 49
    MASK_RATIO = 50
    MASK_TOP = 51
    MASK_LEFT = 52
    MASK_SHARE = 53
    CORRUPT_KIND = 54
    CORRUPT_SOURCE = 55
    PRUNE = 56
    GUMBEL = 59
    CLASS_SHUFFLE = 60
    SHOTS = 64
    NOISE = 68
    NOISE_ANGLE = 69
    NOISE_RADIUS = 70
    SQUARE_ROW = 72
    SQUARE_COLUMN = 73
    SQUARE_SIGN = 74
    SQUARE_TURN = 75
    SQUARE_ROW_2 = 76
    SQUARE_COLUMN_2 = 77
    PAIR = 80
    PAIR_WEIGHT = 81
    TEXT_SPLIT = 84
    TEXT_LENGTH = 85
    TEXT_SYMBOL = 86
    BUCKET = 87
    STRIP_COUNT = 88
    STRIP_DIGIT = 89
    STRIP_GAP = 90
    STRIP_TOP = 91
    NEXT_TOKEN = 96
    PALETTE = 97
    LABEL_DROP = 98
    RESTART_IMAGE = 100
    RESTART_PLACE = 101
    CODE_ORDER = 102
    SCENE = 104
    SCENE_NOISE = 105
    RESAMPLE = 112
    MOSAIC = 126
    MOSAIC_PARTNER = 127
    MOSAIC_SCALE = 128
    MOSAIC_X = 129
    MOSAIC_Y = 130
    COPY = 131
    COPY_PARTNER = 132
    COPY_BOX = 133


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10: four 32-bit words of a counter (ints, int64 arrays or tensors) to four random 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # 32 x 32 -> 64 bit products may wrap to negative int64; the bits are right, so shift, then mask.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def bits(seed: int, epoch: Any, view: Any, index_B: Any, stream: Any) -> Any:
    """32 random bits a sample, as int64 in [0, 2^32). `index_B`: int64 array or tensor, below 2^32; `epoch` too."""
    return philox((index_B, epoch, view, stream), (seed & _LOW, seed >> 32 & _LOW))[0]


def uniform(seed: int, epoch: Any, view: Any, index_B: Tensor, stream: Stream) -> Tensor:
    """float32 in [0, 1), one a sample: multiples of 2^-24, equal on every device and to NumPy's."""
    return _unit(bits(seed, epoch, view, index_B, int(stream)))


def uniforms(seed: int, epoch: Any, view: Any, index_B: Tensor, streams: Sequence[Stream]) -> list[Tensor]:
    """`uniform` of several streams by one evaluation of the hash."""
    stream_S1 = torch.tensor([int(stream) for stream in streams], device=index_B.device)[:, None]
    return list(_unit(bits(seed, epoch, view, index_B, stream_S1)).unbind())


def uniform_runs(
    seed: int, epoch: Any, view: Any, index_B: Tensor, streams: Sequence[Stream], count: int
) -> list[Tensor]:
    """Return `count` numbers per sample, [count, B], from each stream, by one evaluation; the first row is
    `uniform`'s."""
    first_S11 = torch.tensor([int(stream) for stream in streams], device=index_B.device)[:, None, None]
    number_N1 = torch.arange(count, device=index_B.device)[:, None]
    return list(_unit(bits(seed, epoch, view, index_B, numbered(first_S11, number_N1))).unbind())


class Draws(NamedTuple):
    """Where a batch's random numbers come from: `epoch_B` and `view` are ints or int64 [B], `sample_ids_B` int64
    [B]."""

    seed: int
    epoch_B: Any
    view: Any
    sample_ids_B: Tensor

    def one(self, stream: Stream) -> Tensor:
        """[B] in [0,1)."""
        return uniform(self.seed, self.epoch_B, self.view, self.sample_ids_B, stream)

    def runs(self, streams: Sequence[Stream], count: int) -> list[Tensor]:
        """[count, B] in [0,1) for each stream."""
        return uniform_runs(self.seed, self.epoch_B, self.view, self.sample_ids_B, streams, count)


def normals(seed: int, epoch: Any, view: Any, index_B: Tensor, count: int) -> Tensor:
    """Return `count` standard normal numbers per sample, float32 [B, count] (Box-Muller of the NOISE streams)."""
    radius_NB, angle_NB = uniform_runs(seed, epoch, view, index_B, (Stream.NOISE, Stream.NOISE_ANGLE), count)
    return ((-2 * (1 - radius_NB).log()).sqrt() * (2 * torch.pi * angle_NB).cos()).T


def numbered(stream: Any, number: Any) -> Any:
    """The counter's word for the number-th draw (below 2^24) of a stream; number 0 is the stream's own word."""
    return number * 256 + stream  # so there may be 256 streams


def _unit(words: Tensor) -> Tensor:
    return (words >> 8).to(torch.float32) * 2.0**-24


def permutation(seed: int, epoch: int, count: int, first: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The order in which an epoch visits `count` samples, numbered from `first`, as their places from 0."""
    words_N = bits(seed, epoch, 0, np.arange(first, first + count, dtype=np.int64), int(Stream.SHUFFLE))
    return np.argsort(words_N, kind="stable")
