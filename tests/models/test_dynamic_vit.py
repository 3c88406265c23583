"""Truths about the learned pruner. B batch, N patches, T tokens, D width."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.models.test_vit import images, tiny
from vitral.compression.tome import ToMe
from vitral.errors import UserError
from vitral.models.create import build_model
from vitral.models.dynamic_vit import LearnedPruner, MaskedPruner, _draw
from vitral.models.presets import resolve
from vitral.models.summary import count_macs, count_parameters
from vitral.models.token_reduction import reduced_by
from vitral.models.vit import VisionTransformer

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"pool": "avg"},
    {"pool": "map", "registers": 2, "image_size": (6, 10)},
    {"positions": "rope", "pool": "cls_avg"},
    {"positions": "learned", "positions_at": "layers", "pool": "avg", "class_token": False},
)


def pruned(dtype: torch.dtype = torch.float32, **options: Any) -> VisionTransformer:
    return tiny(dtype, **{"depth": 4, "pruner_blocks": (1, 2), "pruner_keep": 0.6, **options})


@pytest.mark.parametrize("options", VARIANTS[:4])
def test_it_keeps_the_highest_scores(options: dict[str, Any]) -> None:
    model = pruned(torch.float64, **options)
    N, P = model.grid[0] * model.grid[1], model.prefix_tokens
    names = [f"blocks.{i}" for i in range(4)]
    out = model.encode(images(model), capture=[*names, "blocks.1.attn"])
    counts = [N, math.ceil(0.6 * N), math.ceil(0.36 * N), math.ceil(0.36 * N)]
    assert [out.captured[name].shape[1] - P for name in names] == counts
    assert out.groups_BN is not None
    assert ((out.groups_BN >= 0).sum(1) == counts[-1]).all()
    block: Any = model.blocks[1]
    pruner = model.reduce
    assert isinstance(pruner, LearnedPruner)
    x = out.captured["blocks.0"] + block.ls1(out.captured["blocks.1.attn"])
    scores = pruner.predictors["1"](x[:, P:]).log_softmax(-1)[..., 0]
    for i in range(len(x)):
        kept = scores[i].argsort(descending=True)[: counts[1]].sort().values
        y = torch.cat([x[i, :P], x[i, P:][kept]])
        assert torch.allclose(y + block.mlp(block.norm2(y)), out.captured["blocks.1"][i], atol=1e-6)


def drawn(block: int, patches: int) -> torch.Tensor:
    return torch.rand(3, patches, generator=torch.Generator().manual_seed(block))


def test_patches_stay_with_the_probability_of_the_softmax() -> None:
    """Two logits with Gumbel noise (Rao et al. 2021, equation 6): frequencies over 20,000 draws, and the gradient of
    the soft choice, against torch's own Gumbel softmax in distribution."""
    logits = torch.tensor([[0.0, 0.0], [1.5, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    many = logits[:, None].expand(3, 20_000, 2).clone().requires_grad_()
    kept = _draw(many, torch.rand(3, 20_000, generator=torch.Generator().manual_seed(0)), None)
    expected = logits.softmax(-1)[:, 0]
    assert (kept.mean(1) - expected).abs().max() < 4 * 0.5 / 20_000**0.5
    kept.sum().backward()
    assert many.grad is not None
    torch.manual_seed(0)
    theirs = many.detach().clone().requires_grad_()
    F.gumbel_softmax(theirs, hard=True)[..., 0].sum().backward()
    assert theirs.grad is not None
    assert (many.grad.mean(1) - theirs.grad.mean(1)).abs().max() < 0.01
    ends = torch.tensor([[0.0, 0.0, 1 - 2.0**-24]])  # the smallest and the largest number that is drawn
    assert _draw(torch.zeros(1, 3, 2), ends, None).tolist() == [[1.0, 0.0, 1.0]], "one stays in any case"


@pytest.mark.parametrize("options", VARIANTS)
def test_a_mask_is_as_good_as_dropping(options: dict[str, Any]) -> None:
    """With the predictor's choice fixed, masked tokens leave the others as if they were not there."""
    model = pruned(torch.float64, **{**options, "pruner_blocks": (1,)})
    pruner = model.reduce
    assert isinstance(pruner, LearnedPruner)
    masked = MaskedPruner(pruner, drawn)
    torch.manual_seed(1)
    patches, grid = model.embed(images(model))
    out = model.encode_tokens(patches, grid, reduce=masked)
    assert masked.mask_BN is not None
    assert set(masked.mask_BN.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(masked.shares_B[0], masked.mask_BN.mean(1))

    class Fixed(LearnedPruner):
        def counts(self, patches: int, depth: int) -> list[int]:
            return [patches] + [count] * (depth - 1)

    for i in range(3):
        mask = masked.mask_BN[i] > 0.5
        count = int(mask.sum())
        if not 0 < count < len(mask):
            continue
        fixed = Fixed(model.config).double()
        fixed.predictors["1"].forward = lambda x, _=None, m=mask: torch.stack([m.double(), 0 * m], -1)[None]  # type: ignore[method-assign, misc]
        expected = model.encode_tokens(patches[i : i + 1], grid, reduce=fixed)
        assert torch.allclose(out.patches_BND[i][mask], expected.patches_BND[0], atol=1e-4)


def test_gradients_reach_the_predictors_through_masks() -> None:
    model = pruned(torch.float64, pool="avg").train()
    assert isinstance(model.reduce, LearnedPruner)
    masked = MaskedPruner(model.reduce, drawn)
    out = model.encode_tokens(*model.embed(images(model)), reduce=masked)
    model.classify(model.pool(out, masked.mask_BN)).square().sum().backward()
    assert len(masked.shares_B) == 2
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or name.startswith("reduce.predictors.2.fc2") is False, name


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_parameters_and_work_by_closed_form(pool: str) -> None:
    config = resolve("vit_tiny_patch16_224", pruner_blocks=(3, 6, 11), pool=pool)
    with torch.device("meta"):
        model = build_model(config).eval()
    assert count_parameters(config) == sum(p.numel() for p in model.parameters())
    small = resolve("vit_tiny_patch16_224", pruner_blocks=(1, 2), pool=pool, depth=3, image_size=64)
    network = build_model(small).eval()
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        network(torch.zeros(1, 3, 64, 64))
    assert counter.get_total_flops() == 2 * sum(count_macs(small).values())


def test_pruners_that_make_no_sense_are_refused() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"pruner_blocks": (4,)}, "must be increasing and below depth 4"),
        ({"pruner_blocks": (2, 1)}, "must be increasing"),
        ({"pruner_blocks": (), "pruner_keep": 0.5}, "no effect"),
        ({"positions": "relative"}, "no offsets for patches"),
        ({"positions": "relative_bias"}, "no offsets for patches"),
    )
    for wrong, message in cases:
        with pytest.raises(UserError, match=message):
            pruned(**wrong)


def test_half_precision() -> None:
    model = pruned(pool="avg")
    assert model.to(torch.bfloat16)(images(model)).dtype == torch.bfloat16


def test_another_way_takes_its_place_and_gives_it_back() -> None:
    model = pruned()
    own, weights, x = model.reduce, list(model.state_dict()), images(model)
    expected = model(x)
    for other in (ToMe(1), None):
        with reduced_by(model, other):
            assert model.reduce is other
            assert not any(name.startswith("reduce.") for name in model.state_dict())
            assert not torch.equal(model(x), expected)
        assert model.reduce is own
        assert list(model.state_dict()) == weights
        assert torch.equal(model(x), expected)
