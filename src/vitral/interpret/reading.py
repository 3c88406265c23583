"""What a model did at each token of a text that it wrote: how sure it was, and which part of the source it read.

Shape letters: L layers, h heads, T written tokens, M source tokens, r c rows and columns of patches, F frames of CTC, V
outputs (of CTC with the blank, the last one).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitral.data.text.batches import shifted
from vitral.data.text.tokenizer import END
from vitral.data.text.tokenizer_file import Tokenizers
from vitral.interpret.alignment import alignment, ctc_frames, over_patches
from vitral.models.image_to_text import ImageToText
from vitral.models.sequence_model import SequenceModel

BLANK = "<blank>"
Array = np.ndarray[Any, Any]


class Reading(NamedTuple):
    """A written text. tokens: ids; of CTC without the end, which it does not write. outputs: names of the V outputs.
    map_LhT: attention of each token, [L, h, T, M] or of images [L, h, T, r, c]; L = 0: the model has none; of CTC ones
    in the frame of each token. log_probs_TV: of each step, after the tokens before it; of CTC of each token's frame.
    frames, log_probs_FV: of CTC. source: tokens of the text that is read."""

    tokens: list[int]
    outputs: Sequence[str]
    map_LhT: Array
    log_probs_TV: Array
    frames: list[int] | None
    log_probs_FV: Array | None
    source: list[str]

    @property
    def written(self) -> list[str]:
        """The tokens by name."""
        return [self.outputs[token] for token in self.tokens]

    def steps(self, count: int) -> list[dict[str, Any]]:
        """Of each token its probability (and of CTC its frame), and the `count` most probable outputs there."""
        steps: list[dict[str, Any]] = []
        for place, (token, log_probs_V) in enumerate(zip(self.tokens, self.log_probs_TV, strict=True)):
            top = np.argsort(-log_probs_V, kind="stable")[:count]
            steps.append({
                **self._output(token, log_probs_V),
                **({"frame": self.frames[place]} if self.frames is not None else {}),
                "top": [self._output(int(k), log_probs_V) for k in top],
            })  # fmt: skip
        return steps

    def columns(self) -> list[dict[str, Any]] | None:
        """The most probable output of each frame of CTC."""
        if self.log_probs_FV is None:
            return None
        return [self._output(int(each_V.argmax()), each_V) for each_V in self.log_probs_FV]

    def _output(self, token: int, log_probs_V: Array) -> dict[str, Any]:
        return {"token": self.outputs[token], "probability": float(np.exp(log_probs_V[token]))}


@torch.no_grad()
def read(model: SequenceModel, tokenizers: Tokenizers, source_1: Tensor, tokens: Sequence[int]) -> Reading:
    """Return what the model did while it wrote `tokens` (with their end, if they have one) for one source: an image
    [1, C, H, W], or ids [1, M]. Call it with the model in evaluation mode. No tokens give no maps."""
    outputs, names = (*tokenizers.target.vocabulary, BLANK), list[str]()
    if not model.config.reads_images:
        assert tokenizers.source is not None
        names = [tokenizers.source.vocabulary[token] for token in source_1[0].tolist()]
    if not model.config.decodes_steps:
        return _by_ctc(model, source_1, [token for token in tokens if token != END], outputs)
    text_1T = torch.tensor([list(tokens)], dtype=torch.long, device=source_1.device)
    log_probs_TV = model(source_1, shifted(text_1T)[0])[0].double().log_softmax(-1).cpu().numpy()
    map_LhT = torch.zeros(0, 1, len(tokens), 1)
    if tokens and model.alignment_names:
        map_LhT = alignment(model, source_1, text_1T)[0]
        if model.config.reads_images:
            map_LhT = over_patches(model, map_LhT, source_1)
    return Reading(list(tokens), outputs, map_LhT.float().cpu().numpy(), log_probs_TV, None, None, names)


def _by_ctc(model: SequenceModel, images_1: Tensor, tokens: list[int], outputs: Sequence[str]) -> Reading:
    """Each token's frame as a map [1, 1, T, r, c] of ones and zeros, and the probabilities there."""
    assert isinstance(model, ImageToText)
    logits_FV = model(images_1)[0]
    frames = ctc_frames(logits_FV, tokens, model.config.blank_id)
    rows, columns = model.encoder.grid
    is_frame_TF = torch.nn.functional.one_hot(torch.tensor(frames, dtype=torch.long), len(logits_FV)).float()
    down = rows if model.config.ctc_rows == "all" else 1
    map_Trc = is_frame_TF.unflatten(1, (columns, down)).transpose(1, 2)
    log_probs_FV = logits_FV.double().log_softmax(-1).cpu().numpy()
    return Reading(tokens, outputs, map_Trc[None, None].numpy(), log_probs_FV[frames], frames, log_probs_FV, [])
