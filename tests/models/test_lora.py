"""Adapters: nothing at the start, the sum of two layers afterwards, one plain layer at the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import create_vit
from vitral.errors import UserError
from vitral.models.lora import LoRALinear, add_lora, merge_lora
from vitral.models.vit import VisionTransformer


def model(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    made = create_vit("vit_micro_patch2_8", **options)
    nn.init.normal_(made.get_parameter("head.weight"))
    return made


def stir(adapted: nn.Module) -> None:
    """As if it had been trained."""
    for name, parameter in adapted.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize("targets", ["attn", "mlp", "both"])
def test_adapters_change_nothing_at_first_and_merge_into_plain_weights(targets: str) -> None:
    plain, adapted = model(), model()
    images = torch.rand(3, 3, 8, 8)
    add_lora(adapted, 3, 8.0, targets)  # type: ignore[arg-type]
    assert torch.equal(adapted(images), plain(images))
    stir(adapted)
    trained = adapted(images)
    assert (trained - plain(images)).abs().max() > 0.1
    merge_lora(adapted)
    assert adapted.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(adapted(images), trained, atol=1e-5, rtol=1e-5)
    changed = {
        name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, adapted.state_dict()[name])
    }
    ends = {"attn": ("attn.qkv", "attn.proj"), "mlp": ("mlp.fc1", "mlp.fc2")}
    expected = [end for key, both in ends.items() if targets in (key, "both") for end in both]
    assert changed == {f"blocks.{i}.{end}.weight" for i in range(4) for end in expected}


def test_query_key_and_value_have_a_low_rank_change_each() -> None:
    layer = nn.Linear(16, 48)
    adapted = LoRALinear(layer, rank=2, alpha=6.0, parts=3)
    nn.init.normal_(adapted.lora_b)
    change = adapted.merged().weight - layer.weight
    for part, (a, b) in enumerate(zip(adapted.lora_a, adapted.lora_b, strict=True)):
        mine = change[16 * part : 16 * (part + 1)]
        torch.testing.assert_close(mine, 3.0 * b @ a, atol=1e-5, rtol=1e-5)
        assert torch.linalg.matrix_rank(mine.detach(), atol=1e-4) == 2
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(adapted(x), adapted.merged()(x), atol=1e-5, rtol=1e-5)


def test_only_adapters_and_head_are_trained() -> None:
    adapted = model(head="mlp")
    add_lora(adapted, 4, 4.0, "both")
    adapted(torch.rand(2, 3, 8, 8)).square().sum().backward()
    for name, parameter in adapted.named_parameters():
        mine = "lora_" in name or name.startswith(("head.", "pre_logits."))
        assert parameter.requires_grad == mine, name
        assert (parameter.grad is not None) == mine, name
    adapters = [p.numel() for n, p in adapted.named_parameters() if "lora_" in n]
    width, hidden = 64, 256
    assert sum(adapters) == 4 * 4 * (4 * 2 * width + 2 * (width + hidden)), "rank 4, four blocks"


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(UserError, match="no blocks"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), 1, 1.0, "attn")
