"""Image GPT beside transformers' ImageGPT: logits, the loss, features and parameter counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.models.igpt_models import codes_of, colors_of, igpt
from tests.oracles import load_oracle
from vitral.models.igpt import IGPT
from vitral.models.igpt_config import IGPTConfig
from vitral.models.presets import resolve
from vitral.models.summary import count_parameters

pytestmark = pytest.mark.oracle

INNER = {
    "ln_1": "norm1", "ln_2": "norm2", "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
OUTER = {"wte.weight": "token_embed", "wpe.weight": "pos_embed", "ln_f.weight": "norm.weight"}


def published(model: IGPT) -> Any:
    """transformers' model with the same weights; its dense layers before the output are transposed."""
    transformers, c = load_oracle("transformers"), model.config
    config = transformers.ImageGPTConfig(
        vocab_size=c.colors + 1, n_positions=c.tokens, n_embd=c.width, n_layer=c.depth, n_head=c.heads,
        n_inner=c.mlp_dim, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    mine, state = model.state_dict(), dict[str, torch.Tensor]()
    for name, ours in OUTER.items():
        state[f"transformer.{name}"] = mine[ours]
    for i in range(c.depth):
        for theirs, ours in INNER.items():
            for part in ("weight", "bias"):
                tensor = mine.get(f"blocks.{i}.{ours}.{part}")
                if tensor is not None:
                    state[f"transformer.h.{i}.{theirs}.{part}"] = tensor.T if tensor.ndim == 2 else tensor
    state["lm_head.weight"] = mine["code_head.weight"]
    made = transformers.ImageGPTForCausalImageModeling(config).to(model.dtype)
    made.load_state_dict(state)
    return made.eval()


@pytest.mark.parametrize("size", [(3, 4), (5, 7)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_logits_and_loss_are_the_published_ones(dtype: torch.dtype, limit: float, size: tuple[int, int]) -> None:
    model = igpt(dtype, image_size=size, depth=3, heads=4, std=0.15)
    other, codes = published(model), codes_of(model, 4)
    started = torch.cat([torch.full((4, 1), model.config.colors), codes[:, :-1]], dim=1)
    with torch.no_grad():
        tokens = model.read(codes).patches_BND
        theirs = other(input_ids=started)
        torch.testing.assert_close(model.code_head(tokens), theirs.logits, rtol=0, atol=limit)
        theirs_N = other(input_ids=started, labels=torch.cat([started[:, :1], codes[:, :-1]], dim=1)).loss
        nll = model.nll(tokens, codes)[:, :-1].mean()
        torch.testing.assert_close(nll, theirs_N, rtol=0, atol=limit)


@pytest.mark.parametrize("name", ["small", "medium", "large"])
def test_parameters_of_the_paper(name: str) -> None:
    """76, 455 and 1,362 million, as section 3 says, exactly transformers' count; num_classes=0 leaves out no more."""
    transformers, config = load_oracle("transformers"), resolve(f"igpt_{name}_32", num_classes=0)
    assert isinstance(config, IGPTConfig)
    theirs = transformers.ImageGPTConfig(
        vocab_size=513, n_positions=1024, n_embd=config.width, n_layer=config.block_count, n_head=config.heads
    )
    with torch.device("meta"):
        model = transformers.ImageGPTForCausalImageModeling(theirs)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(config) == count
    assert math.isclose(count / 1e6, {"small": 76, "medium": 455, "large": 1362}[name], rel_tol=0.01)


def test_colors_are_the_published_ones() -> None:
    """transformers' preprocessing, in [-1, 1], assigns the same colors."""
    load_oracle("transformers")
    from transformers.models.imagegpt.image_processing_imagegpt import color_quantize_torch

    model = igpt(in_channels=3, colors=40, image_size=(8, 9))
    made = torch.Generator().manual_seed(0)
    colors_of(model).copy_(torch.rand(40, 3, generator=made))
    images = torch.randint(0, 256, (3, 3, 8, 9), generator=made, dtype=torch.uint8)
    pixels = images.movedim(1, -1).flatten(0, 2).double() / 127.5 - 1
    theirs = color_quantize_torch(pixels, 2 * colors_of(model).double() - 1)
    assert torch.equal(model.codes(images).flatten(), theirs)
