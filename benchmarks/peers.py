"""The same Vision Transformer in other libraries, with our weights, and their weights back under our names.

timm takes our names as they are; transformers has query, key and value apart; torchvision has other names. vit-pytorch
is another model: no bias of query, key and value, a norm before and one after the patch projection, pixels of a patch
in another order, norms with epsilon 1e-5. It is timed as it is; to compare its results, the two norms are left out of a
copy, epsilon is ours and, as our biases begin at zero, all else can be mapped.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.oracles import load_oracle
from vitral.models.vit import VisionTransformer

PEERS = ("timm", "transformers", "torchvision", "vit_pytorch")
Weights = dict[str, Tensor]


def make_peer(name: str, ours: VisionTransformer) -> nn.Module:
    """The library's model of our architecture with our weights, on fused attention where it has it."""
    model = {"timm": _timm, "transformers": _transformers, "torchvision": _torchvision, "vit_pytorch": _vit_pytorch}[
        name
    ](ours)
    model.load_state_dict(to_peer(name, ours.state_dict(), model))
    return model


def fits(name: str, ours: VisionTransformer) -> bool:
    """Whether the library has this architecture."""
    c = ours.config
    if name == "timm":
        return c.pool in ("cls", "avg")
    return c.pool == "cls" and not c.drop_path


def comparable(name: str, model: nn.Module, eps: float) -> nn.Module:
    """A copy that computes the same as ours: the library's model itself but for vit-pytorch (see above)."""
    same = copy.deepcopy(model)
    if name == "vit_pytorch":
        patches = same.to_patch_embedding
        patches[1], patches[3] = nn.Identity(), nn.Identity()
        for module in same.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps
    return same


def to_peer(name: str, ours: Weights, model: nn.Module) -> Weights:
    """Our tensors under the library's names; what only it has (vit-pytorch's two norms) stays as it is."""
    found = dict(model.state_dict()) if name == "vit_pytorch" else {}
    for key, value in ours.items():
        theirs = _names(name, key)
        for one, part in zip(theirs, value.chunk(len(theirs)) if theirs else (), strict=True):
            found[one] = _shaped(name, key, part)
    return found


def from_peer(name: str, theirs: Weights, ours: Weights) -> Weights:
    """Its tensors under our names, where it has them."""
    found: Weights = {}
    for key, value in ours.items():
        names = _names(name, key)
        if names:
            whole = torch.cat([theirs[one] for one in names]) if len(names) > 1 else theirs[names[0]]
            found[key] = _patches_back(whole, value) if _is_patches(name, key) else whole.reshape(value.shape)
    return found


def _names(name: str, key: str) -> list[str]:
    return {"timm": lambda k: [k], "transformers": _transformers_names, "torchvision": _torchvision_names,
            "vit_pytorch": _vit_pytorch_names}[name](key)  # fmt: skip


def _shaped(name: str, key: str, value: Tensor) -> Tensor:
    if _is_patches(name, key):
        return value.permute(0, 2, 3, 1).flatten(1)  # rows of a patch, its columns, then the channels
    return value[0] if name == "vit_pytorch" and key in ("cls_token", "pos_embed") else value


def _is_patches(name: str, key: str) -> bool:
    return name == "vit_pytorch" and key == "patch_embed.proj.weight"


def _patches_back(flat: Tensor, ours: Tensor) -> Tensor:
    D, C, P, _ = ours.shape
    return flat.view(D, P, P, C).permute(0, 3, 1, 2)


def _replaced(key: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for pattern, theirs in pairs:
        key = re.sub(pattern, theirs, key)
    return key


def _transformers_names(key: str) -> list[str]:
    key = _replaced(key, (
        (r"^norm\.", "vit.layernorm."), (r"^blocks\.", "vit.layers."), ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"), (r"^patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
        (r"^head\.", "classifier."), ("^cls_token", "vit.embeddings.cls_token"),
        ("^pos_embed", "vit.embeddings.position_embeddings"), (r"attn\.proj", "attention.o_proj"),
    ))  # fmt: skip
    return [key.replace("attn.qkv", f"attention.{n}_proj") for n in "qkv"] if "attn.qkv" in key else [key]


def _torchvision_names(key: str) -> list[str]:
    return [_replaced(key, (
        (r"^norm\.", "encoder.ln."), (r"^blocks\.", "encoder.layers.encoder_layer_"), ("norm1", "ln_1"),
        ("norm2", "ln_2"), (r"^patch_embed\.proj", "conv_proj"), (r"^head\.", "heads.head."),
        ("^cls_token", "class_token"), ("^pos_embed", "encoder.pos_embedding"),
        (r"attn\.qkv\.", "self_attention.in_proj_"), (r"attn\.proj", "self_attention.out_proj"),
        (r"mlp\.fc1", "mlp.0"), (r"mlp\.fc2", "mlp.3"),
    ))]  # fmt: skip


def _vit_pytorch_names(key: str) -> list[str]:
    if key.endswith("attn.qkv.bias"):
        return []
    return [_replaced(key, (
        (r"^norm\.", "transformer.norm."), (r"^blocks\.", "transformer.layers."), ("norm1", "0.norm"),
        ("norm2", "1.net.0"), (r"^patch_embed\.proj", "to_patch_embedding.2"), (r"^head\.", "mlp_head."),
        ("^pos_embed", "pos_embedding"), (r"attn\.qkv", "0.to_qkv"), (r"attn\.proj", "0.to_out.0"),
        (r"mlp\.fc1", "1.net.1"), (r"mlp\.fc2", "1.net.4"),
    ))]  # fmt: skip


def _timm(ours: VisionTransformer) -> nn.Module:
    c = ours.config
    return load_oracle("timm").models.VisionTransformer(
        img_size=c.image_size, patch_size=c.patch_size, embed_dim=c.width, depth=c.depth, num_heads=c.heads,
        mlp_ratio=c.mlp_dim / c.width, num_classes=c.num_classes, global_pool={"cls": "token", "avg": "avg"}[c.pool],
        drop_path_rate=c.drop_path,
    )  # fmt: skip


def _transformers(ours: VisionTransformer) -> nn.Module:
    transformers, c = load_oracle("transformers"), ours.config
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=c.width, num_hidden_layers=c.depth, num_attention_heads=c.heads, intermediate_size=c.mlp_dim,
            image_size=c.image_size[0], patch_size=c.patch_size, num_labels=c.num_classes, layer_norm_eps=c.norm_eps,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
        )
    )  # fmt: skip


def _torchvision(ours: VisionTransformer) -> nn.Module:
    load_oracle("torchvision")
    from torchvision.models.vision_transformer import VisionTransformer as Theirs

    c = ours.config
    return Theirs(c.image_size[0], c.patch_size, c.depth, c.heads, c.width, c.mlp_dim, num_classes=c.num_classes)


def _vit_pytorch(ours: VisionTransformer) -> nn.Module:
    c, make = ours.config, _from_vit_pytorch()
    return make(
        image_size=c.image_size[0], patch_size=c.patch_size, num_classes=c.num_classes, dim=c.width, depth=c.depth,
        heads=c.heads, mlp_dim=c.mlp_dim, dim_head=c.width // c.heads,
    )  # fmt: skip


def _from_vit_pytorch() -> Callable[..., nn.Module]:
    load_oracle("vit_pytorch")
    from vit_pytorch.vit import ViT

    return ViT
