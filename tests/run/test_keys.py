"""No option is accepted and ignored: every key of a run, set to another value, changes what the run does.

A key without a line in `CASES` fails the test, and so does one whose change is not to be seen in what the line names.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.data.test_cifar import binary10
from tests.entropy import registered
from tests.helpers import TINY, random_model, write_colors
from tests.objectives.scenes import write_scenes
from tests.run.adversarial_cases import test_overfitting_ends_the_run_where_it_is_asked_for
from tests.run.augment_cases import AUGMENT_CASES, PETS
from tests.run.box_cases import test_how_boxes_are_written
from tests.run.dino_cases import DINO
from tests.run.igpt_cases import save_tokenizer
from tests.run.objective_cases import OBJECTIVE_CASES
from tests.run.outcomes import Case, card, classes, files, rows, shapes, summary, weights
from vitral.config import describe
from vitral.data import loader
from vitral.data.config import DataConfig
from vitral.data.sources import open_dataset
from vitral.errors import RunFailed, UserError
from vitral.models import vit
from vitral.run.config import RunConfig, load_config
from vitral.run.train import run
from vitral.training.train_state import TrainState
from vitral.weights.tensors import load_tensors

FINETUNE = {
    "init": "model",
    "model.name": "auto",
    **{f"model.{k}": None for k in ("width", "depth", "heads", "mlp_dim", "pool")},
}
PRUNED = {**FINETUNE, "init_head": True, "objective.kind": "dynamic_vit", "model.pruner_blocks": [0]}
RESNET = {
    "model.name": "resnet20_cifar",
    "model.blocks": [1, 1, 1],
    "data.image_size": 8,
    **{f"model.{k}": None for k in ("depth", "heads", "mlp_dim", "pool")},
}

CASES: dict[str, Case] = {
    "recipe": Case("other", summary),
    "seed": Case(1, weights),
    "init": Case("other", weights, FINETUNE),
    "init_head": Case(True, weights, FINETUNE),
    "precision": Case("bfloat16"),
    "report": Case(True, files),
    "data.path": Case("more", weights, PETS),
    "data.image_size": Case(10, shapes),
    "data.channels": Case(3, shapes),
    "data.resize_mode": Case("squash", weights, PETS),
    "data.interpolation": Case("bilinear", weights, {**PETS, "data.image_size": (6, 6)}),
    "data.crop_pct": Case(0.7, weights, PETS),
    "data.mean": Case([0.3]), "data.std": Case([0.3]),
    "data.val_fraction": Case(0.2), "data.validation": Case("none"),
    "data.background": Case("#ff0000", weights, {**PETS, "data.path": "clear"}),
    "data.value_range": Case([0.0, 2.0], weights, {**PETS, "data.path": "floats"}),
    "data.classes": Case(["dog", "cat"], classes, PETS),
    "check.skip": Case(True, card),
    **AUGMENT_CASES,
    "augment.repeated_aug": Case(2),
    "data.balance": Case("class"),
    "augment.mixup": Case(0.5),
    "augment.cutmix": Case(1.0),
    "augment.mix_prob": Case(0.5, weights, {"augment.mixup": 1.0}),
    "model.name": Case("vit_nano_patch4_32", shapes, {"data.image_size": 8}),
    "model.patch_size": Case(4, shapes),
    "model.width": Case(8, shapes),
    "model.depth": Case(1, shapes),
    "model.heads": Case(4, weights),
    "model.mlp_dim": Case(16, shapes),
    "model.block_heads": Case([1, 2], shapes),
    "model.block_mlp_dims": Case([16, 8], shapes),
    "model.pruner_keep": Case(0.4, weights, PRUNED),
    **{f"objective.{k}_weight": Case(9.0, weights, PRUNED) for k in ("answer", "token", "ratio")},
    "model.pool": Case("cls", weights),
    "model.class_token": Case(False, shapes),
    "model.fc_norm": Case(False, weights),
    "model.head": Case("mlp", shapes),
    "model.gelu": Case("tanh", weights),
    "model.head_bias": Case(-6.9),
    "model.dropout": Case(0.2, weights),
    "model.drop_path": Case(0.5, weights),
    "model.mlp": Case("swiglu", shapes),
    "model.qk_norm": Case(True, shapes),
    "model.layer_scale": Case(0.1, shapes),
    "model.distill_token": Case(True, shapes, {"model.pool": "cls"}),
    "model.registers": Case(2, shapes),
    "model.positions": Case("rope", shapes, {"model.heads": 2}),
    "model.positions_at": Case("layers", shapes),
    "model.prefix_positions": Case(False, shapes),
    "model.position_resize": Case("google", weights, {**FINETUNE, "data.image_size": 12}),
    "model.rope_theta": Case(10.0, weights, {"model.positions": "rope"}),
    "model.norm_eps": Case(1e-2, weights),
    "model.stem_blocks": Case([], shapes, {"model.patch_size": 4}),
    "model.stem_epsilons": Case("google", weights, {"model.patch_size": 4, "model.stem_blocks": []}),
    "model.blocks": Case([1, 1], shapes, RESNET),
    "model.block": Case("bottleneck", shapes, RESNET),
    "model.stem": Case("imagenet", shapes, RESNET),
    "model.norm": Case("group", shapes, {**RESNET, "model.width": 32}),
    "model.preactivation": Case(True, shapes, RESNET),
    "model.shortcut": Case("projection", shapes, RESNET),
    "optim.name": Case("sgd"),
    "optim.lr": Case(1e-2),
    "optim.weight_decay": Case(0.5),
    "optim.betas": Case([0.5, 0.9]),
    "optim.momentum": Case(0.1, weights, {"optim.name": "sgd"}),
    "optim.trust_coefficient": Case(0.1, weights, {"optim.name": "lars", "optim.lr": 1.0}),
    "optim.cooldown": Case(0.9, weights, {"optim.schedule": "wsd"}),
    "optim.layer_decay": Case(0.5),
    "optim.milestones": Case([0.5], weights, {"optim.schedule": "step"}),
    "optim.gamma": Case(0.5, weights, {"optim.schedule": "step"}),
    "optim.timescale": Case(1, weights, {"optim.schedule": "rsqrt"}),
    "optim.schedule": Case("linear"), "optim.warmup": Case(2), "optim.min_lr_ratio": Case(0.5),
    "optim.clip": Case(0.01),
    "train.epochs": Case(0.1, summary, {"train.steps": None, "train.epochs": 0.05}),
    "train.steps": Case(2, summary),
    "train.batch_size": Case(24),
    "train.micro_batch": Case(5),
    "train.ema": Case(0.5),
    "train.ema_warmup": Case(0.0, weights, {"train.ema": 0.9}),
    "train.freeze": Case("encoder", weights, FINETUNE),
    "lora.rank": Case(2, weights, FINETUNE),
    "lora.alpha": Case(1.0, weights, {**FINETUNE, "lora.rank": 2}),
    "lora.targets": Case("mlp", weights, {**FINETUNE, "lora.rank": 2}),
    "train.eval_every": Case(0.02, rows, {"train.steps": 4}),
    "train.patience": Case(1, summary, {"train.eval_every": 0.02, "train.steps": 6, "optim.lr": 1e-30}),
    "train.log_every": Case(1, rows),
    "objective.loss": Case("sigmoid"),
    "objective.label_smoothing": Case(0.3),
    "objective.class_weights": Case("balanced"),
    "objective.logit_adjustment": Case(1.0),
    "objective.head_only_fraction": Case(0.5, weights, FINETUNE),
    "objective.kind": Case("masked_patch", shapes),
    "optim.weight_decay_final": Case(5.0),
    "optim.clip_each": Case(True, weights, {"optim.clip": 0.01}),
    **OBJECTIVE_CASES,
}  # fmt: skip

# Each has a test of its own below, or, where another test has it already, its name.
ELSEWHERE = {
    "device": "test_device_is_where_the_weights_are",
    "out": "test_out_is_where_it_is_written",
    **dict.fromkeys(("resume", "overwrite"), "test_resume_and_overwrite_are_asked_for"),
    "finish": "test_finish_ends_a_run_where_it_is",
    "memory": "test_memory_cuts_the_batch",
    "train.activation_checkpointing": "test_checkpointing_reaches_the_model",
    "train.compile": "test_compile_makes_one_graph_of_a_step",
    "deterministic": "test_deterministic_is_switched_on_during_the_run_only",
    **dict.fromkeys(
        ("data.pattern", "data.image_column", "data.label_column", "data.split_column", "data.label_separator"),
        "test_keys_of_a_source_change_what_it_reads",
    ),
    "data.subset": "test_subset_reaches_hugging_face",
    **dict.fromkeys(("data.box_format", "data.box_unit"), test_how_boxes_are_written.__name__),
    **dict.fromkeys(("data.max_bad", "data.max_pixels"), "test_limits_of_reading_are_held"),
    **dict.fromkeys(("data.unlabeled", "data.labels_per_class", "data.unlabeled_ratio"), "test_unlabeled_images"),
    "data.source": "test_source_is_not_guessed_where_it_is_said",
    "data.verify": "test_verify_refuses_files_that_are_not_the_published_ones",
    **dict.fromkeys(("data.workers", "data.cache_mb"), "test_workers_and_cache_reach_the_store"),
    "check.allow": "test_allowed_findings_do_not_refuse",
    "train.save_seconds": "test_save_seconds_is_the_time_between_checkpoints",
    "train.parallel": "test_parallel_is_how_the_processes_share_the_work",
    "train.max_nonfinite_steps": "test_bad_steps_in_a_row_are_counted",
    "train.tensorboard": "test_tensorboard_is_asked_for",
    "model.pruner_blocks": "test_kinds_of_objectives",
    "objective.checkpoint": "test_a_training_checkpoint_is_asked_for",
    "objective.stop_on_overfitting": test_overfitting_ends_the_run_where_it_is_asked_for.__name__,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and models that the cases name."""
    root = tmp_path_factory.mktemp("keys")
    for name, count in (("pets", 8), ("more", 9), ("clear", 8)):
        write_colors(root / name, "cat dog", count, (12, 9))
    for number, path in enumerate(sorted((root / "clear").rglob("*.png"))):
        Image.new("RGBA", (12, 9), (10 * number, 90, 0, 128)).save(path)
    for number, path in enumerate(sorted((root / "clear").rglob("*.png"))):
        target = root / "floats" / path.relative_to(root / "clear").with_suffix(".tif")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("F", (12, 9), 0.06 * number).save(target)
    binary10(root / "cifar")
    random_model(root / "model", tuple("0123456789"))
    random_model(root / "other", tuple("0123456789"), mean=(0.2,))
    save_tokenizer(root / "tokenizer")
    write_scenes(root / "scenes")
    return root


