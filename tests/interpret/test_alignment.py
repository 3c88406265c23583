"""Alignments: attention of written tokens over the source, peaks in boxes, and the frames of CTC.

Shape letters: B batch, L layers, h heads, T target tokens, M memory tokens, F frames, V outputs, r c rows and columns
of patches.
"""

from __future__ import annotations

import itertools
from operator import itemgetter

import numpy as np
import pytest
import torch

from tests.models import sequences
from vitral.data.crop import box_matrix
from vitral.data.geometry import transform_boxes
from vitral.data.image_spec import ResizeSpec
from vitral.data.resize import fit_image, shown_box
from vitral.data.text.tokenizer import END, PAD
from vitral.errors import UserError
from vitral.interpret.alignment import alignment, ctc_frames, over_patches, peaks_inside, pointing
from vitral.models.create import create_sequence_model
from vitral.models.decoder import TokenEmbedding
from vitral.models.image_to_text import ImageToText

LENGTHS = [7, 3, 5]


def ended(lengths: list[int], size: int) -> torch.Tensor:
    """Random texts with their end, padded."""
    text_BT = sequences.texts(lengths, size, seed=4).clamp(min=0)
    text_BT = torch.where((text_BT > 0) & (text_BT < 4), 5, text_BT)
    text_BT[range(len(lengths)), torch.tensor(lengths) - 1] = END
    return text_BT


@pytest.mark.parametrize("name", sequences.ATTENDING)
def test_rows_sum_to_one_and_padding_gets_nothing(name: str) -> None:
    model = sequences.build(name)
    source, text_BT = sequences.sources(model, 3), ended(LENGTHS, 7)
    source = source.double() if model.config.reads_images else source
    map_BLhTM = alignment(model, source, text_BT)
    assert map_BLhTM.shape[:2] == (3, len(model.alignment_names))
    is_real_BT = text_BT != PAD
    torch.testing.assert_close(
        map_BLhTM.sum(-1), is_real_BT[:, None, None].expand(map_BLhTM.shape[:-1]).to(map_BLhTM.dtype)
    )
    if not model.config.reads_images:
        assert float(map_BLhTM.movedim(-1, 1)[source == PAD].abs().max()) == 0
    # One by one, without padding, the maps are the same.
    for row, length in enumerate(LENGTHS):
        own = source[row : row + 1]
        own = own if model.config.reads_images else own[:, : int((own != PAD).sum())]
        alone_LhTM = alignment(model, own, text_BT[row : row + 1, :length])[0]
        torch.testing.assert_close(alone_LhTM, map_BLhTM[row, :, :, :length, : alone_LhTM.shape[-1]])


