"""MAE beside transformers' ViTMAEForPreTraining: for the same weights and the same noise the same loss."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.test_vit_oracle import randomised
from vitral.models.patches import unpatchify
from vitral.objectives import mae
from vitral.objectives.mae import MAE
from vitral.objectives.mae_checkpoint import load_mae
from vitral.structs import Batch, View
from vitral.weights.config import ReadOptions

pytestmark = pytest.mark.oracle

HF: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "patch_size": 4,
    "image_size": 20, "num_channels": 3, "decoder_hidden_size": 24, "decoder_num_attention_heads": 3,
    "decoder_num_hidden_layers": 2, "decoder_intermediate_size": 96, "layer_norm_eps": 1e-6,
}  # fmt: skip


def pair(transformers: ModuleType, folder: Path, norm_pix_loss: bool) -> tuple[MAE, Any]:
    """Theirs with random weights and the fixed positions as they compute them; ours, loaded from their file."""
    other = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**HF, norm_pix_loss=norm_pix_loss))
    randomised(other)
    other.vit.embeddings.initialize_weights()
    other.decoder.initialize_weights(25)
    other.save_pretrained(folder)
    ours = load_mae(folder, ReadOptions(heads=4), decoder_heads=3, norm_pix_loss=norm_pix_loss)
    return ours, other.eval()


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equal_loss_and_gradients(
    transformers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm_pix_loss: bool, dtype: torch.dtype,
    limit: float,
) -> None:  # fmt: skip
    ours, other = pair(transformers, tmp_path, norm_pix_loss)
    ours, other = ours.to(dtype), other.to(dtype)
    # Fixed positions are computed in float32 by both, and by different formulas.
    ours.decoder_places.copy_(other.decoder.decoder_pos_embed[0, 1:])
    images = torch.rand(5, 3, 20, 20, dtype=dtype)
    noise = torch.rand(5, 25)
    monkeypatch.setattr(mae, "noise", lambda *_: noise)
    expected = other((images - ours.model.mean) / ours.model.std, noise=noise)
    expected.loss.backward()
    given = Batch((View(images, torch.eye(3).expand(5, 3, 3)),), {}, torch.arange(5))
    loss = ours({"train": given}, 0).loss
    loss.backward()
    assert loss.dtype == dtype
    assert abs(loss.item() - expected.loss.item()) <= limit
    for mine, theirs in (
        (ours.mask_token, other.decoder.mask_token),
        (ours.decoder_pred.weight, other.decoder.decoder_pred.weight),
        (ours.model.cls_token, other.vit.embeddings.cls_token),
        (ours.model.get_parameter("blocks.0.mlp.fc1.weight"), other.vit.layers[0].mlp.fc1.weight),
    ):
        assert mine is not None
        assert mine.grad is not None
        assert theirs.grad is not None
        scale = float(theirs.grad.abs().max())
        assert (mine.grad - theirs.grad).abs().max() <= 20 * limit * scale


def test_fixed_positions_are_theirs(transformers: ModuleType, tmp_path: Path) -> None:
    ours, other = pair(transformers, tmp_path, True)
    torch.testing.assert_close(ours.decoder_places, other.decoder.decoder_pos_embed[0, 1:], rtol=0, atol=1e-6)


def test_equal_reconstruction(transformers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = pair(transformers, tmp_path, False)
    images, noise = torch.rand(2, 3, 20, 20), torch.rand(2, 25)
    monkeypatch.setattr(mae, "noise", lambda *_: noise)
    with torch.no_grad():
        expected = other((images - ours.model.mean) / ours.model.std, noise=noise)
    said: Tensor = unpatchify(expected.logits, (5, 5), 3) * ours.model.std + ours.model.mean
    hidden = expected.mask[..., None].expand(-1, -1, 48)
    where = unpatchify(hidden, (5, 5), 3).bool()
    shown = ours.reconstruct(images)
    torch.testing.assert_close(shown.predicted_BCHW[where], said.clamp(0, 1)[where], rtol=0, atol=1e-4)
