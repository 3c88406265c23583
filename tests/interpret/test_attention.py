"""Attention maps: the encoder's own, whatever the model, the token and the memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.interpret.variants import VARIANTS, images, variant
from vitral.errors import UserError
from vitral.interpret import attention
from vitral.interpret.attention import stream_maps, token_attention
from vitral.interpret.tokens import on_grid, pick, require_transformer, token_names, token_rows
from vitral.models.create import create_model
from vitral.models.vit import VisionTransformer


def direct(model: VisionTransformer, x: Tensor) -> list[Tensor]:
    """All maps as one pass captures them."""
    names = [f"blocks.{i}.attn.map" for i in range(model.config.depth)]
    with torch.no_grad():
        captured = model.encode(x, capture=names).captured
    return [captured[name] for name in names]


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_are_the_encoders(name: str) -> None:
    model = variant(name)
    x, maps, prefix = images(model), direct(variant(name), images(model)), model.prefix_tokens
    every = [*token_names(model.config), "1,2", "mean"]
    for token in every:
        found_BLhT = token_attention(model, x, token)
        rows = token_rows(model.config, token, model.grid)
        expected = torch.stack([map_BhTT[:, :, rows].mean(2) for map_BhTT in maps], 1)
        torch.testing.assert_close(found_BLhT, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(found_BLhT.sum(-1), torch.ones(found_BLhT.shape[:-1]))
    row, columns = 1, model.grid[1]
    assert token_rows(model.config, "1,2", model.grid) == [prefix + row * columns + 2]
    assert len(maps[0].unique()) > 10, "maps that say something"


def test_layers_and_heads_are_those_asked_for() -> None:
    model = variant("registers")
    x, maps = images(model), direct(variant("registers"), images(model))
    found_BLhT = token_attention(model, x, "register:1", layers=[-1, 0], heads=[1])
    expected = torch.stack([maps[2][:, 1:, 2], maps[0][:, 1:, 2]], 1)
    torch.testing.assert_close(found_BLhT, expected, rtol=0, atol=1e-5)
    grid_BLhij = on_grid(found_BLhT, model.prefix_tokens, model.grid)
    assert grid_BLhij.shape == (2, 2, 1, *model.grid)
    assert torch.equal(grid_BLhij[0, 0, 0, 1, 2], found_BLhT[0, 0, 0, 4 + 1 * 4 + 2])


def test_other_sizes_than_the_models_own() -> None:
    model = variant("rope")
    x = torch.rand(1, 1, 10, 4)
    found_BLhT = token_attention(model, x, "4,1")
    assert found_BLhT.shape == (1, 3, 2, 2 + 10)
    torch.testing.assert_close(found_BLhT[:, 0], direct(model, x)[0][:, :, -1], rtol=0, atol=1e-5)


def test_little_memory_gives_the_same_maps_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = variant("distilled")
    x, asked = images(model), list[int]()
    encode = VisionTransformer.encode_tokens

    def counted(self: VisionTransformer, *args: Any, **more: Any) -> Any:
        asked.append(len(more["capture"]))
        return encode(self, *args, **more)

    monkeypatch.setattr(VisionTransformer, "encode_tokens", counted)
    whole = list(stream_maps(model, x))
    assert asked == [3]
    map_bytes = whole[0][1].numel() * 4
    for budget, groups in ((2 * map_bytes, [2, 1]), (1, [1, 1, 1])):
        asked.clear()
        parts = list(stream_maps(model, x, most_bytes=budget))
        assert asked == groups
        assert [layer for layer, _ in parts] == [0, 1, 2]
        for (_, one), (_, other) in zip(whole, parts, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, Tensor):
                self.most = max(self.most, each.numel())
        return found


def test_no_tensor_holds_the_maps_of_all_layers() -> None:
    model = variant("class token", image_size=(32, 32), depth=8)
    x = torch.rand(3, 1, 32, 32)
    one_map = 3 * 2 * (1 + 16 * 16) ** 2
    with Largest() as seen:
        token_attention(model, x, "mean")
        list(attention.stream_maps(model, x))
    assert one_map <= seen.most < 1.1 * one_map


def test_maps_that_were_used_are_let_go() -> None:
    model = variant("class token")
    maps: Iterator[tuple[int, Tensor]] = stream_maps(model, images(model))
    _, first = next(maps)
    gone = weakref.ref(first)
    del first
    next(maps)
    assert gone() is None


@pytest.mark.parametrize(
    ("token", "parts"),
    [
        ("clss", ("token: this model has no such token", "did you mean 'cls'?", "0,0 to 2,3")),
        ("register:3", ("register:3", "register:2")),
        ("3,0", ("3,0", "a patch from 0,0 to 2,3")),
        ("distill", ("distill", "cls, register:0")),
    ],
)
def test_unknown_tokens_get_one_message(token: str, parts: tuple[str, ...]) -> None:
    model = variant("registers")
    with pytest.raises(UserError) as caught:
        token_attention(model, images(model), token)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_unknown_layers_and_heads_get_one_message() -> None:
    model = variant("class token")
    with pytest.raises(UserError, match="layers: no such layer\n  got:    3\n  expected: 0 to 2"):
        token_attention(model, images(model), layers=[3])
    with pytest.raises(UserError, match="heads: no such head"):
        token_attention(model, images(model), heads=[-3])
    assert pick([2, -1, 0], 3, "layers") == [2, 0]


def test_networks_of_convolutions_are_refused() -> None:
    model = create_model("resnet20_cifar", num_classes=2)
    with pytest.raises(UserError, match="for Vision Transformers"):
        require_transformer(model, "attention")


@pytest.mark.parametrize(("pool", "token"), [("cls", "cls"), ("cls_avg", "cls"), ("avg", "mean"), ("map", "mean")])
def test_the_default_token_is_what_the_head_reads(pool: str, token: str) -> None:
    config = variant("class token", pool=pool).config
    assert token_rows(config, None, config.grid) == token_rows(config, token, config.grid)
