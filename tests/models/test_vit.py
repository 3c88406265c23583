"""Truths about the whole Vision Transformer. B batch, C channels, N patches, K kept patches, T tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import create_vit
from vitral.errors import UserError
from vitral.models.layers import Block
from vitral.models.vit import VisionTransformer

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"pool": "avg"},
    {"pool": "avg", "class_token": False},
    {"pool": "avg", "fc_norm": False},
    {"fc_norm": True},
    {"head": "mlp"},
    {"num_classes": 0},
    {"depth": 1, "gelu": "tanh", "image_size": (6, 10), "in_channels": 1},
    {"pool": "cls_avg", "registers": 2},
    {"pool": "map", "class_token": False, "image_size": (6, 10)},
    {"pool": "map", "fc_norm": True, "registers": 1},
    {"distill_token": True, "registers": 2},
    {"mlp": "swiglu", "qk_norm": True, "layer_scale": 0.1},
    {"prefix_positions": False, "distill_token": True},
    {"positions": "learned", "positions_at": "layers", "registers": 1},
    {"positions": "learned", "positions_at": "layers_shared"},
    {"positions": "learned_2d", "image_size": (6, 10)},
    {"positions": "learned_2d", "positions_at": "layers", "pool": "avg", "class_token": False},
    {"positions": "relative", "image_size": (6, 10), "registers": 1},
    {"positions": "relative", "positions_at": "layers_shared", "pool": "avg"},
    {"positions": "relative_bias", "image_size": (6, 10), "key_bias": False, "pool": "avg"},
    {"positions": "relative_bias", "positions_at": "layers_shared", "registers": 1},
    {"positions": "sincos"},
    {"positions": "sincos", "positions_at": "layers_shared", "pool": "avg"},
    {"positions": "rope", "registers": 2, "image_size": (6, 10)},
    {"positions": "rope", "pool": "avg", "class_token": False},
    {"positions": "none", "pool": "avg"},
)
PLACED = tuple(options for options in VARIANTS if "positions" in options or options == {})


def tiny(dtype: torch.dtype = torch.float32, **options: Any) -> VisionTransformer:
    """A two-block model in eval mode whose every parameter is drawn from N(0, 0.3)."""
    options = {"width": 12, "depth": 2, "heads": 3, "mlp_dim": 20, "num_classes": 5, **options}
    model = create_vit("vit_micro_patch2_8", **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval().to(dtype)


def images(model: VisionTransformer, batch: int = 3) -> Tensor:
    """Uniform images of the model's shape."""
    return torch.rand(batch, model.config.in_channels, *model.config.image_size)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("options", VARIANTS)
def test_initialization_covers_every_parameter(options: dict[str, Any]) -> None:
    model = create_vit("vit_micro_patch2_8", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_initialization_is_the_stated_one() -> None:
    model = create_vit("vit_tiny_patch4_32", depth=1, head="mlp")
    block = model.blocks[0]
    assert isinstance(block, Block)
    limit = (6 / (2 * 192)) ** 0.5
    for weight in block.attn.qkv.weight.chunk(3):
        assert 0.99 * limit < weight.abs().max() <= limit
    limit = (6 / (192 + 768)) ** 0.5
    assert 0.99 * limit < block.mlp.fc1.weight.abs().max() <= limit
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(48**-0.5, rel=0.03)
    assert model.patch_embed.proj.weight.abs().max() <= 2 * 48**-0.5 / 0.8796 + 1e-6
    assert model.pos_embed is not None
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.03)
    zeros = [name for name, value in model.named_parameters() if not value.any()]
    assert {"cls_token", "head.weight", "head.bias", "blocks.0.attn.qkv.bias", "norm.bias"} <= set(zeros)
    assert all(name.endswith("bias") for name in set(zeros) - {"cls_token", "head.weight"})
    assert torch.equal(model(torch.rand(2, 3, 32, 32)), torch.zeros(2, 10))


