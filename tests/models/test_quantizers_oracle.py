"""Quantizers beside vector-quantize-pytorch with the same numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.models.tokenizers import pictures
from vitral.models.quantizers import FSQ, VQ

pytestmark = pytest.mark.oracle

LEVELS = [(3, 4), (8, 6, 5), (8, 8, 8), (7, 5, 5, 5, 5)]


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_has_equal_codes_vectors_and_gradients(levels: tuple[int, ...]) -> None:
    import vector_quantize_pytorch as peer

    x = 3 * torch.randn(4, 200, len(levels), generator=torch.Generator().manual_seed(0))
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    made, oracle = FSQ(levels), peer.FSQ(list(levels))
    out, (vectors, codes) = made(mine), oracle(theirs)
    assert torch.equal(out.codes_BN, codes.long())
    assert len(codes.unique()) >= min(100, math.prod(levels))
    torch.testing.assert_close(out.vectors_BND, vectors, rtol=0, atol=1e-6)
    for sides in (out.vectors_BND, vectors):
        sides.square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.decode(codes.long()), oracle.indices_to_codes(codes), rtol=0, atol=1e-6)


def test_vq_has_equal_codes_losses_and_codebooks() -> None:
    """Five steps of the moving means, one image a batch: uses are per image here, per batch there."""
    import vector_quantize_pytorch as peer

    from tests.objectives.test_tokenizer import objective

    made = objective("vq", dtype=torch.float32, restart_below=0.0)
    quantizer = made.model.quantizer
    assert isinstance(quantizer, VQ)
    codes, width = quantizer.codebook_KD.shape
    oracle = peer.VectorQuantize(
        dim=width, codebook_size=codes, decay=0.99, eps=1e-5, commitment_weight=0.25, threshold_ema_dead_code=0
    )
    book: Any = oracle._codebook
    book.embed.copy_(quantizer.codebook_KD[None])
    book.cluster_size.copy_(made.counts_K[None])
    book.embed_avg.copy_(made.sums_KD[None])
    oracle.train()
    for step in range(5):
        images = pictures(step + 1)[:1]
        x = made.model.embed(images).detach()
        vectors, theirs, loss = oracle(x)
        out = quantizer(x)
        assert torch.equal(out.codes_BN, theirs)
        torch.testing.assert_close(out.vectors_BND, vectors, rtol=0, atol=1e-6)
        torch.testing.assert_close(0.25 * out.penalty, loss.sum(), rtol=0, atol=1e-6)
        made.after_update(step, made._uses(images, out), torch.zeros(()))
        torch.testing.assert_close(quantizer.codebook_KD, book.embed[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(made.counts_K, book.cluster_size[0], rtol=0, atol=1e-6)
