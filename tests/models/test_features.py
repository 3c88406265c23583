"""Features are the encoder's own tensors, before anything that belongs to a head."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import create_vit
from vitral.errors import UserError
from vitral.models.features import KINDS, extract_features
from vitral.run.command_options import EmbedOptions, ProbeOptions

SMALL = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 32}


@pytest.mark.parametrize("options", [{}, {"pool": "avg"}, {"head": "mlp"}, {"pool": "avg", "fc_norm": False}])
@torch.no_grad()
def test_head_and_hidden_layer_come_after_the_pooled_features(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = create_vit("vit_micro_patch2_8", num_classes=3, image_size=(8, 12), **SMALL, **options).eval()
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    images_BCHW = torch.rand(5, 3, 8, 12)
    found = {kind: extract_features(model, images_BCHW, kind) for kind in KINDS}
    torch.testing.assert_close(model.classify(found["pooled"]), model(images_BCHW))
    out = model.encode(images_BCHW)
    assert torch.equal(found["patches"], out.patches_BND)
    assert torch.equal(found["avg"], out.patches_BND.mean(1))
    assert out.cls_BD is not None
    assert torch.equal(found["cls"], out.cls_BD)
    assert torch.equal(found["cls_avg"], torch.cat([found["cls"], found["avg"]], 1))
    tokens = {"cls": "cls", "avg": "avg"}[options.get("pool", "cls")]
    torch.testing.assert_close(found["pooled"], model.fc_norm(found[tokens]))


def test_a_class_token_that_is_not_there_is_refused() -> None:
    model = create_vit("vit_micro_patch2_8", num_classes=0, pool="avg", class_token=False, **SMALL)
    assert extract_features(model, torch.rand(2, 3, 8, 8)).shape == (2, 16)
    for kind in ("cls", "cls_avg"):
        with pytest.raises(UserError, match="no class token"):
            extract_features(model, torch.rand(2, 3, 8, 8), kind)


def test_the_commands_offer_these_kinds() -> None:
    assert EmbedOptions.model_fields["features"].annotation.__args__ == KINDS  # pyright: ignore
    assert ProbeOptions.model_fields["features"].annotation.__args__ == KINDS[:-1]  # pyright: ignore
