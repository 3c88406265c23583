"""Gradients: completeness, a closed form, a direct computation of the weighted attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.interpret.variants import VARIANTS, images, variant
from vitral.errors import UserError
from vitral.interpret import attention
from vitral.interpret.gradients import gradient_attention, integrated_gradients
from vitral.interpret.tokens import token_rows
from vitral.models.create import create_model


@pytest.mark.parametrize("name", VARIANTS)
def test_attributions_sum_to_the_difference_of_the_logits(name: str) -> None:
    model = variant(name, sharp=0.5)
    x, target = images(model), torch.tensor([3, 0])
    base = images(model).flip(0) / 2 + 0.1
    found = integrated_gradients(model, x, target, base, steps=200, batch_size=7)
    with torch.no_grad():
        difference_B = (model(x) - model(base))[[0, 1], target]
    torch.testing.assert_close(found.difference_B, difference_B.double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.attributions_BCHW.sum((1, 2, 3)) - found.difference_B, found.gap_B)
    assert found.gap_B.abs().max() < (1e-2 if name == "hybrid" else 1e-4)  # ReLUs have kinks
    assert found.difference_B.abs().min() > 1e-2
    assert all(parameter.grad is None for parameter in model.parameters())
    exact = integrated_gradients(model.double(), x.double(), target, base.double(), steps=200)
    torch.testing.assert_close(exact.attributions_BCHW, found.attributions_BCHW, rtol=0, atol=1e-5)


def test_a_linear_model_in_closed_form() -> None:
    """f = w x: every value gets w (x - x'), whatever the number of steps."""
    model = create_model("resnet20_cifar", num_classes=2, image_size=8)
    weight = torch.randn(2, 3 * 8 * 8)
    model.forward = lambda x: nn.functional.linear(x.flatten(1), weight)  # pyright: ignore[reportAttributeAccessIssue]
    x, base = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    for steps in (1, 5):
        found = integrated_gradients(model, x, 1, base, steps)
        expected = weight[1].view(3, 8, 8) * (x - base)
        torch.testing.assert_close(found.attributions_BCHW, expected.double(), rtol=1e-5, atol=1e-6)
        assert found.gap_B.abs().max() < 1e-4


def test_convolutions_and_bytes() -> None:
    torch.manual_seed(0)
    model = create_model("resnet20_cifar", num_classes=4, image_size=8).eval()
    nn.init.normal_(model.get_parameter("head.fc.weight"))
    bytes_BCHW = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    one, other = (integrated_gradients(model, x, 2) for x in (bytes_BCHW, bytes_BCHW.float() / 255))
    assert torch.equal(one.attributions_BCHW, other.attributions_BCHW)
    assert one.attributions_BCHW.abs().max() > 0


def by_hand(name: str, target: list[int]) -> np.ndarray[Any, Any]:
    """Relevance by one pass that holds all maps, in float64."""
    model = variant(name).double()
    x, names = images(model).double(), [f"blocks.{i}.attn.map" for i in range(3)]
    out = model.encode(x, capture=names)
    model.classify(model.pool(out))[[0, 1], target].sum().backward(inputs=[out.captured[n] for n in names])
    rows, relevances = token_rows(model.config, None, model.grid), []
    for b in range(2):
        relevance = np.eye(out.captured[names[0]].shape[-1])
        for n in names:
            gradient = out.captured[n].grad
            assert gradient is not None
            raised = np.maximum(out.captured[n][b].detach().numpy() * gradient[b].numpy(), 0)
            relevance = relevance + raised.mean(0) @ relevance
        relevances.append((relevance - np.eye(len(relevance)))[rows].mean(0))
    return np.array(relevances)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_weighted_attention_equals_a_direct_computation(
    name: str, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = variant(name).requires_grad_(not frozen)
    found = gradient_attention(model, images(model), torch.tensor([3, 0]))
    expected = by_hand(name, [3, 0])
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5 * max(1, expected.max()))
    assert expected.max() > 1e-3
    assert found.min() >= 0
    monkeypatch.setattr(attention.in_groups, "__defaults__", (1,))  # one layer a pass
    again = gradient_attention(model, images(model), torch.tensor([3, 0]))
    torch.testing.assert_close(again, found, rtol=0, atol=1e-5 * max(1, expected.max()))


def test_another_class_rests_on_other_patches() -> None:
    model = variant("no class token")
    one, other = (gradient_attention(model, images(model), target) for target in (0, 1))
    assert (one - other).abs().max() > 1e-4


def test_classes_that_are_not_there() -> None:
    model = variant("class token")
    with pytest.raises(UserError, match="class: no such class"):
        integrated_gradients(model, images(model), 5)
    with pytest.raises(UserError, match="no head"):
        gradient_attention(variant("class token", num_classes=0), images(model), 0)
