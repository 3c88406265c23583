"""The same attention as transformers, the same integrated gradients as captum."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from tests.helpers import create_vit
from tests.interpret.variants import images, variant
from tests.models.test_vit_oracle import randomised
from tests.oracles import load_oracle
from vitral.interpret.attention import stream_maps, token_attention
from vitral.interpret.gradients import integrated_gradients
from vitral.models.create import create_model
from vitral.models.model import ImageModel
from vitral.weights.hf import vit_rules
from vitral.weights.keymap import translate

pytestmark = pytest.mark.oracle


def test_attention_equals_transformers_output_attentions(transformers: ModuleType) -> None:
    model = create_vit("vit_tiny_patch16_224", num_classes=10, image_size=(96, 128)).eval()
    c = model.config
    config = transformers.ViTConfig(
        hidden_size=c.width, num_hidden_layers=c.depth, num_attention_heads=c.heads, intermediate_size=c.mlp_dim,
        layer_norm_eps=c.norm_eps, image_size=c.image_size, num_labels=10, attn_implementation="eager",
    )  # fmt: skip
    other = randomised(transformers.ViTForImageClassification(config))
    state = {name.removeprefix("vit."): value for name, value in other.state_dict().items()}
    model.load_state_dict(translate(vit_rules(state), state).tensors)
    x = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        expected = other(pixel_values=(x - 0.5) / 0.5, output_attentions=True).attentions
    maps = dict(stream_maps(model, x))
    assert list(maps) == list(range(c.depth))
    for layer, map_BhTT in maps.items():
        torch.testing.assert_close(map_BhTT, expected[layer], rtol=0, atol=1e-5)
    found_BLhT = token_attention(model, x, "2,3", heads=[1])
    theirs_BLhT = torch.stack([each[:, 1:2, 1 + 2 * 8 + 3] for each in expected], 1)
    torch.testing.assert_close(found_BLhT, theirs_BLhT, rtol=0, atol=1e-5)


def cnn() -> ImageModel:
    model = randomised(create_model("resnet20_cifar", num_classes=5, image_size=8))
    assert isinstance(model, ImageModel)
    return model


@pytest.mark.parametrize("name", ["class token", "map", "rope", "hybrid", "cnn"])
@pytest.mark.parametrize("steps", [2, 8, 50])
def test_integrated_gradients_equal_captums(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    load_oracle("captum")
    from captum.attr import IntegratedGradients

    model = (cnn() if name == "cnn" else variant(name)).double()
    x = (torch.rand(2, 3, 8, 8) if name == "cnn" else images(variant(name))).double()
    base, target = torch.full_like(x, 0.25), torch.tensor([1, 4])
    linspace = torch.linspace  # captum places its steps in float32, which shows where a model is steep
    monkeypatch.setattr(torch, "linspace", lambda *args: linspace(*args, dtype=torch.float64))
    theirs: Any = IntegratedGradients(model).attribute(
        x, base, target=target, n_steps=steps, method="riemann_middle", return_convergence_delta=True
    )
    monkeypatch.undo()
    scale = theirs[0].abs().max().item()
    for batch_size in (64, 3):
        found = integrated_gradients(model, x, target, 0.25, steps, batch_size)
        # Its weights of the steps are float32 too.
        torch.testing.assert_close(found.attributions_BCHW, theirs[0], rtol=0, atol=1e-6 * scale)
        torch.testing.assert_close(found.gap_B, theirs[1], rtol=0, atol=1e-5 * scale)
