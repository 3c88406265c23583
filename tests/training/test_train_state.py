"""Saving and restoring a run's moving parts; what a failed save leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.disk import disk_full_beyond
from vitral.errors import UserError
from vitral.models.create import create_model
from vitral.optim.config import OptimConfig
from vitral.optim.ema import WeightEMA
from vitral.optim.optimizer import make_optimizer
from vitral.training.train_state import Progress, TrainState, has_checkpoint
from vitral.weights.tensors import DamagedFile, load_tensors, save_tensors


def state(name: str = "adamw", width: int = 64) -> TrainState:
    model = create_model("vit_micro_patch2_8", width=width)
    optimizer = make_optimizer(model, OptimConfig(name=name))  # type: ignore[arg-type]
    return TrainState(
        model, optimizer, WeightEMA(model, create_model("vit_micro_patch2_8", width=width), 0.9), Progress()
    )


def advance(one: TrainState, steps: int) -> None:
    for _ in range(steps):
        one.objective(torch.rand(4, 3, 8, 8)).square().sum().add(
            sum(p.sum() for p in one.objective.parameters())
        ).backward()
        one.optimizer.step()
        one.optimizer.zero_grad()
        assert one.ema is not None
        one.ema.update()
        one.progress.step += 1


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "lars"])
def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    whole = state(name)
    advance(whole, 3)
    whole.progress.best_score, whole.progress.stale = 0.5, 2
    whole.save(tmp_path / "last.safetensors")
    advance(whole, 3)
    torch.manual_seed(99)
    other = state(name)
    other.load(tmp_path / "last.safetensors")
    assert (other.progress.step, other.progress.best_score, other.progress.stale) == (3, 0.5, 2)
    advance(other, 3)
    for key, tensor in whole.objective.state_dict().items():
        assert torch.equal(tensor, other.objective.state_dict()[key]), key
    assert whole.ema is not None
    assert other.ema is not None
    for key, tensor in whole.ema.average.state_dict().items():
        assert torch.equal(tensor, other.ema.average.state_dict()[key]), key


def test_another_architectures_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    state().save(tmp_path / "last.safetensors")
    with pytest.raises(UserError, match=r"(?s)another architecture.*cls_token"):
        state(width=32).load(tmp_path / "last.safetensors")
    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, checked=True)
    with pytest.raises(UserError, match="not a checkpoint"):
        state().load(tmp_path / "other.safetensors")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    state().save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not readable as safetensors"):
        state().load(path)


def test_a_full_disk_leaves_the_previous_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    one = state()
    one.save(path)
    before = path.read_bytes()
    advance(one, 1)
    with disk_full_beyond(100_000), pytest.raises(OSError, match=r"last\.safetensors could not be written"):
        one.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.safetensors"], "nothing half-written is left"
    state().load(path)


def test_threads_and_random_state_come_back(tmp_path: Path) -> None:
    path, threads = tmp_path / "last.safetensors", torch.get_num_threads()
    torch.manual_seed(5)
    one = state()
    one.save(path)
    expected = torch.rand(3)
    torch.rand(100)
    one.load(path)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert "state" in load_tensors(path)[1]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_found_and_the_checkpoint_before_it_taken(tmp_path: Path) -> None:
    one, path = state(), tmp_path / "last.safetensors"
    one.save(path)
    advance(one, 1)
    one.save(path)
    flip_a_bit(path)
    with pytest.raises(DamagedFile, match="damaged"):
        state().load(path)
    other = state()
    notes = other.load_newest(tmp_path)
    assert other.progress.step == 0
    assert "last.safetensors: damaged" in notes[0]
    assert "previous.safetensors" in notes[1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["damaged.safetensors", "previous.safetensors"]
    advance(other, 2)
    other.save(path)
    assert state().load_newest(tmp_path) == []
    state().load(tmp_path / "previous.safetensors")


def test_where_no_checkpoint_is_whole_that_is_said(tmp_path: Path) -> None:
    one, path = state(), tmp_path / "last.safetensors"
    one.save(path)
    one.save(path)
    for name in ("last", "previous"):
        flip_a_bit(tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"(?s)no checkpoint can be read.*overwrite=true"):
        state().load_newest(tmp_path)


def test_a_kill_between_the_two_renames_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    state().save(tmp_path / "last.safetensors")
    (tmp_path / "last.safetensors").rename(tmp_path / "previous.safetensors")
    assert has_checkpoint(tmp_path)
    assert "before the last one" in state().load_newest(tmp_path)[0]


def test_other_weights_behind_init_are_refused(tmp_path: Path) -> None:
    one, other = state(), state()
    one.init, other.init = "aaaa", "bbbb"
    one.save(tmp_path / "last.safetensors")
    with pytest.raises(UserError, match="weights of init have changed"):
        other.load_newest(tmp_path)
    assert (tmp_path / "last.safetensors").exists(), "nothing is wrong with the file"


def test_the_random_state_is_that_of_the_device_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torch's current device is another one, as with device=cuda:1."""
    second, given = torch.device("cuda:1"), list[tuple[torch.Tensor, torch.device | None]]()
    states = {torch.device(f"cuda:{number}"): torch.full((16,), number, dtype=torch.uint8) for number in (0, 1)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda:0": states[torch.device(device)])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda new, device=None: given.append((new, device)))
    one = state()
    one.save(tmp_path / "cpu.safetensors")
    assert "rng.cuda.0" not in load_tensors(tmp_path / "cpu.safetensors")[0]
    monkeypatch.setattr(TrainState, "_device", second)
    one.save(tmp_path / "cuda.safetensors")
    one.load(tmp_path / "cuda.safetensors")
    assert [(tensor.tolist(), device) for tensor, device in given] == [([1] * 16, second)]
