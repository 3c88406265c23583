"""Long runs take no more memory than short ones; a run that has too little says what would fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers import TINY
from vitral.cli.main import main
from vitral.errors import RunFailed
from vitral.run.config import load_config
from vitral.run.train import run
from vitral.training import loop

STATM = Path("/proc/self/statm")


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
def test_a_hundred_epochs_leave_memory_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resident: dict[int, int] = {}
    update = loop.update

    def watched(state: Any, *arguments: Any) -> Any:
        result = update(state, *arguments)
        resident[state.progress.step] = 4096 * int(STATM.read_text(encoding="ascii").split()[1])
        return result

    monkeypatch.setattr(loop, "update", watched)
    keys = {**TINY, "train.steps": None, "train.epochs": 100.0, "train.batch_size": 720, "train.ema": 0.9}
    run(load_config("digits", {**keys, "train.eval_every": 5.0, "out": str(tmp_path / "a")}))
    last = max(resident)
    assert last >= 150
    assert resident[last] - resident[last // 5] < 6e6


@pytest.mark.parametrize("message", ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"])
def test_out_of_memory_says_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(loop, "update", fail)
    with pytest.raises(RunFailed, match=r"(?s)out of memory.*same result: train\.micro_batch=\d+ train\.check"):
        run(load_config("digits", {**TINY, "train.batch_size": 1024, "out": str(tmp_path / "a")}))


@pytest.mark.parametrize("recipe", ["digits_dino", "cifar10_mae"])
def test_no_number_where_memory_is_not_estimated(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Teachers, decoders, heads and several views take memory that the estimate for supervised training leaves out."""

    def fail(*_: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(loop, "update", fail)
    keys = {"data.source": "digits", "data.path": None, "data.image_size": 8, "model.patch_size": 2, "report": False}
    keys |= {key: value for key, value in TINY.items() if key.startswith("model.")} | {"train.batch_size": 16}
    with pytest.raises(RunFailed) as error:
        run(load_config(recipe, {**keys, "out": str(tmp_path / "a")}))
    assert "A smaller train.micro_batch" in str(error.value)
    assert " GB" not in str(error.value)
    assert "same result" not in str(error.value)
    assert main(["estimate", recipe]) == 2
    assert "memory is estimated for supervised training only" in capsys.readouterr().err
