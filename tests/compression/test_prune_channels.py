"""Truths about taking out heads and hidden features. B batch, h heads, M hidden features of an MLP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.models.test_vit import images, tiny
from vitral.compression.prune_channels import Importance, Kept, choose_kept, measure_importance, prune
from vitral.errors import UserError
from vitral.models.create import build_model
from vitral.models.presets import resolve
from vitral.models.registry import build_config, token_config
from vitral.models.summary import count_macs, count_parameters
from vitral.models.vit import VisionTransformer

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"pool": "avg"},
    {"mlp": "swiglu", "qk_norm": True, "layer_scale": 0.1},
    {"positions": "rope", "registers": 2, "pool": "map"},
    {"distill_token": True},
)


def labeled(model: VisionTransformer, batch: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(batch)
    return images(model, batch), torch.randint(0, 5, (batch,))


def zero(model: VisionTransformer, block: int, head: int | None = None, feature: int | None = None) -> None:
    """Nothing of this head or feature reaches the tokens."""
    with torch.no_grad():
        if head is not None:
            d = model.config.width // model.config.heads
            model.get_parameter(f"blocks.{block}.attn.proj.weight")[:, head * d : (head + 1) * d] = 0
        if feature is not None:
            model.get_parameter(f"blocks.{block}.mlp.fc2.weight")[:, feature] = 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", VARIANTS)
def test_what_is_zero_matters_least_and_goes_without_a_trace(options: dict[str, Any], dtype: torch.dtype) -> None:
    model = tiny(dtype, **options)
    zero(model, 0, head=1, feature=7)
    zero(model, 1, head=2, feature=0)
    x, labels = labeled(model, 6)
    found = measure_importance(model, [(x, labels)])
    assert [int(v.argmin()) for v in (*found.heads, *found.features)] == [1, 2, 7, 0]
    assert [v.min().item() for v in (*found.heads, *found.features)] == [0.0] * 4
    kept = Kept([v.nonzero().flatten() for v in found.heads], [v.nonzero().flatten() for v in found.features])
    assert [len(v) for v in (*kept.heads, *kept.features)] == [2, 2, 19, 19]
    smaller = prune(model, kept)
    assert torch.allclose(smaller(x), model(x), atol=1e-4 if dtype == torch.float32 else 1e-12)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("options", VARIANTS)
def test_importance_is_the_change_of_the_loss_to_first_order(options: dict[str, Any]) -> None:
    """Against the difference quotient of each image's loss by one gate, in float64."""
    model = tiny(torch.float64, **options)
    x, labels = labeled(model, 3)
    found = measure_importance(model, [(x, labels)])
    step, layer = 1e-6, model.get_submodule("blocks.1.attn.proj")
    losses: list[Tensor] = []
    for factor in (1 + step, 1 - step):

        def scale(_: Any, inputs: tuple[Tensor], factor: float = factor) -> tuple[Tensor]:
            head = inputs[0].unflatten(-1, (3, 4)).clone()
            head[:, :, 1] *= factor
            return (head.flatten(2),)

        hook = layer.register_forward_pre_hook(scale)
        losses.append(F.cross_entropy(model(x), labels, reduction="none").detach())
        hook.remove()
    expected = ((losses[0] - losses[1]) / (2 * step)).square().mean()
    assert found.heads[1][1].item() == pytest.approx(expected.item(), rel=1e-4)


def test_batches_do_not_matter() -> None:
    model = tiny(torch.float64)
    x, labels = labeled(model, 7)
    whole = measure_importance(model, [(x, labels)])
    parts = measure_importance(model, zip(x.split(3), labels.split(3), strict=True))
    assert whole.images == parts.images == 7
    for mine, theirs in zip((*whole.heads, *whole.features), (*parts.heads, *parts.features), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9)
    several = measure_importance(model, [(x, F.one_hot(labels, 5).bool())])
    assert not torch.allclose(several.heads[0], whole.heads[0])
    with pytest.raises(UserError, match="at least one image"):
        measure_importance(model, [])


@pytest.mark.parametrize("share", [0.9, 0.7, 0.55])
@pytest.mark.parametrize(
    "options", [{}, {"pool": "avg"}, {"mlp": "swiglu"}, {"positions": "relative"}, {"positions": "relative_bias"}]
)
def test_the_work_is_what_was_asked_for(options: dict[str, Any], share: float) -> None:
    config = token_config(resolve("vit_tiny_patch16_224", **options))
    assert config is not None
    torch.manual_seed(0)
    importance = Importance(
        [torch.rand(3).double() for _ in range(12)], [torch.rand(768).double() for _ in range(12)], 1
    )
    kept = choose_kept(config, importance, share)
    smaller = build_config({
        **config.model_dump(), "block_mlp_dims": tuple(map(len, kept.features)),
        **({} if "positions" in options else {"block_heads": tuple(map(len, kept.heads))}),
    })  # fmt: skip
    macs, before = sum(count_macs(smaller).values()), sum(count_macs(config).values())
    assert share * before * 0.98 < macs <= share * before
    with torch.device("meta"):
        model = build_model(smaller).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() == 2 * macs
    assert count_parameters(smaller) == sum(p.numel() for p in model.parameters())


def test_the_last_of_a_block_stays() -> None:
    config = tiny(pool="avg").config
    importance = Importance([torch.zeros(3), torch.ones(3)], [torch.zeros(20), torch.ones(20)], 1)
    kept = choose_kept(config, importance, 0.4)
    assert (len(kept.heads[0]), len(kept.features[0])) == (1, 1)
    with pytest.raises(UserError, match=r"(?s)flops.*got: *0\.01.*expected: *0\.\d+ or more"):
        choose_kept(config, importance, 0.01)


def test_sizes_of_blocks_are_checked() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"block_heads": (2, 3, 1)}, "3 numbers for 2 blocks"),
        ({"block_mlp_dims": (4,)}, "1 numbers for 2 blocks"),
        ({"block_heads": (2, 3), "positions": "relative"}, "block_heads=null"),
        ({"block_heads": (2, 3), "positions": "relative_bias"}, "block_heads=null"),
        ({"block_mlp_dims": (4, 0)}, "1 or more"),
    )
    for wrong, message in cases:
        with pytest.raises(UserError, match=message):
            tiny(**wrong)
