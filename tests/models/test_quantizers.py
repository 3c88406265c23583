"""Quantizers in closed form: every code is reached, comes back, and passes gradients straight through."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from vitral.models.quantizers import FSQ, VQ, Gumbel, MeanPatches, Relaxation, nearest_codes

LEVELS = [(2,), (3,), (4, 3), (5, 6, 2), (8, 5, 5, 5), (8, 8, 8)]


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_code_of_fsq_is_reached_and_comes_back(levels: tuple[int, ...], dtype: torch.dtype) -> None:
    made, count = FSQ(levels), math.prod(levels)
    codes = torch.arange(count)[None]
    vectors = made.decode(codes)
    places = torch.tensor(list(itertools.product(*(range(level) for level in levels[::-1])))).flip(1)
    expected = torch.stack([(places[:, i] - level // 2) / (level // 2) for i, level in enumerate(levels)], 1)
    torch.testing.assert_close(vectors[0], expected.float(), rtol=0, atol=1e-6)
    assert len({tuple(row) for row in vectors[0].tolist()}) == count
    # Numbers that are bounded to each level: the inverse of the bound.
    half = torch.tensor([(level - 1) * 1.001 / 2 for level in levels], dtype=dtype)
    offset = torch.tensor([0.5 if level % 2 == 0 else 0.0 for level in levels], dtype=dtype)
    wanted = (places - torch.tensor([level // 2 for level in levels])).to(dtype)
    x = ((wanted + offset) / half).atanh() - (offset / half).atanh()
    assert torch.equal(made.encode(x[None]), codes)
    out = made(x[None])
    assert torch.equal(out.codes_BN, codes)
    torch.testing.assert_close(out.vectors_BND.float(), vectors, rtol=0, atol=1e-6)
    ends = torch.tensor([[[-1e4] * len(levels), [1e4] * len(levels)]], dtype=dtype)
    assert made.encode(ends).tolist() == [[0, count - 1]], "the outermost levels too"
    assert made.encode(torch.zeros(1, 1, len(levels))).item() == made.encode(made.decode(codes) * 0)[0, 0]


def test_the_gradient_of_fsq_is_that_of_the_bound() -> None:
    made = FSQ((5, 6))
    x = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (made(x).vectors_BND * weight).sum().backward()
    half = torch.tensor([4 * 1.001 / 2, 5 * 1.001 / 2], dtype=torch.float64)
    shift = torch.tensor([0.0, math.atanh(0.5 / (5 * 1.001 / 2))], dtype=torch.float64)
    expected = weight * half * (1 - (x.detach() + shift).tanh().square()) / torch.tensor([2.0, 3.0])
    torch.testing.assert_close(x.grad, expected)


def filled(codes: int = 12, width: int = 4) -> VQ:
    made = VQ(codes, width)
    torch.nn.init.normal_(made.codebook_KD, generator=torch.Generator().manual_seed(3))
    return made.double()


def test_vq_takes_the_nearest_and_passes_the_gradient() -> None:
    made = filled()
    x = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = made(x)
    distance = (x.detach()[:, :, None] - made.codebook_KD).square().sum(-1)
    assert torch.equal(out.codes_BN, distance.argmin(-1))
    torch.testing.assert_close(out.vectors_BND, made.codebook_KD[out.codes_BN])
    torch.testing.assert_close(out.penalty, distance.min(-1).values.mean() / 4)
    weight = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ((out.vectors_BND * weight).sum() + 3 * out.penalty).backward()
    expected = weight + 3 * 2 * (x.detach() - made.codebook_KD[out.codes_BN]) / x.numel()
    torch.testing.assert_close(x.grad, expected)
    assert not made.codebook_KD.requires_grad


@pytest.mark.parametrize("made", [filled(), MeanPatches(9, 6), FSQ((7, 4))], ids=["vq", "kmeans", "fsq"])
def test_a_decoded_code_is_that_code(made: VQ | MeanPatches | FSQ) -> None:
    count = 28 if isinstance(made, FSQ) else 12 if isinstance(made, VQ) else 9
    codes = torch.arange(count).view(1, -1)
    vectors = made.decode(codes)
    if isinstance(made, FSQ):  # decoded numbers are levels: they are quantized as they are, without the bound
        half = torch.tensor([3, 2])
        assert torch.equal(((vectors * half).round().long() + half) @ torch.tensor([1, 7]), codes)
    else:
        assert torch.equal(made.encode(vectors), codes)


def test_of_equally_near_codes_the_first_is_taken_and_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    codebook = torch.tensor([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert nearest_codes(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), codebook).tolist() == [1, 0]
    x = torch.randint(-9, 9, (50, 2), generator=torch.Generator().manual_seed(0)).float()
    whole = nearest_codes(x, codebook)
    monkeypatch.setattr("vitral.models.quantizers._AT_ONCE", 12)
    assert torch.equal(nearest_codes(x, codebook), whole)


def relaxation(temperature: float, shape: tuple[int, ...], value: float | None = None) -> Relaxation:
    made = torch.Generator().manual_seed(2)
    uniform = torch.rand(shape, generator=made) if value is None else torch.full(shape, value)
    return Relaxation(torch.tensor(temperature), uniform)


def test_a_cold_gumbel_is_the_most_probable_code() -> None:
    made, logits = Gumbel(7, 4), torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    hard = made(logits)
    assert torch.equal(hard.codes_BN, logits.argmax(-1))
    cold = made(logits, relaxation(1e-4, (2, 5, 7), value=0.5))  # equal noise for all codes changes nothing
    torch.testing.assert_close(cold.vectors_BND, hard.vectors_BND)
    torch.testing.assert_close(cold.vectors_BND, made.decode(logits.argmax(-1)))
    noisy = relaxation(1e-4, (2, 5, 7))
    drawn = (logits - (-noisy.uniform_BNK.log()).log()).argmax(-1)
    torch.testing.assert_close(made(logits, noisy).vectors_BND, made.decode(drawn))
    hot = made(logits, relaxation(1e6, (2, 5, 7))).vectors_BND
    torch.testing.assert_close(hot, made.vectors_KD.mean(0).expand_as(hot), rtol=0, atol=1e-4)


def test_the_noise_of_gumbel_draws_codes_by_their_probability() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5]).expand(1, 40_000, 4)
    made = Gumbel(4, 4)
    with torch.no_grad():
        made.vectors_KD.copy_(torch.eye(4))
        drawn = made(logits, relaxation(1e-3, (1, 40_000, 4))).vectors_BND.mean((0, 1))
    torch.testing.assert_close(drawn, logits[0, 0].softmax(0), rtol=0, atol=0.01)


def test_the_penalty_of_gumbel_is_a_divergence() -> None:
    made = Gumbel(7, 4)
    assert made(torch.zeros(1, 3, 7)).penalty.item() == pytest.approx(0, abs=1e-6)
    sure: Tensor = torch.zeros(1, 3, 7)
    sure[..., 2] = 100
    assert made(sure).penalty.item() == pytest.approx(math.log(7), abs=1e-5)


def test_half_precision_does_not_change_codes() -> None:
    made, x = VQ(50, 8), torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(made.codebook_KD, generator=torch.Generator().manual_seed(3))
    before, codes = made.codebook_KD.clone(), made.encode(x)
    made.bfloat16()
    assert made.codebook_KD.dtype == torch.float32
    assert torch.equal(made.codebook_KD, before)
    assert torch.equal(made.encode(x), codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(x).codes_BN, codes)
