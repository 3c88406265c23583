"""The Transformer's stacks beside torch's, positions by closed form, exact parameter counts.

Shape letters: B batch, S source tokens, T target tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.memory import kept_bytes
from tests.models.sequences import VARIANTS, build, texts
from vitral.models.create import build_network, create_sequence_model
from vitral.models.decoder import SequenceBlock
from vitral.models.parameters import depth_of, layer_of
from vitral.models.position import sinusoidal_table
from vitral.models.presets import PRESETS, preset_table, resolve, resolve_any, resolve_sequence
from vitral.models.registry import families_of
from vitral.models.seq2seq import Seq2Seq
from vitral.models.sequence_config import SequenceConfig
from vitral.models.summary import count_macs, count_parameters, kept_activations, summarize

PRESET_NAMES = [name for name in PRESETS if PRESETS[name]["family"] in families_of(SequenceConfig)]


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("width", [2, 12, 64])
def test_products_of_positions_depend_on_their_distance_alone(width: int, halves: bool) -> None:
    table_TD = sinusoidal_table(40, width, halves)
    products_TT = table_TD @ table_TD.T
    for distance in range(40):
        diagonal = products_TT.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-6)
    assert products_TT[0, 0].item() == pytest.approx(width / 2)


def test_sines_take_turns_or_come_first() -> None:
    one, two = sinusoidal_table(5, 6), sinusoidal_table(5, 6, halves=True)
    for position in range(5):
        for i in range(3):
            angle = torch.tensor(position / 10_000 ** (2 * i / 6), dtype=torch.float64)
            for sine, cosine in (
                (one[position, 2 * i], one[position, 2 * i + 1]),
                (two[position, i], two[position, 3 + i]),
            ):
                torch.testing.assert_close(sine, angle.sin())
                torch.testing.assert_close(cosine, angle.cos())


def torch_weights(block: SequenceBlock) -> dict[str, Tensor]:
    """The block's weights by the names of nn.TransformerEncoderLayer or nn.TransformerDecoderLayer."""
    cross = block.cross_attn
    modules: dict[str, nn.Module] = {
        "self_attn.out_proj": block.attn.proj, "linear1": block.mlp.fc1, "linear2": block.mlp.fc2, "norm1": block.norm1,
        "norm2": block.norm2,
    }  # fmt: skip
    packed = {"self_attn": [block.attn.qkv]}
    if cross is not None:
        modules |= {"multihead_attn.out_proj": cross.proj, "norm2": block.norm_cross, "norm3": block.norm2}
        packed["multihead_attn"] = [cross.q, cross.kv]
    named = {f"{name}.{part}": getattr(module, part) for name, module in modules.items() for part in ("weight", "bias")}
    for name, layers in packed.items():
        named[f"{name}.in_proj_weight"] = torch.cat([layer.weight for layer in layers])
        named[f"{name}.in_proj_bias"] = torch.cat([layer.bias for layer in layers])
    return named


def torchs(model: Seq2Seq) -> nn.Transformer:
    """nn.Transformer with the model's weights. It has final norms always; with norms behind, none is published."""
    c = model.config
    layer: dict[str, Any] = {
        "dropout": 0.0, "activation": c.activation, "layer_norm_eps": c.norm_eps, "batch_first": True,
        "norm_first": c.norm_first, "dtype": torch.float64,
    }  # fmt: skip
    norms = [nn.LayerNorm(c.width, dtype=torch.float64) if c.norm_first else None for _ in range(2)]
    stacks = (
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(c.width, c.heads, c.mlp_dim, **layer), c.encoder_depth, norms[0], False
        ),
        nn.TransformerDecoder(
            nn.TransformerDecoderLayer(c.width, c.heads, c.mlp_dim, **layer), c.decoder_depth, norms[1]
        ),
    )
    theirs = nn.Transformer(c.width, c.heads, custom_encoder=stacks[0], custom_decoder=stacks[1], batch_first=True)
    weights: dict[str, Tensor] = {}
    for half, own in (("encoder", model.encoder), ("decoder", model.decoder)):
        for i, block in enumerate(own.blocks):
            assert isinstance(block, SequenceBlock)
            weights |= {f"{half}.layers.{i}.{name}": tensor for name, tensor in torch_weights(block).items()}
        weights |= {f"{half}.norm.{name}": tensor for name, tensor in own.norm.state_dict().items()}
    theirs.load_state_dict(weights)
    return theirs.eval()


