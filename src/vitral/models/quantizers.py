"""Quantizers: vectors to codes and back, with gradients for what makes the vectors.

Shape letters: B images, N vectors of an image, X vectors, E numbers of what is quantized, D numbers of what is decoded,
K codes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.models.codebook import Codebook, wide
from vitral.models.image_tokenizer_config import ImageTokenizerConfig

_MARGIN = 1e-3  # FSQ: by how much the bounds are wider, so that the outermost levels are reached
_AT_ONCE = 2**24  # distances that exist at once
_TINY = 1e-20  # least uniform number behind Gumbel noise


class Relaxation(NamedTuple):
    """What a dVAE learns with: a temperature, and uniform numbers in [0, 1) of the shape of the logits, [B, N, K]."""

    temperature: Tensor
    uniform_BNK: Tensor


class Quantized(NamedTuple):
    """What was quantized, [B, N, E]; vectors [B, N, D] for the decoder, codes int64 [B, N], and a penalty, a mean over
    all vectors: of vq the squared distance to the codebook, of a dVAE the divergence of its distribution from the
    uniform one, in nats."""

    encoded_BNE: Tensor
    vectors_BND: Tensor
    codes_BN: Tensor
    penalty: Tensor


class Quantizer(Codebook):
    """Vectors [B, N, E] to codes int64 [B, N] (`encode`) to vectors [B, N, D] (`decode`); `forward` is both, with
    gradients. `decode_width` is D. Everything is computed in float32 or better."""

    decode_width: int

    def init_weights(self) -> None:
        """Initialize what is learned again, from torch's global random state: nothing by default."""

    @abstractmethod
    def encode(self, x_BNE: Tensor) -> Tensor:
        """The code of each vector."""

    @abstractmethod
    def decode(self, codes_BN: Tensor) -> Tensor:
        """The vector of each code."""

    @abstractmethod
    def forward(self, x_BNE: Tensor, relaxation: Relaxation | None = None) -> Quantized:
        """Changes nothing that is kept. relaxation: of a dVAE in training."""


