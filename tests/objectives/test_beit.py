"""BEiT: what is masked, what is predicted and from what; tokenizers that stand still; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers import create_vit, random_model
from tests.objectives.training import Trained, assert_equal, five_steps
from tests.processes import in_processes
from vitral import distributed
from vitral.errors import UserError
from vitral.models.vit import VisionTransformer
from vitral.objectives.beit import BEiT
from vitral.objectives.beit_config import BeitConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.visual_tokens import FeatureTokens, TokenizerTokens
from vitral.structs import Batch, View

KINDS = ("kmeans", "teacher")


def batch(count: int = 8, size: tuple[int, int] = (8, 12)) -> Batch:
    images = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch((View(images, torch.eye(3).expand(count, 3, 3)),), {}, torch.arange(count) + 7)


def train_images(count: int) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (min(count, 40), 3, 8, 12), generator=made, dtype=torch.uint8)
    own = images[slice(*distributed.shard_range(len(images)))]
    return [(part, torch.zeros(len(part))) for part in own.split(16)]


def student(**options: Any) -> VisionTransformer:
    keys = {"image_size": (8, 12), "num_classes": 0, "in_channels": 3, "pool": "avg", "depth": 2, **options}
    model = create_vit("vit_micro_patch2_8", **keys).double()
    assert isinstance(model, VisionTransformer)
    return model


def objective(kind: str = "kmeans", folder: Path = Path(), fitted: bool = True, model: Any = None, **keys: Any) -> BEiT:
    tokenizer = str(folder / "teacher") if kind == "teacher" else kind
    if kind == "teacher" and not (folder / "teacher").exists():
        random_model(folder / "teacher", (), in_channels=3, patch_size=4, image_size=16)
    torch.manual_seed(0)
    config = BeitConfig(kind="beit", tokenizer=tokenizer, **{"codes": 9, **keys})
    context = ObjectiveContext(10, seed=3, train_images=train_images if fitted else None)
    return BEiT(lambda: model or student(), config, context).double()


@pytest.mark.parametrize("pool", [{}, {"fc_norm": False}, {"pool": "cls"}])
def test_the_loss_is_that_of_the_masked_patches_alone(pool: dict[str, Any]) -> None:
    """By hand: mask, encode everything, predict everything, pick."""
    made, one = objective(model=student(**pool)), batch()
    torch.nn.init.normal_(made.predict.weight)
    images = one.views[0].images_BCHW
    mask, codes = made.mask(one.sample_ids_B, 2), made.tokenizer(images)
    assert mask.sum(1).tolist() == [10] * 8, "0.4 of 24, rounded"
    logits = made.logits(images, mask)
    losses = [F.cross_entropy(logits[b, n], codes[b, n]) for b, n in mask.nonzero().tolist()]
    out = made({"train": one}, 2)
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())
    assert int(out.weight) == 80
    found = (logits.argmax(-1) == codes)[mask].double().mean()
    assert float(out.metrics["mask_top1"]) == pytest.approx(float(found))


def test_nothing_else_is_learned_from() -> None:
    """The encoder's output at unmasked places has no gradient, and what is put there does not change the loss."""
    made, one = objective(), batch()
    mask = made.mask(one.sample_ids_B, 1)
    seen: list[Tensor] = []

    def leave(*call: Any) -> Tensor:
        call[2].retain_grad()
        seen.append(call[2])
        return call[2]

    handle = made.model.fc_norm.register_forward_hook(leave)
    loss = made({"train": one}, 1).loss
    loss.backward()
    gradient = seen[0].grad
    assert gradient is not None
    assert torch.equal(gradient.abs().sum(-1) > 0, mask)
    handle.remove()
    noise = torch.randn_like(seen[0])
    made.model.fc_norm.register_forward_hook(
        lambda *call: torch.where(mask[..., None], call[2], noise) if call[2].dim() == 3 else call[2]
    )
    assert torch.equal(made({"train": one}, 1).loss, loss)


def test_the_prediction_knows_no_masked_pixel(tmp_path: Path) -> None:
    made, one = objective(), batch()
    images, mask = one.views[0].images_BCHW, made.mask(one.sample_ids_B, 0)
    pixels = F.interpolate(mask.unflatten(1, (4, 6))[:, None].double(), scale_factor=2).bool()
    torch.testing.assert_close(made.logits(images.masked_fill(pixels, 0.3), mask), made.logits(images, mask))


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_stand_still(tmp_path: Path, kind: str) -> None:
    """In evaluation mode without gradients, whatever the student does: tokens are those of the whole view."""
    made, one = objective(kind, tmp_path), batch()
    images = one.views[0].images_BCHW
    made.train()
    assert not any(module.training for module in made.tokenizer.modules())
    assert not any(parameter.requires_grad for parameter in made.tokenizer.parameters())
    before, state = made.tokenizer(images), {n: t.clone() for n, t in made.tokenizer.state_dict().items()}
    found = five_steps(made, one)[0]
    assert torch.equal(made.tokenizer(images), before)
    assert all(torch.equal(state[name], torch.from_numpy(found[f"tokenizer.{name}"])) for name in state)
    with torch.no_grad():
        made.mask_token.add_(5)
    assert torch.equal(made.tokenizer(images), before)
    assert not made.tokenizer(images.clone().requires_grad_()).is_floating_point()
    assert before.shape == (8, 24)
    assert len(before.unique()) > 4


