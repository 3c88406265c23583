"""A run that is killed between two steps, and resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vitral.run.config import load_run
from vitral.run.train import run
from vitral.training import loop


def killed_and_resumed(start: Callable[[], Any], out: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `start`, which trains into `out`, end it without warning before the update `step` (from 0), and resume."""
    train_step = loop.train_step

    def cut(state: Any, *rest: Any) -> Any:
        if state.progress.step == step:
            raise RuntimeError("power cut")
        return train_step(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            start()
    run(load_run(f"{out}/config.yaml", {"out": out, "resume": True}))
