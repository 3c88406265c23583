"""Other engines for a model that is loaded: compared first, and the fastest taken."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.onnx.errors import OnnxExporterError

import vitral
from tests.export.test_exporter import OPENVINO, Capture, need
from tests.helpers import VITRAL, random_model
from vitral.cli.main import main
from vitral.compression.config import ToMeConfig
from vitral.errors import UserError
from vitral.export import parity, runtime_engine
from vitral.export.runtime_engine import fastest, with_engine
from vitral.predictor import Predictor
from vitral.run.command_options import EvalOptions, PredictOptions
from vitral.run.evaluate import evaluate
from vitral.run.inference_inputs import load_used
from vitral.weights.find_model import load_model


@pytest.mark.parametrize(("largest", "passes"), [(1.0, False), (9.0, False), (13.0, True)])
def test_of_large_logits_a_ten_thousandth_is_the_limit(largest: float, passes: bool) -> None:
    found = parity.Likeness(
        images=1, source="", max_difference=1.2e-3, behind_resize=0, largest_logit=largest, agreement=1, cosine=None
    )
    with contextlib.nullcontext() if passes else pytest.raises(parity.BeyondLimit):
        parity.check(found, "float32", None, None)
    with pytest.raises(parity.BeyondLimit, match=r"more than 0\.001"):
        parity.check(found, "float32", 0.001, None)  # a limit that was asked for is kept


class Timed:
    """An engine that takes so many milliseconds."""

    precision, takes = "float32", "resized"

    def __init__(self, name: str, fixed: float, each: float) -> None:
        self.name, self.fixed, self.each = name, fixed, each

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Nothing, late."""
        time.sleep((self.fixed + self.each * len(images)) / 1000)
        return torch.zeros(len(images), 3)


def test_the_fastest_engine_is_that_of_the_batch() -> None:
    random_model(Path("model"))
    config = load_model("model")[1]
    small, large = Timed("small", 2, 8), Timed("large", 30, 1)
    assert fastest([large, small], config, 1).name == "small"  # pyright: ignore[reportArgumentType]
    assert fastest([small, large], config, 16).name == "large"  # pyright: ignore[reportArgumentType]


def test_an_engine_that_fails_the_comparison_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnx")
    random_model(Path("model"))
    predictor = vitral.load("model", "cpu")
    monkeypatch.setitem(parity.MAX_DIFFERENCE, "float32", 1e-12)
    monkeypatch.setattr(parity, "OF_LARGEST", 0.0)
    assert with_engine(predictor, "auto").engine.name == "torch"
    with pytest.raises(parity.BeyondLimit, match="differs from the model"):
        with_engine(predictor, "onnx")
    with pytest.raises(UserError, match="precision"):
        with_engine(predictor, "onnx", "bfloat16")


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_low_precision_is_for_the_classes_alone(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_engine, "_RUNTIMES", {})
    random_model(Path("model"))
    plain, images = vitral.load("model", "cpu"), [np.full((9, 12), level, np.uint8) for level in (0, 90, 255)]
    low = with_engine(plain, engine, "bfloat16")
    assert (low.engine.precision, plain.engine.precision) == ("bfloat16", "float32")
    assert low.model is plain.model
    np.testing.assert_array_equal(low.embed(images), plain.embed(images))
    of_copy = Predictor(copy.deepcopy(plain.model).bfloat16(), plain.config, "cpu")
    np.testing.assert_array_equal(low.probabilities(images), of_copy.probabilities(images))
    assert (low.probabilities(images) != plain.probabilities(images)).any()


def test_low_precision_is_computed_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    random_model(Path("model"))
    monkeypatch.setattr("vitral.predictor.require_finite", lambda answers, _: answers)  # meta tensors have no values
    with monkeypatch.context() as patch:
        patch.setattr("vitral.predictor.pick_device", lambda _: torch.device("meta"))  # stands for a GPU
        low = with_engine(vitral.load("model"), "auto", "bfloat16")
    assert low.engine.precision == "bfloat16"
    assert low.model.dtype == torch.float32
    assert low.forward([torch.zeros(1, 8, 8)]).device.type == low.device.type == "meta"


def test_what_is_measured_in_low_precision_is_the_engine() -> None:
    plain, low = (evaluate("vitral-digits", EvalOptions(precision=precision)) for precision in ("float32", "bfloat16"))
    assert low["loss"] != plain["loss"]
    assert low["top1"] == pytest.approx(plain["top1"], abs=0.02)