def test_same_seed_same_weights() -> None:
    states: list[dict[str, Tensor]] = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(create_vit("vit_micro_patch2_8").state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("options", VARIANTS)
def test_forward_is_encode_pool_head(options: dict[str, Any]) -> None:
    model = tiny(torch.float64, **options)
    x = images(model)
    torch.testing.assert_close(model(x), model.classify(model.pool(model.encode(x))))


@pytest.mark.parametrize("options", VARIANTS)
def test_gradients_reach_every_parameter(options: dict[str, Any]) -> None:
    """From the shortened last block of `forward` as from `encode`, and the same ones."""
    model = tiny(torch.float64, **options)
    x, parameters = images(model), list(model.parameters())
    short = torch.autograd.grad(model(x).square().sum(), parameters)
    long = torch.autograd.grad(model.classify(model.pool(model.encode(x))).square().sum(), parameters)
    assert all(gradient.any() for gradient in short)
    torch.testing.assert_close(short, long)


def test_tokens_by_hand() -> None:
    """Eq. 1-4 written out."""
    model = tiny(torch.float64)
    x = images(model).double()
    patches = F.conv2d((x - 0.5) / 0.5, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=2)
    assert model.cls_token is not None
    assert model.pos_embed is not None
    z = torch.cat([model.cls_token.expand(3, 1, 12), patches.flatten(2).transpose(1, 2)], 1) + model.pos_embed
    for block in model.blocks:
        z = block(z)
    z = F.layer_norm(z, (12,), model.norm.weight, model.norm.bias, 1e-6)  # pyright: ignore[reportArgumentType]
    out = model.encode(x)
    assert out.cls_BD is not None
    assert out.grid == (4, 4)
    torch.testing.assert_close(out.cls_BD, z[:, 0])
    torch.testing.assert_close(out.patches_BND, z[:, 1:])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_and_their_normalization(channels: int) -> None:
    mean, std = [0.1 * (i + 1) for i in range(channels)], [0.2 * (i + 1) for i in range(channels)]
    model = tiny(in_channels=channels, mean=mean, std=std)
    plain = tiny(in_channels=channels, mean=[0.0] * channels, std=[1.0] * channels)
    plain.load_state_dict(model.state_dict())
    x = images(model)
    by_hand = (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    torch.testing.assert_close(model(x), plain(by_hand))


def test_uint8_is_float_over_255() -> None:
    model = tiny()
    x = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(model(x), model(x.float() / 255))


def test_casting_keeps_the_normalization() -> None:
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    model = tiny(mean=[0.485, 0.456, 0.406], std=[0.2, 0.2, 0.2])
    assert "mean" not in model.state_dict()
    for cast in (model.bfloat16, model.double, model.half, model.float):
        assert torch.equal(cast().mean, mean)
    empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    assert torch.equal(empty.mean, mean)


def test_low_precision_parameters() -> None:
    model = tiny()
    exact = model(images(model))
    torch.manual_seed(0)
    other = tiny(torch.bfloat16)
    assert other(images(other)).dtype == torch.bfloat16
    x = images(model)
    with torch.autocast("cpu", torch.bfloat16):
        attend = torch.ones(3, 16, dtype=torch.bool)
        out = model.encode(x, attend_BN=attend, capture=("blocks.0.attn.map",))
        assert out.patches_BND.isfinite().all()
        torch.testing.assert_close(model(x).float(), model(x).float())
    assert exact.dtype == torch.float32


def test_keep_gathers() -> None:
    """Kept patches see only each other: as encoding tokens gathered by hand."""
    model = tiny(torch.float64)
    patches, grid = model.embed(images(model))
    keep = torch.stack([torch.randperm(16)[:5] for _ in range(3)])
    out = model.encode_tokens(patches, grid, keep)
    for i in range(3):
        alone = copy.deepcopy(model)
        assert model.pos_embed is not None
        alone.pos_embed = nn.Parameter(torch.cat([model.pos_embed[:, :1], model.pos_embed[:, 1:][:, keep[i]]], 1))
        alone.grid = (1, 5)
        expected = alone.encode_tokens(patches[i : i + 1, keep[i]], (1, 5))
        assert out.cls_BD is not None
        assert expected.cls_BD is not None
        torch.testing.assert_close(out.cls_BD[i], expected.cls_BD[0])
        torch.testing.assert_close(out.patches_BND[i], expected.patches_BND[0])


@pytest.mark.parametrize("options", PLACED)
def test_order_of_kept_patches_does_not_matter(options: dict[str, Any]) -> None:
    model = tiny(torch.float64, **options)
    x, keep = images(model), torch.arange(10).expand(3, 10)
    order = torch.randperm(10)
    out, other = model.encode(x, keep), model.encode(x, keep[:, order])
    torch.testing.assert_close(other.cls_BD, out.cls_BD)
    torch.testing.assert_close(other.patches_BND, out.patches_BND[:, order])


@pytest.mark.parametrize("options", PLACED)
def test_keeping_all_is_keeping_none_out(options: dict[str, Any]) -> None:
    model = tiny(torch.float64, **options)
    x, N = images(model), model.grid[0] * model.grid[1]
    order = torch.stack([torch.randperm(N) for _ in range(3)])
    out, other = model.encode(x), model.encode(x, order)
    rows = out.patches_BND.gather(1, order[..., None].expand(-1, -1, 12))
    torch.testing.assert_close(other.patches_BND, rows)


@pytest.mark.parametrize("options", PLACED)
def test_places_matter_unless_there_are_none(options: dict[str, Any]) -> None:
    """Moved patches give moved outputs exactly where the model knows no positions."""
    model = tiny(torch.float64, **options)
    patches, grid = model.embed(images(model))
    order = torch.randperm(patches.shape[1])
    out, moved = model.encode_tokens(patches, grid), model.encode_tokens(patches[:, order], grid)
    close = torch.allclose(moved.patches_BND, out.patches_BND[:, order])
    assert close == (options.get("positions") == "none")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "avg"},
        {"pool": "avg", "class_token": False},
        {"pool": "map", "class_token": False},
        {"pool": "cls_avg", "registers": 2, "positions": "rope"},
        {"distill_token": True, "positions": "relative"},
        {"pool": "avg", "positions": "relative_bias", "registers": 1},
    ],
)
def test_attend_mask_is_dropping_tokens(options: dict[str, Any]) -> None:
    model = tiny(torch.float64, **options)
    x, keep = images(model), torch.stack([torch.randperm(16)[:6].sort().values for _ in range(3)])
    attend = torch.zeros(3, 16, dtype=torch.bool).scatter(1, keep, True)
    masked, dropped = model.encode(x, attend_BN=attend), model.encode(x, keep)
    rows = masked.patches_BND.gather(1, keep[..., None].expand(-1, -1, 12))
    torch.testing.assert_close(rows, dropped.patches_BND)
    torch.testing.assert_close(model.pool(masked, attend), model.pool(dropped))
    both = model.encode(x, keep, attend_BN=attend)
    torch.testing.assert_close(both.patches_BND, dropped.patches_BND)
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    moved = model.encode(x, order, attend_BN=attend)
    torch.testing.assert_close(model.pool(moved, attend, order), model.pool(masked, attend))


