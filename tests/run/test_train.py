"""Whole runs: what they leave, that they repeat, stop, go on and are refused as promised."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import vitral
from tests.disk import disk_full_beyond
from tests.helpers import edit_config, random_model, skip_unless_built, write_colors
from vitral.config import dump_yaml, load_yaml
from vitral.data.loader import StreamLoader
from vitral.errors import Interrupted, RunFailed, UserError
from vitral.run.config import ModelOptions, RunConfig, load_config, load_run, recipes
from vitral.run.train import run
from vitral.structs import Batch
from vitral.training.train_state import TrainState
from vitral.weights.tensors import load_tensors, save_tensors

QUICK: dict[str, Any] = {
    "train.steps": 9, "train.eval_every": 0.2, "train.log_every": 1, "train.ema": 0.9, "model.dropout": 0.1,
    "model.drop_path": 0.2, "augment.mixup": 0.2, "report": False,
}  # fmt: skip


def quick(out: str, **more: Any) -> dict[str, Any]:
    keys = {key.replace("__", "."): value for key, value in more.items()}
    return run(load_config("digits", {**QUICK, "out": out, **keys}))


def weights(out: str) -> Mapping[str, torch.Tensor]:
    return load_tensors(Path(out) / "model" / "model.safetensors")[0]


def assert_same_run(one: str, other: str) -> None:
    """Bit-equal weights, averages, optimizer and history."""
    for name in ("checkpoints/last.safetensors", "checkpoints/best.safetensors", "model/model.safetensors"):
        mine, theirs = (load_tensors(Path(out) / name)[0] for out in (one, other))
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert torch.equal(mine[key], theirs[key]), (name, key)
    rows = [[strip(row) for row in history(out)] for out in (one, other)]
    assert rows[0] == rows[1]


def strip(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("samples_per_second", "step_ms", "data_wait")}


def history(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, signum: int) -> None:
    """The signal arrives while the batch of this step is made."""
    make = StreamLoader.batch

    def batch(self: StreamLoader, at: int) -> Batch:
        if at == step:
            os.kill(os.getpid(), signum)
        return make(self, at)

    monkeypatch.setattr(StreamLoader, "batch", batch)


def test_what_a_run_leaves() -> None:
    summary = run(load_config("digits", {"train.steps": 25, "train.eval_every": 0.5, "out": "a"}))
    names = {entry.name for entry in Path("a").iterdir()}
    assert names == {
        "config.yaml", "env.json", "train.log", "metrics.jsonl", "metrics.csv", "summary.json", "checkpoints", "model",
        "predictions.csv", "report.html", "split.safetensors",
    }  # fmt: skip
    assert {**json.loads(Path("a/summary.json").read_text(encoding="utf-8")), "out": "a"} == summary
    assert {
        "split",
        "top1",
        "top1_interval",
        "count",
        "ece",
        "train_seconds",
        "steps",
        "seed",
        "recipe",
    } <= summary.keys()
    assert (summary["split"], summary["count"], summary["recipe"], summary["steps"]) == ("test", 360, "digits", 25)
    with Path("a/predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 360
    assert sum(row["correct"] == "true" for row in rows) == round(summary["top1"] * 360)
    assert {entry.name for entry in Path("a/model").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    validations = [row for row in history("a") if "val_top1" in row]
    best = max(validations, key=lambda row: (row["val_top1"], -row["val_loss"]))
    assert (summary["best_step"], summary["val_top1"]) == (best["step"], best["val_top1"])
    with Path("a/metrics.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(history("a"))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        quick(out, seed=seed)
    assert_same_run("a", "b")
    assert not torch.equal(weights("a")["pos_embed"], weights("c")["pos_embed"])


def test_a_run_leaves_the_callers_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    quick("a", train__steps=1)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_goes_on_to_the_same_bits(monkeypatch: pytest.MonkeyPatch, signum: int, code: int) -> None:
    more = {"train__micro_batch": 24, "train__batch_size": 100}
    quick("whole", **more)
    with monkeypatch.context() as patch:
        stop_at(patch, 4, signum)
        with pytest.raises(Interrupted) as caught:
            quick("parts", **more)
    assert caught.value.exit_code == code
    assert "vitral train parts/config.yaml out=parts resume=true" in str(caught.value)
    assert not Path("parts/model").exists()
    run(load_config("parts/config.yaml", {"out": "parts", "resume": True}))
    assert_same_run("whole", "parts")


def test_a_run_killed_between_checkpoints_goes_on_from_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    quick("whole")
    make = StreamLoader.batch

    def batch(self: StreamLoader, at: int) -> Batch:
        if at == 4:
            raise RuntimeError("power cut")
        return make(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(StreamLoader, "batch", batch)
        with pytest.raises(RuntimeError, match="power cut"):
            quick("parts", train__save_seconds=0.0)
    assert history("parts")[-1]["step"] == 4
    run(load_config("parts/config.yaml", {"out": "parts", "resume": True}))
    assert_same_run("whole", "parts")


def test_a_finished_run_resumed_changes_nothing() -> None:
    first = quick("a")
    before = Path("a/model/model.safetensors").read_bytes()
    again = run(load_config("a/config.yaml", {"out": "a", "resume": True}))
    assert Path("a/model/model.safetensors").read_bytes() == before
    assert again == first


@pytest.mark.parametrize(("place", "says"), [("prepare", "The same command"), ("finish", "vitral train a/config.yaml")])
def test_sigterm_before_and_after_the_loop_says_what_goes_on(
    monkeypatch: pytest.MonkeyPatch, place: str, says: str
) -> None:
    monkeypatch.setattr(f"vitral.run.image_run.{place}", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=f"(?s)outside of training.*{says}") as caught:
        quick("a", train__steps=2)
    assert caught.value.exit_code == 143
    assert Path("a").exists() == (place == "finish")


def test_resume_with_other_weights_under_the_name_of_init_is_refused() -> None:
    random_model(Path("start"), tuple("0123456789"))
    keys = {"init": "start", "model__name": "auto", "model__dropout": None, "model__drop_path": None}
    keys |= {f"model__{key}": None for key in ("width", "depth", "heads", "mlp_dim", "pool")}
    quick("a", train__steps=2, **keys)
    quick("a", train__steps=2, resume=True, **keys)
    path = Path("start/model.safetensors")
    tensors, facts = load_tensors(path)
    save_tensors(path, {name: tensor + 1e-3 for name, tensor in tensors.items()}, facts)
    edit_config(Path("start"), lambda _: None)
    with pytest.raises(UserError, match="weights of init have changed"):
        quick("a", train__steps=2, resume=True, **keys)


def test_a_full_disk_that_is_freed_gets_the_next_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    save, failed = TrainState.save, list[int]()

    def full_for_a_while(self: TrainState, path: Path, **how: bool) -> None:
        if 3 <= self.progress.step <= 5:
            failed.append(self.progress.step)
            raise OSError(f"{path} could not be written: no space")
        save(self, path, **how)

    monkeypatch.setattr(TrainState, "save", full_for_a_while)
    quick("a", train__save_seconds=0.0)
    quick("b")
    assert failed == [3, 4, 5]
    assert_same_run("a", "b")


def test_resume_without_a_checkpoint_starts_anew_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    quick("a", resume=True, train__steps=1)
    assert "nothing to resume in a: the run starts from step 0" in Path("a/train.log").read_text(encoding="utf-8")


def test_resume_of_another_configuration_is_refused_by_key() -> None:
    quick("a", train__steps=2)
    with pytest.raises(
        UserError, match=r"(?s)configured otherwise.*got: +seed: 0, now 1; optim\.lr: 0\.003, now 0\.1\n"
    ):
        quick("a", resume=True, optim__lr=0.1, seed=1, train__steps=3)


def test_config_yaml_replays_the_run() -> None:
    quick("a")
    assert "auto" not in {str(value) for value in load_yaml(Path("a/config.yaml"))["data"].values()}
    run(load_config("a/config.yaml", {"out": "b"}))
    assert_same_run("a", "b")


def test_a_non_empty_folder_is_refused_and_overwritten_only_in_our_own_files() -> None:
    Path("a/checkpoints").mkdir(parents=True)
    Path("a/checkpoints/previous.safetensors").touch()
    Path("a/thesis.tex").write_text("keep me", encoding="utf-8")
    with pytest.raises(UserError, match="not empty"):
        quick("a")
    quick("a", overwrite=True, train__steps=1)
    assert Path("a/thesis.tex").read_text(encoding="utf-8") == "keep me"
    assert not Path("a/checkpoints/previous.safetensors").exists()


@pytest.mark.parametrize("out", ["/proc/nothing/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitral.run.image_run.prepare", lambda *_: pytest.fail("computed"))
    with pytest.raises(UserError, match="out"):
        quick(out)


def test_a_read_only_folder_is_refused() -> None:
    Path("a").mkdir()
    Path("a").chmod(0o555)
    if os.access("a", os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(UserError, match="cannot be written"):
        quick("a/run")


def test_a_full_disk_is_said_loudly_and_the_run_goes_on_with_what_fits() -> None:
    with disk_full_beyond(1_500_000):  # weights fit, the state with optimizer and average does not
        quick("a")
    assert "could not be written" in Path("a/train.log").read_text(encoding="utf-8")
    assert {entry.name for entry in Path("a/checkpoints").iterdir()} == {"best.safetensors"}
    assert len(vitral.load("a").predict(torch.zeros(1, 8, 8, 1).numpy())) == 1


def test_without_room_for_weights_the_run_fails_in_words() -> None:
    with disk_full_beyond(100_000), pytest.raises(RunFailed, match="could not be written"):
        quick("a")
    assert not Path("a/model").exists()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no peak of a process's own memory here")
def test_the_digits_run_takes_less_than_a_gigabyte() -> None:
    """By the kernel's count of this program alone: what getrusage gives holds the parent's peak too."""
    code = """