@pytest.fixture(autouse=True)
def _here(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(places)


@functools.cache
def outcome(root: Path, keys: str, seen: Callable[[Path], object]) -> object:
    """What a run with these keys leaves; runs that cases share are run once."""
    name = hashlib.sha256(keys.encode()).hexdigest()[:12]
    out = root / "runs" / name
    if not (out / "summary.json").exists():
        run(load_config("digits", {**TINY, **json.loads(keys), "out": str(out)}))
    return seen(out)


@pytest.mark.parametrize("key", CASES)
def test_another_value_changes_the_outcome(key: str, places: Path) -> None:
    case = CASES[key]
    base = json.dumps(dict(case.given), sort_keys=True)
    changed = json.dumps({**case.given, key: case.value}, sort_keys=True)
    assert outcome(places, changed, case.seen) != outcome(places, base, case.seen)


def test_every_key_has_its_case() -> None:
    names = {key.name for key in describe(RunConfig)}
    assert names == CASES.keys() | ELSEWHERE.keys()
    assert not CASES.keys() & ELSEWHERE.keys()
    assert set(ELSEWHERE.values()) <= globals().keys()


def test_equal_keys_give_equal_outcomes(places: Path) -> None:
    """Otherwise the differences above would prove nothing."""
    first = outcome(places, "{}", weights)
    run(load_config("digits", {**TINY, "out": str(places / "again")}))
    assert weights(places / "again") == first


def tiny(out: Path, **more: object) -> dict[str, Any]:
    keys = {key.replace("__", "."): value for key, value in more.items()}
    return run(load_config("digits", {**TINY, **keys, "out": str(out)}))


def test_device_is_where_the_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second device is needed: the one that was asked for is followed to the store and the model."""
    seen: list[str] = []
    monkeypatch.setattr("vitral.run.prepare.pick_device", lambda name: (seen.append(name), torch.device("cpu"))[1])
    tiny(tmp_path / "a", device="cuda:3")
    assert seen == ["cuda:3"]
    assert json.loads((tmp_path / "a/env.json").read_text(encoding="utf-8"))["device"].startswith("cpu")


def test_out_is_where_it_is_written(tmp_path: Path) -> None:
    tiny(tmp_path / "x/y")
    assert (tmp_path / "x/y/summary.json").is_file()


def test_resume_and_overwrite_are_asked_for(tmp_path: Path) -> None:
    tiny(tmp_path / "a")
    stamp = (tmp_path / "a/config.yaml").stat().st_mtime_ns
    with pytest.raises(UserError, match="not empty"):
        tiny(tmp_path / "a")
    tiny(tmp_path / "a", resume=True)
    assert (tmp_path / "a/config.yaml").stat().st_mtime_ns == stamp
    tiny(tmp_path / "a", overwrite=True)
    assert (tmp_path / "a/config.yaml").stat().st_mtime_ns > stamp


def test_finish_ends_a_run_where_it_is(tmp_path: Path) -> None:
    tiny(tmp_path / "a", train__steps=2)
    found = tiny(tmp_path / "a", train__steps=9, finish=True)
    assert (found["steps"], found["best_step"]) == (2, 2)


def test_deterministic_is_switched_on_during_the_run_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, make = list[bool](), loader.StreamLoader.batch
    monkeypatch.setattr(
        loader.StreamLoader, "batch",
        lambda self, step: (seen.append(torch.are_deterministic_algorithms_enabled()), make(self, step))[1],
    )  # fmt: skip
    tiny(tmp_path / "a", deterministic=True, train__steps=1)
    tiny(tmp_path / "b", train__steps=1)
    assert seen == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


def test_unlabeled_images(tmp_path: Path) -> None:
    """With an objective that has a stream of them."""
    few, pets = {"objective.kind": "entropy"}, {**PETS, "objective.kind": "entropy"}
    ways = [{**few, "data.labels_per_class": n} for n in (5, 6)] + [
        {**pets, "data.unlabeled": n} for n in ("pets", "more")
    ]
    with registered():
        for n, keys in enumerate([*ways, *({**way, "data.unlabeled_ratio": 2} for way in ways)]):
            run(load_config("digits", {**TINY, **keys, "out": str(tmp_path / str(n))}))
    assert len({weights(tmp_path / str(n)) for n in range(8)}) == 8


def test_source_is_not_guessed_where_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no CIFAR files"):
        tiny(tmp_path / "a", data__path="pets", data__source="cifar")
    tiny(tmp_path / "b", data__path="pets", data__source="folder", data__image_size=8)


def test_keys_of_a_source_change_what_it_reads(places: Path) -> None:
    """Two columns of each kind; and file names that two patterns read differently."""
    rows = [
        f"pets/cat/{n}.png,pets/dog/{n}.png,{'xy'[n % 2]}-a,{'pq'[n % 2]},{('train', 'val')[n // 4]},train"
        for n in range(8)
    ]
    (places / "list.csv").write_text("\n".join(["path,file2,label,kind,split,part", *rows]), encoding="utf-8")

    def seen(**keys: Any) -> object:
        path = "pets" if "pattern" in keys else "list.csv"
        data = open_dataset(DataConfig(path=path, **keys), hold_out=False)
        return {name: (list(split.names), split.labels_N.tolist(), data.classes) for name, split in data.splits.items()}

    base = seen()
    for key, value in (
        ("image_column", "file2"), ("label_column", "kind"), ("split_column", "part"), ("label_separator", "-"),
    ):  # fmt: skip
        assert seen(**{key: value}) != base, key
    assert seen(pattern=r"(?P<label>cat|dog)/\d") != seen(pattern=r"/(?P<label>\d)\.png")


def test_subset_reaches_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[object, ...]] = []

    class Library:
        @staticmethod
        def load_dataset(*arguments: object) -> object:
            called.append(arguments)
            raise FileNotFoundError("not here")

    monkeypatch.setitem(sys.modules, "datasets", Library)
    with pytest.raises(UserError, match="not here"):
        open_dataset(DataConfig(path="nobody/nothing", source="hf", subset="small"))
    assert called == [("nobody/nothing", "small")]
    with pytest.raises(UserError, match="means nothing to the source folder"):
        open_dataset(DataConfig(path="pets", source="folder", subset="small"))


def test_limits_of_reading_are_held(tmp_path: Path) -> None:
    shutil.copytree("pets", tmp_path / "some")
    Image.new("RGB", (20, 20), (1, 2, 3)).save(tmp_path / "some/cat/large.png")
    pets = {"data__path": str(tmp_path / "some"), "data__source": "folder", "data__image_size": 8}
    with pytest.raises(UserError, match=r"(?s)cat/large\.png.*limit of 399 pixels"):
        tiny(tmp_path / "a", **pets, data__max_pixels=399)
    (tmp_path / "some/cat/0.png").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"cat/0\.png"):
        tiny(tmp_path / "b", **pets)
    tiny(tmp_path / "c", **pets, data__max_bad=1)


def test_verify_refuses_files_that_are_not_the_published_ones(tmp_path: Path) -> None:
    keys = {"data__path": "cifar", "data__source": "cifar", "data__image_size": 32, "model__patch_size": 16}
    with pytest.raises(UserError, match="not the size of this CIFAR file"):
        tiny(tmp_path / "a", **keys)
    tiny(tmp_path / "b", **keys, data__verify=False)
    assert "MD5 SUMS NOT CHECKED" in (tmp_path / "b/train.log").read_text(encoding="utf-8")


def test_workers_and_cache_reach_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither may change a bit of the outcome, only how it is reached."""
    seen, make = list[tuple[int, bool]](), loader.ImageStore.__init__

    def init(self: loader.ImageStore, *args: Any, **keys: Any) -> None:
        make(self, *args, **keys)
        seen.append((keys["workers"], self.cached))

    monkeypatch.setattr(loader.ImageStore, "__init__", init)
    for out, workers, cache in (("a", 1, 2048), ("b", 3, 0)):
        tiny(tmp_path / out, data__workers=workers, data__cache_mb=cache)
    assert seen == [(1, True)] * 3 + [(3, False)] * 3
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_save_seconds_is_the_time_between_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves, save = list[int](), TrainState.save
    monkeypatch.setattr(TrainState, "save", lambda s, path, **how: (saves.append(s.progress.step), save(s, path))[1])
    tiny(tmp_path / "a", train__save_seconds=0.0)
    assert saves == [1, 2, 3]
    tiny(tmp_path / "b", train__save_seconds=1e6)
    assert saves == [1, 2, 3, 3]


def test_parallel_is_how_the_processes_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process is enough to see it: shards have a checkpoint of their own, and the same weights."""
    tiny(tmp_path / "a", train__parallel="fsdp")
    tiny(tmp_path / "b", train__parallel="ddp")
    kept = [{path.name for path in (tmp_path / out / "checkpoints").iterdir()} for out in "ab"]
    assert kept == [{"last.sharded", "best.safetensors"}, {"last.safetensors", "best.safetensors"}]
    mine, theirs = (load_tensors(tmp_path / out / "model/model.safetensors")[0] for out in "ab")
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes would each train the same model"):
        tiny(tmp_path / "c", train__parallel="none")


def test_memory_cuts_the_batch(tmp_path: Path) -> None:
    tiny(tmp_path / "a", memory="9MB", train__batch_size=512)
    settled = load_config(str(tmp_path / "a/config.yaml"), {})
    assert (settled.train.micro_batch or 512) < settled.train.batch_size == 512
    assert "memory: about" in (tmp_path / "a/train.log").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"(?s)memory: the run does not fit.*got: *1 KB.*activation_checkpointing=2"):
        tiny(tmp_path / "b", memory="1KB")


def test_checkpointing_reaches_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits come out, so what is looked at is which blocks are computed twice."""
    make, calls = vit.checkpointed_call, list[int]()
    monkeypatch.setattr(vit, "checkpointed_call", lambda *arguments: (calls.append(1), make(*arguments))[1])
    for value, count in (("none", 0), (1, 3), ("all", 6)):
        calls.clear()
        tiny(tmp_path / str(value), train__activation_checkpointing=value)
        assert len(calls) == count
    assert weights(tmp_path / "none") == weights(tmp_path / "1") == weights(tmp_path / "all")
    with pytest.raises(UserError, match=r"(?s)train\.activation_checkpointing: more blocks.*expected: up to 2"):
        tiny(tmp_path / "b", train__activation_checkpointing=3)


def test_compile_makes_one_graph_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, bool]] = []
    monkeypatch.setattr(torch, "compile", lambda graph, **how: (made.append(how), graph)[1])
    assert tiny(tmp_path / "a")["top1"] == tiny(tmp_path / "b", train__compile="step")["top1"]
    assert made == [{"fullgraph": True, "dynamic": False}]


