"""Many processes equal one: ten steps of DDP and FSDP2, their checkpoints on other numbers of processes, evaluation."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.disk import disk_full_beyond
from tests.processes import in_processes
from vitral import distributed
from vitral.data.config import AugmentConfig, DataConfig, StreamConfig
from vitral.data.image_spec import ResizeSpec
from vitral.data.image_store import ImageStore
from vitral.data.loader import StreamLoader, TrainLoader, eval_batches
from vitral.data.sources import open_dataset
from vitral.errors import RunFailed, UserError
from vitral.evaluate.classification import collect_logits
from vitral.models.create import create_model
from vitral.objectives.config import SupervisedConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.supervised import Supervised
from vitral.optim.config import OptimConfig
from vitral.optim.ema import WeightEMA
from vitral.optim.master_weights import ComputeCopy
from vitral.optim.optimizer import make_optimizer
from vitral.structs import Batch, View
from vitral.training.config import TrainConfig
from vitral.training.loop import train_step
from vitral.training.nonfinite import CUT, NonFiniteGuard
from vitral.training.parallel import Parallel
from vitral.training.sharded import read_shards, shard
from vitral.training.train_state import Progress, TrainState
from vitral.weights.tensors import DamagedFile

pytestmark = pytest.mark.slow
CPU, BATCH = torch.device("cpu"), 48
MIXED = AugmentConfig(rotate=10, mixup=0.5, cutmix=0.5)


def build(dtype: torch.dtype, checkpointed: int = 0) -> Any:
    model = create_model("vit_micro_patch2_8", in_channels=1, width=16, depth=2, heads=2, mlp_dim=32, num_classes=10)
    model.checkpointed = checkpointed
    return model.to(dtype)


def make(
    mode: str,
    dtype: torch.dtype,
    head_only_fraction: float = 0.0,
    name: Any = "sgd",
    checkpointed: int = 0,
    low: bool = False,
) -> tuple[TrainState, Supervised]:
    torch.manual_seed(0)
    objective = Supervised(
        lambda: build(dtype, checkpointed),
        SupervisedConfig(head_only_fraction=head_only_fraction),
        ObjectiveContext(10),
    )
    torch.nn.init.normal_(objective.model.get_parameter("head.weight"), std=0.1)
    average = build(dtype)
    if mode == "fsdp":
        shard(objective.model, CPU)
        shard(average, CPU)
    optimizer = make_optimizer(objective, OptimConfig(name=name))
    copy = ComputeCopy(objective) if low else None
    parallel = Parallel(copy.module if copy else objective, ddp=mode == "ddp", unused=head_only_fraction > 0, each=low)
    ema = WeightEMA(objective.model, average, 0.9)
    return TrainState(objective, optimizer, ema, Progress(), compute_copy=copy, parallel=parallel), objective


def a_store(split: str, count: int | None = None) -> ImageStore:
    data = open_dataset(DataConfig(source="digits")).splits[split]
    data = replace(data, labels_N=data.labels_N[:count], names=data.names[:count])
    return ImageStore(
        data, (8, 8), ResizeSpec(resize_mode="crop"), exact=split != "train", workers=1, cache_mb=100, device=CPU
    )


def train_loader() -> TrainLoader:
    rank, world = distributed.rank(), distributed.world()
    return TrainLoader({"train": StreamLoader(a_store("train"), StreamConfig(BATCH, MIXED), 0, rank=rank, world=world)})


def as_type(batch: Batch, dtype: torch.dtype) -> Batch:
    views = tuple(View(view.images_BCHW.to(dtype), view.matrix_B33) for view in batch.views)
    targets = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.targets.items()}
    return Batch(views, targets, batch.sample_ids_B)


def results(state: TrainState, objective: Supervised) -> dict[str, Any]:
    assert state.ema is not None
    tensors = {f"model.{k}": distributed.gather_full(v).double() for k, v in objective.model.state_dict().items()}
    tensors |= {f"ema.{k}": distributed.gather_full(v).double() for k, v in state.ema.average.state_dict().items()}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


class Case(NamedTuple):
    """Ten steps in another way, and how far from one process in one batch they may end.

    Exact zero gradients (of the keys' biases) are rounding noise, which Adam divides by itself: hence its wider limit.
    """

    kind: str = "float64"
    limit: float = 1e-12
    micro: int | None = None
    head_only_fraction: float = 0.0
    name: str = "sgd"
    checkpointed: int = 0
    low: bool = False
    modes: tuple[str, ...] = ("ddp", "fsdp")


CASES = (
    Case(),
    Case("float32", 1e-5),
    Case(micro=10),
    Case(micro=7, head_only_fraction=0.4),
    Case(name="adamw", limit=1e-9),
    Case(checkpointed=2, micro=10),
    Case(name="muon", limit=1e-9, modes=("ddp",)),
    Case(name="lars", modes=("ddp",)),
    Case("float32", 5e-3, micro=8, low=True, modes=("ddp",)),  # one gradient rounds to 8 bits, as its parts do
)
MODES = ("ddp", "fsdp")


def steps(
    mode: str, case: Case, count: int = 10, load: str | None = None, save: str | None = None
) -> tuple[dict[str, Any], list[float], list[int]]:
    """Weights after some steps; of each the loss, the metric and the norm; and the samples that this process saw."""
    dtype = getattr(torch, case.kind)
    state, objective = make(mode, dtype, case.head_only_fraction, case.name, case.checkpointed, case.low)
    if load is not None:
        assert state.load_newest(Path(load)) == []
    loader = train_loader()
    optim = OptimConfig(lr=1e-3 if case.name in ("adamw", "muon") else 0.05, schedule="constant", warmup=0)
    config, said, seen = TrainConfig(batch_size=BATCH, micro_batch=case.micro), list[float](), list[int]()
    guard = NonFiniteGuard(state, loader.batch, Path(), config)
    objective.train()
    for _ in range(count):
        batch = as_type(loader.batch(state.progress.step)["train"], dtype)
        seen += batch.sample_ids_B.tolist()
        loss, metrics, norm = train_step(state, objective, {"train": batch}, config, optim, guard)
        said += [value.item() for value in (*distributed.mean([loss, *metrics.values()]), norm)]
        state.progress.step += 1
    if save is not None:
        Path(save).mkdir(exist_ok=True)
        state.save(Path(save) / "last.safetensors")
    return results(state, objective), said, seen


def assert_close(one: tuple[Any, ...], other: tuple[Any, ...], limit: float) -> None:
    assert one[0].keys() == other[0].keys()
    worst = max(float(np.abs(one[0][name] - other[0][name]).max()) for name in one[0])
    assert worst <= limit
    assert np.abs(np.array(one[1]) - np.array(other[1])).max() <= max(10 * limit, 1e-6)  # losses are summed in float32


def all_cases() -> list[tuple[dict[str, Any], list[float], list[int]]]:
    return [steps(mode, case) for mode, case in mode_cases()]


def mode_cases() -> list[tuple[str, Case]]:
    return [(mode, case) for mode in MODES for case in CASES if mode in case.modes]


def test_two_processes_equal_one() -> None:
    """Mixed images, clipped gradients, averaged weights; micro-batches of which the last is short; a head that is
    trained alone for four steps."""
    found = in_processes(2, "tests.training.test_parallel:all_cases")
    for place, (_, case) in enumerate(mode_cases()):
        alone, both = steps("none", case._replace(micro=None)), [one[place] for one in found]
        for one in both:
            assert_close(alone, one, case.limit)
        seen = [np.array(one[2]).reshape(10, -1) for one in both]
        assert np.array_equal(np.concatenate(seen, axis=1), np.array(alone[2]).reshape(10, -1))


def skipping(folder: str) -> list[Any]:
    """Before, at and after a step with a NaN in an image that the last process has, by mode and optimizer: what all
    weights and all of the optimizer's state are, and how many steps were skipped. Two more end the run."""
    found: list[Any] = []
    for mode, name in (("ddp", "adamw"), ("ddp", "sgd"), ("ddp", "muon"), ("fsdp", "adamw"), ("fsdp", "sgd")):
        state, objective = make(mode, torch.float32, name=name)
        loader = train_loader()
        place = Path(folder) / f"{mode}-{name}"
        place.mkdir(exist_ok=True)

        def batch(step: int, loader: TrainLoader = loader) -> dict[str, Batch]:
            one = loader.batch(step)
            if step and step != 2 and distributed.rank() == distributed.world() - 1:
                one["train"].views[0].images_BCHW[3] = float("nan")
            return one

        config, optim = (
            TrainConfig(batch_size=BATCH, max_nonfinite_steps=2),
            OptimConfig(lr=0.01, schedule="constant", warmup=0),
        )
        guard, seen = NonFiniteGuard(state, batch, place, config), list[Any]()
        objective.train()
        try:
            for step in range(5):
                train_step(state, objective, batch(step), config, optim, guard)
                state.progress.step += 1
                tensors = {
                    key: distributed.gather_full(value).clone().numpy() for key, value in state._tensors().items()
                }
                seen.append((tensors, state.progress.skipped))
        except RunFailed as error:
            found.append((seen, str(error)))
    return found


def test_all_processes_skip_what_is_bad_on_one(tmp_path: Path) -> None:
    """Weights, optimizer and average stay to the bit, and go on after it; the state of the end is written by all."""
    found = in_processes(2, "tests.training.test_parallel:skipping", str(tmp_path))
    assert len(found[0]) == 5
    for mine, theirs in zip(*found, strict=True):
        assert mine[1] == theirs[1]
        assert "2 steps in a row were not finite; at step 5" in mine[1]
        for seen in (mine[0], theirs[0]):
            (first, no), (second, one), (third, still), (fourth, two) = seen
            assert (no, one, still, two) == (0, 1, 1, 2)
            assert all(np.array_equal(first[name], second[name]) for name in first)
            assert all(np.array_equal(third[name], fourth[name]) for name in third)
            assert all(np.isfinite(value).all() for value in third.values())
            assert any(not np.array_equal(second[name], third[name]) for name in third)
    for place in tmp_path.iterdir():
        rows = [json.loads(line) for line in (place / "nonfinite/steps.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [(row["step"], len(row["keys"])) for row in rows] == [(1, 48), (3, 48), (4, 48)]
        is_cut = place.name.startswith("fsdp")
        assert all((row["found"] == CUT) if is_cut else ("images, samples" in row["found"]) for row in rows)
        assert (place / "nonfinite" / ("state.sharded" if is_cut else "state.safetensors")).exists()
        state, _ = make("none", torch.float32, name=place.name.partition("-")[2])
        state.load(place / "nonfinite" / ("state.sharded" if is_cut else "state.safetensors"))
        assert state.progress.step == 4


def saved(folder: str) -> None:
    for mode in MODES:
        steps(mode, Case(), 6, save=f"{folder}/{mode}")


def continued(folder: str, *modes: str) -> list[tuple[dict[str, Any], list[float], list[int]]]:
    return [steps(mode, Case(), 4, load=f"{folder}/{saved_by}") for mode in modes for saved_by in MODES]


@pytest.mark.parametrize("count", [1, 3])
def test_a_checkpoint_of_two_processes_goes_on_with_one_and_with_three(count: int, tmp_path: Path) -> None:
    """And whole weights as shards, and shards as whole weights."""
    in_processes(2, "tests.training.test_parallel:saved", str(tmp_path))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")) == [
        "ddp/last.safetensors", "fsdp/last.sharded"
    ]  # fmt: skip
    whole = steps("none", Case())
    modes = ("none" if count == 1 else "ddp", "fsdp")
    for ends in in_processes(count, "tests.training.test_parallel:continued", str(tmp_path), *modes):
        for one in ends:
            assert_close((whole[0], whole[1][-12:]), one, 1e-12)


def saved_twice(folder: str) -> None:
    for _ in range(2):
        steps("fsdp", Case(), 1, save=folder)


def test_a_damaged_shard_is_found_and_the_checkpoint_before_it_taken(tmp_path: Path) -> None:
    in_processes(2, "tests.training.test_parallel:saved_twice", str(tmp_path))
    part = next(tmp_path.glob("last.sharded/__1_*"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    notes = in_processes(2, "tests.training.test_parallel:newest", str(tmp_path))
    assert notes[0] == notes[1]
    assert f"{part.name}: damaged" in notes[0][0]
    assert "previous.sharded" in notes[0][1]
    assert {path.name for path in tmp_path.iterdir()} == {"previous.sharded", "damaged.sharded"}


def newest(folder: str) -> list[str]:
    return make("fsdp", torch.float64)[0].load_newest(Path(folder))


COUNTS = (144, 101, 2)  # of which three processes get equal shares, unequal ones, and one of them nothing


def test_every_sample_is_judged_once() -> None:
    for found in in_processes(3, "tests.training.test_parallel:evaluated", "none", "fsdp"):
        for (logits_NC, labels_N), (found_NC, found_N) in zip(evaluated("none", "none"), found, strict=True):
            assert np.array_equal(found_N, labels_N)
            assert np.abs(found_NC - logits_NC).max() < 1e-6


def evaluated(*modes: str) -> list[tuple[Any, Any]]:
    """Logits and labels of so many samples, on every process."""
    found: list[tuple[Any, Any]] = []
    for mode in modes:
        for count in COUNTS:
            model = make(mode, torch.float64)[1].model
            logits_NC, labels_N = collect_logits(model, eval_batches(a_store("val", count), 16))
            found.append((distributed.gather_rows(logits_NC), distributed.gather_rows(labels_N)))
    return found


def talk() -> dict[str, Any]:
    """What each process hears of the others."""
    rank = distributed.rank()
    told: dict[str, Any] = {
        "any": distributed.any_rank(rank == 1, False, True),
        "main": distributed.broadcast_from_main(rank),
    }
    told["mean"] = [value.item() for value in distributed.mean([torch.tensor(float(rank)), torch.tensor(3.0)])]
    told["rows"] = distributed.gather_rows(np.full((rank, 2), rank)).tolist()
    told["shares"] = distributed.gather(distributed.shard_range(10))
    try:
        with distributed.error_barrier():
            if rank == 1:
                raise UserError("only here", where="data")
    except UserError as error:
        told["error"] = str(error)
    return told


def test_what_processes_tell_each_other() -> None:
    expected = {
        "any": (True, False, True), "main": 0, "mean": [1.0, 3.0], "rows": [[1, 1], [2, 2], [2, 2]],
        "shares": [(0, 3), (3, 6), (6, 10)], "error": "data: only here",
    }  # fmt: skip
    assert in_processes(3, "tests.training.test_parallel:talk") == [expected] * 3
    assert talk()["rows"] == []
    assert distributed.gather_full(torch.ones(2)).tolist() == [1.0, 1.0]


def beside(folder: str) -> list[Any]:
    """A checkpoint that is written while its weights move; one that fails on a process; one after that."""
    place, said = Path(folder), list[Any]()
    state, _ = make("fsdp", torch.float64, name="adamw")
    before = {name: distributed.gather_full(tensor).clone() for name, tensor in state._tensors().items()}
    state.save(place / "last.safetensors", beside=True)
    said.append([path.name for path in place.iterdir()])
    with torch.no_grad():
        for parameter in state.objective.parameters():
            parameter.zero_()
    state.settle(wait=True)
    said.append(sorted(path.name for path in place.iterdir()))
    assert state.load_newest(place) == []
    after = {name: distributed.gather_full(tensor) for name, tensor in state._tensors().items()}
    said.append(before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before))
    for size in (2000, 10**9):  # bytes a file may have; too few on one process
        state.progress.step += 1
        with disk_full_beyond(size) if distributed.rank() == 1 else nullcontext():
            state.save(place / "last.safetensors", beside=True)
            try:
                state.settle(wait=True)
            except OSError as error:
                said.append(str(error))
        state.settle(wait=True)  # says it once
        said.append(sorted(path.name for path in place.iterdir()))
    return said


def test_a_checkpoint_written_beside_the_run_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    """It counts when it is whole. A disk that is full for one process fails it for all, and the one before is kept."""
    for said in in_processes(2, "tests.training.test_parallel:beside", str(tmp_path)):
        at_once, then, equal, failed, kept, again = said
        assert "last.sharded" in then
        assert set(at_once) <= {".last.sharded.partial", "last.sharded"}
        assert equal
        assert "last.sharded could not be written" in failed
        assert kept == ["last.sharded"]
        assert again == ["last.sharded", "previous.sharded"]
    facts = json.loads((tmp_path / "last.sharded/state.json").read_text(encoding="utf-8"))
    assert json.loads(facts["state"])["progress"]["step"] == 2


def flipped(folder: str) -> tuple[int, list[str]]:
    """Every bit of what a sharded checkpoint says of itself, and some of its tensors: how many were flipped, and which
    flips were not noticed."""
    path = Path(folder) / "last.sharded"
    steps("fsdp", Case(), 1, save=folder)
    count, missed = 0, list[str]()
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        bits = 8 * len(whole)
        for bit in range(0, bits, 1 if file.name.startswith("state.json") else max(bits // 50, 1)):
            content = bytearray(whole)
            content[bit // 8] ^= 1 << bit % 8
            file.write_bytes(content)
            count += 1
            try:
                read_shards(path, lambda _: None)
            except DamagedFile:
                continue
            missed.append(f"{file.name}: {bit}")
        file.write_bytes(whole)
    read_shards(path, lambda _: None)
    return count, missed


def test_every_flipped_bit_of_a_sharded_checkpoint_is_noticed(tmp_path: Path) -> None:
    count, missed = in_processes(1, "tests.training.test_parallel:flipped", str(tmp_path))[0]
    assert count > 2000
    assert missed == []
