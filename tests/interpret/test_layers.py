"""What each layer knows: the logit lens, likeness and length of its patches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.interpret.variants import VARIANTS, images, variant
from vitral.errors import UserError
from vitral.interpret.logit_lens import logit_lens
from vitral.interpret.patches import mean_similarity, patch_norms, patch_similarity


@pytest.mark.parametrize("name", VARIANTS)
def test_the_last_layers_answer_is_the_models(name: str) -> None:
    model = variant(name)
    x = images(model)
    logits_BLS = logit_lens(model, x)
    assert logits_BLS.shape == (2, 3, 5)
    with torch.no_grad():
        torch.testing.assert_close(logits_BLS[:, -1], model(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(logit_lens(model, x, [-1]), logits_BLS[:, -1:])


@pytest.mark.parametrize("name", ["distilled", "map", "both"])
def test_an_earlier_answer_is_that_of_a_shorter_model(name: str) -> None:
    model = variant(name)
    x = images(model)
    logits_BLS = logit_lens(model, x)
    model.blocks = model.blocks[:2]
    with torch.no_grad():
        torch.testing.assert_close(logits_BLS[:, 1], model(x), rtol=1e-5, atol=1e-5)


def test_no_head_no_answer() -> None:
    model = variant("class token", num_classes=0)
    with pytest.raises(UserError, match="no head"):
        logit_lens(model, images(model))


@pytest.mark.parametrize("name", ["registers", "no class token", "hybrid"])
def test_similarity_and_norms_by_hand(name: str) -> None:
    model = variant(name)
    x, rows, columns = images(model), *model.grid
    similarity_BLN, norms_BLN = patch_similarity(model, x, (1, 2)), patch_norms(model, x)
    with torch.no_grad():
        captured = model.encode(x, capture=["blocks.0", "blocks.1", "blocks.2"]).captured
    for layer in range(3):
        patches_BND = captured[f"blocks.{layer}"][:, model.prefix_tokens :].double()
        for n in range(rows * columns):
            cosine_B = F.cosine_similarity(patches_BND[:, n], patches_BND[:, columns + 2])
            torch.testing.assert_close(similarity_BLN[:, layer, n].double(), cosine_B, rtol=0, atol=1e-5)
        torch.testing.assert_close(norms_BLN[:, layer].double(), patches_BND.square().sum(-1).sqrt())
    assert torch.equal(patch_similarity(model, x, (1, 2), [2])[:, 0], similarity_BLN[:, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_mean_similarity_is_that_of_all_pairs(dtype: torch.dtype) -> None:
    tokens_BND = (torch.randn(3, 11, 7) + 0.5).to(dtype)
    unit = F.normalize(tokens_BND.double(), dim=-1)
    pairs = (unit @ unit.transpose(1, 2))[:, ~torch.eye(11, dtype=torch.bool)]
    torch.testing.assert_close(mean_similarity(tokens_BND), pairs.mean(1))
    assert mean_similarity(torch.ones(5, 2)) == pytest.approx(1)
    assert mean_similarity(torch.ones(1, 2)).isnan()
