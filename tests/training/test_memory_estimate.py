"""Plans: parts that are known exactly, the order of choices, limits that are held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitral.cli.main import main
from vitral.models.create import build_model
from vitral.models.presets import resolve
from vitral.models.summary import count_macs, count_parameters, kept_activations
from vitral.training.memory_estimate import (
    Job,
    alternatives,
    choose,
    micro_batches,
    model_job,
    predict,
    read_bytes,
    show_bytes,
)


def job(name: str = "vit_base_patch16_224", batch: int = 64, *, drop_path: float | None = None, **more: Any) -> Job:
    architecture = resolve(name) if drop_path is None else resolve(name, drop_path=drop_path)
    return model_job(architecture, batch, **more)


def test_state_is_bytes_a_parameter() -> None:
    """AdamW in float32: 4 weight, 4 gradient, 8 state; the average 4; a bfloat16 copy 2."""
    count = count_parameters(resolve("vit_base_patch16_224"))
    parts = predict(job(batch=1), 1)
    assert (parts.weights, parts.optimizer, parts.average) == (4 * count, 8 * count, 0)
    assert 0 < parts.gradients <= 4 * count
    assert sum(predict(job(batch=1, ema=True), 1)) - sum(parts) == 4 * count
    assert predict(job(precision="bfloat16_params"), 64).weights == 6 * count
    assert predict(job(state=0), 64).optimizer == 0


def test_activations_are_all_that_is_kept_when_they_lead() -> None:
    architecture = resolve("vit_base_patch16_224")
    assert predict(job(batch=256), 256).activations == kept_activations(architecture, 256, "float32").total()
    assert predict(job(batch=256), 256).gradients == 0  # they arrive as activations go
    accumulated = predict(job(batch=512), 256)
    assert accumulated.gradients == 4 * count_parameters(architecture)


@pytest.mark.parametrize("limit", [2e9, 3e9, 5e9, 9e9, 1e12])
def test_fewest_blocks_twice_then_the_largest_micro_batch(limit: float) -> None:
    work = job(batch=96, precision="bfloat16")
    found = choose(work, limit)
    assert found is not None
    assert found.memory_bytes == sum(predict(work, found.micro_batch, found.checkpointing)) <= limit
    assert (found.accumulation - 1) * found.micro_batch < 96 <= found.accumulation * found.micro_batch
    for size in micro_batches(work):
        for again in range(found.checkpointing + 1):
            if again < found.checkpointing or size > found.micro_batch:
                assert sum(predict(work, size, again)) > limit


def test_nothing_fits_and_everything_fits() -> None:
    assert choose(job(), 1e9) is None
    found = choose(job(), 1e13)
    assert found is not None
    assert found[:3] == (64, 1, 0)


def test_batch_norms_keep_their_batch_as_long_as_they_can() -> None:
    work = job("resnet110_cifar", 128)
    whole = sum(predict(work, 128, 0))
    found = choose(work, whole * 0.6)
    assert found is not None
    assert found.micro_batch == 128
    assert found.checkpointing > 0


def test_drop_path_leaves_out_a_whole_sample() -> None:
    sizes = micro_batches(job(batch=64, drop_path=0.1))
    assert min(sizes) == 5  # of 4, 3.6 that run are rounded to all
    assert micro_batches(job(batch=7)) == [7, 4, 3, 2, 1]


def test_less_memory_for_more_blocks() -> None:
    work = job(batch=32)
    peaks = [sum(predict(work, 32, blocks)) for blocks in range(work.architecture.block_count + 1)]
    assert peaks == sorted(peaks, reverse=True)
    rows = alternatives(work, peaks[0] / 2)
    assert [row.checkpointing for row in rows] == [0, 3, 6, 9, 12]
    assert [row.micro_batch for row in rows] == sorted(row.micro_batch for row in rows)


def test_bytes_as_people_write_them() -> None:
    assert [read_bytes(text) for text in ("8GB", "1.5 GiB", "512MB", "7KiB")] == [
        8 * 10**9,
        3 * 2**29,
        512 * 10**6,
        7168,
    ]
    assert [show_bytes(count) for count in (0, 12, 8e9, 1.234e6)] == ["0 B", "12 B", "8 GB", "1.23 MB"]


def test_the_command_answers_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "deit_s16_in1k", "memory=8GB", "device=cuda", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 22_050_664
    assert found["flops"] == 2 * found["macs"] == 2 * sum(found["macs_parts"].values())
    assert found["fits"]
    assert found["memory_bytes"] == sum(found["parts"].values()) <= 8e9
    assert found["precision"] == "bfloat16"
    assert main(["summary", "vit_tiny_patch16_224", "image_size=96", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["image_size"][0] for row in found["sizes"]] == [48, 96, 144, 192]
    assert main(["estimate", "digits", "train.batch_size=32"]) == 0
    assert "train.micro_batch=32 train.activation_checkpointing=none" in capsys.readouterr().out
    assert main(["estimate", "digitz"]) == 2
    assert "digits" in capsys.readouterr().err
    assert main(["estimate", "digits", "memory=much"]) == 2


def test_growth_is_that_of_models_built_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "growth.png"
    words = ["summary", "vit_tiny_patch16_224", f"out={out}", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    for key, values in (("patch_size", [8, 16, 32]), ("depth", [6, 12, 18, 24])):
        assert [row[key] for row in found[key]] == values
        for row in found[key]:
            other = resolve("vit_tiny_patch16_224", **{key: row[key]})
            assert row["macs"] == sum(count_macs(other).values())
            assert row["parameters"] == sum(p.numel() for p in build_model(other).parameters())
    assert found["walk"][-1] == {"stage": "head", "shape": [1000]}
    assert sum(list(found["formula"].values())[:3]) == found["formula"]["a block"]
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    assert main(words) == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert main([*words, "overwrite=true"]) == 0
    assert main(["summary", "vit_tiny_patch16_224", "out=growth.svg"]) == 2
    assert main(["summary", "vit_tiny_patch16_224", "overwrite=true"]) == 2
    capsys.readouterr()
    assert main(["summary", "resnet20_cifar"]) == 0
    text = capsys.readouterr().out
    assert "stages.2.blocks.2 " in text
    assert "stages.2.blocks.0 " in text
    assert "stages.2.blocks.0.conv1" not in text
    assert "by the formula" not in text


def test_sizes_that_no_model_can_have_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "vit_micro_patch2_8", "image_size=768", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["image_size"][0] for row in found["sizes"]] == [384, 768]
