"""A run that is killed between two steps, and resumed; what it does again."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
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


def counted(place: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows at each call of a function or method of a module, by its dotted name."""
    calls, (*owners, last) = list[None](), name.split(".")
    owner = attrgetter(".".join(owners))(place) if owners else place
    before = getattr(owner, last)

    def call(*given: Any, **keys: Any) -> Any:
        calls.append(None)
        return before(*given, **keys)

    monkeypatch.setattr(owner, last, call)
    return calls
