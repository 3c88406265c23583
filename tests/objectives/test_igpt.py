"""Objectives of Image GPT beside plain sums; micro-batches, processes, and a source whose entropy is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.models.igpt_models import SMALL, igpt
from tests.objectives.training import Trained, assert_equal, five_steps
from tests.processes import in_processes
from vitral.models.igpt import IGPT
from vitral.models.igpt_config import IGPTConfig
from vitral.objectives.igpt import IGPTFinetune, ImageGPT
from vitral.objectives.igpt_config import IGPTFinetuneConfig, IGPTObjectiveConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.structs import Batch, View

CONTEXT = ObjectiveContext(10, seed=3)
VARIANTS: dict[str, dict[str, Any]] = {
    "next": {}, "class": {"class_tokens": 3}, "bert": {"mask_ratio": 0.3}, "joint": {"num_classes": 3},
    "cosine": {"class_tokens": 3, "mask_ratio": "cosine"},
}  # fmt: skip


def objective(variant: str = "next") -> ImageGPT | IGPTFinetune:
    def factory() -> IGPT:
        return igpt(torch.float64, std=0.2, **VARIANTS[variant])

    if variant == "joint":
        return IGPTFinetune(factory, IGPTFinetuneConfig(kind="igpt_finetune", generative_weight=0.5), CONTEXT)
    return ImageGPT(factory, IGPTObjectiveConfig(kind="igpt", label_dropout=0.5), CONTEXT)


def batch(count: int = 8) -> Batch:
    images = torch.randint(0, 256, (count, 1, 3, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(count) % 3
    return Batch((View(images, torch.eye(3).expand(count, 3, 3)),), {"label": labels}, torch.arange(count))


def test_the_loss_is_the_mean_over_all_codes() -> None:
    made, given = objective(), batch()
    out = made({"train": given}, 0)
    codes = made.model.codes(given.views[0].images_BCHW)
    logs = made.model.code_head(made.model.read(codes).patches_BND).log_softmax(-1)
    expected = -torch.stack([logs[b, n, codes[b, n]] for b in range(8) for n in range(12)]).sum() / 96
    torch.testing.assert_close(out.loss, expected)
    assert (int(out.weight), float(out.metrics["train_bits"])) == (96, pytest.approx(expected.item() / math.log(2)))


def test_classes_are_left_out_by_sample_and_step() -> None:
    made, given = objective("class"), batch()
    codes = made.model.codes(given.views[0].images_BCHW)
    known, unknown = (
        made.model.nll(made.model.read(codes, labels).patches_BND, codes).mean(1)
        for labels in (given.targets["label"], None)
    )
    seen = set[tuple[bool, ...]]()
    for step in range(6):
        nats = torch.stack([made({"train": given.slice(b, b + 1)}, step).loss for b in range(8)])
        is_known = torch.isclose(nats, known, rtol=1e-9)
        torch.testing.assert_close(nats, known.where(is_known, unknown))
        seen.add(tuple(is_known.tolist()))
    assert len(seen) > 1
    assert 10 < sum(map(sum, seen)) / len(seen) * 6 < 38, "about half of 48"


def test_hidden_codes_alone_are_predicted() -> None:
    """Their number is exact, and logits elsewhere don't matter."""
    made, given = objective("bert"), batch()
    logits: list[torch.Tensor] = []
    made.model.code_head.register_forward_hook(lambda *call: (call[2].retain_grad(), logits.append(call[2]))[0])
    out = made({"train": given}, 2)
    out.loss.backward()
    assert logits[0].grad is not None
    learned = logits[0].grad.abs().sum(-1) > 0
    assert learned.sum(1).tolist() == [4] * 8
    assert int(out.weight) == 32
    assert len({tuple(row.tolist()) for row in learned}) > 4, "each sample has its own"


def test_the_cosine_schedule_weighs_all_hidden_codes_alike() -> None:
    """Of images with few and with many hidden codes."""
    made, given = objective("cosine"), batch()
    logits: list[torch.Tensor] = []
    made.model.code_head.register_forward_hook(lambda *call: logits.append(call[2]))
    out = made({"train": given}, 2)
    hidden = made.model.hide(given.sample_ids_B, 3, 2)
    codes = made.model.codes(given.views[0].images_BCHW)
    logs = logits[0].log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    torch.testing.assert_close(out.loss, -logs[hidden].mean())
    assert int(out.weight) == int(hidden.sum())
    assert len({*hidden.sum(1).tolist()}) > 3


