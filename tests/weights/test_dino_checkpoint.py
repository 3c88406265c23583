"""Training checkpoints in the layouts of DINO's and iBOT's repositories, written here by their names."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.objectives.distilled import make, views
from vitral.errors import UserError
from vitral.objectives.self_distillation import SelfDistillation

FLOAT = torch.float32


def published(objective: SelfDistillation, *, shared: bool = False) -> dict[str, Any]:
    """What the repositories save of these networks: student under DDP, teacher bare, both with wrapped encoders."""
    state = objective.state_dict()

    def network(prefix: str, encoder: str, head: str) -> dict[str, torch.Tensor]:
        found = {f"{prefix}backbone.{n.removeprefix(encoder)}": t for n, t in state.items() if n.startswith(encoder)}
        found |= {f"{prefix}head.{n.removeprefix(head)}": t for n, t in state.items() if n.startswith(head)}
        if shared:
            found |= {n.replace("last_layer.", "last_layer2."): t for n, t in found.items() if "last_layer." in n}
        return found

    student = network("module.", "model.", "head.")
    tree: dict[str, Any] = {
        "student": student, "teacher": network("", "teacher.module.", "teacher_head.module."), "epoch": 7,
        "optimizer": {"state": {}, "param_groups": []}, "fp16_scaler": {}, "args": Namespace(arch="vit_small"),
    }  # fmt: skip
    if "mask_token" in state:
        student["module.backbone.masked_embed"] = state["mask_token"][None]
        tree["ibot_loss"] = {"center": state["center_K"][None], "center2": state["patch_center_K"][None, None]}
    else:
        tree["dino_loss"] = {"center": state["center_K"][None]}
    return tree


def scrambled(**keys: Any) -> SelfDistillation:
    """All weights other ones, student and teacher too."""
    objective = make(**keys, dtype=FLOAT)
    with torch.no_grad():
        for name, tensor in objective.state_dict().items():
            tensor.normal_(std=0.5)
            assert tensor.is_floating_point(), name
    return objective


@pytest.mark.parametrize("keys", [{"kind": "dino"}, {"kind": "ibot"}, {"kind": "ibot", "patch_head": "last_layer"}])
def test_a_published_layout_is_taken_over_whole(keys: dict[str, Any]) -> None:
    theirs = scrambled(**keys)
    shared = keys == {"kind": "ibot"}
    torch.save(published(theirs, shared=shared), "checkpoint.pth")
    ours = make(**keys, dtype=FLOAT, checkpoint="checkpoint.pth")
    want = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, want[name]), name
    theirs.eval()
    ours.eval()
    batch = views(6, dtype=FLOAT)
    assert torch.equal(ours({"train": batch}, 0).loss, theirs({"train": batch}, 0).loss)


def test_heads_with_batch_norm_leave_their_running_statistics() -> None:
    theirs = scrambled(head_norm="batch")
    tree = published(theirs)
    for network, prefix in (("student", "module."), ("teacher", "")):
        for place in (1, 4):
            for name in ("running_mean", "running_var"):
                tree[network][f"{prefix}head.mlp.{place}.{name}"] = torch.zeros(10)
            tree[network][f"{prefix}head.mlp.{place}.num_batches_tracked"] = torch.tensor(3)
    torch.save(tree, "checkpoint.pth")
    ours = make(head_norm="batch", dtype=FLOAT, checkpoint="checkpoint.pth")
    assert torch.equal(ours.head.last_layer.weight_v, theirs.head.last_layer.weight_v)


def test_what_is_missing_or_left_over_is_refused_by_name() -> None:
    whole = published(scrambled(kind="ibot"))
    base: dict[str, Any] = {"kind": "ibot", "dtype": FLOAT, "checkpoint": "checkpoint.pth"}

    def refused(change: dict[str, Any], match: str, **keys: Any) -> None:
        torch.save({**whole, **change}, "checkpoint.pth")
        with pytest.raises(UserError, match=match):
            make(**{**base, **keys})

    teacher = whole["teacher"]
    without = {name: tensor for name, tensor in teacher.items() if name != "head.mlp.2.bias"}
    refused({"teacher": without}, r"1 missing \(teacher_head\.module\.mlp\.2\.bias\)")
    refused({"teacher": {**teacher, "backbone.extra": torch.ones(2)}}, r"1 unexpected \(teacher\.backbone\.extra\)")
    refused({"student": None}, "no student")
    refused({"ibot_loss": None}, r"2 missing \(center_K, patch_center_K\)")
    refused({}, "other shape", out_dim=13)
    refused({}, r"missing .*last_layer2", patch_head="last_layer")
    other = {**teacher, **{n.replace("layer.", "layer2."): t + 1 for n, t in teacher.items() if "last_layer." in n}}
    refused({"teacher": other}, r"2 unexpected \(teacher_head\.module\.last_layer2")
    with pytest.raises(UserError, match="no such file"):
        make(checkpoint=str(Path("absent.pth")))
