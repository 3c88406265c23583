"""Whole runs of an objective with two streams: what they leave, resume, replay, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.entropy import Entropy, EntropyConfig, kinds_kept, registered
from tests.helpers import TINY, shape_image, write_colors, write_shapes
from tests.run.power_cut import killed_and_resumed
from vitral.cli.main import main
from vitral.config_keys import as_word, describe
from vitral.data.loader import StreamLoader
from vitral.errors import RunFailed, UserError
from vitral.objectives.base_config import ViewedConfig
from vitral.objectives.config import SupervisedConfig
from vitral.run.config import RunConfig, load_config, streams_of
from vitral.run.prepare import prepare
from vitral.run.register_objective import register_objective
from vitral.run.replay_step import replay
from vitral.run.train import run
from vitral.structs import Batch
from vitral.training.metrics_log import MetricsLog
from vitral.weights.tensors import load_tensors

FEW = {**TINY, "objective.kind": "entropy", "data.labels_per_class": 5, "data.unlabeled_ratio": 2}
PHOTOS = {
    **TINY, "objective.kind": "entropy", "data.path": "photos", "data.source": "folder", "data.unlabeled": "others",
    "data.image_size": 16, "model.patch_size": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _entropy() -> Iterator[None]:
    with registered():
        yield


def start(out: str, keys: dict[str, Any], **more: Any) -> dict[str, Any]:
    named = {key.replace("__", "."): value for key, value in more.items()}
    return run(load_config("digits", {**keys, **named, "out": out}))


def weights(out: str) -> dict[str, torch.Tensor]:
    return load_tensors(Path(out) / "model" / "model.safetensors")[0]


def assert_equal_weights(one: str, other: str) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def photos(count: int = 8) -> None:
    """photos/train, photos/test with shapes of 40 x 40 pixels, others with more of them, unlabeled."""
    write_shapes(Path("photos/train"), 6)
    write_shapes(Path("photos/test"), 3, first=100)
    Path("others").mkdir()
    for number in range(200, 200 + count):
        shape_image("circle", number).save(f"others/{number}.png")


def test_a_run_counts_all_images_and_says_where_they_came_from() -> None:
    start("a", FEW, train__log_every=1)
    rows = [row for row in MetricsLog.read(Path("a")) if "samples_per_second" in row]
    assert [row["epoch"] for row in rows] == [0.32, 0.64, 0.96], "of 50 labeled images, 16 a step"
    for row in rows:
        assert row["samples_per_second"] * row["step_ms"] / 1000 == pytest.approx(48, rel=0.01)
        assert row["entropy"] > 0
    data = json.loads(Path("a/model/config.json").read_text(encoding="utf-8"))["provenance"]["data"]
    assert data["counts"] == {"train": 50, "val": 144, "test": 360, "unlabeled": 1243}
    assert (data["labels_per_class"], data["unlabeled_ratio"], data["unlabeled"]) == (5, 2, None)
    assert len(data["unlabeled_fingerprint"]) == 16
    log = Path("a/train.log").read_text(encoding="utf-8")
    assert "1243 unlabeled" in log
    assert "of 16 labeled and 32 unlabeled images" in log


def test_streams_of_a_run_in_numbers() -> None:
    """What an estimate of memory needs: views and samples of each stream."""
    config = load_config("digits", {**FEW, "augment.mixup": 0.5, "augment.repeated_aug": 2, "data.balance": "class"})
    prepared = prepare(config)
    prepared.close()
    found = streams_of(prepared.config, prepared.architecture)
    assert {name: (s.batch_size, len(s.views), s.labeled) for name, s in found.items()} == {
        "labeled": (16, 1, True), "unlabeled": (32, 1, False),
    }  # fmt: skip
    assert [(s.augment.mixup, s.augment.repeated_aug, s.balance) for s in found.values()] == [
        (0.5, 2, "class"), (0.0, 1, "none"),
    ]  # fmt: skip
    single = prepared.config.model_copy(update={"objective": SupervisedConfig()})
    assert {name: s.batch_size for name, s in streams_of(single, prepared.architecture).items()} == {"train": 16}


def test_a_killed_run_goes_on_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"train__micro_batch": 5, "train__steps": 6, "train__save_seconds": 0.0, "augment__mixup": 0.5}
    start("whole", FEW, **more)
    killed_and_resumed(lambda: start("parts", FEW, **more), "parts", 4, monkeypatch)
    assert_equal_weights("whole", "parts")


def test_other_unlabeled_data_refuse_a_resume() -> None:
    photos()
    start("a", PHOTOS)
    shape_image("cross", 300).save("others/300.png")
    with pytest.raises(UserError, match="the data have changed since this checkpoint"):
        run(load_config("a/config.yaml", {"out": "a", "resume": True}))
    Path("others/300.png").unlink()
    run(load_config("a/config.yaml", {"out": "a", "resume": True}))


def test_test_images_among_the_unlabeled_ones_are_refused() -> None:
    """An equal one, and one that was resized and saved anew."""
    photos()
    shutil.copy("photos/test/circle/100.png", "others/copy.png")
    with pytest.raises(
        UserError, match=r"(?s)unlabeled-leak: .*1 with equal pixels.*check\.allow=unlabeled-leak"
    ) as one:
        start("a", PHOTOS)
    assert "circle/100.png (test, circle)" in str(one.value)
    assert "copy.png (unlabeled, no label)" in str(one.value)
    Path("others/copy.png").unlink()
    Image.open("photos/test/cross/101.png").save("others/again.jpg", quality=92)
    with pytest.raises(UserError, match=r"unlabeled-leak: .*0 with equal pixels, [1-9]\d* that look alike"):
        start("a", PHOTOS)
    assert not Path("a").exists()
    start("a", PHOTOS, check__allow=["unlabeled-leak"])
    start("b", PHOTOS, check__skip=True)


def test_unlabeled_images_of_another_size_are_refused() -> None:
    """Where all training images have one."""
    write_colors(Path("photos"), count=8, size=(12, 9))
    write_colors(Path("others"), "x", 3, (12, 9), first=20)
    Image.new("RGB", (14, 9), (1, 2, 3)).save("others/x/wide.png")
    said = r"unlabeled-size: 1 unlabeled image of other size \(9 x 14\) than all training images \(9 x 12\)"
    with pytest.raises(UserError, match=said):
        start("a", PHOTOS)
    start("a", PHOTOS, check__allow=["unlabeled-size"])


def test_damaged_unlabeled_images_count() -> None:
    photos()
    Path("others/cut.png").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"(?s)damaged: .*cut\.png"):
        start("a", PHOTOS)
    start("a", PHOTOS, data__max_bad=1)
    data = json.loads(Path("a/model/config.json").read_text(encoding="utf-8"))["provenance"]["data"]
    assert data["counts"]["unlabeled"] == 8


def test_a_bad_step_is_replayed_with_the_images_of_both_streams(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = StreamLoader.batch

    def broken(self: StreamLoader, step: int) -> Batch:
        made = make(self, step)
        if step == 2 and self.labels_N is None:
            made.views[0].images_BCHW[3] = float("nan")
        return made

    monkeypatch.setattr(StreamLoader, "batch", broken)
    with pytest.raises(RunFailed, match="the images of the stream unlabeled"):
        start("a", FEW, train__max_nonfinite_steps=1)
    row = json.loads(Path("a/nonfinite/steps.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (len(row["keys"]), len(row["unlabeled_keys"]), max(row["unlabeled_keys"]) < 1243) == (16, 32, True)
    found = replay(Path("a"))
    assert found["first_not_finite"] == f"the images of the stream unlabeled, samples [{row['unlabeled_keys'][3]}]"
    assert (len(found["images"]), len(found["unlabeled_images"])) == (16, 32)
    assert main(["doctor", "a"]) == 0
    assert found["unlabeled_images"][3] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"data.labels_per_class": None}, "expected data.unlabeled=PATH or data.labels_per_class=N, got neither"),
        ({"data.unlabeled": "x"}, "got data.unlabeled and data.labels_per_class"),
        ({"data.labels_per_class": 500}, "at most 125"),
        ({"data.unlabeled": "nowhere", "data.labels_per_class": None}, "data.unlabeled: no such folder"),
        ({"data.shots": 9}, "data.shots leaves out the images"),
        ({"objective.kind": "supervised", "data.unlabeled_ratio": 1}, "data.shots=N trains on N images of each class"),
        (
            {"objective.kind": "supervised", "data.labels_per_class": None},
            "so data.unlabeled_ratio would have no effect",
        ),
        (
            {"objective.kind": "mae", "data.labels_per_class": None, "data.unlabeled": "x"},
            "so data.unlabeled, data.unl",
        ),
    ],
)
def test_bad_keys_are_one_message(keys: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{key}={as_word(value)}" for key, value in {**FEW, **keys, "out": "a"}.items()]
    assert main(["train", "digits", *words]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert not Path("a").exists()


def test_a_registered_kind_is_a_kind_like_any_other() -> None:
    names = {key.name: key for key in describe(RunConfig)}
    assert "entropy" in names["objective.kind"].type_text
    assert "entropy" in names["objective.entropy_weight"].help.partition(":")[0].split(", ")
    with pytest.raises(UserError, match=r"(?s)of this kind exists.*got: +entropy"):
        register_objective(EntropyConfig, Entropy)
    with pytest.raises(UserError, match="needs a field `kind`"):
        register_objective(ViewedConfig, Entropy)
    with pytest.raises(UserError, match="entropy_weigth"):
        load_config("digits", {**FEW, "objective.entropy_weigth": 1.0})


def test_the_page_about_streams_runs_as_it_stands() -> None:
    page = (Path(__file__).parents[2] / "docs" / "streams.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    with kinds_kept():
        exec(
            compile(code, "streams.md", "exec", dont_inherit=True), {"__name__": "streams"}
        )  # the documentation itself
    rows = MetricsLog.read(Path("runs/confident"))
    assert rows[-1]["step"] == 30
    assert any("entropy" in row for row in rows)
