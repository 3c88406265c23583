"""Pseudo-labels, thresholds and mixing against closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vitral.data.mixing import beta_quantiles
from vitral.objectives.pseudo_labels import (
    Pairs,
    PseudoLabels,
    class_thresholds,
    draw_pairs,
    mix,
    mix_labels,
    move,
    probabilities,
    probability_distance,
    pseudo_label_loss,
    pseudo_labels,
)


def test_the_loss_is_a_mean_over_all_rows() -> None:
    logits, teacher = torch.randn(40, 5) * 3, torch.randn(40, 5) * 3
    labels = pseudo_labels(probabilities(teacher))
    loss, share = pseudo_label_loss(logits, labels, 0.8)
    confidence, label = teacher.softmax(1).max(1)
    each = F.cross_entropy(logits, label, reduction="none")
    torch.testing.assert_close(loss, each[confidence > 0.8].sum() / 40)
    assert share == (confidence > 0.8).float().mean()
    assert 0 < share < 1


def test_no_gradient_passes_the_labels() -> None:
    logits = torch.randn(40, 5, requires_grad=True)
    labels = pseudo_labels(probabilities(logits))
    assert not labels.target_BC.requires_grad
    assert not labels.confidence_B.requires_grad
    target = torch.randn(40, 5, requires_grad=True)
    probability_distance(logits, target).backward()
    assert target.grad is None
    assert logits.grad is not None


def test_without_confidence_the_loss_and_its_gradient_are_zero() -> None:
    logits = (torch.randn(8, 5) * 1e4).requires_grad_()
    loss, share = pseudo_label_loss(logits, pseudo_labels(torch.full((8, 5), 0.2)), 0.999999)
    loss.backward()
    assert loss.item() == share.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_the_distance_equals_the_mean_squared_difference() -> None:
    one, other = torch.randn(6, 4), torch.randn(6, 4)
    expected = ((one.softmax(1) - other.softmax(1)) ** 2).sum() / 24
    torch.testing.assert_close(probability_distance(one, other), expected)
    assert probability_distance(one, one) == 0


def test_freematch_thresholds() -> None:
    """Equation 8: the most frequent class has the global threshold, others a share of it."""
    found = class_thresholds(torch.tensor(0.9), torch.tensor([0.5, 0.3, 0.2]))
    torch.testing.assert_close(found, torch.tensor([0.9, 0.54, 0.36]))
    equal = class_thresholds(torch.tensor(1 / 3), torch.full((3,), 1 / 3))
    torch.testing.assert_close(equal, torch.full((3,), 1 / 3))


def test_moving_means_stay_where_a_step_was_not_finite() -> None:
    average = torch.tensor([1.0, 2.0])
    move(average, torch.tensor([float("nan"), 0.0]), 0.9, torch.tensor(1.0))
    assert average.tolist() == [1.0, 2.0]
    move(average, torch.tensor([2.0, 0.0]), 0.9, torch.tensor(0.0))
    torch.testing.assert_close(average, torch.tensor([1.1, 1.8]))


def test_partners_are_others_of_the_same_eight() -> None:
    ids = torch.arange(40) * 7 + 2**30
    pairs = draw_pairs(3, 5, ids, beta_quantiles(0.8))
    place = torch.arange(40)
    assert (pairs.partner_B // 8 == place // 8).all()
    assert (pairs.partner_B != place).all()
    assert sorted(pairs.partner_B.tolist()) == place.tolist()
    assert ((pairs.weight_B >= 0) & (pairs.weight_B <= 1)).all()
    again, other = draw_pairs(3, 5, ids, beta_quantiles(0.8)), draw_pairs(3, 6, ids, beta_quantiles(0.8))
    assert torch.equal(pairs.weight_B, again.weight_B)
    assert not torch.equal(pairs.weight_B, other.weight_B)


def test_cuts_at_multiples_of_eight_change_nothing() -> None:
    ids, table = torch.arange(40) * 7, beta_quantiles(0.8)
    whole = draw_pairs(0, 1, ids, table)
    for start, stop in ((0, 16), (16, 24), (24, 40)):
        part = draw_pairs(0, 1, ids[start:stop], table)
        assert torch.equal(part.partner_B + start, whole.partner_B[start:stop])
        assert torch.equal(part.weight_B, whole.weight_B[start:stop])


def test_weights_follow_the_beta_distribution() -> None:
    weight = draw_pairs(0, 0, torch.arange(20_000), beta_quantiles(0.8)).weight_B
    assert weight.mean().item() == pytest.approx(0.5, abs=0.01)
    assert weight.var().item() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.005)


def test_mixing_equal_labels_changes_nothing() -> None:
    labels = PseudoLabels(F.one_hot(torch.full((8,), 2), 4).float(), torch.full((8,), 0.7))
    mixed = mix_labels(labels, draw_pairs(0, 0, torch.arange(8), beta_quantiles(0.8)))
    assert torch.equal(mixed.target_BC, labels.target_BC)
    assert torch.equal(mixed.confidence_B, labels.confidence_B)


def test_mixing_is_a_weighted_mean_of_images_labels_and_confidences_alike() -> None:
    pairs = Pairs(torch.tensor([1, 0]), torch.tensor([0.75, 0.4]))
    labels = mix_labels(PseudoLabels(torch.eye(2), torch.tensor([0.9, 0.1])), pairs)
    torch.testing.assert_close(labels.target_BC, torch.tensor([[0.75, 0.25], [0.6, 0.4]]))
    torch.testing.assert_close(labels.confidence_B, torch.tensor([0.7, 0.58]))
    images = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    torch.testing.assert_close(mix(images, pairs).mean((1, 2, 3)), torch.tensor([0.25, 0.4]))