def test_capture_changes_nothing_and_carries_gradients() -> None:
    model = tiny()
    x = images(model)
    names = [f"blocks.{i}{end}" for i in (0, 1) for end in ("", ".attn", ".attn.map", ".attn.q", ".attn.k")]
    out, plain = model.encode(x, capture=names), model.encode(x)
    assert set(out.captured) == set(names)
    assert plain.captured == {}
    torch.testing.assert_close(out.patches_BND, plain.patches_BND, rtol=0, atol=1e-5)
    for i in (0, 1):
        rows = out.captured[f"blocks.{i}.attn.map"]
        assert rows.shape == (3, 3, 17, 17)
        torch.testing.assert_close(rows.sum(-1), torch.ones(3, 3, 17))
        q, k = out.captured[f"blocks.{i}.attn.q"], out.captured[f"blocks.{i}.attn.k"]
        torch.testing.assert_close((q @ k.transpose(2, 3) / 2).softmax(-1), rows)
    torch.testing.assert_close(model.norm(out.captured["blocks.1"])[:, 1:], out.patches_BND)
    score = model.pool(out).sum()
    for gradient in torch.autograd.grad(score, [out.captured[name] for name in names if name != "blocks.1.attn.q"]):
        assert gradient.any()


def test_capture_of_one_name_leaves_the_others_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny(depth=12), []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    out = model.encode(images(model), capture=("blocks.1.attn.map", "blocks.3"))
    assert set(out.captured) == {"blocks.1.attn.map", "blocks.3"}
    assert len(calls) == 11


def test_unknown_capture_names_the_nearest() -> None:
    model = tiny()
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.maps[\s\S]*'blocks\.0\.attn\.map'"):
        model.encode(images(model), capture=("blocks.0.attn.maps",))
    with pytest.raises(UserError, match=r"The last one is blocks\.1\."):
        model.encode(images(model), capture=("blocks.2",))


