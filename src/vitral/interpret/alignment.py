"""Which part of the source a model reads while it writes each token: cross-attention (arXiv 1409.0473, section 5.2.1),
or the frames of CTC.

Shape letters: B batch, L layers, h heads, T target tokens, M memory tokens, C channels, H W image height and width,
r c rows and columns of patches, K characters with a box, 4 a box (x0, y0, x1, y1), F frames, V vocabulary with the
blank, S states (tokens with a blank around each).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitral.data.text.batches import shifted
from vitral.data.text.tokenizer import PAD
from vitral.errors import UserError
from vitral.interpret.attention import grid_of
from vitral.interpret.tokens import on_grid
from vitral.models.image_to_text import ImageToText
from vitral.models.sequence_model import SequenceModel


def require_alignment(model: SequenceModel) -> None:
    """Raise UserError for a model without attention from target to source: CTC, and an LSTM with attention=none."""
    if not model.config.decodes_steps:
        raise UserError(
            "CTC has no attention maps: it writes all tokens at once", where="model.decoder", got="ctc",
            expected="a decoder with cross-attention", hint="`vitral explain` shows the frame of each token.",
        )  # fmt: skip
    if not model.alignment_names:
        raise UserError("this model has no attention to its source", where="model.attention", got="none")


@torch.no_grad()
def alignment(model: SequenceModel, source: Tensor, text_BT: Tensor) -> Tensor:
    """Return the attention of each token of a text over the source, [B, L, h, T, M], with teacher forcing.

    source: images, or texts [B, M]. text_BT: tokens with their end, padded at the right; row t is the attention with
    which token t is written, after the tokens before it. Rows sum to 1; rows and columns of padding are 0. M of images:
    the class token, if there is one, then the patches row by row. Of an LSTM, L = h = 1. The mean over heads is
    `.mean(2)`. Call it with the model in evaluation mode. Raises UserError as `require_alignment` does.
    """
    require_alignment(model)
    names = model.alignment_names
    captured = model.decode(model.encode(source), shifted(text_BT)[0], names).captured
    map_BLhTM = torch.stack([captured[name] for name in names], dim=1)
    return map_BLhTM * (text_BT != PAD)[:, None, None, :, None]


def over_patches(model: SequenceModel, map_TM: Tensor, images_BCHW: Tensor) -> Tensor:
    """Maps [..., T, M] as maps of the patches, [..., T, r, c]. The class token is left out: a map sums to 1 without
    its share."""
    assert isinstance(model, ImageToText)
    rows, columns = grid_of(model.encoder, images_BCHW)
    return on_grid(map_TM, map_TM.shape[-1] - rows * columns, (rows, columns))


def peaks_inside(map_Krc: Tensor, boxes_K4: Tensor, size: tuple[int, int]) -> Tensor:
    """Whether the center of each map's largest patch lies in its box, bool [..., K] of maps [..., K, r, c].

    boxes: edges in pixels of the model's input of `size` (height, width), the right and the lower edge not included. Of
    equal patches the first counts, row by row.
    """
    rows, columns = map_Krc.shape[-2:]
    place_K = map_Krc.flatten(-2).argmax(-1)
    x_K = (place_K % columns + 0.5) * (size[1] / columns)
    y_K = (place_K // columns + 0.5) * (size[0] / rows)
    left_K, top_K, right_K, bottom_K = boxes_K4.to(map_Krc.device).unbind(-1)
    return (x_K >= left_K) & (x_K < right_K) & (y_K >= top_K) & (y_K < bottom_K)


def pointing(model: SequenceModel, images_BCHW: Tensor, text_BT: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """Return whether attention peaks on the character that is written, bool [1 + L, K], for all texts of the batch.

    Row 0 is the mean over layers and heads, row 1 + l the mean over the heads of layer l. text_BT: right texts with
    their end, as in `alignment`. boxes: of each text [T, 4], one per token, in pixels of `images_BCHW`. Characters
    whose box has no area, which the image does not show, are left out. Raises UserError for a text of another number of
    tokens than boxes, and as `require_alignment` does.
    """
    map_BLTM = alignment(model, images_BCHW, text_BT).mean(2)
    maps_BATrc = over_patches(model, torch.cat([map_BLTM.mean(1, keepdim=True), map_BLTM], 1), images_BCHW)
    length_B = (text_BT != PAD).sum(1) - 1
    found: list[Tensor] = []
    for maps_ATrc, boxes_T4, length in zip(maps_BATrc, boxes, length_B.tolist(), strict=True):
        if length != len(boxes_T4):
            raise UserError(
                "each box needs a token of its own", where="eval.pointing",
                got=f"{length} tokens and {len(boxes_T4)} boxes", expected="data.tokenizer.kind=characters",
            )  # fmt: skip
        is_shown_T = (boxes_T4[:, 2:] > boxes_T4[:, :2]).all(1)
        inside_AT = peaks_inside(maps_ATrc[:, :length], boxes_T4, (images_BCHW.shape[2], images_BCHW.shape[3]))
        found.append(inside_AT[:, is_shown_T.to(inside_AT.device)])
    return torch.cat(found, dim=1)


def ctc_frames(logits_FV: Tensor, tokens: Sequence[int], blank: int) -> list[int]:
    """Return the frame of each token in the most probable alignment of a text (Graves et al. 2006, section 4.1, with
    the maximum in place of the sum); of several frames of one token that in which it is the most probable.

    Raises UserError for a text that needs more than F frames.
    """
    log_probs_FV = logits_FV.detach().double().log_softmax(-1).cpu()
    states = torch.tensor([blank, *(each for token in tokens for each in (token, blank))])
    score_FS = log_probs_FV[:, states]
    frames, count = score_FS.shape
    # A token may follow the one before it without a blank, unless they are equal.
    may_skip_S = torch.zeros(count, dtype=torch.bool)
    may_skip_S[3::2] = states[3::2] != states[1:-2:2]
    best_S = torch.full((count,), -torch.inf, dtype=torch.float64)
    best_S[:2] = score_FS[0, :2]
    steps: list[Tensor] = []
    for score_S in score_FS[1:]:
        one_S, two_S = (torch.cat([best_S.new_full((n,), -torch.inf), best_S])[:count] for n in (1, 2))
        best_S, step_S = torch.stack([best_S, one_S, two_S.where(may_skip_S, -torch.inf)]).max(0)
        best_S = best_S + score_S
        steps.append(step_S)
    state = count - 1 if count == 1 or best_S[-1] >= best_S[-2] else count - 2
    if not torch.isfinite(best_S[state]):
        raise UserError("a text needs more frames than CTC has", got=frames, where=f"{len(tokens)} tokens")
    path = [state]
    for step_S in reversed(steps):
        path.append(path[-1] - int(step_S[path[-1]]))
    path.reverse()
    places = ([frame for frame, at in enumerate(path) if at == 2 * number + 1] for number in range(len(tokens)))
    return [
        max(own, key=lambda frame: float(log_probs_FV[frame, token])) for own, token in zip(places, tokens, strict=True)
    ]
