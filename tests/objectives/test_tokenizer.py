"""The objective of image tokenizers beside plain sums; micro-batches, processes, restarts and what a collapse shows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.models.tokenizers import KINDS, pictures, tokenizer
from tests.objectives.training import Trained, assert_equal, five_steps
from tests.processes import in_processes
from vitral.models.image_tokenizer import ImageTokenizer
from vitral.models.quantizers import VQ
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.tokenizer import Tokenizer
from vitral.objectives.tokenizer_config import TokenizerConfig
from vitral.structs import Batch, View

CONTEXT = ObjectiveContext(10, seed=3)


def objective(kind: str = "vq", dtype: torch.dtype = torch.float64, **keys: Any) -> Tokenizer:
    def factory() -> ImageTokenizer:
        return tokenizer(kind, dtype)

    return Tokenizer(factory, TokenizerConfig(kind="tokenizer", **keys), CONTEXT)


def batch(count: int = 8) -> Batch:
    images = pictures(count)
    return Batch((View(images, torch.eye(3).expand(count, 3, 3)),), {}, torch.arange(count))


def test_the_loss_is_the_error_and_the_commitment() -> None:
    for loss in ("l2", "l1"):
        made, given = objective(loss=loss, commitment=0.5, ssim_weight=0.0), batch()
        out = made({"train": given}, 0)
        images = given.views[0].images_BCHW.double() / 255
        x = made.model.embed(images)
        assert isinstance(made.model.quantizer, VQ)
        vectors = made.model.quantizer.codebook_KD[made.model.codes(images)]
        error = (made.model.render(vectors) - images) / 0.5
        expected = error.square().mean() if loss == "l2" else error.abs().mean()
        torch.testing.assert_close(out.loss, expected + 0.5 * (x - vectors).square().mean(), rtol=1e-6, atol=0)
        assert out.weight == 8
    better = objective(ssim_weight=0.7)({"train": batch()}, 0).loss - objective()({"train": batch()}, 0).loss
    assert 0.3 < better.item() < 1.4


def test_the_encoder_learns_straight_through() -> None:
    """The gradient of what is quantized is the decoder's at the code, plus the commitment's."""
    made, given = objective(), batch(2)
    images = given.views[0].images_BCHW.double() / 255
    x = made.model.embed(images).detach().requires_grad_()
    out = made.model.quantizer(x)
    ((made.model.render(out.vectors_BND) - images) / 0.5).square().mean().add(0.25 * out.penalty).backward()
    vectors = made.model.quantizer.decode(out.codes_BN).detach().requires_grad_()
    ((made.model.render(vectors) - images) / 0.5).square().mean().backward()
    assert vectors.grad is not None
    torch.testing.assert_close(x.grad, vectors.grad + 0.5 * (x - vectors).detach() / x.numel())


def test_the_codebook_is_the_ratio_of_moving_means() -> None:
    made, given = objective(restart_below=0.0), batch()
    quantizer = made.model.quantizer
    assert isinstance(quantizer, VQ)
    before, tokens, codes = quantizer.codebook_KD.clone(), 15, 12
    out = made({"train": given}, 0)
    assert torch.equal(quantizer.codebook_KD, before), "forward changes nothing"
    made.after_update(0, out.means, torch.zeros(()))
    x, found = made.model.embed(given.views[0].images_BCHW).detach(), made.model.codes(given.views[0].images_BCHW)
    # The codebook has moved already: codes are those of the one before.
    found = (x[:, :, None] - before).square().sum(-1).argmin(-1)
    uses = torch.stack([(found == k).sum() for k in range(codes)]).double() / 8
    sums = torch.stack([x[found == k].sum(0) for k in range(codes)]) / 8
    counts = 0.99 * tokens / codes + 0.01 * uses
    moved = 0.99 * before * tokens / codes + 0.01 * sums
    smooth = (counts + 1e-5) / (counts.sum() + codes * 1e-5) * counts.sum()
    torch.testing.assert_close(made.counts_K, counts)
    torch.testing.assert_close(quantizer.codebook_KD, moved / smooth[:, None])
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    made.after_update(1, {name: value * math.nan for name, value in out.means.items()}, torch.ones(()))
    made.after_batch({"train": given}, 49, torch.ones(()))
    assert all(torch.equal(state[name], tensor) for name, tensor in made.state_dict().items()), "a skipped step"


def test_unused_codes_become_vectors_of_the_batch() -> None:
    made, given = objective(restart_below=0.5, restart_every=5), batch()
    quantizer = made.model.quantizer
    assert isinstance(quantizer, VQ)
    made.counts_K[[2, 7]] = 1e-3
    before = quantizer.codebook_KD.clone()
    made.after_batch({"train": given}, 3, torch.zeros(()))
    assert torch.equal(before, quantizer.codebook_KD), "not at this step"
    made.after_batch({"train": given}, 4, torch.zeros(()))
    changed = (before != quantizer.codebook_KD).any(1).nonzero()[:, 0].tolist()
    assert changed == [2, 7]
    x = made.model.embed(given.views[0].images_BCHW).flatten(0, 1)
    for code in changed:
        assert (x - quantizer.codebook_KD[code]).abs().sum(1).min() < 1e-12
        assert made.counts_K[code] > 0.5
    torch.testing.assert_close(made.sums_KD[2] / made.counts_K[2], quantizer.codebook_KD[2])
    other = objective(restart_below=0.5, restart_every=5)
    other.counts_K[[2, 7]] = 1e-3
    other.after_batch({"train": given}, 9, torch.zeros(()))
    assert isinstance(other.model.quantizer, VQ)
    assert not torch.equal(other.model.quantizer.codebook_KD[2], quantizer.codebook_KD[2]), "by the step"


def trained(kind: str, micro: int | None = None, ddp: bool = False) -> Trained:
    keys: dict[str, Any] = (
        {"restart_below": 0.9, "restart_every": 2} if KINDS[kind].get("quantizer", "vq") == "vq" else {}
    )
    return five_steps(objective(kind, ssim_weight=0.1, **keys), batch(), micro, ddp=ddp)


@pytest.mark.parametrize("kind", list(KINDS))
def test_micro_batches_are_one_batch(kind: str) -> None:
    whole = trained(kind)
    assert len({*whole[1]}) == (1 if kind == "kmeans" else 5)
    for micro in (3, 4):
        assert_equal(whole, trained(kind, micro))


@pytest.mark.parametrize("kind", ["vq", "gumbel"])
def test_two_processes_are_one(kind: str) -> None:
    whole = trained(kind)
    for found in in_processes(2, "tests.objectives.test_tokenizer:trained", kind, 2, True):
        assert_equal(whole, found)


def test_forward_changes_nothing() -> None:
    for kind in KINDS:
        made = objective(kind)
        before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
        assert torch.equal(made({"train": batch()}, 1).loss, made({"train": batch()}, 1).loss)
        assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())


def test_mean_patches_are_not_trained() -> None:
    weights, losses = trained("kmeans")
    before = tokenizer("kmeans").double().state_dict()["quantizer.patches_KD"]
    assert torch.equal(torch.from_numpy(weights["model.quantizer.patches_KD"]), before)
    assert losses[0] > 0


def test_the_temperature_falls_from_its_start_to_its_end() -> None:
    made = objective("gumbel", temperature=2.0, temperature_final=0.5)
    ids = torch.arange(2)
    found = [made.relaxation(ids, step) for step in (0, 4, 9, 20)]
    temperatures = [row.temperature.item() for row in found if row is not None]
    assert temperatures == pytest.approx([2.0, 0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi * 4 / 9)), 0.5, 0.5])
    assert found[0] is not None
    assert found[0].uniform_BNK.shape == (2, 15, 7)
    one = made.relaxation(ids[1:], 0)
    assert one is not None
    assert torch.equal(one.uniform_BNK[0], found[0].uniform_BNK[1]), "a sample's own"
    assert objective("vq").relaxation(ids, 0) is None


def test_a_collapse_shows_in_the_use() -> None:
    made = objective()
    healthy = {name: float(value) for name, value in made.monitor(0).items()}
    assert healthy == pytest.approx({"codes_used": 1.0, "code_perplexity": 12.0})
    assert made.check_collapse({"step": 9, **healthy}) is None
    made.use_K.fill_(0)
    made.use_K[3] = 5
    found = {name: float(value) for name, value in made.monitor(0).items()}
    assert found == pytest.approx({"codes_used": 1 / 12, "code_perplexity": 1.0})
    assert made.check_collapse({"step": 1, **found}) is None, "early"
    assert "8 % of 12 codes" in (made.check_collapse({"step": 2, **found}) or "")


@pytest.mark.parametrize("kind", ["vq", "fsq", "gumbel", "vit"])
def test_a_step_is_one_graph(kind: str) -> None:
    made, given = objective(kind), batch()
    graph = torch.compile(lambda step: made({"train": given}, step).loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(graph(torch.tensor(3)), made({"train": given}, 3).loss)
