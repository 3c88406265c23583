"""`objective.check`: a few samples are learned by heart first, and the run is the same with and without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.run.text_runs import CTC_STRIPS, SMALL, STRIPS, text_config, text_run
from vitral.errors import UserError
from vitral.models.create import create_sequence_model
from vitral.run.overfit_check import causes_of, without_dropout
from vitral.run.text_run import TextRun
from vitral.weights.tensors import load_tensors

pytest.importorskip("jiwer")


def pairs(folder: Path, rows: list[tuple[str, str]]) -> dict[str, Any]:
    """A configuration of a run on these training pairs."""
    folder.mkdir(exist_ok=True)
    lines = [
        f"{source}\t{target}\t{'test' if number == 0 else 'train'}" for number, (source, target) in enumerate(rows)
    ]
    (folder / "pairs.tsv").write_text("\n".join(["source\ttarget\tsplit", *lines]) + "\n", encoding="utf-8")
    data = {"source": "pairs", "path": str(folder / "pairs.tsv"), "max_source": 8, "max_target": 8}
    return {**SMALL, "data": data, "train": {"steps": 2, "batch_size": 8}, "check": {"skip": True}}


GOOD = [("abc", "cba"), ("abd", "dba"), ("bcd", "dcb"), ("dab", "bad"), ("cad", "dac"), ("bca", "acb")]


def test_a_good_set_passes_and_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, found = pairs(tmp_path, [*GOOD, *GOOD]), []
    for check in (0, 5):
        torch.manual_seed(7)
        with caplog.at_level("INFO", "vitral"):
            text_run(tmp_path, base, objective__check=check, out=str(tmp_path / f"run{check}"), model__dropout=0.2)
        found.append((load_tensors(tmp_path / f"run{check}" / "model" / "model.safetensors")[0], torch.rand(1)))
    assert "5 samples learned by heart after" in caplog.text
    assert torch.equal(found[0][1], found[1][1])
    assert all(torch.equal(tensor, found[1][0][name]) for name, tensor in found[0][0].items())


def test_two_equal_sources_with_different_targets_stop_the_run(tmp_path: Path) -> None:
    base = pairs(tmp_path, [("abc", "cba"), *GOOD[1:], ("dab", "abd")])
    with pytest.raises(UserError, match="cannot learn 6 training samples") as caught:
        text_run(tmp_path, base, objective__check=6)
    assert "identical sources with different texts" in str(caught.value)
    assert "1 wrong" in str(caught.value)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("cut", [{}, {"data__max_target": 4, "data__truncate": True}], ids=["whole", "cut"])
@pytest.mark.parametrize("base", [STRIPS, CTC_STRIPS], ids=["decoder", "ctc"])
def test_images_are_learned_by_heart(tmp_path: Path, base: dict[str, Any], cut: dict[str, Any]) -> None:
    parts = TextRun(text_config(tmp_path, base, objective__check=3, optim__lr=2e-3, **cut))
    parts.state()
    parts.close()


def test_what_makes_samples_impossible_is_named() -> None:
    images, text_BT = torch.rand(4, 1, 4, 4), torch.tensor([[5, 2], [6, 2], [2, 0], [5, 2]])
    assert len(causes_of(images, text_BT, list("abcd"))) == 1  # an empty text
    images[3] = images[0]
    assert len(causes_of(images, text_BT, list("abcd"))) == 1  # equal images with equal texts are fine
    images[1] = images[0]
    images[2] = 0.5
    found = " ".join(causes_of(images, text_BT, list("abcd")))
    assert "a and b are identical" in found
    assert "1 image of one color only, such as c" in found


def test_no_dropout_is_left() -> None:
    for name, options in (
        ("transformer_tiny", {"source_vocabulary": 9}), ("lstm_tiny", {"source_vocabulary": 9, "layers": 2}),
        ("vit_text_micro_patch2_8x40", {}),
    ):  # fmt: skip
        model = create_sequence_model(name, vocabulary=9, dropout=0.3, **options)
        config = without_dropout(model.config)
        tree = json.dumps(config.model_dump(mode="json"))
        assert '"dropout": 0.0' in tree
        assert "0.3" not in tree