@pytest.mark.parametrize("name", ["pre", "post", "untied"])
@pytest.mark.parametrize("sizes", [(1, 1), (7, 5), (4, 9)])
def test_logits_and_gradients_equal_torchs_transformer(name: str, sizes: tuple[int, int]) -> None:
    """Its masks are ours inverted: true where no token may attend."""
    model, (S, T) = build(name), sizes
    assert isinstance(model, Seq2Seq)
    source, target = texts([S, max(S - 2, 1), max(S - 3, 1)], S), texts([T, T, max(T - 3, 1)], T, seed=1)
    theirs = torchs(model)
    shared = model.decoder.embed.weight if model.config.share_embeddings else None
    x_BSD, y_BTD = model.encoder.embed(source, shared).detach(), model.decoder.embed(target).detach()
    x_BSD.requires_grad_()
    causal = torch.ones(T, T, dtype=torch.bool).triu(1)
    out_BTD = theirs(
        x_BSD, y_BTD, tgt_mask=causal, src_key_padding_mask=source == 0, memory_key_padding_mask=source == 0,
    )  # fmt: skip
    weight = model.decoder.embed.weight if model.decoder.output is None else model.decoder.output.weight
    assert weight is not None
    expected = out_BTD @ weight.T
    if model.decoder.output_bias is not None:
        expected = expected + model.decoder.output_bias
    torch.testing.assert_close(model(source, target), expected, rtol=0, atol=1e-6)
    own = model.decode(model.encode(source), target).logits_BTV.square().sum()
    mlp: Any = model.encoder.blocks[0]
    grad = torch.autograd.grad(own, mlp.mlp.fc1.weight)[0]
    layers: Any = theirs.encoder.layers
    other = torch.autograd.grad(expected.square().sum(), layers[0].linear1.weight)[0]
    torch.testing.assert_close(grad, other, rtol=1e-6, atol=1e-6)


def closed_form(V: int, D: int, F: int, depth: int) -> int:
    """Shared embeddings of V tokens, no norms behind the stacks, no bias of the output."""
    attention, mlp, norm = 4 * (D * D + D), 2 * D * F + F + D, 2 * D
    return V * D + depth * (attention + mlp + 2 * norm) + depth * (2 * attention + mlp + 3 * norm)


@pytest.mark.parametrize(
    ("name", "count", "millions", "D"),
    [("transformer_base", 63_082_496, 65, 512), ("transformer_big", 214_245_376, 213, 1024)],
)
def test_parameters_of_the_paper(name: str, count: int, millions: int, D: int) -> None:
    """65 and 213 million, as table 3 of arXiv 1706.03762 has them, are of 40,700 and 35,800 tokens, not of 37,000."""
    config = resolve_sequence(name)
    assert count_parameters(config) == closed_form(37_000, D, 4 * D, 6) == count
    assert count == pytest.approx(millions * 1e6, rel=0.03)
    fitting = {"transformer_base": 40_700, "transformer_big": 35_800}[name]
    sizes = {"vocabulary": fitting, "source_vocabulary": fitting}
    assert round(count_parameters(resolve_sequence(name, **sizes)) / 1e6) == millions


def test_parameters_of_the_small_ones() -> None:
    for name, depth, D in (("transformer_tiny", 2, 64), ("transformer_small", 3, 128)):
        expected = closed_form(64, D, 4 * D, depth) + 64 * D + 2 * 2 * D  # two tables, two norms behind the stacks
        assert count_parameters(resolve_sequence(name)) == expected


