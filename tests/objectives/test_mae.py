"""MAE beside a plain implementation that unshuffles every token and masks the loss; its invariants; its limits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import create_vit
from tests.objectives.training import Trained, assert_equal, five_steps
from tests.processes import in_processes
from vitral.data.masking import kept_count
from vitral.errors import UserError
from vitral.models.patches import patchify, unpatchify
from vitral.models.position import sincos_table
from vitral.models.vit import VisionTransformer
from vitral.objectives import mae
from vitral.objectives.config import MaeConfig
from vitral.objectives.mae import MAE
from vitral.objectives.mae_checkpoint import load_mae
from vitral.objectives.objective import ObjectiveContext
from vitral.optim.config import OptimConfig
from vitral.optim.optimizer import make_optimizer
from vitral.structs import Batch, View
from vitral.training.config import TrainConfig
from vitral.training.loop import train_step
from vitral.training.nonfinite import NonFiniteGuard
from vitral.training.train_state import Progress, TrainState
from vitral.weights.config import ReadOptions

SMALL: dict[str, Any] = {
    "width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "patch_size": 4, "image_size": (12, 20), "in_channels": 3,
    "num_classes": 0, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3),
}  # fmt: skip
DECODER: dict[str, Any] = {"decoder_width": 8, "decoder_depth": 2, "decoder_heads": 2}


def vit(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return create_vit("vit_micro_patch2_8", **{**SMALL, **options})


def objective(dtype: torch.dtype = torch.float32, seed: int = 0, hidden: float = 0.75, **options: Any) -> MAE:
    keys = {key: options.pop(key) for key in list(options) if key in MaeConfig.model_fields}
    config = MaeConfig(kind="mae", mask_ratio=hidden, **{**DECODER, **keys})
    made = MAE(lambda: vit(**options), config, ObjectiveContext(10, seed=seed))
    torch.manual_seed(1)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.to(dtype)


def batch(count: int = 4, dtype: torch.dtype = torch.float32, channels: int = 3, first: int = 0) -> Batch:
    images = [torch.rand(channels, 12, 20, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    sample_ids_B = torch.arange(count)
    whole = Batch((View(torch.stack(images).to(dtype), torch.eye(3).expand(count, 3, 3)),), {}, sample_ids_B)
    return whole.slice(first, count)


def plain_loss(made: MAE, given: Batch, step: int) -> tuple[Tensor, Tensor]:
    """The paper's way: mask tokens put back in order among the seen ones, all predicted, the loss masked. Its value,
    and its gradient by the prediction [B, N, X]."""
    images = given.views[0].images_BCHW
    model, (rows, columns) = made.model, made.model.grid
    seen, hidden = made.hide(given.sample_ids_B, step, (rows, columns))
    B, K, N = len(images), seen.shape[1], rows * columns
    out = model.encode(images, seen)
    tokens = out.patches_BND if out.cls_BD is None else torch.cat([out.cls_BD[:, None], out.patches_BND], 1)
    tokens = made.decoder_embed(model.fc_norm(tokens))
    front = tokens.shape[1] - K
    full = torch.empty(B, N, tokens.shape[-1], dtype=tokens.dtype)
    mask = torch.ones(B, N, dtype=tokens.dtype)
    for b in range(B):
        full[b, hidden[b]] = made.mask_token[0].expand(N - K, -1)
        full[b, seen[b]] = tokens[b, front:]
        mask[b, seen[b]] = 0
    x = torch.cat([tokens[:, :front], full + sincos_table((rows, columns), (rows, columns), 8).to(tokens.dtype)], 1)
    for block in made.decoder_blocks:
        x = block(x)
    said = made.decoder_pred(made.decoder_norm(x))[:, front:]
    said.retain_grad()
    target = torch.empty_like(said)
    normal, P = (images - model.mean) / model.std, model.config.patch_size
    for n in range(N):
        r, c = divmod(n, columns)
        target[:, n] = normal[:, :, r * P : r * P + P, c * P : c * P + P].permute(0, 2, 3, 1).reshape(B, -1)
    if made.config.norm_pix_loss:
        count = target.shape[-1]
        centered = target - target.mean(-1, keepdim=True)
        target = centered / (centered.square().sum(-1, keepdim=True) / (count - 1) + 1e-6).sqrt()
    loss = ((said - target).square().mean(-1) * mask).sum() / mask.sum()
    loss.backward()
    assert said.grad is not None
    return loss.detach(), said.grad * (1 - mask[..., None])


@pytest.mark.parametrize("options", [
    {}, {"pool": "avg"}, {"positions": "sincos"}, {"class_token": False, "pool": "avg"}, {"registers": 2},
    {"hidden": 0.4, "norm_pix_loss": False}, {"positions": "rope", "heads": 2, "decoder_depth": 1},
    {"in_channels": 1, "mean": (), "std": ()},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradients_are_the_plain_ones(options: dict[str, Any], dtype: torch.dtype) -> None:
    made = objective(dtype, **options)
    given = batch(dtype=dtype, channels=options.get("in_channels", 3))
    expected, on_seen = plain_loss(made, given, 3)
    grads = {name: parameter.grad for name, parameter in made.named_parameters()}
    made.zero_grad()
    out = made({"train": given}, 3)
    out.loss.backward()
    limit = 1e-11 if dtype == torch.float64 else 2e-4
    assert out.loss.dtype == dtype
    torch.testing.assert_close(out.loss.detach(), expected, rtol=0, atol=limit)
    assert not on_seen.any(), "the loss does not know what is said of seen patches"
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, f"{name} is unused"
        torch.testing.assert_close(parameter.grad, grads[name], rtol=limit, atol=limit)


def test_encoder_runs_the_seen_patches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    made = objective()
    made.model.blocks[0].register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    for ratio in (0.1, 0.5, 0.75, 0.9, 0.99):
        monkeypatch.setattr(made, "config", made.config.model_copy(update={"mask_ratio": ratio}))
        made({"train": batch()}, 0)
        seen, hidden = made.hide(torch.arange(4), 0, (3, 5))
        assert lengths.pop() == 1 + kept_count(15, ratio) == 1 + seen.shape[1]
        assert hidden.shape[1] == 15 - kept_count(15, ratio)
        assert all(sorted(row) == list(range(15)) for row in torch.cat([seen, hidden], 1).tolist())


def test_kept_counts_are_rounded_not_cut() -> None:
    """int(N (1 - ratio)) gives 19 of 100 at 0.8, and none of 10 at 0.9."""
    assert [kept_count(100, 0.8), kept_count(10, 0.9), kept_count(196, 0.75), kept_count(3, 0.99)] == [20, 1, 49, 1]
    for count in range(1, 300):
        for percent in range(1, 100):
            kept = kept_count(count, percent / 100)
            assert 1 <= kept <= count
            assert kept == 1 or abs(kept - count * (1 - percent / 100)) <= 0.5 + 1e-9


def test_masks_belong_to_samples_and_steps() -> None:
    made, keys = objective(), torch.tensor([5, 9, 2])
    seen, _ = made.hide(keys, 7, (3, 5))
    assert torch.equal(made.hide(keys.flip(0), 7, (3, 5))[0], seen.flip(0)), "whatever else is in the batch"
    assert not torch.equal(made.hide(keys, 8, (3, 5))[0], seen)
    assert not torch.equal(objective(seed=1).hide(keys, 7, (3, 5))[0], seen)
    counts = torch.zeros(15)
    for step in range(400):
        counts += torch.bincount(made.hide(torch.arange(10), step, (3, 5))[0].flatten(), minlength=15)
    share, spread = 4 / 15, math.sqrt(4000 * 4 / 15 * 11 / 15)
    assert (counts - 4000 * share).abs().max() < 5 * spread, "every patch is seen as often as any other"


def test_patches_and_back() -> None:
    images = torch.rand(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(unpatchify(patches, (2, 3), 3), images)
    # the second patch's row 1, column 2: all channels of one pixel stand together
    assert torch.equal(patches[:, 1, (1 * 4 + 2) * 3 : (1 * 4 + 2) * 3 + 3], images[:, :, 1, 4 + 2])


def test_targets_have_mean_0_and_variance_1() -> None:
    made = objective(torch.float64)
    images = batch(dtype=torch.float64).views[0].images_BCHW * 0.5
    standard, mean, scale = made.standardize(made.pixels(images))
    torch.testing.assert_close(standard.mean(-1), torch.zeros(4, 15, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(standard.var(-1), torch.ones(4, 15, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(standard * scale + mean, made.pixels(images))
    flat = made.standardize(torch.full((1, 1, 48), 0.3))[0]
    assert flat.isfinite().all(), "a patch of one color has no variance"


def test_hidden_pixels_change_no_prediction_and_seen_pixels_no_target() -> None:
    made, given = objective(), batch()
    images = given.views[0].images_BCHW
    seen, hidden = made.hide(given.sample_ids_B, 0, (3, 5))

    def said(x: Tensor) -> Tensor:
        return made.decode(made.model.encode(x, seen), seen, hidden)

    other = patchify(images, 4).scatter(1, hidden[..., None].expand(-1, -1, 48), 0.5)
    assert torch.equal(said(unpatchify(other, (3, 5), 3)), said(images))
    other = patchify(images, 4).scatter(1, seen[..., None].expand(-1, -1, 48), 0.5)
    assert not torch.allclose(said(unpatchify(other, (3, 5), 3)), said(images), atol=1e-3)
    index = hidden[..., None].expand(-1, -1, 48)
    targets = [made.pixels(x).gather(1, index) for x in (images, unpatchify(other, (3, 5), 3))]
    assert torch.equal(*targets), "what is to be said does not depend on what is seen"


def test_order_of_seen_and_hidden_patches_does_not_matter() -> None:
    made, given = objective(torch.float64), batch(dtype=torch.float64)
    images = given.views[0].images_BCHW
    seen, hidden = made.hide(given.sample_ids_B, 0, (3, 5))
    first = made.decode(made.model.encode(images, seen), seen, hidden)
    second = made.decode(made.model.encode(images, seen.flip(1)), seen.flip(1), hidden.flip(1))
    torch.testing.assert_close(second.flip(1), first, rtol=0, atol=1e-12)


def test_other_grids_than_the_models_own() -> None:
    made = objective(positions="sincos")
    shown = made.reconstruct(torch.rand(2, 3, 20, 12))
    assert all(image.shape == (2, 3, 20, 12) for image in shown)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_reconstruction_shows_what_is_said_where_it_is_said(
    norm_pix_loss: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that says the truth gives the image back; seen pixels are always the image's."""
    made = objective(torch.float64, norm_pix_loss=norm_pix_loss).eval()
    images = batch(dtype=torch.float64).views[0].images_BCHW
    seen, hidden = made.hide(torch.arange(4), 0, (3, 5))
    shown = made.reconstruct(images)
    torch.testing.assert_close(shown.original_BCHW, images)
    index = seen[..., None].expand(-1, -1, 48)
    for image in shown[1:]:
        torch.testing.assert_close(patchify(image, 4).gather(1, index), patchify(images, 4).gather(1, index))
    assert (patchify(shown.masked_BCHW, 4).gather(1, hidden[..., None].expand(-1, -1, 48)) == 0.5).all()
    assert not torch.allclose(shown.predicted_BCHW, images, atol=0.05)
    truth = made.standardize(made.pixels(images).gather(1, hidden[..., None].expand(-1, -1, 48)))[0]
    monkeypatch.setattr(made, "decode", lambda *_: truth)
    torch.testing.assert_close(made.reconstruct(images).predicted_BCHW, images)
    assert list(made.pictures(images)) == ["original", "visible patches", "reconstruction"]


