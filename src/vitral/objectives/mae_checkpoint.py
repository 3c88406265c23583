"""Load a complete masked autoencoder from a checkpoint of MAE's repository or of transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.objectives.config import MaeConfig
from vitral.objectives.mae import MAE
from vitral.objectives.objective import ObjectiveContext
from vitral.weights import hf, ssl_checkpoints
from vitral.weights.config import ReadOptions
from vitral.weights.convert import parse_checkpoint, read_external
from vitral.weights.keymap import translate
from vitral.weights.read_files import read
from vitral.weights.tensors import check_match

_RULES = {"mae": ssl_checkpoints.mae_decoder_rules, "hf_mae": hf.mae_decoder_rules}
_PREFIX = "decoder_"


def load_mae(
    path: str | Path, options: ReadOptions | None = None, *, decoder_heads: int = 16, norm_pix_loss: bool = True
) -> MAE:
    """The objective with all weights of a pretraining checkpoint, in evaluation mode: for `reconstruct`.

    Files say neither how many attention heads the decoder has (all published ones have 16) nor whether it predicts
    standardized patches. Raises UserError for files without a decoder, and for weights that are damaged, unknown, or do
    not fit.
    """
    path, options = Path(path), options or ReadOptions()
    found = parse_checkpoint(read(path), options)
    rules = _RULES.get(found.format.name)
    if rules is None:
        raise UserError(
            "no checkpoint of a whole masked autoencoder", where=str(path), got=found.format.what,
            expected="encoder and decoder, as MAE's repository or transformers has them",
        )  # fmt: skip
    decoder = translate(rules(), {name: found.source.tensors[name] for name in found.dropped})
    tensors = {name if name == "mask_token" else _PREFIX + name: value for name, value in decoder.tensors.items()}
    places = tensors.pop(f"{_PREFIX}pos_embed", None)
    width = len(tensors[f"{_PREFIX}embed.weight"])
    depth = len({name.split(".")[1] for name in tensors if name.startswith(f"{_PREFIX}blocks.")})
    config = MaeConfig(
        kind="mae", decoder_width=width, decoder_depth=depth, decoder_heads=decoder_heads, norm_pix_loss=norm_pix_loss
    )
    model = read_external(path, options).model
    objective = MAE(lambda: model, config, ObjectiveContext(1))
    _check_places(objective, places, str(path))
    tensors |= {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= dict.fromkeys(decoder.unexpected, torch.empty(0))
    check_match(objective.state_dict(), tensors, str(path))
    objective.load_state_dict(tensors)
    return objective.eval()


def _check_places(objective: MAE, places_1TD: Tensor | None, where: str) -> None:
    """Stored positions have to be the fixed ones, which are computed here; a class token's are zeros."""
    own_ND = objective.decoder_places
    if places_1TD is None:
        return
    extra = places_1TD.shape[1] - len(own_ND)
    if extra < 0 or not torch.allclose(places_1TD[0, extra:], own_ND, atol=1e-4) or places_1TD[0, :extra].any():
        raise UserError("other positions than fixed sines and cosines", where=where, got="decoder_pos_embed")