def test_trocr_has_the_published_size() -> None:
    """334 million: table 1 of arXiv 2109.10282."""
    assert count_parameters(resolve_sequence("trocr_base_patch16_384")) == pytest.approx(334e6, rel=0.005)


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_presets_are_in_the_table(name: str) -> None:
    config, row = resolve_any(name), preset_table()[name]
    assert row["parameters"] == count_parameters(config)
    assert row["macs_all_tokens"] == sum(count_macs(config, whole=True).values())
    assert type(config).model_validate_json(config.model_dump_json()) == config
    assert len(config.table_row) == 6


def test_compute_of_the_tiny_one_by_closed_form() -> None:
    T, D, F, V = 32, 64, 256, 64
    attention, mlp = 4 * T * D * D + 2 * T * T * D, 2 * T * D * F
    parts = {"encoder": 2 * (attention + mlp), "decoder": 2 * (2 * attention + mlp), "output": T * D * V}
    assert count_macs(resolve_sequence("transformer_tiny")) == parts


@pytest.mark.parametrize("name", [name for name in PRESET_NAMES if "trocr" not in name and "b" not in name[-4:]])
def test_compute_is_what_torch_counts(name: str) -> None:
    config = resolve_any(name)
    with torch.device("meta"):
        model = build_network(config).eval().requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with counter:
        model(*model.example_inputs(1))
    assert 2 * sum(count_macs(config).values()) == counter.get_total_flops()


@pytest.mark.parametrize("name", ["pre", "post", "untied", "image"])
def test_activations_are_what_autograd_keeps(name: str) -> None:
    preset, options = VARIANTS[name]
    config = resolve_sequence(preset, **{**options, "dropout": 0.1})
    model = create_sequence_model(preset, **{**options, "dropout": 0.1}).train()
    inputs, labels = model.example_inputs(5), model.example_labels(5)
    assert labels is not None
    seen = kept_bytes(
        lambda: nn.functional.cross_entropy(model(*inputs).flatten(0, -2), labels.flatten()), model
    )  # fmt: skip
    assert kept_activations(config, 5).total() == pytest.approx(seen, rel=0.15)


def test_rows_of_a_summary() -> None:
    config = resolve_sequence("transformer_tiny")
    rows = {row.name: row for row in summarize(config)}
    assert [*rows][:2] == ["source", "target"]
    assert rows["source"].shape == (32,)
    assert rows["decoder.blocks.1.cross_attn.kv"].shape == (32, 128)
    assert sum(row.parameters for row in rows.values()) == count_parameters(config)
    assert sum(row.macs for row in rows.values()) == sum(count_macs(config).values())


def test_layers_of_parameters() -> None:
    names = [name for name, _ in create_sequence_model("transformer_tiny").named_parameters()]
    depth = depth_of(names)
    assert depth == 2
    layers = {name: layer_of(name, depth) for name in names}
    assert layers["encoder.embed.weight"] == 0
    assert layers["encoder.blocks.1.mlp.fc1.weight"] == 2
    assert layers["decoder.embed.weight"] == layers["decoder.blocks.0.norm1.weight"] == 3


def test_a_preset_of_another_kind_is_refused() -> None:
    with pytest.raises(Exception, match=r"transformer_tiny: wrong kind of model[\s\S]*vit, resnet"):
        resolve("transformer_tiny")
    with pytest.raises(Exception, match=r"vit_tiny_patch4_32: wrong kind of model[\s\S]*seq2seq, lstm, image_to_text"):
        resolve_sequence("vit_tiny_patch4_32")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_table_of_sines_stays_exact(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        model: Any = create_sequence_model("transformer_tiny")
    model = model.to_empty(device="cpu").to(dtype)
    assert model.decoder.embed.places.dtype == torch.float32
    torch.testing.assert_close(model.decoder.embed.places, sinusoidal_table(512, 64).float(), rtol=0, atol=0)