def test_bytes_are_images_too() -> None:
    made = objective()
    given = batch()
    as_bytes = (given.views[0].images_BCHW * 255).round().byte()
    floats = Batch((View(as_bytes.float() / 255, given.views[0].matrix_B33),), {}, given.sample_ids_B)
    as_batch = Batch((View(as_bytes, given.views[0].matrix_B33),), {}, given.sample_ids_B)
    assert torch.equal(made({"train": as_batch}, 0).loss, made({"train": floats}, 0).loss)


def test_bfloat16_is_near_float32() -> None:
    made, given = objective(), batch(16)
    exact = made({"train": given}, 0).loss
    with torch.autocast("cpu", torch.bfloat16):
        rough = made({"train": given}, 0).loss
    assert rough.dtype == torch.float32
    assert abs(rough - exact) < 0.02 * exact


def test_forward_changes_nothing() -> None:
    made, given = objective(dropout=0.0), batch()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    assert torch.equal(made({"train": given}, 4).loss, made({"train": given}, 4).loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def trained(micro: int | None = None, ddp: bool = False) -> Trained:
    return five_steps(objective(torch.float64), batch(8, torch.float64), micro, ddp=ddp)


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_micro_batches_are_one_batch(micro: int) -> None:
    """The last one of 3 holds 2 samples."""
    assert_equal(trained(), trained(micro))


@pytest.mark.slow
def test_two_processes_are_one() -> None:
    whole = trained()
    for found in in_processes(2, "tests.objectives.test_mae:trained", 2, True):
        assert_equal(whole, found)


def test_not_finite_is_skipped(tmp_path: Path) -> None:
    made = objective()
    state = TrainState(made, make_optimizer(made, OptimConfig()), None, Progress())
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    spoilt = batch()
    spoilt.views[0].images_BCHW[0, 0, 0] = math.nan
    config, optim = TrainConfig(batch_size=4), OptimConfig(lr=0.1, schedule="constant", warmup=0)
    guard = NonFiniteGuard(state, lambda _: {"train": spoilt}, tmp_path, config)
    train_step(state, made, {"train": spoilt}, config, optim, guard)
    guard.sync()
    assert state.progress.skipped == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool": "map"}, "trains no pooling"),
        ({"stem_blocks": [], "patch_size": 4}, "convolutional stem"),
        ({"hidden": 0.01}, "hides no patch"),
        ({"patch_size": 1, "in_channels": 1, "mean": (), "std": ()}, "no variance"),
    ],
)
def test_what_cannot_be_trained_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        objective(**options)


