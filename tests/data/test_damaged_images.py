"""Damaged images are counted, named and left out up to a limit; the others are exactly as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import TINY, random_model, write_colors
from vitral.data.config import DataConfig, DataSource
from vitral.data.damaged_images import find_damage, without_damage
from vitral.data.dataset import Dataset
from vitral.data.sources import open_dataset
from vitral.errors import UserError
from vitral.run.command_options import EvalOptions
from vitral.run.config import load_config
from vitral.run.evaluate import evaluate
from vitral.run.train import run

RUN = {**TINY, "model.name": "vit_micro_patch2_8", "model.patch_size": None, "data.image_size": 8}


def pets(bad: tuple[str, ...] = ("cat/3.png", "dog/0.png")) -> Dataset:
    write_colors(Path("pets"), count=12)
    for name in bad:
        path = Path("pets") / name
        path.write_bytes(path.read_bytes()[:60])
    return open_dataset(DataConfig(path="pets"), hold_out=False)


def test_what_is_left_is_unchanged_and_what_is_not_is_named() -> None:
    data = pets()
    damage = find_damage(data)
    names = data.splits["train"].names
    assert {index: names[index] for index in damage["train"]} == {5: "cat/3.png", 12: "dog/0.png"}
    with pytest.raises(UserError, match=r"(?s)2 damaged images.*cat/3\.png.*dog/0\.png.*at most 1 \(data\.max_bad\)"):
        without_damage(data, damage, 1)
    kept = without_damage(data, damage, 2)
    assert kept.splits["train"].names == [name for name in names if name not in ("cat/3.png", "dog/0.png")]
    assert kept.splits["train"].class_counts(2).tolist() == [11, 11]
    assert all(kept.splits["train"].read(i).shape == (3, 12, 12) for i in range(22))
    assert "2 damaged images left out: cat/3.png" in kept.notes[-1]
    assert kept.fingerprint == data.fingerprint
    assert without_damage(data, {}, 0) is data


def test_a_class_is_never_lost_in_silence() -> None:
    data = pets(tuple(f"dog/{number}.png" for number in range(12)))
    with pytest.raises(UserError, match="nothing but damaged images of dog in train"):
        without_damage(data, find_damage(data), 12)


def test_runs_and_evaluations_leave_out_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    pets()
    with pytest.raises(UserError, match=r"(?s)(cat/3|dog/0)\.png"):
        run(load_config("small", {**RUN, "data": "pets", "out": "strict", "check.allow": ["duplicates"]}))
    keys = {**RUN, "data": "pets", "out": "run", "data.max_bad": 2, "check.allow": ["duplicates"]}
    summary = run(load_config("small", keys))
    again = evaluate("run")
    assert (again["top1"], again["count"], again["loss"]) == (summary["top1"], summary["count"], summary["loss"])
    named = evaluate("run", EvalOptions(data=DataSource(path="pets")))
    assert (named["split"], named["count"], named["loss"]) == ("val", again["count"], again["loss"])
    random_model(Path("model"), ("cat", "dog"), in_channels=3)
    with pytest.raises(UserError, match=r"(cat/3|dog/0)\.png"):
        evaluate("model", EvalOptions(data=DataSource(path="pets")))
    found = evaluate("model", EvalOptions(data=DataSource(path="pets", max_bad=2)))
    assert found["count"] == 22
    assert [line.split(":")[0] for line in found["skipped"]] == ["cat/3.png", "dog/0.png"]
