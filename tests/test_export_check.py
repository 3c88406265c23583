"""Exports on other processors than the one where they were compared with their model."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vitral
from tests.helpers import random_model
from vitral import cpu, export_check
from vitral.cli.main import main
from vitral.cpu import instruction_sets
from vitral.engines import Pt2Engine
from vitral.errors import UserError

Capture = pytest.CaptureFixture[str]
OTHER = ["avx9", "torch:avx9"]  # of no processor that there is


@pytest.fixture
def there() -> Path:
    random_model(Path("model"))
    assert main(["export", "model", "format=pt2", "out=there", "images=2"]) == 0
    Image.new("L", (8, 8), 90).save("gray.png")
    return Path("there")


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_check, "instruction_sets", lambda: OTHER)


def moved(monkeypatch: pytest.MonkeyPatch, by: float) -> list[int]:
    """Kernels whose logits are off; and how often they were asked."""
    real, asked = Pt2Engine.logits, list[int]()

    def logits(self: Pt2Engine, images: Any) -> Any:
        asked.append(len(images))
        return real(self, images) + by

    monkeypatch.setattr(Pt2Engine, "logits", logits)
    return asked


def test_an_export_names_the_instruction_sets_of_its_comparison(there: Path) -> None:
    said = json.loads((there / "config.json").read_text(encoding="utf-8"))
    proved = json.loads((there / "proof.json").read_text(encoding="utf-8"))
    assert said["instruction_sets"] == proved["instruction_sets"] == list(instruction_sets())
    assert 0 <= proved["difference"] <= 1e-3


def test_a_changed_export_is_noticed(there: Path) -> None:
    whole = (there / "model.pt2").read_bytes()
    config = (there / "config.json").read_text(encoding="utf-8")
    digests = json.loads(config)["digests"]
    assert digests["model.pt2"] == hashlib.sha256(whole).hexdigest()
    changed = bytearray(whole)
    changed[whole.index(b"weight_0") + 500] ^= 1
    (there / "model.pt2").write_bytes(changed)
    for model in ("there", "there/model.pt2"):
        with pytest.raises(UserError, match=r"model\.pt2: damaged or replaced(.|\n)*export the model again"):
            vitral.load(model)
    vitral.load("there", verify=False)
    (there / "model.pt2").write_bytes(whole)
    (there / "config.json").write_text(config.replace('"pt2"', '"pt2" '), encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: damaged or edited"):
        vitral.load("there")
    for bad in ('{"model.pt2": 3}', "[]", '{"model.pt2": "x", "model.": "y"}'):
        tree = {**json.loads(config), "digests": json.loads(bad)}
        (there / "config.json").write_text(json.dumps(tree), encoding="utf-8")
        with pytest.raises(UserError, match="digests are not readable"):
            vitral.load("there")
    (there / "config.json").unlink()
    vitral.load("there/model.pt2")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["model.pt2", "model.bin", "config.json"])
def test_a_pipe_beside_an_export_is_not_waited_for(there: Path, name: str) -> None:
    (there / name).unlink(missing_ok=True)
    os.mkfifo(there / name)
    with pytest.raises(UserError, match=r"not a regular file but a named pipe|no such model"):
        vitral.load(there / "model.pt2", verify=name == "config.json")


def test_elsewhere_it_is_compared_once(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = moved(monkeypatch, 0)
    vitral.load(there)
    assert asked == []
    elsewhere(monkeypatch)
    vitral.load(there)
    assert asked == [8]
    vitral.load(there / "model.pt2")
    assert asked == [8]
    (there / "model.pt2").touch()
    vitral.load(there)
    assert asked == [8, 8]


def test_elsewhere_another_answer_is_refused(there: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    elsewhere(monkeypatch)
    moved(monkeypatch, 0.25)
    for words in (["predict", "there", "gray.png"], ["eval", "there", "data=digits"]):
        for _ in range(2):  # what is refused is not remembered
            assert main(words) == 2
            out, err = capsys.readouterr()
            assert out == ""
            assert "differ by 0.25" in err
            assert "(avx9 torch:avx9)" in err
            assert " ".join(instruction_sets()) in err


def test_without_a_proof_it_is_said(
    there: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere(monkeypatch)
    (there / "proof.json").rename("proof.json")
    with caplog.at_level("WARNING", "vitral"):
        vitral.load(there)
    assert "is not compared on this one (avx9 torch:avx9)" in caplog.text
    whole = Path("proof.json").read_text(encoding="utf-8")
    damaged = [whole[:100], "[]", "[[]]", '"ab"', "3", "null", "{}", "[" * 100_000]
    damaged += [whole.replace('"outputs": "', '"outputs": "AAAA'), whole.replace("proof-1", "proof-2")]
    for text in damaged:
        (there / "proof.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"proof\.json"):
            vitral.load(there)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 fma avx_vnni avx512f sse2\n\nflags : none\n", "avx2 fma avx_vnni avx512f"),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp sve i8mm bf16\n", "asimd asimddp i8mm bf16 sve"),
    ],
)
def test_instruction_sets_are_those_of_the_processor(
    text: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    *found, torchs = instruction_sets()
    assert " ".join(found) == expected
    assert torchs.startswith("torch:")
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "none")
    assert len(instruction_sets()) == 2


def test_doctor_compares_an_export(there: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Also on the machine that made it, and however often."""
    asked = moved(monkeypatch, 0)
    for name in ("there", "there/model.pt2"):
        assert main(["doctor", name, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["format"], found["classes"]) == ("pt2", len(vitral.load("model").classes))
        assert found["comparison"].startswith("outputs differ by ")
    assert asked == [8, 8]
    assert main(["doctor", "there", "accept=true"]) == 2
    assert "only model folders" in capsys.readouterr().err
    moved(monkeypatch, 0.25)
    assert main(["doctor", "there"]) == 2
    assert "differ by 0.25" in capsys.readouterr().err
    (there / "proof.json").unlink()
    assert main(["doctor", "there"]) == 0
    assert "proof.json is missing" in capsys.readouterr().out


def test_doctor_names_them(capsys: Capture) -> None:
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["instruction_sets"] == list(instruction_sets())
