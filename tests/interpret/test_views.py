"""Views of a model without an image: filters, positions, and the distance of attention over many images."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from tests.interpret.test_attention import Largest, direct
from tests.interpret.variants import VARIANTS, images, variant
from vitral.errors import UserError
from vitral.interpret.attention_distance import attention_distance
from vitral.interpret.patch_filters import filter_components, position_similarity
from vitral.models.vit import VisionTransformer


def test_components_are_scikit_learns() -> None:
    model = variant("class token", in_channels=3, patch_size=2, width=64, heads=4)
    found = filter_components(model, 5)
    weight = model.get_parameter("patch_embed.proj.weight").detach().double().flatten(1).numpy()
    pca: Any = PCA(5).fit(weight)
    np.testing.assert_allclose(found.shares_K, pca.explained_variance_ratio_, atol=1e-10)
    assert found.filters_KCPP.shape == (5, 3, 2, 2)
    for mine, theirs in zip(found.filters_KCPP.flatten(1).numpy(), pca.components_, strict=True):
        assert abs(mine @ theirs) == pytest.approx(1)
        assert mine[np.abs(mine).argmax()] > 0
    assert len(filter_components(model).filters_KCPP) == 12, "a patch has no more values"


def test_filters_of_hybrids_are_no_pictures() -> None:
    with pytest.raises(UserError, match="hybrid"):
        filter_components(variant("hybrid"))


@pytest.mark.parametrize("name", ["class token", "distilled", "tanh head", "sincos"])
def test_similarity_of_positions(name: str) -> None:
    """The cosine of what each place adds to its patch in the first layer."""
    model = variant(name)
    rows, columns = model.grid
    blank = torch.zeros(1, rows * columns, model.config.width)
    first: list[Tensor] = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _, inputs: first.append(inputs[0]))
    with torch.no_grad():
        model.encode_tokens(blank, model.grid)
    hook.remove()
    places_ND = first[0][0, model.prefix_tokens :].double()
    expected = torch.nn.functional.cosine_similarity(places_ND[:, None], places_ND[None], dim=-1)
    torch.testing.assert_close(position_similarity(model), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["rope", "relative"])
def test_positions_without_a_table(name: str) -> None:
    with pytest.raises(UserError, match=f"positions={name}"):
        position_similarity(variant(name))


def uniform(model: VisionTransformer) -> VisionTransformer:
    """Queries and keys of zero: every token attends equally to all."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".attn.qkv." in name:
                parameter[: 2 * model.config.width] = 0
            elif name.endswith(("q_bias", "relative_position_bias_table")):
                parameter.zero_()
    return model


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "both"])  # norms of heads have offsets
def test_uniform_attention_in_closed_form(name: str) -> None:
    model = uniform(variant(name))
    rows, columns = model.grid
    places = list(itertools.product(range(rows), range(columns)))
    pairs = [math.dist(one, other) for one in places for other in places]
    expected = model.config.patch_size * sum(pairs) / len(pairs)
    found_Lh = attention_distance(model, [images(model), images(model, 1)])
    torch.testing.assert_close(found_Lh, torch.full((3, 2), expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_row_of_patches() -> None:
    """On a line of n patches two random ones are (n^2 - 1) / 3n apart."""
    model = uniform(variant("registers", image_size=(2, 14)))
    found_Lh = attention_distance(model, [images(model)])
    assert found_Lh[1, 1].item() == pytest.approx(2 * (7**2 - 1) / (3 * 7))


@pytest.mark.parametrize("name", VARIANTS)
def test_distance_by_hand(name: str) -> None:
    model = variant(name)
    x, (rows, columns), prefix = images(model, 3), model.grid, model.prefix_tokens
    places = list(itertools.product(range(rows), range(columns)))
    expected = torch.zeros(3, 2, dtype=torch.float64)
    for layer, map_BhTT in enumerate(direct(model, x)):
        weights = map_BhTT[:, :, prefix:, prefix:].double()
        for (q, one), (k, other) in itertools.product(enumerate(places), repeat=2):
            share_Bh = weights[:, :, q, k] / weights[:, :, q].sum(-1)
            expected[layer] += model.config.patch_size * math.dist(one, other) * share_Bh.mean(0) / len(places)
    torch.testing.assert_close(attention_distance(model, x.split(2)), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(attention_distance(model, [x], [2]), expected[2:], rtol=1e-5, atol=0)


def test_a_data_set_is_not_in_memory() -> None:
    """However many images there are: nothing larger than one layer's map of one batch, and the batches before it are
    gone."""
    model = variant("class token", image_size=(24, 24), depth=6)
    seen: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[Tensor]:
        for _ in range(9):
            batch_BCHW = torch.rand(2, 1, 24, 24)
            seen.append(weakref.ref(batch_BCHW))
            yield batch_BCHW
            del batch_BCHW
            assert sum(each() is not None for each in seen) <= 1

    with Largest() as largest:
        attention_distance(model, batches())
    one_map = 2 * 2 * (1 + 12 * 12) ** 2
    assert one_map <= largest.most < 1.1 * one_map


def test_no_image_no_distance() -> None:
    with pytest.raises(UserError, match="at least one image"):
        attention_distance(variant("class token"), [])
