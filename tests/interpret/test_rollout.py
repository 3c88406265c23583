"""Rollout: a direct computation in float64, and what it conserves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.interpret.test_attention import direct
from tests.interpret.variants import VARIANTS, images, variant
from vitral.interpret.rollout import Fuse, roll, rollout
from vitral.interpret.tokens import default_token, token_rows


@pytest.mark.parametrize("fuse", ["mean", "max"])
@pytest.mark.parametrize("name", VARIANTS)
def test_rollout_equals_a_direct_computation(name: str, fuse: Fuse) -> None:
    model = variant(name)
    x = images(model)
    maps = [map_BhTT.double().numpy() for map_BhTT in direct(model, x)]
    found = rollout(model, x, fuse=fuse).numpy()
    assert default_token(model.config) == ("cls" if model.config.pool in ("cls", "cls_avg") else "mean")
    rows = token_rows(model.config, None, model.grid)
    for b in range(len(x)):
        product = np.eye(maps[0].shape[-1])
        for map_BhTT in maps:
            joint = map_BhTT[b].mean(0) if fuse == "mean" else map_BhTT[b].max(0)
            joint = 0.5 * joint / joint.sum(1, keepdims=True) * (1 if fuse == "mean" else joint.sum(1, keepdims=True))
            joint = joint + 0.5 * np.eye(len(joint))
            product = (joint / joint.sum(1, keepdims=True)) @ product
        np.testing.assert_allclose(found[b], product[rows].mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def test_identity_and_uniform_attention() -> None:
    eye = torch.eye(7).expand(2, 3, 7, 7)
    assert torch.equal(roll([eye] * 4), torch.eye(7).expand(2, 7, 7))
    uniform = torch.full((1, 2, 7, 7), 1 / 7, dtype=torch.bfloat16)
    rolled = roll([uniform] * 3)
    assert rolled.dtype == torch.float32
    stays = 0.5**3  # what the residual connections keep in place; the rest is spread evenly
    expected = stays * torch.eye(7) + (1 - stays) / 7
    torch.testing.assert_close(rolled[0], expected, rtol=0, atol=2e-3)  # 1 / 7 in bfloat16
