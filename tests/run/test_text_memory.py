"""Work and memory of runs on texts, against counts by hand and what autograd keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.memory import kept_bytes
from tests.run.text_runs import CTC_STRIPS, SMALL, STRIPS, text_config, text_run
from vitral.cli.main import main
from vitral.data.text.batches import SplitIds, padded_widths
from vitral.errors import RunFailed, UserError
from vitral.models.create import build_sequence_model
from vitral.models.presets import resolve_sequence
from vitral.models.sequence_config import SequenceConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.sequence import SequenceLoss
from vitral.optim.optimizer import make_optimizer
from vitral.run.text_memory import compute, make_text_job, text_architecture
from vitral.run.text_run import TextRun
from vitral.structs import Batch, View
from vitral.training import loop

pytest.importorskip("jiwer")
CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {},
    "lstm": {"model": {"name": "lstm_tiny", "width": 32}},
    "additive": {"model": {"name": "lstm_tiny", "width": 32, "attention": "additive"}},
    "rnn": {"model": {"name": "lstm_tiny", "width": 32, "attention": "none", "cell": "rnn"}},
    "image": STRIPS,
    "ctc": CTC_STRIPS | {"data": STRIPS["data"] | {"image_size": [12, 60]}},
}  # fmt: skip


def job_of(folder: Path, kind: str, **keys: Any) -> tuple[Any, SequenceConfig, SplitIds, tuple[int, int]]:
    config = text_config(folder, {**SMALL, **MODELS[kind]}, **{"precision": "float32", **keys})
    architecture, ids = text_architecture(config)
    widths = padded_widths(ids, slice(None), config.data.pad_multiple)
    return make_text_job(config, architecture, ids, CPU), architecture, ids, widths


def real_batch(architecture: SequenceConfig, target: int, source: int, samples: int) -> dict[str, Batch]:
    text_BT = torch.randint(4, 9, (samples, target))
    text_BT[:, -1] = 2
    ids_B = torch.arange(samples)
    if architecture.reads_images:
        height, width, channels = architecture.input_shapes["image"]
        view = View(torch.rand(samples, channels, height, width), torch.eye(3).expand(samples, 3, 3))
        return {"train": Batch((view,), {"text": text_BT}, ids_B)}
    return {"train": Batch((), {"text": text_BT, "source": torch.randint(4, 9, (samples, source))}, ids_B)}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MODELS)
def test_what_a_step_keeps_is_what_autograd_keeps(tmp_path: Path, kind: str, precision: str) -> None:
    job, architecture, _, widths = job_of(tmp_path, kind, precision=precision, train__batch_size=16)
    config = text_config(tmp_path, {**SMALL, **MODELS[kind]})
    real = SequenceLoss(
        lambda: build_sequence_model(architecture), config.objective, ObjectiveContext(1000)
    ).train()  # fmt: skip
    # Measured, and on the line through the measured ones, from which oneDNN's recurrent layers of such sizes deviate.
    for samples, near in ((16, 0.01), (4, 0.02 if kind in ("transformer", "image", "ctc") else 0.2)):
        batches = real_batch(architecture, *widths, samples)

        def loss(batches: dict[str, Batch] = batches) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                return real(batches, 999).loss

        assert job.kept(samples).total() == pytest.approx(kept_bytes(loss, real), rel=near)
    assert job.parameters == job.trained == sum(parameter.numel() for parameter in real.parameters())
    optimizer = make_optimizer(real, config.optim)
    for parameter in real.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert job.optimizer == sum(value.numel() for value in kept if value.ndim)


def test_work_is_what_a_count_by_hand_says() -> None:
    d, m, v, s, t = 24, 40, 13, 7, 5
    options = {"width": d, "heads": 2, "mlp_dim": m, "encoder_depth": 3, "decoder_depth": 2}
    model = resolve_sequence("transformer_tiny", vocabulary=v, source_vocabulary=11, max_length=16, **options)
    found = compute(model, t, s)
    encoder = 4 * s * d * d + 2 * s * s * d + 2 * s * d * m  # projections, scores and values, MLP
    own, cross = 4 * t * d * d + 2 * t * t * d, 2 * t * d * d + 2 * s * d * d + 2 * t * s * d
    parts = {"encoder": 3 * encoder, "decoder": 2 * (own + cross + 2 * t * d * m), "output": t * d * v}
    assert found["macs_parts"] == parts
    assert (found["macs"], found["flops"]) == (sum(parts.values()), 2 * sum(parts.values()))
    assert found["parameters"] == sum(parameter.numel() for parameter in build_sequence_model(model).parameters())


def test_work_of_an_lstm_is_four_gates_a_token() -> None:
    d, v, s, t = 24, 13, 7, 5
    options = {"width": d, "attention": "none", "bidirectional": False, "layers": 1}
    model = resolve_sequence("lstm_tiny", vocabulary=v, source_vocabulary=11, max_length=16, **options)
    gates = 4 * (d * d + d * d)  # of input and state
    assert compute(model, t, s)["macs_parts"] == {"encoder": s * gates, "decoder": t * gates, "output": t * d * v}


@pytest.mark.parametrize("kind", ["transformer", "image", "ctc"])
def test_checkpointing_reaches_the_model_and_changes_no_bit(tmp_path: Path, kind: str) -> None:
    weights: list[dict[str, torch.Tensor]] = []
    for setting in ("none", "all"):
        config = text_config(tmp_path, {**SMALL, **MODELS[kind]}, train__activation_checkpointing=setting)
        parts = TextRun(config)
        state, objective = parts.state()
        assert objective.model.checkpointed == (objective.model.config.block_count if setting == "all" else 0)
        batch = next(parts.loader().stream(0, 1))
        torch.manual_seed(3)
        objective(batch, 0).loss.backward()
        weights.append({name: p.grad for name, p in objective.named_parameters() if p.grad is not None})
        parts.close()
        assert state.progress.step == 0
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_limit_sets_the_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, *_ = job_of(tmp_path, "transformer")
    config = text_config(tmp_path, memory="1.2MB")
    parts = TextRun(config)
    train = parts.config.train
    parts.close()
    assert isinstance(train.activation_checkpointing, int | str)
    assert (train.micro_batch or 16) < 16 or train.activation_checkpointing != "none"
    with pytest.raises(UserError, match=r"(?s)the run does not fit.*got: *1 KB"):
        TextRun(text_config(tmp_path, memory="1KB"))
    with pytest.raises(UserError, match=r"(?s)more blocks than there are.*expected: up to 4"):
        TextRun(text_config(tmp_path, train__activation_checkpointing=5))
    text_run(tmp_path, memory="1.2MB")

    def fail(*_: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(loop, "train_step", fail)
    with pytest.raises(RunFailed, match=r"(?s)About [\d.]+ .B and the same result: train\.micro_batch=\d+"):
        text_run(tmp_path, out=str(tmp_path / "other"))
    assert job.adds_up


@pytest.mark.parametrize("recipe", ["reverse", "digits_read", "digits_read_ctc"])
def test_the_command_estimates_recipes_of_texts(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", recipe, "data.count=64", "memory=8MB", "device=cpu"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert found["memory_bytes"] == sum(found["parts"].values()) <= 8e6
    assert found["micro_batch"] < found["batch_size"] or found["checkpointing"]
    assert found["flops"] == 2 * sum(found["macs_parts"].values())
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"{found['macs']:,} multiply-accumulates" in shown
    assert f"train.micro_batch={found['micro_batch']}" in shown