import vitral
vitral.train("digits", {"train.steps": 30}, out="a")
print(next(line for line in open("/proc/self/status", encoding="utf-8") if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert int(done.stdout.split()[1]) < 1e6, "kilobytes"


def test_early_stopping_counts_validations_without_a_better_one() -> None:
    summary = quick("a", optim__lr=1e-60, train__ema=None, train__steps=40, train__patience=3)
    assert summary["steps"] == 17, "the weights stay as they are: validations 2 to 4 are no better than the first"
    assert "stopped early" in Path("a/train.log").read_text(encoding="utf-8")


def test_losses_that_are_not_finite_are_skipped_and_then_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    make = StreamLoader.batch
    monkeypatch.setattr(StreamLoader, "batch", lambda self, at: poisoned(make(self, at), at == 3))
    assert quick("a")["skipped_steps"] == 1
    with pytest.raises(RunFailed, match=r"at step 4 the loss is nan"):
        quick("b", train__max_nonfinite_steps=1)


def poisoned(batch: Batch, now: bool) -> Batch:
    view = batch.views[0]
    return batch._replace(views=(view._replace(images_BCHW=view.images_BCHW * float("nan")),)) if now else batch


def test_bfloat16_trains_and_differs() -> None:
    quick("a", train__steps=3)
    quick("b", train__steps=3, precision="bfloat16")
    assert {row["loss"] for row in history("a") if "loss" in row} != {
        row["loss"] for row in history("b") if "loss" in row
    }
    assert all(tensor.dtype == torch.float32 for tensor in weights("b").values())


def test_the_python_function_takes_dotted_and_plain_keys() -> None:
    summary = vitral.train("digits", {"train.steps": 2, "report": False}, out="a", seed=5)
    assert (summary["seed"], summary["steps"]) == (5, 2)
    assert vitral.load("a").classes == tuple("0123456789")


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_is_a_valid_configuration_with_a_head(name: str) -> None:
    text = recipes()[name].read_text(encoding="utf-8")
    assert text.startswith("# ")
    command = re.search(rf"#   vitral train {name}(.*)", text)
    assert command is not None
    assert "xpected result" in text or "Test accuracy" in text
    skip_unless_built(name)
    assert load_run(name, {"init": "vitral-digits"} if "init=" in command[1] else {}).recipe == name


def test_without_a_recipe_the_data_decide() -> None:
    assert load_config(None, {}).recipe == "digits"
    assert load_config(None, {"data": "photos"}).recipe == "small"
    assert load_config("cifar10_tiny", {"data": "x"}).data.source == "auto"
    assert load_config("cifar10_tiny", {"data": "x", "data.source": "folder"}).data.source == "folder"


def test_null_is_no_second_name_of_the_data() -> None:
    for path in (None, "null"):
        assert load_config("cifar10_tiny", {"data": "digits", "data.path": path}).data.path == "digits"
        assert load_config("small", {"data": path, "data.path": "photos"}).data.path == "photos"
    with pytest.raises(UserError, match="given twice"):
        load_config("small", {"data": "digits", "data.path": "photos"})


@pytest.mark.parametrize("recipe", ["digits", "small", "cifar10_tiny", "finetune_cifar10"])
def test_a_model_of_another_family_is_not_that_of_the_recipe(recipe: str) -> None:
    made = load_config(recipe, {"model.name": "resnet20_cifar", "model.head_bias": -1.0}).model
    assert made == ModelOptions(name="resnet20_cifar", head_bias=-1.0), "what the user sets stays"
    other = load_config(recipe, {"model.name": "vit_micro_patch2_8"}).model
    own = load_config(recipe, {"init": "vitral-digits"}).model
    kept = {"name": "vit_micro_patch2_8", "patch_size": None}
    assert other == own.model_copy(update=kept), "the same family keeps what is set of it beside the preset's parts"


def test_a_model_that_the_user_names_is_that_model() -> None:
    """Its preset's parts win over the recipe's `auto` and over another run's file, the user's over all."""
    tiny = "vit_tiny_patch16_224"
    assert load_config("small", {"model.name": tiny}).model == ModelOptions(name=tiny)
    assert load_config("small", {"model.name": "vit_nano_patch8_64"}).model.patch_size is None
    assert load_config("small", {"model.name": tiny, "model.patch_size": "auto"}).model.patch_size == "auto"
    assert load_config("digits", {"model.name": tiny}).model.options()["pool"] == "avg", "no preset says how to pool"
    run_of_nano = {"model": {"name": "vit_nano_patch8_64", "width": 64, "patch_size": 8, "pool": "avg"}}
    Path("mine.yaml").write_text(dump_yaml(run_of_nano), encoding="utf-8")
    assert load_config("mine.yaml", {"model.name": tiny}).model.options() == {"pool": "avg"}
    assert load_config("mine.yaml", {"model.name": "vit_nano_patch8_64"}).model.options()["width"] == 64


def test_the_name_of_a_changed_preset_says_so_everywhere() -> None:
    write_colors(Path("photos"), count=10)
    keys = {"train.steps": 1, "train.ema": None, "optim.warmup": 0.0, "data": "photos", "check.skip": True}
    run(load_config("small", {**keys, "out": "plain", "model.name": "vit_micro_patch2_8", "data.image_size": 8}))
    assert json.loads(Path("plain/model/config.json").read_text(encoding="utf-8"))["name"] == "vit_micro_patch2_8"
    run(load_config("small", {**keys, "out": "other", "model.name": "vit_micro_patch2_8", "model.patch_size": 4,
                              "data.image_size": [8, 12], "model.pool": "avg"}))  # fmt: skip
    name = "vit_micro_patch2_8 (image_size=8x12, patch_size=4, pool=avg)"
    folder = Path("other")
    assert json.loads((folder / "model/config.json").read_text(encoding="utf-8"))["name"] == name
    for file in ("model/README.md", "train.log", "report.html"):
        assert name in (folder / file).read_text(encoding="utf-8"), file
    run(load_config("finetune", {**keys, "out": "tuned", "init": "other", "data.image_size": 16}))
    tuned = json.loads(Path("tuned/model/config.json").read_text(encoding="utf-8"))
    assert tuned["name"] == "vit_micro_patch2_8 (image_size=16, patch_size=4, pool=avg)"


def test_a_network_of_convolutions_trains_by_a_recipe_of_vision_transformers() -> None:
    keys = {"model.name": "resnet20_cifar", "train.steps": 2, "train.batch_size": 16, "report": False}
    assert run(load_config("digits", {**keys, "optim.warmup": 0.0, "out": "a"}))["steps"] == 2
    again = load_config("a/config.yaml", {"model.name": "vit_micro_patch2_8"}).model
    assert again == ModelOptions(name="vit_micro_patch2_8")


def test_an_optimizer_without_clipping_and_with_momentum_runs() -> None:
    config = load_config("digits", {**QUICK, "out": "a", "optim.name": "sgd", "optim.clip": None, "train.steps": 2})
    assert isinstance(config, RunConfig)
    assert run(config)["steps"] == 2