@pytest.mark.parametrize("keys", [{"decoder_width": 10}, {"decoder_heads": 3}, {"hidden": 1.0}, {"hidden": 0.0}])
def test_configs_that_do_not_fit(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"decoder_width|hidden"):
        MaeConfig(kind="mae", **{**DECODER, **keys})


def write_checkpoint(made: MAE, path: Path) -> None:
    """In the layout of MAE's repository: positions as tables with a row of zeros for the class token."""
    width = made.model.config.width
    tables = {
        name: torch.cat([torch.zeros(1, 1, w), sincos_table(made.model.grid, made.model.grid, w)], 1)
        for name, w in (("pos_embed", width), ("decoder_pos_embed", made.config.decoder_width))
    }
    weights = {name.removeprefix("model."): tensor for name, tensor in made.state_dict().items()}
    torch.save({"model": {**weights, **tables}, "epoch": 3}, path)


def test_whole_checkpoints_load_by_name(tmp_path: Path) -> None:
    square: dict[str, Any] = {"positions": "sincos", "image_size": (16, 16), "mean": (), "std": ()}
    made = objective(**square, norm_pix_loss=False).eval()
    write_checkpoint(made, tmp_path / "mae.pth")
    found = load_mae(tmp_path / "mae.pth", ReadOptions(heads=2), decoder_heads=2, norm_pix_loss=False)
    images = torch.rand(3, 3, 16, 16)
    for one in (made, found):  # files hold no normalization
        one.model.mean, one.model.std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)
    for mine, theirs in zip(made.reconstruct(images), found.reconstruct(images), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-6)
    assert set(found.state_dict()) == {*made.state_dict(), "model.pos_embed"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.pop("decoder_pred.bias"), r"1 missing \(decoder_pred.bias\)"),
        (lambda tree: tree.update({"decoder_more.weight": torch.ones(2)}), r"1 unexpected \(decoder_more.weight\)"),
        (lambda tree: tree["decoder_pos_embed"].add_(0.1), "other positions"),
        (lambda tree: [tree.pop(name) for name in list(tree) if "decoder" in name], "no checkpoint of a whole"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path, change: Any, words: str) -> None:
    write_checkpoint(objective(positions="sincos", image_size=(16, 16)), tmp_path / "mae.pth")
    tree = torch.load(tmp_path / "mae.pth")
    change(tree["model"])
    torch.save(tree, tmp_path / "mae.pth")
    with pytest.raises(UserError, match=words):
        load_mae(tmp_path / "mae.pth", ReadOptions(heads=2), decoder_heads=2)


def test_noise_is_drawn_by_the_shared_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mae, "noise", lambda *_: torch.arange(15.0).flip(0).expand(4, -1))
    seen, hidden = objective().hide(torch.arange(4), 0, (3, 5))
    assert seen[0].tolist() == [14, 13, 12, 11]
    assert hidden[0].tolist() == list(range(10, -1, -1))
