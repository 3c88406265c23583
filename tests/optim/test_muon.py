"""Muon against its definition, against torch's own, and in what it moves at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitral.errors import UserError
from vitral.models.create import create_model
from vitral.models.lora import add_lora
from vitral.optim.config import OptimConfig
from vitral.optim.muon import Muon, orthogonalise
from vitral.optim.optimizer import make_optimizer, muon_parts, parameter_groups


@pytest.mark.parametrize("shape", [(1, 64, 64), (5, 32, 96), (3, 96, 32), (2, 7, 200), (4, 1, 9)])
def test_singular_values_end_near_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    """The band of the quintic: what five rounds make of singular values from 0.003 of the norm up."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    s = torch.rand(u.shape[0], u.shape[2], dtype=torch.float64).mul(0.9).add(0.1)
    found = orthogonalise(u * s[:, None] @ v)
    inside = u.mT @ found @ v.mT
    diagonal = inside.diagonal(dim1=-2, dim2=-1)
    assert (inside - torch.diag_embed(diagonal)).abs().max() < 1e-10, "the singular vectors are those of the input"
    assert diagonal.min() > 0.67
    assert diagonal.max() < 1.15


def reference(matrix: Tensor) -> Tensor:
    """Jordan's recursion on the singular values, which is what the products of matrices come to."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


def test_a_batch_equals_its_matrices_one_by_one_and_the_recursion_on_singular_values() -> None:
    matrices = torch.randn(6, 12, 31, dtype=torch.float64)
    batch = orthogonalise(matrices)
    for one, matrix in zip(batch, matrices, strict=True):
        torch.testing.assert_close(one, orthogonalise(matrix[None])[0], rtol=0, atol=1e-13)
        torch.testing.assert_close(one, reference(matrix), rtol=0, atol=1e-11)


def moved(layers: list[nn.Linear], optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for layer in layers:
            layer.weight.grad = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
        optimizer.step()


def dense(shapes: list[tuple[int, int]]) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(i, o, bias=False).double() for i, o in shapes]


def test_steps_equal_torchs() -> None:
    """torch's orthogonalises in bfloat16, so each entry of a step is near ours, not equal; decay, Nesterov's momentum
    and scale are held by that over several steps."""
    shapes = [(24, 24), (24, 72), (72, 24), (24, 24), (5, 40)]
    mine, theirs = dense(shapes), dense(shapes)
    start = [layer.weight.detach().clone() for layer in mine]
    keys: dict[str, Any] = {"lr": 0.02, "momentum": 0.9}
    groups = [{"params": [layer.weight for layer in mine], "weight_decay": 0.3, "parts": 1}]
    moved(mine, Muon(groups, betas=(0.9, 0.99), **keys))
    moved(theirs, torch.optim.Muon(
        [layer.weight for layer in theirs], weight_decay=0.3, adjust_lr_fn="match_rms_adamw", **keys
    ))  # fmt: skip
    for one, other, before in zip(mine, theirs, start, strict=True):
        distance = (one.weight - other.weight).norm() / (other.weight - before).norm()
        assert distance < 0.02


def test_packed_matrices_and_stacks_are_moved_as_their_parts() -> None:
    """A [3 R, C] of three parts moves as three [R, C]; so does [3, R, C], as the stacks of adapters are."""
    torch.manual_seed(0)
    start, gradient = torch.randn(3, 8, 12).double(), torch.randn(3, 8, 12).double()
    found: list[Tensor] = []
    for shape, parts in (((24, 12), 3), ((3, 8, 12), 1)):
        parameter = nn.Parameter(start.reshape(shape).clone())
        parameter.grad = gradient.reshape(shape).clone()
        Muon([{"params": [parameter], "weight_decay": 0.5, "parts": parts}], 0.1, (0.9, 0.99), 0.8).step()
        found.append(parameter.detach().reshape(3, 8, 12))
    step = torch.stack([reference(part) for part in gradient])  # g + mu g points where g does
    expected = start * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 12**0.5 * step
    for each in found:
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-10)
    assert ((step * 12**0.5).square().mean().sqrt() - 1).abs() < 0.2, "0.2 times this is the size of AdamW's step"


def parts_of(model: nn.Module) -> dict[str, int]:
    return {name.removeprefix("blocks.0."): parts for name, parts in muon_parts(model).items() if ".0." in name}


def test_only_matrices_of_blocks_are_moved_and_packed_ones_by_their_parts() -> None:
    plain = {"attn.qkv.weight": 3, "attn.proj.weight": 1, "mlp.fc1.weight": 1, "mlp.fc2.weight": 1}
    model = create_model("vit_micro_patch2_8", head="mlp", pool="map", class_token=False, layer_scale=0.1, qk_norm=True)
    assert parts_of(model) == plain
    assert len(muon_parts(model)) == 4 * 4, "none of embedding, positions, pooling, norms, heads"
    assert parts_of(create_model("vit_micro_patch2_8", mlp="swiglu")) == {**plain, "mlp.fc1.weight": 2}
    assert muon_parts(create_model("resnet20_cifar")) == {}
    add_lora(model, 2, 8.0, "attn")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {name: parts for name, parts in muon_parts(model).items() if name in trained}
    assert adapters.keys() == {f"blocks.{i}.attn.{m}.lora_{x}" for i in range(4) for m in ("qkv", "proj") for x in "ab"}
    assert set(adapters.values()) == {1}


class Tried(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.model = create_model("vit_micro_patch2_8", **options)


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_every_trained_parameter_is_in_one_group_with_the_rates_and_decays_of_adamw(layer_decay: float) -> None:
    objective = Tried(mlp="swiglu")
    objective.model.get_parameter("blocks.0.attn.qkv.weight").requires_grad_(False)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}

    def table(muon: bool) -> list[tuple[str, float, float]]:
        groups = parameter_groups(objective, 0.1, layer_decay, muon=muon)
        return sorted((names[id(p)], g["weight_decay"], g["lr_scale"]) for g in groups for p in g["params"])

    assert table(muon=True) == table(muon=False)
    assert [row[0] for row in table(muon=True)] == sorted(n for n, p in objective.named_parameters() if p.requires_grad)


def test_what_muon_does_not_move_moves_as_by_adamw() -> None:
    def after(name: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        objective = Tried()
        optimizer = make_optimizer(objective, OptimConfig(name=name, lr=0.01))  # type: ignore[arg-type]
        for _ in range(3):
            for parameter in objective.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        return objective.state_dict()

    one, other, parts = after("muon"), after("adamw"), muon_parts(Tried())
    for name in one:
        assert torch.equal(one[name], other[name]) == (name not in parts), name


def test_a_model_without_such_matrices_is_refused() -> None:
    with pytest.raises(UserError, match="none is trained here"):
        make_optimizer(create_model("resnet20_cifar"), OptimConfig(name="muon"))