@torch.no_grad()
def test_a_permuted_source_permutes_the_columns() -> None:
    model = sequences.build("pre")
    for embed in model.modules():
        if isinstance(embed, TokenEmbedding) and embed.places is not None:
            embed.places.zero_()  # without positions the order of the source changes nothing
    source_BS, text_BT = sequences.texts([6, 6], 6, seed=1), ended([4, 5], 5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    one, other = (alignment(model, each, text_BT) for each in (source_BS, source_BS[:, order]))
    torch.testing.assert_close(other, one[..., order])


@torch.no_grad()
def test_permuted_patches_permute_the_map_and_the_class_token_is_left_out() -> None:
    model = sequences.build("image")
    assert isinstance(model, ImageToText)
    for name, parameter in model.encoder.named_parameters():
        if "pos" in name:
            parameter.zero_()
    images_BCHW, text_BT = sequences.sources(model, 2).double(), ended([4, 5], 5)
    map_BLhTM = alignment(model, images_BCHW, text_BT)
    maps = over_patches(model, map_BLhTM, images_BCHW)
    assert maps.shape[-2:] == (2, 5)
    torch.testing.assert_close(maps.flatten(-2), map_BLhTM[..., 1:])
    flipped = images_BCHW.unflatten(3, (5, 2)).flip(3).flatten(3)  # the columns of patches, each as it is
    turned = over_patches(model, alignment(model, flipped, text_BT), images_BCHW)
    torch.testing.assert_close(turned, maps.flip(-1))


def test_peaks_by_hand() -> None:
    map_rc = torch.zeros(5, 2, 5)
    map_rc[0, 1, 3] = map_rc[1, 0, 0] = map_rc[2, 1, 4] = map_rc[3, 0, 2] = 1.0
    boxes = torch.tensor([
        [6, 2, 8, 4.0],  # the patch's own pixels
        [1.0, 0, 9, 4],  # begins at its center, (1, 1): inside
        [0.0, 0, 9, 4],  # ends at its center, (9, 3): outside
        [4.0, 1.1, 6, 4],  # below its center
        [0.0, 0, 2, 2],  # equal values everywhere: the first patch
    ])  # fmt: skip
    assert peaks_inside(map_rc, boxes, (4, 10)).tolist() == [True, True, False, False, True]
    assert peaks_inside(torch.stack([map_rc, map_rc.flip(2)]), boxes, (4, 10))[1].tolist()[:3] == [False, False, True]


@torch.no_grad()
def test_pointing_leaves_out_what_is_not_shown_and_counts_each_layer() -> None:
    model = sequences.build("image")
    images_BCHW, text_BT = sequences.sources(model, 2).double(), ended([4, 3], 5)
    everywhere, nowhere, hidden = (torch.tensor([box]) for box in ([0, 0, 10, 4.0], [-9, -9, -8, -8.0], [3, 3, 3, 4.0]))
    boxes = [torch.cat([everywhere, nowhere, everywhere]), torch.cat([hidden, everywhere])]
    inside_AK = pointing(model, images_BCHW, text_BT, boxes)
    assert inside_AK.tolist() == [[True, False, True, True]] * (1 + len(model.alignment_names))
    with pytest.raises(UserError, match="a token of its own"):
        pointing(model, images_BCHW, text_BT, [boxes[0], boxes[0]])


@pytest.mark.parametrize("mode", ["squash", "crop"])
def test_boxes_follow_the_resize(mode: str) -> None:
    # A white box of the image is where the mapped box says, to a fraction of a pixel of the resized image.
    spec = ResizeSpec(resize_mode=mode, interpolation="bilinear", crop_pct=0.9)  # pyright: ignore[reportArgumentType]
    image_CHW, (left, top, right, bottom) = torch.zeros(1, 60, 150, dtype=torch.uint8), (60, 18, 96, 42)
    image_CHW[:, top:bottom, left:right] = 255
    size = (32, 64)
    found_HW = fit_image(image_CHW, size, spec)[0]
    matrix_133 = box_matrix(torch.tensor([shown_box((60, 150), size, spec)]), size)
    box_114 = torch.tensor([[[left, top, right, bottom]]]).float()
    x0, y0, x1, y1 = transform_boxes(matrix_133, box_114, size)[0][0, 0].tolist()
    assert float(found_HW.sum()) == pytest.approx((x1 - x0) * (y1 - y0), rel=0.02)
    across, down = found_HW.sum(0), found_HW.sum(1)
    assert float((across * (torch.arange(64) + 0.5)).sum() / across.sum()) == pytest.approx((x0 + x1) / 2, abs=0.05)
    assert float((down * (torch.arange(32) + 0.5)).sum() / down.sum()) == pytest.approx((y0 + y1) / 2, abs=0.05)


def test_models_without_attention_are_named() -> None:
    text_BT = ended([3], 3)
    with pytest.raises(UserError, match="no attention"):
        alignment(sequences.build("lstm"), torch.ones(1, 4, dtype=torch.long), text_BT)
    ctc = create_sequence_model("vit_ctc_micro_patch2_8x40", vocabulary=9)
    with pytest.raises(UserError, match="CTC has no attention"):
        alignment(ctc, torch.rand(1, 1, 8, 40), text_BT)


@pytest.mark.parametrize("tokens", [(), (1,), (0, 1), (1, 1), (0, 2, 0), (2, 2, 2)])
def test_frames_of_ctc_are_those_of_the_best_alignment(tokens: tuple[int, ...]) -> None:
    frames, blank = 6, 3
    for seed in range(4):
        logits_FV = torch.randn(frames, 4, generator=torch.Generator().manual_seed(seed))
        log_probs = logits_FV.double().log_softmax(-1).numpy()
        best, best_path = -np.inf, ()
        for path in itertools.product(range(4), repeat=frames):
            merged = tuple(each for each, _ in itertools.groupby(path) if each != blank)
            score = sum(log_probs[f, each] for f, each in enumerate(path))
            if merged == tokens and score > best:
                best, best_path = score, path
        runs = [list(run) for each, run in itertools.groupby(enumerate(best_path), itemgetter(1)) if each != blank]
        expected = [max(run, key=log_probs.__getitem__)[0] for run in runs]
        assert ctc_frames(logits_FV, tokens, blank) == expected


def test_a_text_without_enough_frames_is_refused() -> None:
    assert ctc_frames(torch.zeros(3, 4), (1, 1), 3) == [0, 2]
    with pytest.raises(UserError, match="more frames"):
        ctc_frames(torch.zeros(2, 4), (1, 1), 3)
