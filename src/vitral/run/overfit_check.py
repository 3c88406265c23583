"""Overfit a few samples first: what a model cannot learn by heart from a handful of texts, no long run will teach it.

Shape letters: B samples, C channels, H W image height and width, T positions of the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitral.data.text.batches import SplitIds
from vitral.data.text.dataset import TextSplit
from vitral.data.text.tokenizer import END
from vitral.data.text.tokenizer_file import Tokenizers
from vitral.errors import UserError, plural
from vitral.models.create import build_sequence_model
from vitral.models.search_config import SearchConfig
from vitral.models.sequence_config import SequenceConfig
from vitral.models.sequence_model import SequenceModel
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.sequence import SequenceLoss
from vitral.objectives.sequence_config import SequenceLossConfig
from vitral.optim.clipping import clip_gradients
from vitral.optim.config import OptimConfig
from vitral.optim.optimizer import make_optimizer
from vitral.structs import Batch, View
from vitral.tasks.text_writing import write
from vitral.training.metrics_log import log

STEPS = 200
_EVERY = 20  # steps between two tries
_SHOWN = 3


def overfit_check(
    model: SequenceModel, source: Tensor, ids: SplitIds, places: Sequence[int], split: TextSplit,
    tokenizers: Tokenizers, optim: OptimConfig,
) -> int:  # fmt: skip
    """Train a copy of `model` on these samples alone, for at most 200 steps; return after how many it writes each of
    them exactly, greedily.

    source: their images or ids, as the model takes them. No augmentation, dropout or label smoothing; the learning rate
    is constant at `optim.lr`. The model and the random state are left as they are. Raises UserError where a sample
    stays wrong, with what its data look like.
    """
    devices = [source.device] if source.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        index_B = np.array(places)
        text_BT = ids.target.padded(index_B, int(ids.target.length_N[index_B].max())).to(source.device)
        copy = build_sequence_model(without_dropout(model.config)).to(source.device)
        copy.load_state_dict(model.state_dict())
        loss = SequenceLoss(lambda: copy, SequenceLossConfig(label_smoothing=0), ObjectiveContext(STEPS, 1.0, 0))
        optimizer = make_optimizer(loss, optim)
        batch = _batch(source, text_BT, model.config)
        texts, rights = list[str](), [tokenizers.target.decode(row) for row in text_BT.tolist()]
        for step in range(1, STEPS + 1):
            out = loss.train()({"train": batch}, step)
            (out.loss_sum / out.weight).backward()
            clip_gradients(loss.parameters(), optim.clip, each=optim.clip_each)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % _EVERY == 0:
                texts = _written(copy, tokenizers, source, text_BT.shape[1])
                if texts == rights:
                    log.info("check: %s learned by heart after %d steps", plural(len(places), "sample"), step)
                    return step
    raise _failed(source, text_BT, texts, rights, [split.names[place] for place in places], optim.lr)


def without_dropout(config: SequenceConfig) -> SequenceConfig:
    """The same architecture, with every dropout and stochastic depth at 0."""
    changes = {name: 0.0 for name in ("dropout", "drop_path") if name in type(config).model_fields}
    encoder = getattr(config, "encoder", None)
    if encoder is not None:
        changes["encoder"] = encoder.model_copy(update={"dropout": 0.0, "drop_path": 0.0})
    return config.model_copy(update=changes)


def _batch(source: Tensor, text_BT: Tensor, config: SequenceConfig) -> Batch:
    targets, numbers_B = {"text": text_BT}, torch.arange(len(text_BT))
    if not config.reads_images:
        return Batch((), {**targets, "source": source}, numbers_B)
    same_B33 = torch.eye(3, device=source.device).expand(len(source), 3, 3)
    return Batch((View(source, same_B33),), targets, numbers_B)


def _written(model: SequenceModel, tokenizers: Tokenizers, source: Tensor, longest: int) -> list[str]:
    """What the model writes; texts without a limit of their own would be as long as the model allows. Nothing where it
    has diverged."""
    search = SearchConfig(max_length=longest)
    try:
        return [best.text for best, *_ in write(model.eval(), tokenizers, source, search)]
    except UserError:
        return [""] * len(source)


def _failed(
    source: Tensor, text_BT: Tensor, texts: Sequence[str], rights: Sequence[str], names: Sequence[str], lr: float
) -> UserError:
    """The error: how many are wrong, the first of them, and what to look at, certain causes first."""
    wrong = [place for place, text in enumerate(texts) if text != rights[place]]
    shown = [f"{names[place]}: {texts[place]!r} in place of {rights[place]!r}" for place in wrong[:_SHOWN]]
    causes = causes_of(source, text_BT, names)
    look = "Do source and target belong together, line by line, and is nothing cut off?"
    if source.ndim == 4:
        look = (
            "Look at the images at the model's size: can they be read, do they show these texts, and in this order? "
            "Are targets longer than what is shown?"
        )
    other = f"Else try another learning rate (optim.lr={lr:g} now) or a larger model; objective.check=0 skips this."
    return UserError(
        f"the model cannot learn {plural(len(names), 'training sample')} by heart in {STEPS} steps",
        where="objective.check", got=f"{len(wrong)} wrong: " + "; ".join(shown), hint=" ".join([*causes, look, other]),
    )  # fmt: skip


def causes_of(source: Tensor, text_BT: Tensor, names: Sequence[str]) -> list[str]:
    """Return sentences on what makes these samples impossible to learn: equal sources with different texts, images of
    one color, empty texts."""
    found: list[str] = []
    for place in range(len(names)):
        other = next((k for k in range(place) if torch.equal(source[k], source[place])), None)
        if other is not None and not torch.equal(text_BT[other], text_BT[place]):
            found.append(f"{names[other]} and {names[place]} are identical sources with different texts.")
            break
    if source.ndim == 4:
        flat_BX = source.flatten(1)
        blank = [name for name, row in zip(names, flat_BX, strict=True) if row.max() == row.min()]
        if blank:
            found.append(f"{plural(len(blank), 'image')} of one color only, such as {blank[0]}.")
    empty = [name for name, row in zip(names, text_BT, strict=True) if int(row[0]) == END]
    if empty:
        found.append(f"{plural(len(empty), 'empty text')}, such as that of {empty[0]}.")
    return found
