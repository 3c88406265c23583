"""`vitral summary` of models that write text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models.text_models import save, text_writer
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.models.presets import resolve_sequence
from vitral.models.summary import count_parameters
from vitral.run.text_options import TextSummaryOptions
from vitral.run.text_summary import layers, summarize_text
from vitral.text_engines import TextExportMetadata


def test_layers_are_those_of_the_paper() -> None:
    attention, recurrent, convolution = layers(81, 64, 3)
    assert (attention["operations"], attention["sequential"], attention["path"]) == (81 * 81 * 64, 1, 1)
    assert (recurrent["operations"], recurrent["sequential"], recurrent["path"]) == (81 * 64 * 64, 81, 81)
    assert (convolution["operations"], convolution["sequential"], convolution["path"]) == (3 * 81 * 64 * 64, 1, 4)


@pytest.mark.parametrize("name", ["transformer_tiny", "lstm_tiny", "vit_text_micro_patch2_8x40"])
def test_parts_add_up(name: str) -> None:
    found = summarize_text(name, TextSummaryOptions())
    assert sum(found["parameters_parts"].values()) == count_parameters(resolve_sequence(name)) == found["parameters"]
    assert sum(found["macs_parts"].values()) == found["macs"] > 0
    assert [row["layer"] for row in found["layers"] if row["used"]] == [
        "recurrent" if name.startswith("lstm") else "self-attention"
    ]
    stages = {row["stage"]: row["shape"] for row in found["walk"]}
    assert stages["target"] == [32]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "transformer_tiny", "length=100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["d"]) == (100, 64)
    assert main(["summary", "transformer_tiny", "length=9999"]) == 2
    with pytest.raises(UserError, match="patches"):
        summarize_text("vit_ctc_micro_patch2_8x40", TextSummaryOptions(length=9))


def test_the_architecture_of_a_folder_and_of_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = text_writer()
    save(writer, tmp_path / "model")
    found = summarize_text(str(tmp_path / "model"), TextSummaryOptions())
    assert found["parameters"] == sum(parameter.numel() for parameter in writer.model.parameters())
    (tmp_path / "export").mkdir()
    metadata = TextExportMetadata(model=writer.config, versions={}).model_dump(mode="json")
    config = tmp_path / "export" / "config.json"
    config.write_text(json.dumps(metadata), encoding="utf-8")
    assert summarize_text(str(tmp_path / "export"), TextSummaryOptions()) == found
    metadata["model"]["architecture"]["encoder_depth"] = 3 * 10**7
    config.write_text(json.dumps(metadata), encoding="utf-8")
    assert main(["summary", str(tmp_path / "export")]) == 2
    assert "too deep for an export" in capsys.readouterr().err
