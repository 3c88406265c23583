"""Digests of a model folder and checksums of checkpoints: every flipped bit is noticed, and edits can be accepted."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitral
from tests.helpers import TINY, edit_config, random_model
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.run.train import train
from vitral.weights import digests
from vitral.weights.folder import load_folder
from vitral.weights.tensors import load_tensors, save_tensors

Capture = pytest.CaptureFixture[str]


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file, in place."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flips(path: Path, count: int, first: int | None = None) -> list[int]:
    """Random bits of a file, or of its first bytes."""
    size = path.stat().st_size if first is None else first
    return np.random.default_rng(15).choice(8 * size, count, replace=False).tolist()


def header_size(path: Path) -> int:
    """Bytes of a safetensors file before its values."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_every_flipped_bit_of_a_model_folder_is_noticed() -> None:
    folder = random_model(Path("model"))
    load_folder("model")
    weights, config = folder / "model.safetensors", folder / "config.json"
    cases = [(weights, bit) for bit in flips(weights, 150)]
    cases += [(weights, bit) for bit in flips(weights, 50, header_size(weights))]
    cases += [(config, bit) for bit in flips(config, 200)]
    for path, bit in cases:
        before = path.read_bytes()
        flip(path, bit)
        with pytest.raises(UserError):
            vitral.load("model")
        path.write_bytes(before)
    assert vitral.load("model").classes == ("cat", "dog", "owl")


def test_every_flipped_bit_of_a_checkpoint_is_noticed() -> None:
    train("digits", TINY | {"train.steps": 2}, out="run")
    for name in ("best", "last"):
        path = Path(f"run/checkpoints/{name}.safetensors")
        load_tensors(path, checked=True)
        for bit in [*flips(path, 60), *flips(path, 140, header_size(path))]:
            before = path.read_bytes()
            flip(path, bit)
            with pytest.raises(UserError):
                load_tensors(path, checked=True)
            path.write_bytes(before)


def test_a_checksum_counts_types_and_shapes() -> None:
    x = torch.arange(6, dtype=torch.int32)
    found = set[str]()
    for number, tensor in enumerate((x, x.reshape(2, 3), x.reshape(3, 2), x.view(torch.float32))):
        path = Path(f"{number}.safetensors")
        save_tensors(path, {"a": tensor}, checked=True)
        found.add(load_tensors(path, checked=True)[1]["crc32"])
    assert len(found) == 4


