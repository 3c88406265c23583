"""MaskGIT's decoding: counts of hidden codes in closed form, one code at a time where there are as many steps, and the
masks of its training."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.igpt_models import codes_of, igpt
from vitral.data.masking import cosine_counts, hidden_count
from vitral.errors import UserError
from vitral.models.code_sampling import sample_codes
from vitral.models.igpt import IGPT
from vitral.models.masked_sampling import MaskedSteps, draw_classes, draw_codes, hidden_after, sample_masked
from vitral.models.search_config import SearchConfig

SEARCH = SearchConfig(search="sample", seed=3)


def masked(**options: Any) -> IGPT:
    return igpt(torch.float64, mask_ratio="cosine", **options)


@pytest.mark.parametrize(("tokens", "steps"), [(64, 8), (64, 64), (64, 63), (12, 5), (256, 12), (1, 1), (7, 6)])
def test_counts_fall_strictly_to_none(tokens: int, steps: int) -> None:
    counts = [tokens, *hidden_after(tokens, steps)]
    assert len(counts) == steps + 1
    assert counts[-1] == 0
    assert all(one > two for one, two in pairwise(counts))
    if steps == tokens:
        assert counts == list(range(tokens, -1, -1))
    for step in range(1, steps):
        assert counts[step] == min(math.ceil(tokens * math.cos(math.pi / 2 * step / steps)), counts[step - 1] - 1)


def test_eight_steps_of_the_paper() -> None:
    assert hidden_after(256, 8) == [252, 237, 213, 182, 143, 98, 50, 0]


def forwards(model: IGPT) -> list[Tensor]:
    """Which codes are hidden at each pass through the model, from now on."""
    seen: list[Tensor] = []
    read = model.read

    def watched(*given: Any, **named: Any) -> Any:
        seen.append(given[2].clone())
        return read(*given, **named)

    model.read = watched
    return seen


def test_each_step_keeps_what_is_there() -> None:
    model = masked()
    seen = forwards(model)
    drawn = sample_masked(model, torch.full((3,), -1), SEARCH, [0, 1, 2], MaskedSteps(5, 4.5))
    assert [each.sum(1).tolist() for each in seen] == [[count] * 3 for count in [12, *hidden_after(12, 5)[:-1]]]
    assert all(bool((one | ~two).all()) for one, two in pairwise(seen)), "what is shown stays so"
    assert drawn.shape == (3, 12)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < 5


def test_as_many_steps_as_codes_without_noise_is_one_at_a_time() -> None:
    """Each time the hidden code whose drawn value is the most probable one. Draws are those of the step and place."""
    model, ids = masked(class_tokens=2), [4, 9]
    drawn = sample_masked(model, torch.tensor([1, -1]), SEARCH, ids, MaskedSteps(12, 0.0))
    for row, (label, number) in enumerate(zip([1, -1], ids, strict=True)):
        codes = torch.zeros(1, 12, dtype=torch.int64)
        hidden = torch.ones(1, 12, dtype=torch.bool)
        for step in range(12):
            out = model.read(codes, torch.tensor([label]), hidden)
            probs = model.code_head(out.patches_BND)[0].float().softmax(-1)
            values = model_draw(probs, step, number)
            sure = probs.gather(1, values[:, None])[:, 0].masked_fill(~hidden[0], -1)
            place = int(sure.argmax())
            codes[0, place], hidden[0, place] = values[place], False
        assert not hidden.any()
        assert codes[0].tolist() == drawn[row].tolist()


def model_draw(probs: Tensor, step: int, number: int) -> Tensor:
    """The inverse of the distribution function, likeliest codes first, at the documented number."""
    from vitral.data.counter_rng import Stream, uniform

    values: list[int] = []
    for place, row in enumerate(probs.double()):
        point = float(uniform(3, step, place, torch.tensor([number]), Stream.NEXT_TOKEN))
        order = row.argsort(descending=True, stable=True)
        values.append(int(order[int((row[order].cumsum(0) <= point * row.sum()).sum())]))
    return torch.tensor(values)


def test_samples_do_not_depend_on_the_batch_and_keep_given_codes() -> None:
    model = masked()
    given = codes_of(model, 3)[:, :5]
    any_class, steps = torch.full((3,), -1), MaskedSteps(4, 2.0)
    many = sample_masked(model, any_class, SEARCH, [0, 1, 2], steps, given)
    assert torch.equal(many[:, :5], given)
    assert torch.equal(many[1:2], sample_masked(model, any_class[:1], SEARCH, [1], steps, given[1:2]))
    other = sample_masked(model, any_class, SEARCH.model_copy(update={"seed": 4}), [0, 1, 2], steps, given)
    assert not torch.equal(many, other)
    with pytest.raises(UserError, match=r"(?s)steps.*8.*at most 7"):
        sample_masked(model, any_class, SEARCH, [0, 1, 2], MaskedSteps(8, 2.0), given)


def test_a_sure_model_is_followed() -> None:
    """Where the output ignores its input, every code is that of the largest logit at a low temperature."""
    model = masked()
    with torch.no_grad():
        for block in model.blocks:
            for parameter in block.parameters():
                parameter.zero_()
        model.token_embed.zero_()
    best = model.code_head(model.read(codes_of(model, 1), None, torch.ones(1, 12, dtype=torch.bool)).patches_BND)
    cold = SEARCH.model_copy(update={"temperature": 1e-6})
    drawn = sample_masked(model, torch.tensor([-1]), cold, [0], MaskedSteps(3, 4.5))
    assert torch.equal(drawn, best.argmax(-1))


def test_masks_of_training_follow_the_cosine() -> None:
    ids = torch.arange(20_000)
    counts = cosine_counts(1, 2, ids, 64)
    mask = hidden_count(1, 2, ids, 64, counts)
    assert torch.equal(mask.sum(1), counts)
    assert int(counts.min()) >= 1
    assert int(counts.max()) == 64
    assert float(counts.double().mean()) == pytest.approx(64 * 2 / math.pi + 0.5, rel=0.01), "the mean of the ceiling"
    assert float((counts <= 32).double().mean()) == pytest.approx(1 - 2 / math.pi * math.acos(0.5), abs=0.01)
    assert float(mask.double().mean(0).std()) < 0.01, "every place is as probable"
    assert not torch.equal(counts, cosine_counts(1, 3, ids, 64))


def test_the_class_is_seen_and_is_no_feature() -> None:
    model = masked(class_tokens=3)
    codes, hidden = codes_of(model, 2), torch.zeros(2, 12, dtype=torch.bool)
    hidden[:, 3] = True
    out = [
        model.read(codes, labels, hidden, capture=["embed", "blocks.1"])
        for labels in (None, torch.tensor([-1, -1]), torch.tensor([0, 2]))
    ]
    assert out[0].patches_BND.shape == (2, 12, 16)
    assert {name: x.shape for name, x in out[0].captured.items()} == dict.fromkeys(("embed", "blocks.1"), (2, 12, 16))
    assert torch.equal(out[0].patches_BND, out[1].patches_BND)
    assert not torch.isclose(out[0].patches_BND, out[2].patches_BND).all(2).any()


def test_the_class_of_given_codes_is_drawn_by_their_probability() -> None:
    model = igpt(torch.float64, class_tokens=3, std=0.5)
    given, samples = codes_of(model, 1)[:, :6].expand(4000, -1), range(4000)
    share = model.class_log_probs(given[:1]).softmax(1)[0]
    drawn = draw_classes(model, 1, samples, given)
    torch.testing.assert_close(drawn.bincount(minlength=3) / 4000, share.float(), rtol=0, atol=0.03)
    one, two = drawn[:2], SEARCH.model_copy(update={"seed": 1})
    completed = draw_codes(model, torch.tensor([-1, -1]), two, [0, 1], given[:2])
    assert torch.equal(completed, sample_codes(model, one, two, [0, 1], given[:2]))
    known = draw_codes(model, torch.tensor([2, 0]), two, [0, 1], given[:2])
    assert torch.equal(known, sample_codes(model, torch.tensor([2, 0]), two, [0, 1], given[:2]))