def test_codes_of_patches_are_the_nearest_means() -> None:
    made, images = objective(), batch().views[0].images_BCHW
    assert isinstance(made.tokenizer, TokenizerTokens)
    codes = made.tokenizer(images)
    means = torch.stack([
        made.tokenizer.images(torch.full((1, 24), code))[0, :, :2, :2].flatten() for code in range(9)
    ]).double()  # fmt: skip
    patches = images.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    assert torch.equal(codes, torch.cdist(patches, means).argmin(-1))
    assert torch.equal(made.tokenizer((images * 255).round().byte()), made.tokenizer((images * 255).round() / 255))


def test_codes_of_a_teacher_are_the_nearest_directions(tmp_path: Path) -> None:
    """The teacher sees the view at its own patch size, 16 x 24 pixels for 8 x 12; features are of length 1."""
    made, images = objective("teacher", tmp_path), batch().views[0].images_BCHW
    tokens = made.tokenizer
    assert isinstance(tokens, FeatureTokens)
    assert tokens.size == (16, 24)
    larger = F.interpolate(images, size=(16, 24), mode="bilinear", antialias=True)
    features = F.normalize(tokens.teacher.fc_norm(tokens.teacher.encode(larger).patches_BND), dim=-1)
    cosine = torch.einsum("bnd,kd->bnk", features, tokens.directions_KD)
    assert torch.equal(tokens(images), cosine.argmax(-1))
    torch.testing.assert_close(tokens.directions_KD.norm(dim=1), torch.ones(9, dtype=torch.float64), rtol=0, atol=1e-5)
    assert torch.equal(tokens.directions_KD, objective("teacher", tmp_path).tokenizer.state_dict()["directions_KD"])


def trained(kind: str, folder: str, micro: int | None = None, ddp: bool = False) -> Trained:
    made = objective(kind, Path(folder), fitted=kind == "kmeans")
    if isinstance(made.tokenizer, FeatureTokens):  # features depend on the batch in their last digits: so do clusters
        directions = torch.randn(9, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        made.tokenizer.directions_KD.copy_(F.normalize(directions, dim=-1))
    return five_steps(made, batch(), micro, ddp=ddp)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_and_processes_are_one_batch(tmp_path: Path, kind: str) -> None:
    whole = trained(kind, str(tmp_path))
    assert len({*whole[1]}) == 5
    for micro in (3, 4):
        assert_equal(whole, trained(kind, str(tmp_path), micro))
    for found in in_processes(2, "tests.objectives.test_beit:trained", kind, str(tmp_path), 2, True):
        assert_equal(whole, found)


def test_forward_changes_nothing_and_every_step_has_its_own_masks() -> None:
    made, one = objective(), batch()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    assert torch.equal(made({"train": one}, 1).loss, made({"train": one}, 1).loss)
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())
    assert not torch.equal(made.mask(one.sample_ids_B, 1), made.mask(one.sample_ids_B, 2))


def test_a_step_is_one_graph() -> None:
    made, given = objective(), batch()
    graph = torch.compile(lambda step: made({"train": given}, step).loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(graph(torch.tensor(3)), made({"train": given}, 3).loss)


def test_bfloat16_changes_no_token(tmp_path: Path) -> None:
    images = batch().views[0].images_BCHW.float()
    for kind in KINDS:
        made = objective(kind, tmp_path).float()
        with torch.autocast("cpu", torch.bfloat16):
            found = made.tokenizer(images)
        assert torch.equal(found, made.tokenizer(images))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"codes": 961}, r"(?s)more codes than .*got: *961.*at most 960"),
        ({"tokenizer": "gray", "codes": None}, r"(?s)other channels than the model.*got: *1.*expected: *3"),
        ({"tokenizer": "pixels", "codes": None}, r"(?s)gives no visual tokens.*Image GPT"),
    ],
)
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    random_model(tmp_path / "gray", in_channels=1)
    random_model(tmp_path / "pixels", (), "igpt_micro_8", in_channels=3)
    with pytest.raises(UserError, match=words):
        objective(**{"kind": keys.pop("tokenizer", "kmeans"), **keys})


def test_pictures_show_tokens() -> None:
    made = objective().float().eval()
    columns = made.pictures(batch(2).views[0].images_BCHW.float())
    assert list(columns) == ["original", "visible patches", "visual tokens", "masked ones predicted"]
    assert all(shown.shape == (2, 3, 8, 12) for shown in columns.values())


def test_equal_features_raise_the_alarm() -> None:
    made = objective()
    assert made.check_collapse({"feature_std": 0.5}) is None
    assert "collapse" in (made.check_collapse({"feature_std": 1e-4}) or "")
