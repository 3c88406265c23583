"""Remove the least important attention heads and MLP features: tensors become smaller, nothing is masked.

Importance is the first-order Taylor expansion of the loss (Molchanov et al. 2019, arXiv 1906.10771). Shape letters: B
batch, T tokens, Q queried tokens, h heads, d features of a head, D width, M hidden features of an MLP, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.errors import UserError
from vitral.models.config import ViTConfig
from vitral.models.registry import build_config, token_config
from vitral.models.summary import count_macs, module_macs
from vitral.models.vit import VisionTransformer


class Importance(NamedTuple):
    """What the loss would lose with each head and each hidden feature, of each block: float64 [h] and [M], and over how
    many images that is a mean."""

    heads: list[Tensor]
    features: list[Tensor]
    images: int


class Kept(NamedTuple):
    """Numbers of the heads and hidden features of each block that stay, in their order."""

    heads: list[Tensor]
    features: list[Tensor]


def measure_importance(model: VisionTransformer, batches: Iterable[tuple[Tensor, Tensor]]) -> Importance:
    """Importance of every head and hidden feature, the mean over images of (sum over tokens of a * dL/da)^2.

    batches: ([0,1] images, class numbers [B], or bool [B, C] where an image may have several). a is what the head or
    the feature hands on: the change of one image's loss L, to first order, when it is set to zero (the paper's
    squared product, with a gate of 1 in the place of a weight). Each image counts separately, so the size of the
    batches changes nothing; only sums are kept. Raises UserError where there is no image.
    """
    model.eval()
    c = model.config
    sums = [torch.zeros(n, dtype=torch.float64) for n in (*c.heads_of_blocks, *c.mlp_dims_of_blocks)]
    count = 0
    for images_BCHW, labels in batches:
        gates: dict[int, Tensor] = {}
        with ExitStack() as hooks, torch.enable_grad():
            for number, place in enumerate(_places(model)):
                hooks.callback(place.layer.register_forward_pre_hook(_gated(number, place.units, gates)).remove)
            loss = _loss(model(images_BCHW.to(model.mean.device)), labels.to(model.mean.device))
        grads = torch.autograd.grad(loss, [gates[number] for number in range(len(sums))])
        for total, grad_BU in zip(sums, grads, strict=True):
            total += grad_BU.double().square().sum(0).cpu()
        count += len(images_BCHW)
    if not count:
        raise UserError("at least one image is expected", where="data")
    means = [total / count for total in sums]
    return Importance(means[: c.depth], means[c.depth :], count)


class _Place(NamedTuple):
    layer: nn.Module
    units: int


def _places(model: VisionTransformer) -> list[_Place]:
    """The layers whose inputs are the heads' results, and those whose inputs are hidden features."""
    c, found = model.config, list[_Place]()
    for end, counts in (("attn.proj", c.heads_of_blocks), ("mlp.fc2", c.mlp_dims_of_blocks)):
        found += [_Place(model.get_submodule(f"blocks.{i}.{end}"), units) for i, units in enumerate(counts)]
    return found


def _gated(number: int, units: int, gates: dict[int, Tensor]) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    """Multiplies a layer's input by a gate of 1 for each image and unit, and leaves the gate behind."""

    def multiply(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        x_BQX = inputs[0]
        gate_BU = torch.ones(x_BQX.shape[0], units, dtype=x_BQX.dtype, device=x_BQX.device, requires_grad=True)
        gates[number] = gate_BU
        return ((x_BQX.unflatten(-1, (units, -1)) * gate_BU[:, None, :, None]).flatten(2),)

    return multiply


def _loss(logits_BC: Tensor, labels: Tensor) -> Tensor:
    """Summed over the images, so that the gradient of each one's gates is its own."""
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits_BC, labels.to(logits_BC.dtype), reduction="sum")
    return F.cross_entropy(logits_BC, labels, reduction="sum")


def choose_kept(config: ViTConfig, importance: Importance, share: float) -> Kept:
    """What stays at `share` of the multiply-accumulates of one image, at most.

    What goes first has the least importance for what it costs; the last head and the last feature of a block stay.
    Raises UserError for a share below what is left then.
    """
    limit, macs = share * sum(count_macs(config).values()), sum(count_macs(config).values())
    units: list[tuple[float, int, int, int, int]] = []
    for i in range(config.depth):
        costs = _costs(config, i)
        for kind, values in enumerate((importance.heads[i], importance.features[i])):
            if kind == 0 and config.by_offset:
                continue
            units += [(value / costs[kind], kind, i, unit, costs[kind]) for unit, value in enumerate(values.tolist())]
    stays = [[set(range(len(v))) for v in values] for values in (importance.heads, importance.features)]
    for _, kind, i, unit, cost in sorted(units):
        if macs <= limit:
            break
        if len(stays[kind][i]) > 1:
            stays[kind][i].remove(unit)
            macs -= cost
    if macs > limit:
        least = macs / sum(count_macs(config).values())
        raise UserError("so little cannot be reached", where="flops", got=share, expected=f"{least:.3f} or more")
    heads, features = ([torch.tensor(sorted(units)) for units in kind] for kind in stays)
    return Kept(heads, features)


def _costs(config: ViTConfig, block: int) -> tuple[int, int]:
    """Multiply-accumulates of one head and of one hidden feature of a block."""
    macs = module_macs(config)
    heads = sum(macs[f"blocks.{block}.attn.{part}"] for part in ("qkv", "scores", "values", "proj"))
    features = sum(macs[f"blocks.{block}.mlp.{part}"] for part in ("fc1", "fc2"))
    return heads // config.heads_of_blocks[block], features // config.mlp_dims_of_blocks[block]


def prune(model: VisionTransformer, kept: Kept) -> VisionTransformer:
    """A smaller model of the heads and hidden features that stay. What is computed with them is the same; where those
    that go are zero, so are the logits."""
    c = model.config
    heads, features = tuple(map(len, kept.heads)), tuple(map(len, kept.features))
    changed = {"block_heads": None if c.by_offset else heads, "block_mlp_dims": features}
    config = token_config(build_config({**c.model_dump(), **changed}))
    assert config is not None
    smaller = VisionTransformer(config)
    state = dict(model.state_dict())
    d, gates = c.width // c.heads, 1 + (c.mlp == "swiglu")
    for i in range(c.depth):
        head, feature = (index.to(model.mean.device) for index in (kept.heads[i], kept.features[i]))
        for end in ("weight", "bias"):
            qkv, fc1 = f"blocks.{i}.attn.qkv.{end}", f"blocks.{i}.mlp.fc1.{end}"
            if qkv in state:
                state[qkv] = _rows(state[qkv], (3, -1, d), head)
            state[fc1] = _rows(state[fc1], (gates, -1, 1), feature)
        for part in "qv" if not c.key_bias else "":
            bias = f"blocks.{i}.attn.{part}_bias"
            state[bias] = _rows(state[bias], (1, -1, d), head)
        proj, fc2 = f"blocks.{i}.attn.proj.weight", f"blocks.{i}.mlp.fc2.weight"
        state[proj] = state[proj].unflatten(1, (-1, d)).index_select(1, head).flatten(1)
        state[fc2] = state[fc2].index_select(1, feature)
    smaller.load_state_dict(state)
    return smaller.to(model.mean.device, model.dtype).train(model.training)


def _rows(packed: Tensor, parts: tuple[int, int, int], kept: Tensor) -> Tensor:
    """The rows of some units of a packed layer: parts, units, rows a unit."""
    return packed.unflatten(0, parts).index_select(1, kept).flatten(0, 2)
