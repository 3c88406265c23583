"""Targets, heads and losses of DINO and iBOT against references, closed forms and one another's invariants."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.objectives.koleo import koleo
from vitral.objectives.projection_head import BatchNorm, ProjectionHead, WeightNormed
from vitral.objectives.sinkhorn import centered, cross_view_loss, sinkhorn

DOUBLE = torch.float64


def plain_sinkhorn(logits: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Sinkhorn-Knopp as it stands in the papers, on the matrix itself."""
    q = ((logits - logits.max()) / temperature).exp()
    q = q / q.sum()
    for _ in range(rounds):
        q = q / q.sum(0, keepdim=True) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / q.shape[0]
    return q * q.shape[0]


@pytest.mark.parametrize(("rows", "prototypes"), [(64, 256), (7, 3), (1, 5), (33, 1)])
def test_sinkhorn_equals_the_plain_algorithm(rows: int, prototypes: int) -> None:
    logits = torch.randn(rows, prototypes, dtype=DOUBLE)
    found = sinkhorn(logits, 0.1)
    torch.testing.assert_close(found, plain_sinkhorn(logits, 0.1), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.sum(1), torch.ones(rows, dtype=DOUBLE))


def test_sinkhorn_uses_prototypes_nearly_equally() -> None:
    mass = sinkhorn(torch.randn(64, 256) * 0.05, 0.05).mean(0) * 256
    assert 0.9 < mass.min() <= mass.max() < 1.1


def test_subtracting_a_number_from_all_logits_changes_nothing_but_from_each_row_does() -> None:
    logits = torch.randn(20, 8, dtype=DOUBLE)
    torch.testing.assert_close(sinkhorn(logits - 3.7, 0.1), sinkhorn(logits, 0.1))
    by_row = sinkhorn(logits - logits.amax(1, keepdim=True), 0.1)
    assert (by_row - sinkhorn(logits, 0.1)).abs().max() > 1e-4, "three rounds do not end at the limit"


def test_padding_counts_for_nothing() -> None:
    logits, real = torch.randn(9, 5, dtype=DOUBLE), torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 0]).bool()
    torch.testing.assert_close(sinkhorn(logits, 0.07, is_real_R=real)[real], sinkhorn(logits[real], 0.07))
    assert sinkhorn(logits, 0.07, is_real_R=torch.zeros(9).bool()).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_targets_of_huge_logits_are_finite(dtype: torch.dtype) -> None:
    logits = (torch.randn(16, 12) * 1e4).to(dtype)
    for target in (sinkhorn(logits, 0.04), centered(logits, torch.zeros(12), 0.04)):
        assert target.dtype == torch.float32
        torch.testing.assert_close(target.sum(1), torch.ones(16), rtol=1e-4, atol=1e-4)


def test_targets_of_bfloat16_are_near_those_of_float32() -> None:
    logits = torch.randn(16, 12) * 0.3
    for find in (lambda x: sinkhorn(x, 0.1), lambda x: centered(x, torch.zeros(12), 0.1)):
        assert (find(logits.bfloat16()) - find(logits)).abs().max() < 0.02


