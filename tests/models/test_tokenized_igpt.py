"""A Transformer over the codes of a tokenizer: the tokenizer is a fixed part of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.igpt_models import SMALL, codes_of
from vitral.errors import UserError
from vitral.models.frozen_tokenizer import FrozenTokenizer
from vitral.models.igpt import IGPT
from vitral.models.igpt_config import IGPTConfig
from vitral.models.image_tokenizer import ImageTokenizer
from vitral.models.image_tokenizer_config import ImageTokenizerConfig
from vitral.models.presets import resolve

TOKENIZER: dict[str, Any] = {
    "image_size": (4, 6), "in_channels": 1, "patch_size": 2, "codes": 9, "width": 8, "depth": 1, "code_width": 4
}  # fmt: skip


def tokenized(**options: Any) -> IGPT:
    torch.manual_seed(0)
    tokenizer = ImageTokenizerConfig(**TOKENIZER)
    keys: dict[str, Any] = {**SMALL, "image_size": (4, 6), "colors": 9, "tokenizer": tokenizer, **options}
    model = IGPT(IGPTConfig(**keys))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(model.get_buffer("tokenizer.model.quantizer.codebook_KD"))
    return model.eval()


def part(model: IGPT) -> ImageTokenizer:
    """Its tokenizer."""
    assert isinstance(model.tokenizer, FrozenTokenizer)
    return model.tokenizer.model


def test_codes_are_those_of_the_tokenizer() -> None:
    model = tokenized()
    assert (model.config.grid, model.config.tokens, model.config.stride, model.grid) == ((2, 3), 6, 2, (2, 3))
    images = torch.rand(5, 1, 4, 6)
    codes = model.codes(images)
    assert torch.equal(codes, part(model).codes(images))
    assert torch.equal(model.images(codes), part(model).images(codes))
    assert model.code_head(model.read(codes).patches_BND).shape == (5, 6, 9)
    assert model.token_embed.shape == (10, 16)
    nll, count = model.code_nats(images, None, torch.arange(5))
    torch.testing.assert_close(nll, model.nll(model.read(codes).patches_BND, codes).sum(1))
    assert count.tolist() == [6] * 5


def test_the_tokenizer_is_fixed() -> None:
    model = tokenized().train()
    assert not part(model).training
    assert not any(parameter.requires_grad for parameter in model.tokenizer.parameters())
    model.code_nats(torch.rand(2, 1, 4, 6), None, torch.arange(2))[0].sum().backward()
    assert model.token_embed.grad is not None
    images = torch.rand(20, 1, 4, 6)
    codes, before = model.codes(images), {name: t.clone() for name, t in model.tokenizer.state_dict().items()}
    half = model.bfloat16()
    assert half.token_embed.dtype == torch.bfloat16
    for name, tensor in half.tokenizer.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half.codes(images), codes)
    assert torch.equal(half.float().codes(images), codes)


def test_its_weights_are_in_the_folder() -> None:
    model, other = tokenized(), tokenized()
    torch.nn.init.zeros_(other.token_embed)
    names = {name for name in model.state_dict() if name.startswith("tokenizer.")}
    assert len(names) > 10
    tree = model.config.model_dump()
    again = IGPT(IGPTConfig(**tree)).eval()
    again.load_state_dict(model.state_dict())
    codes = codes_of(model, 3)
    assert torch.equal(again.images(codes), model.images(codes))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": (4, 8)}, r"(?s)4 x 8.*tokenizer.*4 x 6"),
        ({"in_channels": 3}, "(?s)3 channels.*tokenizer.*1"),
        ({"colors": 8}, "(?s)8.*9 codes"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], words: str) -> None:
    base: dict[str, Any] = {"image_size": (4, 6), "in_channels": 1, "colors": 9, "tokenizer": {
        "family": "image_tokenizer", **TOKENIZER}}  # fmt: skip
    with pytest.raises(UserError, match=words):
        resolve("igpt_micro_8", **{**base, **options})
