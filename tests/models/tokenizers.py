"""Small image tokenizers for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitral.models.image_tokenizer import ImageTokenizer
from vitral.models.image_tokenizer_config import ImageTokenizerConfig
from vitral.models.quantizers import VQ

SMALL: dict[str, Any] = {"image_size": (6, 10), "in_channels": 3, "patch_size": 2, "width": 16, "depth": 1, "heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "vq": {"codes": 12, "code_width": 4},
    "fsq": {"codes": 30, "quantizer": "fsq", "levels": (5, 6)},
    "gumbel": {"codes": 7, "quantizer": "gumbel", "code_width": 4},
    "vit": {"codes": 12, "coder": "vit", "code_width": 4},
    "kmeans": {"codes": 9, "quantizer": "kmeans"},
}


def tokenizer(kind: str = "vq", dtype: torch.dtype = torch.float32, **options: Any) -> ImageTokenizer:
    """In evaluation mode, for images of 3 x 5 patches, with codes that lie apart."""
    torch.manual_seed(0)
    keys = {**SMALL, **KINDS[kind], **options}
    if keys.get("quantizer") == "kmeans":
        keys = {key: value for key, value in keys.items() if key not in ("width", "depth", "heads")}
    elif keys.get("coder") != "vit":
        keys.pop("heads", None)
    model = ImageTokenizer(ImageTokenizerConfig(**keys))
    if isinstance(model.quantizer, VQ):
        torch.nn.init.normal_(model.quantizer.codebook_KD)
    if kind == "kmeans":
        for parameter in model.parameters():
            torch.nn.init.uniform_(parameter)
    return model.to(dtype).eval()


def pictures(count: int = 8, size: tuple[int, int] = (6, 10), channels: int = 3) -> Tensor:
    """Random images, uint8."""
    made = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, *size), generator=made, dtype=torch.uint8)