def test_the_joint_loss_is_a_sum() -> None:
    made, given = objective("joint"), batch()
    images, labels = given.views[0].images_BCHW, given.targets["label"]
    codes = made.model.codes(images)
    classes = torch.nn.functional.cross_entropy(made.model(images), labels)
    pixels = made.model.nll(made.model.read(codes).patches_BND, codes).mean()
    torch.testing.assert_close(made({"train": given}, 0).loss, classes + 0.5 * pixels)


def trained(variant: str, micro: int | None = None, ddp: bool = False) -> Trained:
    return five_steps(objective(variant), batch(), micro, ddp=ddp)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_micro_batches_are_one_batch(variant: str) -> None:
    whole = trained(variant)
    assert len({*whole[1]}) == 5
    for micro in (3, 4):
        assert_equal(whole, trained(variant, micro))


@pytest.mark.parametrize("variant", ["class", "cosine"])
def test_two_processes_are_one(variant: str) -> None:
    whole = trained(variant)
    for found in in_processes(2, "tests.objectives.test_igpt:trained", variant, 2, True):
        assert_equal(whole, found)


def test_forward_changes_nothing() -> None:
    for variant in VARIANTS:
        made = objective(variant)
        before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
        assert torch.equal(made({"train": batch()}, 1).loss, made({"train": batch()}, 1).loss)
        assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())


def test_pictures_begin_with_the_given_half() -> None:
    for variant in ("next", "bert"):
        made, images = objective(variant).eval(), batch(2).views[0].images_BCHW / 255
        shown = made.pictures(images)
        *_, colors, last = shown.values() if variant == "next" else [*shown.values()][1::2]
        assert last.shape == images.shape
        if variant == "next":
            assert torch.equal(last.flatten(1)[:, :4], colors.flatten(1)[:, :4]), "1 of 3 rows"


def test_a_markov_chain_is_learned_to_its_entropy() -> None:
    """Each color is the last one with probability 0.8, else one of the other two: 0.9219 bits a token."""
    made = torch.Generator().manual_seed(0)

    def chains(count: int) -> torch.Tensor:
        codes = [torch.randint(0, 3, (count,), generator=made)]
        for _ in range(15):
            moves = torch.randint(1, 3, (count,), generator=made)
            stays = torch.rand(count, generator=made) < 0.8
            codes.append((codes[-1] + moves.masked_fill(stays, 0)) % 3)
        return torch.stack(codes, 1)

    torch.manual_seed(0)
    keys: dict[str, Any] = {**SMALL, "image_size": (4, 4), "colors": 3}
    model = IGPT(IGPTConfig(**keys))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, 250)
    for _ in range(250):
        codes = chains(128)
        optimizer.zero_grad()
        model.nll(model.read(codes).patches_BND, codes).mean().backward()
        optimizer.step()
        schedule.step()
    rate = -(0.8 * math.log2(0.8) + 0.2 * math.log2(0.1))
    codes = chains(20_000)
    with torch.no_grad():
        bits = model.nll(model.read(codes).patches_BND, codes).double() / math.log(2)
    assert float(bits[:, 0].mean()) == pytest.approx(math.log2(3), rel=0.01)
    # The chain's own log-probability on the same draws: what is left is the model's, not the sample's.
    stays = codes[:, 1:] == codes[:, :-1]
    own = -torch.where(stays, math.log2(0.8), math.log2(0.1)).mean()
    assert float(own) == pytest.approx(rate, rel=0.02)
    assert float(bits[:, 1:].mean()) == pytest.approx(float(own), rel=0.01)


@pytest.mark.parametrize("variant", ["class", "bert", "cosine"])
def test_a_step_is_one_graph(variant: str) -> None:
    made, given = objective(variant), batch()
    graph = torch.compile(lambda step: made({"train": given}, step).loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(graph(torch.tensor(3)), made({"train": given}, 3).loss)