@pytest.mark.parametrize(
    "error", [OnnxExporterError(), OSError(28, "No space left on device"), AssertionError("1 + 1")]
)
def test_auto_does_without_what_cannot_be_made(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need("onnx")
    random_model(Path("model"))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(runtime_engine, "write_file", fail)
    with caplog.at_level("INFO", "vitral"):
        assert with_engine(vitral.load("model", "cpu"), "auto").engine.name == "torch"
    assert f"leaves onnx out: {error or 'OnnxExporterError'}" in caplog.text
    with pytest.raises(type(error)):
        with_engine(vitral.load("model", "cpu"), "onnx")


@pytest.mark.oracle
def test_auto_does_without_an_openvino_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    need("openvino")
    random_model(Path("model"))

    def fail(*_: object) -> None:
        raise RuntimeError("not supported\nand more")

    monkeypatch.setattr(runtime_engine, "openvino_of", fail)
    predictor = vitral.load("model", "cpu")
    assert [engine.name for engine in runtime_engine.engines(predictor.model, predictor.config, "bfloat16")] == [
        "torch"
    ]


def test_auto_with_fewer_tokens_gives_their_answers() -> None:
    need("onnx")
    random_model(Path("model"))
    images = [np.full((9, 12), level, np.uint8) for level in (0, 90, 255)]
    merge: dict[str, Any] = {"reduce": "tome", "tome": ToMeConfig(r=2)}
    expected = load_used("model", PredictOptions(**merge)).probabilities(images)
    found = load_used("model", PredictOptions(engine="auto", **merge))
    np.testing.assert_allclose(found.probabilities(images), expected, atol=1e-4)


@pytest.mark.oracle
def test_bfloat16_may_be_as_far_from_float32_as_torchs_is(monkeypatch: pytest.MonkeyPatch) -> None:
    need("openvino")
    random_model(Path("model"))
    predictor = vitral.load("model", "cpu")
    monkeypatch.setitem(parity.MIN_AGREEMENT, "bfloat16", 1.1)  # as if near ties had fallen the other way
    monkeypatch.setattr(runtime_engine, "_AS_FAR", 8)  # of so small a model the largest difference is a matter of luck
    assert with_engine(predictor, "openvino", "bfloat16").engine.name == "openvino"
    monkeypatch.setattr(runtime_engine, "_AS_FAR", 1e-6)
    with pytest.raises(parity.BeyondLimit, match="less than 110 %"):
        with_engine(predictor, "openvino", "bfloat16")
    names = [engine.name for engine in runtime_engine.engines(predictor.model, predictor.config, "bfloat16")]
    assert names == ["torch"]


@pytest.mark.parametrize("engine", ["onnx", OPENVINO, pytest.param("auto", marks=pytest.mark.oracle)])
def test_another_engine_gives_the_models_answers(engine: str, capsys: Capture) -> None:
    need("onnx")
    need("openvino" if engine != "onnx" else "onnx")
    answers = []
    for words in ([], [f"engine={engine}"]):
        assert main(["eval", "vitral-digits", "--json", *words]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["confusion"] == answers[1]["confusion"]
    assert answers[1]["loss"] == pytest.approx(answers[0]["loss"], abs=1e-5)


def test_a_signal_while_an_engine_is_made_leaves_no_folder(tmp_path: Path) -> None:
    need("onnx")
    random_model(Path("model"))
    Image.new("L", (8, 8)).save("gray.png")
    Path("temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    command = [*VITRAL, "predict", "model", "gray.png", "engine=onnx"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, encoding="utf-8") as process:
        while process.poll() is None and not list(Path("temporary").iterdir()):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    assert list(Path("temporary").iterdir()) == []


def test_the_whole_differs_no_less_than_its_part() -> None:
    random_model(Path("model"))
    config = load_model("model")[1]
    mine = torch.tensor([[1.0, 0.0, 0.0]])
    found = parity.compare_outputs(mine, mine + 0.1, config, "", behind_resize=0.5)
    assert (found.max_difference, found.behind_resize) == (0.5, 0.5)
    found = parity.compare_outputs(mine, mine + 0.1, config, "", behind_resize=0.01)
    assert found.max_difference == pytest.approx(0.1)
