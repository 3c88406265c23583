"""Free adversarial training: by hand, against a loop of its own, cut, spread, skipped, saved and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from tests.objectives.test_adversarial import Linear, batch, build, objective
from tests.objectives.training import Trained, assert_equal, five_steps
from tests.processes import in_processes
from vitral import distributed
from vitral.objectives.adversarial import Adversarial
from vitral.objectives.adversarial_config import AdversarialConfig
from vitral.optim.config import OptimConfig
from vitral.optim.optimizer import make_optimizer
from vitral.structs import Batch
from vitral.training.config import TrainConfig
from vitral.training.loop import train_step
from vitral.training.nonfinite import NonFiniteGuard
from vitral.training.parallel import Parallel
from vitral.training.train_state import Progress, TrainState

EPS = 0.05
FREE: dict[str, Any] = {"attack": {"kind": "fgsm", "eps": EPS}, "replays": 3}
OPTIM = OptimConfig(lr=0.05, schedule="constant", warmup=0, clip=None)
NONE = torch.zeros(())


def free(kind: str = "fgsm", **keys: Any) -> Adversarial:
    return objective(**{**FREE, "attack": {"kind": kind, "eps": EPS}, **keys})


def others() -> list[Batch]:
    """Three batches of 8 with other images, near the ends of [0,1] too."""
    generator = torch.Generator().manual_seed(1)
    found = list[Batch]()
    for number in range(3):
        one = batch()
        images = (1.4 * torch.rand(8, 3, 8, 8, generator=generator, dtype=torch.float64) - 0.2).clamp(0, 1)
        labels = torch.randint(0, 10, (8,), generator=generator)
        view = one.views[0]._replace(images_BCHW=images)
        found.append(Batch((view,), {"label": labels}, one.sample_ids_B + 100 * number))
    return found


def a_state(made: Adversarial, *, ddp: bool = False) -> TrainState:
    optimizer = make_optimizer(made, OptimConfig(name="sgd", weight_decay=0.0))
    return TrainState(made, optimizer, None, Progress(), parallel=Parallel(made, ddp=ddp))


def train(state: TrainState, batches: list[Batch], steps: int, micro: int | None = None) -> None:
    """Steps on from where the state is; each of several processes has an equal slice of each batch."""
    made = state.objective
    assert isinstance(made, Adversarial)
    config, own = TrainConfig(batch_size=8, micro_batch=micro, max_nonfinite_steps=9), 8 // distributed.world()

    def of(step: int) -> dict[str, Batch]:
        first = distributed.rank() * own
        return {"train": batches[step // made.config.replays].slice(first, first + own)}

    guard = NonFiniteGuard(state, of, Path(), config)
    for _ in range(steps):
        train_step(state, made, of(state.progress.step), config, OPTIM, guard)
        state.progress.step += 1


def reference(kind: str, batches: list[Batch], replays: int, eps: float) -> tuple[dict[str, Tensor], Tensor]:
    """Algorithm 1 of arXiv 1904.12843, and its like in L2, with images clipped to [0,1]."""
    model = build().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    delta = torch.zeros(8, 3, 8, 8, dtype=torch.float64)
    for one in batches:
        for _ in range(replays):
            x = (one.views[0].images_BCHW + delta).clamp(0, 1).requires_grad_(True)
            optimizer.zero_grad()
            F.cross_entropy(model(x), one.targets["label"]).backward()
            optimizer.step()
            assert x.grad is not None
            if kind == "fgsm":
                delta = (delta + eps * x.grad.sign()).clamp(-eps, eps)
            else:
                delta = delta + eps * x.grad / x.grad.flatten(1).norm(dim=1)[:, None, None, None]
                delta = delta * (eps / delta.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None, None]
    return model.state_dict(), delta


def test_one_replay_of_a_linear_model_by_hand() -> None:
    made, given = objective(**FREE), batch()
    made.model = model = Linear()  # pyright: ignore
    images, labels = given.views[0].images_BCHW, given.targets["label"] % 2
    given = given._replace(targets={"label": labels})
    weight = model.layer.weight.detach().clone()
    residual = (F.one_hot(labels, 2) - model(images).softmax(-1)).detach()
    slope = -(residual @ weight).reshape(images.shape)  # of the cross-entropy by the image
    changed = made.prepare_batches({"train": given}, 0)
    out = made(changed, 0)
    torch.testing.assert_close(out.loss, F.cross_entropy(model(images), labels))
    out.loss_sum.backward()
    assert model.layer.weight.grad is not None
    torch.testing.assert_close(model.layer.weight.grad, -residual.T @ images.flatten(1))
    assert made.rows == {}
    made.after_batch(changed, 0, NONE)
    torch.testing.assert_close(made.rows["delta_BCHW"], EPS * slope.sign())
    changed = made.prepare_batches({"train": given}, 1)
    torch.testing.assert_close(
        changed["train"].views[0].images_BCHW.detach(), (images + EPS * slope.sign()).clamp(0, 1)
    )


@pytest.mark.parametrize("kind", ["fgsm", "fgm"])
def test_replays_of_batches_are_the_algorithm_of_the_paper(kind: str) -> None:
    made, batches = free(kind), others()
    train(a_state(made), batches, 9)
    weights, delta = reference(kind, batches, 3, EPS)
    for name, tensor in made.model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-9, rtol=0)
    torch.testing.assert_close(made.rows["delta_BCHW"], delta, atol=1e-9, rtol=0)
    largest = delta.abs().max() if kind == "fgsm" else delta.flatten(1).norm(dim=1).max()
    assert largest.item() == pytest.approx(EPS)


def test_the_change_grows_with_the_radius() -> None:
    made = free(eps_warmup=1.0)  # of 100 steps
    train(a_state(made), others(), 9)
    assert made.rows["delta_BCHW"].abs().max().item() == pytest.approx(EPS * 9 / 100)


def test_places_do_not_touch_each_other() -> None:
    """With weights that stand still, a row depends on the images of its own place alone."""
    found = list[Tensor]()
    for number in (0, 1):
        made, batches = free(), others()
        if number:
            batches[0].views[0].images_BCHW[3] = 0.5
            batches[1].views[0].images_BCHW[3] = 0.1
        state = a_state(made)
        for parameter in made.parameters():
            parameter.register_hook(torch.zeros_like)
        train(state, batches, 6)
        found.append(made.rows["delta_BCHW"])
    changed = (found[0] != found[1]).flatten(1).any(1)
    assert changed.tolist() == [place == 3 for place in range(8)]


def test_forward_and_preparing_change_nothing() -> None:
    made, given = free(), batch()
    train(a_state(made), [given], 2)
    before = made.rows["delta_BCHW"].clone()
    for _ in range(2):
        made(made.prepare_batches({"train": given}, 2), 2).loss.backward()
    assert torch.equal(made.rows["delta_BCHW"], before)
    assert not given.views[0].images_BCHW.requires_grad


def test_images_of_8_bits_are_changed_in_0_to_1() -> None:
    made, given = free(), batch(dtype=torch.float32)
    made.model.float()
    bytes_BCHW = (255 * given.views[0].images_BCHW).round().byte()
    given = given._replace(views=(given.views[0]._replace(images_BCHW=bytes_BCHW),))
    train(a_state(made), [given], 2)
    found = made.prepare_batches({"train": given}, 2)["train"].views[0].images_BCHW
    assert 0 <= found.min() <= found.max() <= 1
    assert 0.9 * EPS < (found - bytes_BCHW / 255).abs().max() < 1.01 * EPS


def test_a_step_that_is_not_finite_moves_neither_weights_nor_change(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    made, batches = free(), others()
    state = a_state(made)
    train(state, batches, 2)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    delta = made.rows["delta_BCHW"].clone()
    batches[0].views[0].images_BCHW[5, 0, 0, 0] = float("nan")
    train(state, batches, 1)
    assert state.progress.skipped == 1
    assert torch.equal(made.rows["delta_BCHW"], delta)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_a_state_saved_between_replays_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, batches = a_state(free()), others()
    train(whole, batches, 4)  # the second replay of the second batch is next
    whole.save(tmp_path / "last.safetensors")
    train(whole, batches, 4)
    other = a_state(free())
    other.load(tmp_path / "last.safetensors")
    train(other, batches, 4)
    assert all(torch.equal(t, other.objective.state_dict()[name]) for name, t in whole.objective.state_dict().items())
    assert isinstance(whole.objective, Adversarial)
    assert isinstance(other.objective, Adversarial)
    assert torch.equal(whole.objective.rows["delta_BCHW"], other.objective.rows["delta_BCHW"])


def trained(micro: int | None = None, ddp: bool = False) -> Trained:
    return five_steps(free(replays=5), batch(), micro, ddp=ddp)


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_are_one_batch(micro: int) -> None:
    assert_equal(trained(micro), trained())


def saved_by_two(folder: str) -> Any:
    state = a_state(free(), ddp=True)
    train(state, others(), 4, micro=3)
    state.save(Path(folder) / "last.safetensors")
    train(state, others(), 3, micro=3)
    assert isinstance(state.objective, Adversarial)
    weights = {name: tensor.numpy() for name, tensor in state.objective.state_dict().items()}
    return weights, state.objective.rows["delta_BCHW"].numpy()


@pytest.mark.slow
def test_two_processes_are_one_also_from_their_checkpoint(tmp_path: Path) -> None:
    found = in_processes(2, "tests.objectives.test_replays:saved_by_two", str(tmp_path))
    deltas = np.concatenate([delta for _, delta in found])
    alone, resumed = a_state(free()), a_state(free())
    train(alone, others(), 7)
    resumed.load(tmp_path / "last.safetensors")
    train(resumed, others(), 3)
    for state in (alone, resumed):
        assert isinstance(state.objective, Adversarial)
        for name, tensor in state.objective.state_dict().items():
            for weights, _ in found:
                assert np.abs(weights[name] - tensor.numpy()).max() < 1e-9, name
        assert np.abs(deltas - state.objective.rows["delta_BCHW"].numpy()).max() < 1e-9


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attack": {"kind": "pgd"}}, "one step of eps per replay"),
        ({"attack": {"kind": "embedding_fgm"}}, "one step of eps per replay"),
        ({"clean_weight": 0.5}, "one pass per step"),
        ({"align": 0.2}, "one pass per step"),
        ({"replays": 0}, "greater than or equal to 1"),
    ],
)
def test_what_replays_cannot_do_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AdversarialConfig(kind="adversarial", **{**FREE, **keys})


def test_a_step_costs_one_pass() -> None:
    assert free().config.passes == 1
    assert (free().config.steps_per_batch, objective().config.steps_per_batch) == (3, 1)