def test_an_edit_is_refused_until_it_is_accepted(capsys: Capture) -> None:
    folder = random_model(Path("my model"))
    path = folder / "config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"owl"', '"bird"'), encoding="utf-8")
    with pytest.raises(UserError, match=r"(?s)config\.json: damaged or edited.*vitral doctor 'my model' accept=true"):
        vitral.load(folder)
    assert vitral.load(folder, verify=False).classes == ("cat", "dog", "bird")
    assert main(["doctor", "my model"]) == 2
    assert "damaged or edited" in capsys.readouterr().err
    assert main(["doctor", "my model", "accept=true"]) == 0
    assert "written for config.json and model.safetensors" in capsys.readouterr().out
    assert vitral.load(folder).classes == ("cat", "dog", "bird")
    assert main(["doctor", "my model", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    total = sum((folder / name).stat().st_size for name in ("config.json", "model.safetensors"))
    assert f"match (SHA-256 of all {total:,} bytes" in said["digests"]
    assert (said["classes"], said["outputs"]) == (3, "finite")


def test_accepting_refuses_what_does_not_load(capsys: Capture) -> None:
    folder = random_model(Path("model"))
    path = folder / "config.json"
    edited = path.read_text(encoding="utf-8").replace('"depth": 2', '"depth": 3')
    path.write_text(edited, encoding="utf-8")
    assert main(["doctor", "model", "accept=true"]) == 2
    assert "another architecture" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == edited


def test_a_folder_without_digests_is_loaded_with_a_note(caplog: pytest.LogCaptureFixture, capsys: Capture) -> None:
    folder = random_model(Path("model"))
    tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del tree["digests"]
    (folder / "config.json").write_text(json.dumps(tree), encoding="utf-8")
    with caplog.at_level("INFO", logger="vitral"):
        vitral.load("model")
    assert "config.json has no digests" in caplog.text
    assert main(["doctor", "model"]) == 0
    assert "vitral doctor model accept=true" in capsys.readouterr().out
    tree["digests"] = {"config.json": "0" * 64}
    (folder / "config.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(UserError, match="digests are not readable"):
        vitral.load("model")


def test_large_weights_are_hashed_once_while_they_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_HASHED_ALWAYS", 0)
    hashed: list[Path] = []
    whole = digests.file_digest

    def counted(path: Path) -> str:
        hashed.append(path)
        return whole(path)

    monkeypatch.setattr(digests, "file_digest", counted)
    folder = random_model(Path("model"))
    weights, config = folder / "model.safetensors", Path("model/config.json")
    hashed.clear()
    for _ in range(2):
        load_folder("model")
    assert len(hashed) == 2, "a file that has just been written may change within the clock's resolution"
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10 * 10**9)
    hashed.clear()
    for _ in range(3):
        load_folder("model")
    assert len(hashed) == 1
    assert main(["doctor", "model"]) == 0, capsys.readouterr().err
    assert len(hashed) == 2, "doctor reads all of it"

    stat = weights.stat()
    flip(weights, 8 * (stat.st_size - 3))
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or replaced"):
        load_folder("model")
    flip(weights, 8 * (stat.st_size - 3))
    (tmp_path / "cache/vitral/digests").chmod(0o500)
    load_folder("model")
    assert config.is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 10**6}, "does not fit the weights"),
        ({"width": 10**18, "heads": 1}, "does not fit the weights"),
        ({"width": 10**30, "heads": 1}, "does not fit into 64 bits"),
        ({"depth": float("nan")}, "NaN is not a number"),
        ({"depth": 10**6}, "does not fit the weights"),
        ({"depth": 10**15}, "does not fit the weights"),
        ({"stem_blocks": [10**12], "patch_size": 4}, "does not fit the weights"),
        ({"mlp_dim": 10**12}, "does not fit the weights"),
        ({"registers": 10**9}, "does not fit the weights"),
        ({"num_classes": 10**12}, "id2label"),
        ({"image_size": [10**6, 10**6], "positions": "sincos"}, "image_size"),
        ({"image_size": [10**30, 10**30], "positions": "none"}, "does not fit into 64 bits"),
        ({"image_size": [2048, 2048], "positions": "none"}, "patches"),
        ({"family": "resnet", "blocks": [10**12]}, "does not fit the weights"),
    ],
)
def test_an_architecture_is_held_against_the_weights_before_it_is_built(change: dict[str, Any], message: str) -> None:
    folder = random_model(Path("model"), positions="none")

    def enlarge(tree: dict[str, Any]) -> None:
        kept = ("image_size", "in_channels", "num_classes")
        old = tree["architecture"]
        tree["architecture"] = ({key: old[key] for key in kept} if "family" in change else old) | change
        tree["preprocessing"]["image_size"] = tree["architecture"]["image_size"]

    edit_config(folder, enlarge)
    start = time.process_time()
    with pytest.raises(UserError, match=message):
        vitral.load("model")
    assert time.process_time() - start < 2


def test_a_crop_ratio_near_zero_is_refused() -> None:
    folder = random_model(Path("model"))
    edit_config(folder, lambda tree: tree["preprocessing"].update(crop_pct=1e-9))
    with pytest.raises(UserError, match="would be resized"):
        vitral.load("model")


def test_a_key_that_is_there_twice_is_refused() -> None:
    folder = random_model(Path("model"))
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text.replace('"temperature"', '"name": "x", "temperature"'), encoding="utf-8")
    with pytest.raises(UserError, match="the key 'name' occurs twice"):
        vitral.load("model")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    folder = random_model(Path("model"))
    tensors, metadata = load_tensors(folder / "model.safetensors")
    tensors["blocks.1.mlp.fc1.bias"][3] = value
    save_tensors(folder / "model.safetensors", tensors, metadata)
    edit_config(folder, lambda _: None)
    with pytest.raises(UserError, match=r"not finite(?s:.)*blocks\.1\.mlp\.fc1\.bias"):
        vitral.load("model")


def test_answers_that_are_not_finite_are_refused(capsys: Capture) -> None:
    """Finite weights whose products are not."""
    folder = random_model(Path("model"))
    tensors, metadata = load_tensors(folder / "model.safetensors")
    tensors["head.weight"].fill_(3e38)
    save_tensors(folder / "model.safetensors", tensors, metadata)
    edit_config(folder, lambda _: None)
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    with pytest.raises(UserError, match="outputs of this model are not finite"):
        vitral.load("model").predict([image])
    assert main(["doctor", "model"]) == 2
    assert "not finite" in capsys.readouterr().err
