"""Logits of transformers' Marian and TrOCR with random weights copied over.

Shape letters: B batch, S source tokens, T target tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.sequences import texts
from tests.oracles import load_oracle
from vitral.models.create import create_sequence_model
from vitral.models.sequence_model import SequenceModel
from vitral.weights.hf import vit_rules
from vitral.weights.keymap import translate

pytestmark = pytest.mark.oracle


def randomized(model: nn.Module) -> dict[str, Tensor]:
    """Its weights, drawn from N(0, 0.2); tied ones stay tied, tables of sines stay what they are."""
    torch.manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def pair(tensors: dict[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    return {f"{ours}.{part}": tensors[f"{theirs}.{part}"] for part in ("weight", "bias")}


def packed(tensors: dict[str, Tensor], ours: str, theirs: str, parts: str) -> dict[str, Tensor]:
    """Projections of queries, keys and values ("qkv") one behind the other."""
    return {
        f"{ours}.{end}": torch.cat([tensors[f"{theirs}.{part}_proj.{end}"] for part in parts])
        for end in ("weight", "bias")
    }


def block(tensors: dict[str, Tensor], ours: str, theirs: str, has_memory: bool) -> dict[str, Tensor]:
    """A layer of BART's kind: Marian's and TrOCR's."""
    found = packed(tensors, f"{ours}.attn.qkv", f"{theirs}.self_attn", "qkv")
    names = {
        "attn.proj": "self_attn.out_proj", "norm1": "self_attn_layer_norm", "mlp.fc1": "fc1", "mlp.fc2": "fc2",
        "norm2": "final_layer_norm",
    }  # fmt: skip
    if has_memory:
        names |= {"cross_attn.q": "encoder_attn.q_proj", "cross_attn.proj": "encoder_attn.out_proj",
                  "norm_cross": "encoder_attn_layer_norm"}  # fmt: skip
        found |= packed(tensors, f"{ours}.cross_attn.kv", f"{theirs}.encoder_attn", "kv")
    for name, other in names.items():
        found |= pair(tensors, f"{ours}.{name}", f"{theirs}.{other}")
    return found


def steps(model: SequenceModel, source: Tensor, target: Tensor) -> Tensor:
    """Logits [B, T, V], token by token."""
    state = model.start(model.encode(source))
    return torch.stack([model.step(target[:, t], state) for t in range(target.shape[1])], 1)


def test_marian() -> None:
    transformers: Any = load_oracle("transformers")
    V, S, T = 23, 9, 7
    config = transformers.MarianConfig(
        vocab_size=V, d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=20, decoder_ffn_dim=20, activation_function="relu", dropout=0.0,
        max_position_embeddings=32, scale_embedding=True, pad_token_id=0, decoder_start_token_id=0, eos_token_id=1,
        share_encoder_decoder_embeddings=True, tie_word_embeddings=True, forced_eos_token_id=None,
    )  # fmt: skip
    theirs = transformers.MarianMTModel(config).eval()
    tensors = randomized(theirs)
    theirs.final_logits_bias.normal_()
    model = create_sequence_model(
        "transformer_tiny", vocabulary=V, source_vocabulary=V, width=16, heads=4, mlp_dim=20, encoder_depth=2,
        decoder_depth=3, norm_first=False, share_embeddings=True, positions="sinusoidal_halves", output_bias=True,
        max_length=32,
    ).eval()  # fmt: skip
    state = {"decoder.embed.weight": tensors["model.shared.weight"],
             "decoder.output_bias": theirs.final_logits_bias[0]}  # fmt: skip
    for half, depth in (("encoder", 2), ("decoder", 3)):
        for i in range(depth):
            state |= block(tensors, f"{half}.blocks.{i}", f"model.{half}.layers.{i}", half == "decoder")
    model.load_state_dict(state)
    source, target = texts([S, 4, 6], S, V), texts([T, T, T], T, V, seed=1)
    target[:, 0] = 0  # the start token is that of padding
    with torch.no_grad():
        expected = theirs(input_ids=source, attention_mask=(source != 0).long(), decoder_input_ids=target).logits
        torch.testing.assert_close(model(source, target), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(steps(model, source, target), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["as published", "projected", "sines"])
def test_vision_encoder_decoder(variant: str) -> None:
    """A ViT and TrOCR's decoder: keys and values from the encoder's width, or from a projection to its own."""
    transformers: Any = load_oracle("transformers")
    published, sines = variant == "as published", variant == "sines"
    V, T = 23, 7
    width, inner, heads = {"as published": (24, 16, 4), "projected": (16, 12, 3), "sines": (24, 16, 4)}[variant]
    encoder = transformers.ViTConfig(
        hidden_size=inner, num_hidden_layers=2, num_attention_heads=heads, intermediate_size=20, image_size=(8, 20),
        patch_size=4, layer_norm_eps=1e-6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    decoder = transformers.TrOCRConfig(
        vocab_size=V, d_model=width, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=20,
        activation_function="relu" if sines else "gelu", max_position_embeddings=32, dropout=0.0, scale_embedding=sines,
        use_learned_position_embeddings=not sines, layernorm_embedding=not sines, pad_token_id=1, bos_token_id=0,
        cross_attention_hidden_size=inner if published else None, is_decoder=True, add_cross_attention=True,
        tie_word_embeddings=True,
    )  # fmt: skip
    full = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    theirs = transformers.VisionEncoderDecoderModel(full).eval()
    tensors = randomized(theirs)
    model = create_sequence_model(
        "trocr_base_patch16_384", vocabulary=V, width=width, decoder_depth=2, heads=4, mlp_dim=20, max_length=32,
        dropout=0.0, project_memory=not published, scale_embeddings=sines, embedding_norm=not sines,
        activation="relu" if sines else "gelu",
        encoder={"width": inner, "depth": 2, "heads": heads, "mlp_dim": 20, "image_size": (8, 20), "patch_size": 4},
    ).eval()  # fmt: skip
    model.load_state_dict(translated(tensors, theirs.decoder.model.decoder.embed_positions, not sines))
    images, target = torch.rand(3, 3, 8, 20), texts([T, T, T], T, V - 1) + 1
    assert not (target == 1).any()  # theirs gives padding no place
    with torch.no_grad():
        expected = theirs(pixel_values=(images - 0.5) / 0.5, decoder_input_ids=target).logits
        torch.testing.assert_close(model(images, target), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(steps(model, images, target), expected, rtol=0, atol=1e-5)


def translated(tensors: dict[str, Tensor], places: Any, has_norm: bool) -> dict[str, Tensor]:
    """Our names for the weights of a VisionEncoderDecoderModel. Its positions begin at row 2; fixed ones, whose
    frequencies are not the paper's, become learned ones."""
    theirs, prefix = "decoder.model.decoder", "encoder."
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    inside = {name: tensor for name, tensor in inside.items() if "pooler" not in name}
    state = {prefix + name: tensor for name, tensor in translate(vit_rules(inside), inside).tensors.items()}
    state["decoder.embed.weight"] = tensors[f"{theirs}.embed_tokens.weight"]
    if "enc_to_dec_proj.weight" in tensors:
        state |= pair(tensors, "project", "enc_to_dec_proj")
    if has_norm:
        state |= pair(tensors, "decoder.embed.norm", f"{theirs}.layernorm_embedding")
    state["decoder.embed.positions"] = (places.weight if has_norm else places.weights)[2:34]
    for i in range(2):
        state |= block(tensors, f"decoder.blocks.{i}", f"{theirs}.layers.{i}", has_memory=True)
    return state