def plain_cross_views(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    terms = [
        -(t * s.log_softmax(-1)).sum(-1).mean() for i, t in enumerate(teacher) for j, s in enumerate(student) if i != j
    ]
    assert len(terms) == 2 * len(student) - 2
    return torch.stack(terms).mean()


@pytest.mark.parametrize("local", [0, 1, 8])
def test_views_are_compared_with_all_others(local: int) -> None:
    teacher = torch.randn(2, 5, 7, dtype=DOUBLE).softmax(-1)
    student = torch.randn(2 + local, 5, 7, dtype=DOUBLE, requires_grad=True)
    found = cross_view_loss(teacher, student)
    torch.testing.assert_close(found, plain_cross_views(list(teacher), list(student)))
    grad = torch.autograd.grad(found, student)[0]
    only_first = teacher.clone()
    only_first[1] = 0
    alone = torch.autograd.grad(cross_view_loss(only_first, student), student)[0]
    assert alone[0].abs().max() == 0, "a view is never compared with itself"
    assert grad[0].abs().max() > 0


def test_a_uniform_teacher_costs_the_logarithm_of_the_prototypes_at_least() -> None:
    teacher = torch.full((2, 6, 4096), 1 / 4096)
    assert cross_view_loss(teacher, torch.zeros(5, 6, 4096)).item() == pytest.approx(8.3178, abs=1e-4)


def test_centering_is_softmax_of_the_difference() -> None:
    logits, center = torch.randn(4, 6, dtype=DOUBLE), torch.randn(6, dtype=DOUBLE)
    want = torch.exp((logits - center) / 0.3)
    torch.testing.assert_close(centered(logits, center, 0.3), want / want.sum(1, keepdim=True))


def test_koleo_is_the_mean_logarithm_of_the_nearest_distance() -> None:
    features = torch.randn(11, 4, dtype=DOUBLE)
    distances = torch.cdist(F.normalize(features, dim=1), F.normalize(features, dim=1)) + 9 * torch.eye(11)
    want = -distances.min(1).values.log().mean()
    torch.testing.assert_close(koleo(features), want, rtol=1e-9, atol=1e-9)


def test_koleo_of_equal_rows_is_finite_and_of_spread_ones_lower() -> None:
    equal = torch.ones(2, 8, requires_grad=True)
    loss = koleo(equal)
    loss.backward()
    assert loss.isfinite()
    assert equal.grad is not None
    assert equal.grad.isfinite().all()
    close = torch.ones(8, 8) + 0.01 * torch.randn(8, 8)
    assert koleo(torch.eye(8)) < koleo(close)
    assert koleo(close.bfloat16()).dtype == torch.float32
    with pytest.raises(AssertionError, match="no neighbor"):
        koleo(torch.ones(1, 4))


def test_the_last_layer_is_weight_norm_as_torch_had_it_and_can_be_copied() -> None:
    ours = WeightNormed(6, 9, fixed=False)
    torch.nn.init.normal_(ours.weight_g)
    theirs: Any = nn.utils.parametrizations.weight_norm(nn.Linear(6, 9, bias=False), dim=0)
    theirs.parametrizations.weight.original0.data.copy_(ours.weight_g)
    theirs.parametrizations.weight.original1.data.copy_(ours.weight_v)
    x = torch.randn(5, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(copy.deepcopy(ours)(x), ours(x))
    assert sorted(dict(ours.named_parameters())) == ["weight_g", "weight_v"]
    assert not WeightNormed(6, 9, fixed=True).weight_g.requires_grad


def test_the_head_has_the_published_names_and_shapes() -> None:
    head = ProjectionHead(12, 20, hidden=16, bottleneck=8)
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {
        "mlp.0.weight": (16, 12), "mlp.0.bias": (16,), "mlp.2.weight": (16, 16), "mlp.2.bias": (16,),
        "mlp.4.weight": (8, 16), "mlp.4.bias": (8,), "last_layer.weight_g": (20, 1), "last_layer.weight_v": (20, 8),
    }  # fmt: skip
    x = torch.randn(7, 12)
    layers = nn.Sequential(*head.mlp)
    want = F.normalize(layers(x), dim=1) @ F.normalize(head.last_layer.weight_v, dim=1).T
    torch.testing.assert_close(head(x), want)
    assert head(x * 1e3).abs().max() <= 1 + 1e-5, "similarities"


def test_the_batch_norm_is_torchs_in_training_and_skips_padding() -> None:
    ours, theirs = BatchNorm(5).double(), nn.BatchNorm1d(5).double()
    torch.nn.init.normal_(ours.weight)
    theirs.weight.data.copy_(ours.weight)
    x = torch.randn(9, 5, dtype=DOUBLE, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x))
    grads = [torch.autograd.grad((bn(x) ** 3).sum(), x)[0] for bn in (ours, theirs)]
    torch.testing.assert_close(*grads)
    real = torch.arange(9) % 3 > 0
    torch.testing.assert_close(ours(x, real)[real], ours(x[real]))
    head = ProjectionHead(5, 6, hidden=4, bottleneck=3, norm=True)
    norms = [module for module in head.modules() if isinstance(module, BatchNorm)]
    assert len(norms) == 2
    assert norms[0] is not norms[1], "each has statistics of its own"
    assert not list(head.buffers()), "nothing that a forward pass could change"


def test_prototypes_for_patches_are_others() -> None:
    head, x = ProjectionHead(5, 6, hidden=4, bottleneck=3, second=True), torch.randn(2, 5)
    assert not torch.equal(head(x), head(x, None, True))
    assert len(head.last_parameters) == 4
    shared = ProjectionHead(5, 6, hidden=4, bottleneck=3)
    assert torch.equal(shared(x), shared(x, None, True))
    assert math.prod(shared.last_layer.weight_v.shape) == 18
