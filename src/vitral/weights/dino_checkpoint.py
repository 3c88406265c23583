"""Training checkpoints of DINO's and iBOT's repositories: student and teacher with their heads, and the centers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vitral.errors import UserError
from vitral.weights.keymap import translate
from vitral.weights.read_files import read_tree
from vitral.weights.ssl_checkpoints import Tensors
from vitral.weights.timm import vit_rules

_WRAPPERS = ("module.", "_orig_mod.")  # prefixes of wrapping modules
# Ours by theirs: the networks, and the moving means in the state of the losses.
_NETWORKS = {"student": ("model.", "head."), "teacher": ("teacher.module.", "teacher_head.module.")}
_CENTRES = {
    ("dino_loss", "center"): "center_K",
    ("ibot_loss", "center"): "center_K",
    ("ibot_loss", "center2"): "patch_center_K",
}
# Of batch norms, which are of the batch at hand here.
_UNUSED = ("running_mean", "running_var", "num_batches_tracked")


def read_distilled(path: Path) -> dict[str, Tensor]:
    """The tensors of a training checkpoint, by the names of our objectives; those that are not known keep their own.

    Encoders through the rules of timm's names, heads as they are (`head.mlp.0`, `head.last_layer.weight_g`), iBOT's
    mask token, and the centers as vectors. Nothing of the file is run. Raises UserError for a file without both
    networks.
    """
    tree = read_tree(path)
    absent = [name for name in _NETWORKS if not isinstance(tree.get(name), Mapping)]
    if absent:
        raise UserError(
            "not a training checkpoint of DINO or iBOT", where=str(path), got=f"no {' and no '.join(absent)}",
            hint="init= takes an encoder alone.",
        )  # fmt: skip
    found: dict[str, Tensor] = {}
    for name, places in _NETWORKS.items():
        tensors = {key: tensor for key, tensor in tree[name].items() if isinstance(tensor, Tensor)}
        for prefix in _WRAPPERS:
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
        found |= _network(tensors, name, *places)
    for (loss, key), ours in _CENTRES.items():
        state: Any = tree.get(loss)
        if isinstance(state, Mapping) and isinstance(state.get(key), Tensor):
            found[ours] = state[key].flatten()
    return found


def _network(tensors: Tensors, name: str, encoder: str, head: str) -> dict[str, Tensor]:
    backbone = {n.removeprefix("backbone."): tensor for n, tensor in tensors.items() if n.startswith("backbone.")}
    found: dict[str, Tensor] = {}
    if name == "student" and "masked_embed" in backbone:
        found["mask_token"] = backbone.pop("masked_embed").flatten()
    translated = translate(vit_rules(backbone), backbone)
    found |= {f"{encoder}{n}": tensor for n, tensor in translated.tensors.items()}
    found |= {f"{name}.backbone.{n}": backbone[n] for n in translated.unexpected}
    for n, tensor in tensors.items():
        if n.startswith("head."):
            if n.rsplit(".", 1)[-1] not in _UNUSED:
                found[f"{head}{n.removeprefix('head.')}"] = tensor
        elif not n.startswith("backbone."):
            found[f"{name}.{n}"] = tensor
    return found