@pytest.mark.parametrize("options", PLACED)
@pytest.mark.parametrize("size", [(8, 8), (6, 14), (2, 2), (30, 4)])
def test_other_sizes_are_encoded(size: tuple[int, int], options: dict[str, Any]) -> None:
    model = tiny(**options)
    out = model.encode(torch.rand(2, 3, *size))
    assert out.grid == (size[0] // 2, size[1] // 2)
    assert out.patches_BND.shape == (2, size[0] * size[1] // 4, 12)
    kinds = ("pos_embed", "offset_embed", "bias_table")
    tables = [table for name, table in model.named_parameters() if any(kind in name for kind in kinds)]
    for gradient in torch.autograd.grad(model.pool(out).square().sum(), tables) if tables else ():
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "dtype", "text"),
    [
        ((1, 3, 8, 10), torch.float32, "8 x 10"),
        ((1, 1, 8, 8), torch.float32, "B x 3 x height x width"),
        ((3, 8, 8), torch.float32, "B x 3 x height x width"),
        ((1, 3, 8, 8), torch.int64, "wrong kind of numbers"),
    ],
)
def test_model_refuses_other_images(shape: tuple[int, ...], dtype: torch.dtype, text: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny()(torch.zeros(shape, dtype=dtype))
    assert text in str(caught.value)


def test_encode_refuses_a_torn_patch() -> None:
    with pytest.raises(UserError, match="multiples of the patch size, 2"):
        tiny().encode(torch.zeros(1, 3, 8, 9))


def test_dropout_after_positions() -> None:
    model = tiny(dropout=0.5).train()
    seen: list[Tensor] = []
    model.pos_drop.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    x = images(model)
    model.encode(x)
    patches, _ = model.embed(x)
    assert model.pos_embed is not None
    torch.testing.assert_close(seen[0][:, 1:], patches + model.pos_embed[:, 1:])
    assert sum(isinstance(module, nn.Dropout) and module.p == 0.5 for module in model.modules()) == 1 + 3 * 2


def test_drop_path_rises_linearly_and_rests_in_eval() -> None:
    model = tiny(depth=5, drop_path=0.4)
    assert [block.drop_path for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert tiny(depth=1, drop_path=0.4).blocks[0].drop_path == 0.4
    off = tiny(depth=5)
    off.load_state_dict(model.state_dict())
    x = images(model, 10)
    assert torch.equal(model(x), off.train()(x))
    assert not torch.equal(model.train()(x), off(x))


def test_float64_gradients_are_the_slopes() -> None:
    model = tiny(torch.float64, width=6, heads=2, mlp_dim=6, depth=1, image_size=4, in_channels=1)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,), fast_mode=True)
    captured = lambda y: model.encode(y, capture=("blocks.0.attn.map",)).patches_BND  # noqa: E731
    assert torch.autograd.gradcheck(captured, (x,), fast_mode=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "avg", "drop_path": 0.5},
        {"positions": "rope", "registers": 1, "mlp": "swiglu", "layer_scale": 0.1},
        {"positions": "relative", "pool": "map"},
        {"positions": "relative_bias", "pool": "avg", "key_bias": False},
    ],
)
def test_one_graph_without_breaks(options: dict[str, Any]) -> None:
    model = tiny(**options).train("drop_path" in options)
    whole: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images(model)
    torch.manual_seed(5)
    expected = model(x)
    torch.manual_seed(5)
    torch.testing.assert_close(whole(x), expected)

    def masked(x_BCHW: Tensor, keep_BK: Tensor) -> tuple[Tensor, Tensor]:
        out = model.encode(x_BCHW, keep_BK, capture=("blocks.1.attn.map",))
        return out.patches_BND, out.captured["blocks.1.attn.map"]

    model.eval()
    keep = torch.arange(6).expand(3, 6)
    compiled: Any = torch.compile(masked, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, keep), masked(x, keep))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "avg", "class_token": False},
        {"positions": "rope", "registers": 1, "distill_token": True},
        {"positions": "relative", "pool": "map"},
        {"positions": "relative_bias", "pool": "avg", "key_bias": False},
    ],
)
def test_exports_with_an_open_batch_size(options: dict[str, Any]) -> None:
    model = tiny(**options)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(model, 2),), dynamic_shapes=({0: batch},))
    for count in (1, 5):
        x = images(model, count)
        torch.testing.assert_close(program.module()(x), model(x))
