"""Images to texts: the encoder is the Vision Transformer itself, CTC reads its columns.

Shape letters: B batch, C channels, H W image height and width, N patches, T positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.models.sequences import build, texts
from vitral.errors import UserError
from vitral.models.create import create_sequence_model
from vitral.models.image_to_text import ImageToText
from vitral.models.presets import resolve_sequence
from vitral.models.sequence_config import ImageToTextConfig


def made(name: str, **options: Any) -> ImageToText:
    model = create_sequence_model(name, **options)
    assert isinstance(model, ImageToText)
    return model.eval()


@pytest.mark.parametrize("rows", ["mean", "all"])
@pytest.mark.parametrize(
    ("name", "grid"), [("vit_ctc_micro_patch2_8x40", (4, 20)), ("vit_ctc_nano_patch8_32x256", (4, 32))]
)
def test_ctc(name: str, grid: tuple[int, int], rows: str) -> None:
    model = made(name, ctc_rows=rows, vocabulary=11)
    config = model.config
    images = torch.rand(2, 1, *config.encoder.image_size)
    logits_BTK, T = model(images), grid[1] * (1 if rows == "mean" else grid[0])
    assert logits_BTK.shape == (2, T, 12)
    assert config.blank_id == 11
    assert not config.decodes_steps
    labels, lengths = torch.randint(11, (2, 5)), torch.tensor([5, 3])
    loss = F.ctc_loss(
        logits_BTK.log_softmax(-1).transpose(0, 1), labels, torch.tensor([T, T]), lengths, blank=config.blank_id
    )
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    patches_BND = model.encoder.encode(images).patches_BND
    assert model.ctc is not None
    for column in (0, 3, grid[1] - 1):
        cells = [patches_BND[:, row * grid[1] + column] for row in range(grid[0])]
        if rows == "mean":
            expected, found = model.ctc(torch.stack(cells).mean(0)), logits_BTK[:, column]
        else:
            expected = torch.stack([model.ctc(cell) for cell in cells], 1)
            found = logits_BTK[:, column * grid[0] : (column + 1) * grid[0]]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_ctc_has_no_steps() -> None:
    model = made("vit_ctc_micro_patch2_8x40")
    memory = model.encode(torch.rand(1, 1, 8, 40))
    for call in (lambda: model.start(memory), lambda: model.decode(memory, texts([3], 3))):
        with pytest.raises(UserError, match="does not write token by token"):
            call()
    assert model.alignment_names == []


def test_the_memory_is_class_token_and_patches_in_the_decoders_width() -> None:
    model: Any = build("image")
    images = torch.rand(2, 1, 4, 10)
    out = model.encoder.encode(images)
    expected = model.project(torch.cat([out.cls_BD[:, None], out.patches_BND], 1))
    torch.testing.assert_close(model.encode(images).memory_BMD, expected)
    assert model.encode(images).memory_BMD.shape == (2, 1 + 2 * 5, 12)
    read: Any = build("image_read")
    assert read.project is None
    assert read.encode(images).memory_BMD.shape == (2, 2 * 5, 8)  # registers are dropped


def test_bytes_are_images_in_the_unit_interval() -> None:
    model, target = build("image"), texts([4, 4], 4)
    pixels = torch.randint(256, (2, 1, 4, 10), dtype=torch.uint8)
    torch.testing.assert_close(model(pixels, target), model(pixels.double() / 255, target), rtol=0, atol=1e-5)


def test_other_sizes() -> None:
    """The whole model takes its own size alone; the encoder takes any that the patch size divides."""
    model = build("image")
    with pytest.raises(UserError, match=r"wrong image size[\s\S]*4 x 12[\s\S]*4 x 10"):
        model(torch.rand(1, 1, 4, 12), texts([4], 4))
    assert model.encode(torch.rand(1, 1, 4, 12)).memory_BMD.shape[1] == 1 + 2 * 6


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"encoder": {"num_classes": 3}}, "encoder.num_classes must be 0"),
        ({"encoder": {"fc_norm": True}}, "encoder.fc_norm must be false"),
        ({"encoder": {"pool": "map"}}, "encoder.pool=map has weights that are not read"),
        ({"encoder": {"distill_token": True}}, "distill_token=true"),
        ({"encoder": {"image_size": (9, 40)}}, "not a multiple of patch_size 2"),
        ({"encoder": {"heads": 5}}, "width 64 cannot be split evenly among 5 heads"),
        ({"ctc_rows": "all"}, "ctc_rows=all has no effect here"),
        ({"decoder": "ctc"}, "has no effect here"),
        ({"decoder": "lstm"}, "transformer | ctc"),
    ],
)
def test_refusals(options: dict[str, Any], text: str) -> None:
    name = "vit_text_micro_patch2_8x40"
    encoder = resolve_sequence(name).model_dump()["encoder"]
    changed = {**options, **({"encoder": {**encoder, **options["encoder"]}} if "encoder" in options else {})}
    with pytest.raises(UserError) as caught:
        resolve_sequence(name, **changed)
    assert text in str(caught.value)


def test_an_encoder_that_averages_has_its_norm_on_the_tokens() -> None:
    encoder = {"patch_size": 2, "image_size": 8, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "pool": "avg"}
    config = resolve_sequence("vit_text_micro_patch2_8x40", encoder=encoder)
    assert isinstance(config, ImageToTextConfig)
    assert config.encoder.num_classes == 0
    assert not config.encoder.norm_after_pool
