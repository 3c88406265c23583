"""Files that transformers' ImageGPT writes are read with its logits and codes, and it reads ours with equal ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.igpt_models import codes_of
from tests.oracles import load_oracle
from tests.weights.test_imagegpt import folder
from vitral.export.config import ExportOptions
from vitral.export.library_folders import export
from vitral.models.igpt import IGPT
from vitral.predictor import load

pytestmark = pytest.mark.oracle


def check(model: IGPT, other: Any, processor: Any) -> None:
    codes = codes_of(model, 4)
    started = torch.cat([torch.full((4, 1), model.config.colors), codes[:, :-1]], dim=1)
    with torch.no_grad():
        theirs = other.eval()(input_ids=started).logits
        torch.testing.assert_close(model.code_head(model.read(codes).patches_BND), theirs, rtol=0, atol=1e-5)
    shape = (5, *model.config.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    wanted = np.array(processor(list(images), return_tensors="np")["input_ids"])
    mine = model.codes(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert np.array_equal(mine.numpy(), wanted.reshape(5, -1))


def test_theirs_in() -> None:
    transformers = load_oracle("transformers")
    config = transformers.ImageGPTConfig(vocab_size=21, n_positions=36, n_embd=48, n_layer=3, n_head=4)
    torch.manual_seed(1)
    other = transformers.ImageGPTForCausalImageModeling(config)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    clusters = np.random.default_rng(1).uniform(-1, 1, (20, 3)).astype(np.float32)
    processor = transformers.ImageGPTImageProcessor(clusters=clusters.tolist(), size={"height": 6, "width": 6})
    other.save_pretrained("theirs")
    processor.save_pretrained("theirs")
    model = load("theirs").model
    assert isinstance(model, IGPT)
    check(model, other, processor)


def test_ours_out() -> None:
    transformers = load_oracle("transformers")
    model = folder("mine", depth=3, colors=20, image_size=6)
    export("mine", ExportOptions(format="hf", out="out"))
    other = transformers.ImageGPTForCausalImageModeling.from_pretrained(Path("out"))
    check(model, other, transformers.ImageGPTImageProcessor.from_pretrained(Path("out")))