class VQ(Quantizer):
    """The nearest vector of a codebook (van den Oord et al. 2017, arXiv 1711.00937, section 3).

    The gradient of the decoder's input goes to the encoder unchanged; the penalty is the third term of equation 3, and
    has a gradient for the encoder alone. The codebook is a buffer, [K, D]: `objectives.tokenizer` moves it.
    """

    codebook_KD: Tensor

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.decode_width = width
        self.register_buffer("codebook_KD", torch.empty(codes, width))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Uniform in -1/K to 1/K; `fit_codes` finds better ones."""
        nn.init.uniform_(self.codebook_KD, -1 / len(self.codebook_KD), 1 / len(self.codebook_KD))

    def encode(self, x_BNE: Tensor) -> Tensor:
        return nearest_codes(wide(x_BNE).flatten(0, 1), self.codebook_KD).view(x_BNE.shape[:2])

    def decode(self, codes_BN: Tensor) -> Tensor:
        return self.codebook_KD[codes_BN]

    def forward(self, x_BNE: Tensor, relaxation: Relaxation | None = None) -> Quantized:
        x_BND = wide(x_BNE)
        codes_BN = self.encode(x_BND.detach())
        vectors_BND = self.decode(codes_BN).to(x_BND.dtype)
        penalty = (x_BND - vectors_BND).square().mean()
        return Quantized(x_BND, x_BND + (vectors_BND - x_BND).detach(), codes_BN, penalty)


class FSQ(Quantizer):
    """Numbers rounded to few levels each (Mentzer et al. 2023, arXiv 2309.15505, section 3.1): no codebook to learn.

    Number i becomes one of `levels[i]` multiples of 1 / (levels[i] // 2), from -1 up; the gradient passes the rounding
    unchanged. A code is its levels' places as digits, the first number's the least significant.
    """

    levels_E: Tensor
    basis_E: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels, self.decode_width = levels, len(levels)
        basis = [math.prod(levels[:place]) for place in range(len(levels))]
        self.register_buffer("levels_E", torch.tensor(levels), persistent=False)
        self.register_buffer("basis_E", torch.tensor(basis), persistent=False)

    def levels_of(self, x_BNE: Tensor) -> Tensor:
        """The level of each number around 0, -(L // 2) to (L - 1) // 2, with the gradient of the bounded number.

        Bounded as (1 + margin) (L - 1)/2 tanh(x + shift) - 1/2 for even L, with the shift by which 0 becomes 0; of odd
        L both halves are alike.
        """
        x_BNE = wide(x_BNE)
        half_E = (self.levels_E.to(x_BNE.dtype) - 1) * (1 + _MARGIN) / 2
        offset_E = (self.levels_E % 2 == 0).to(x_BNE.dtype) / 2
        bounded_BNE = (x_BNE + (offset_E / half_E).atanh()).tanh() * half_E - offset_E
        return bounded_BNE + (bounded_BNE.round() - bounded_BNE).detach()

    def encode(self, x_BNE: Tensor) -> Tensor:
        return self._codes(self.levels_of(x_BNE))

    def _codes(self, levels_BNE: Tensor) -> Tensor:
        return ((levels_BNE.round().long() + self.levels_E // 2) * self.basis_E).sum(-1)

    def decode(self, codes_BN: Tensor) -> Tensor:
        places_BNE = codes_BN[..., None] // self.basis_E % self.levels_E
        return ((places_BNE - self.levels_E // 2) / (self.levels_E // 2)).to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is decoded."""
        return torch.get_default_dtype()

    def forward(self, x_BNE: Tensor, relaxation: Relaxation | None = None) -> Quantized:
        levels_BNE = self.levels_of(x_BNE)
        vectors_BNE = levels_BNE / (self.levels_E // 2)
        return Quantized(x_BNE, vectors_BNE, self._codes(levels_BNE.detach()), vectors_BNE.new_zeros(()))


class Gumbel(Quantizer):
    """The most probable code of a distribution (Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", section 2.1).

    In training its vector is a mean of all vectors by softmax((logits + Gumbel noise) / temperature), arXiv 1611.01144,
    equation 2; the penalty is the divergence of softmax(logits) from the uniform distribution.
    """

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.decode_width = width
        self.vectors_KD = nn.Parameter(torch.empty(codes, width))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Standard normal."""
        nn.init.normal_(self.vectors_KD)

    def encode(self, x_BNE: Tensor) -> Tensor:
        return x_BNE.argmax(-1)

    def decode(self, codes_BN: Tensor) -> Tensor:
        return F.embedding(codes_BN, self.vectors_KD)

    def forward(self, x_BNE: Tensor, relaxation: Relaxation | None = None) -> Quantized:
        logits_BNK = wide(x_BNE)
        log_BNK = logits_BNK.log_softmax(-1)
        penalty = (log_BNK.exp() * log_BNK).sum(-1).mean() + math.log(log_BNK.shape[-1])
        codes_BN = self.encode(logits_BNK)
        if relaxation is None:
            return Quantized(x_BNE, self.decode(codes_BN), codes_BN, penalty)
        noise_BNK = -(-relaxation.uniform_BNK.clamp(min=_TINY).log()).clamp(min=_TINY).log()
        soft_BNK = ((logits_BNK + noise_BNK) / relaxation.temperature).softmax(-1)
        return Quantized(x_BNE, soft_BNK.to(self.vectors_KD.dtype) @ self.vectors_KD, codes_BN, penalty)


class MeanPatches(Quantizer):
    """The nearest of K mean patches, [K, D]: what a network has to be better than. Parameters, for a model has some;
    no objective moves them."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.decode_width = width
        self.patches_KD = nn.Parameter(torch.empty(codes, width))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Evenly spaced grays."""
        self.patches_KD.copy_(torch.linspace(0, 1, len(self.patches_KD))[:, None].expand_as(self.patches_KD))

    def encode(self, x_BNE: Tensor) -> Tensor:
        return nearest_codes(wide(x_BNE).flatten(0, 1), self.patches_KD.detach()).view(x_BNE.shape[:2])

    def decode(self, codes_BN: Tensor) -> Tensor:
        return F.embedding(codes_BN, self.patches_KD)

    def forward(self, x_BNE: Tensor, relaxation: Relaxation | None = None) -> Quantized:
        codes_BN = self.encode(x_BNE)
        vectors_BND = self.decode(codes_BN)
        return Quantized(x_BNE, vectors_BND, codes_BN, vectors_BND.new_zeros(()))


def make_quantizer(config: ImageTokenizerConfig) -> Quantizer:
    """The quantizer of this configuration, with initial values."""
    match config.quantizer:
        case "vq":
            return VQ(config.codes, config.code_width)
        case "fsq":
            return FSQ(config.levels)
        case "gumbel":
            return Gumbel(config.codes, config.code_width)
        case "kmeans":
            return MeanPatches(config.codes, config.pooled_width)


def nearest_codes(x_XD: Tensor, codebook_KD: Tensor) -> Tensor:
    """The place of the vector with the least squared distance to each, int64 [X]; of equally near ones the first."""
    codebook_KD = codebook_KD.to(x_XD.dtype)
    square_K = codebook_KD.square().sum(1)
    parts = x_XD.split(max(_AT_ONCE // len(codebook_KD), 1))
    return torch.cat([torch.addmm(square_K, part_XD, codebook_KD.T, alpha=-2).argmin(1) for part_XD in parts])