def test_kinds_of_objectives(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)objective\.kind.*supervised.*dynamic_vit"):
        tiny(tmp_path / "a", objective__kind="made_up")
    with pytest.raises(UserError, match=r"init=MODEL init_head=true"):
        tiny(tmp_path / "a", objective__kind="dynamic_vit", model__pruner_blocks=[0])
    for wrong in ({"objective.kind": "supervised"}, {"model.pruner_blocks": []}, {"train.parallel": "fsdp"}):
        with pytest.raises(UserError, match=r"prune|dynamic_vit"):
            run(load_config("digits", {**TINY, **PRUNED, **wrong, "out": str(tmp_path / "a")}))


def test_a_diverging_run_fails_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"nan.*lower optim\.lr"):
        tiny(tmp_path / "a", optim__lr=1e30, train__steps=30)


def test_bad_steps_in_a_row_are_counted(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"5 steps in a row.*nan.*lower optim\.lr"):
        tiny(tmp_path / "a", optim__lr=1e30, train__steps=30, train__max_nonfinite_steps=5)


def test_tensorboard_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitral.training.loggers.find_spec", lambda _: None)
    tiny(tmp_path / "a")
    with pytest.raises(UserError, match="TensorBoard is not installed"):
        tiny(tmp_path / "b", train__tensorboard=True)


def test_allowed_findings_do_not_refuse(tmp_path: Path) -> None:
    write_colors(tmp_path / "pets", "cat dog", 8, (12, 9))
    shutil.copy(tmp_path / "pets/cat/1.png", tmp_path / "pets/dog/copy.png")
    keys: dict[str, Any] = {"data__path": str(tmp_path / "pets"), "data__image_size": 8}
    with pytest.raises(UserError, match=r"(?s)duplicates-labels.*check\.allow=duplicates-labels"):
        tiny(tmp_path / "a", **keys)
    tiny(tmp_path / "a", check__allow=("duplicates-labels",), **keys)


def test_a_training_checkpoint_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.pth: no such file"):
        tiny(tmp_path / "a", **{**DINO, "objective.checkpoint": "absent.pth"})
