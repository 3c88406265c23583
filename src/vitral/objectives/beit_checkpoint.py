"""Load a BEiT with its head of visual tokens from a checkpoint of BEiT's repository or of transformers."""

from __future__ import annotations

from pathlib import Path

from vitral.errors import UserError
from vitral.objectives.beit import BEiT
from vitral.objectives.beit_config import BeitConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.weights import hf, ssl_checkpoints
from vitral.weights.config import ReadOptions
from vitral.weights.convert import parse_checkpoint, read_external
from vitral.weights.keymap import translate
from vitral.weights.read_files import read
from vitral.weights.tensors import check_match

_RULES = {"beit": ssl_checkpoints.beit_head_rules, "hf_beit": hf.beit_head_rules}


def load_beit(path: str | Path, options: ReadOptions | None = None) -> BEiT:
    """The objective with encoder, mask token and head of a checkpoint, in evaluation mode: for `logits`. The tokenizer
    is not in such files, so that its codes have no meaning.

    Raises UserError for files without a head of visual tokens, and for weights that are damaged, unknown, or do not
    fit.
    """
    path, options = Path(path), options or ReadOptions()
    found = parse_checkpoint(read(path), options)
    rules = _RULES.get(found.format.name, list)
    head = translate(rules(), {name: found.source.tensors[name] for name in found.dropped}).tensors
    if head.keys() != {"mask_token", "predict.weight", "predict.bias"}:
        raise UserError(
            "no checkpoint of a BEiT in pre-training", where=str(path), got=found.format.what,
            expected="an encoder, a mask token and a head of visual tokens",
        )  # fmt: skip
    model = read_external(path, options).model
    config = BeitConfig(kind="beit", codes=len(head["predict.bias"]))
    objective = BEiT(lambda: model, config, ObjectiveContext(1))
    own = {name: tensor for name, tensor in objective.state_dict().items() if name in head}
    check_match(own, head, str(path))
    objective.load_state_dict(head, strict=False)
    return objective.eval()
