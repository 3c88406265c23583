"""What a model of the codes of images knows: bits per token, beside those of histograms; the class of an image by its
probabilities; and whether images that it completes have their class.

Shape letters: N images, M train images, B batch, C channels, H W height and width, T codes of an image, K colors, J
neighbors, X values of an image, S classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vitral import distributed
from vitral.evaluate.config import CompletionConfig
from vitral.models.masked_sampling import draw_codes
from vitral.models.search_config import SearchConfig

if TYPE_CHECKING:
    from vitral.models.igpt import IGPT

Array = np.ndarray[Any, np.dtype[Any]]
Batches = Iterable[tuple[Tensor, Tensor]]


@torch.inference_mode()
def bits_per_token(model: IGPT, batches: Batches, places: Sequence[int]) -> Array:
    """-log2 of the probability of each image, divided by its predicted codes: float64 [N] on every process, each of
    which gives its share of (images, labels) and their places in the split. Given the class where the model has
    class tokens."""
    model.eval()
    rows, done = list[Array](), 0
    for images_BCHW, labels_B in batches:
        ids_B = torch.tensor(places[done : done + len(labels_B)], dtype=torch.int64, device=model.device)
        nats_B, count_B = model.code_nats(images_BCHW, labels_B if model.config.class_tokens else None, ids_B)
        rows.append((nats_B.double() / count_B).cpu().numpy() / math.log(2))
        done += len(labels_B)
    return distributed.gather_rows(np.concatenate(rows))


def histogram_bits(model: IGPT, train: Batches, evaluated: Batches) -> float:
    """Bits per token by the share of each color at each place in the train images, where each occurs once more: what
    is known without any other pixel."""
    places_T, counts_TK = np.arange(model.config.tokens), np.ones((model.config.tokens, model.config.colors))
    codes_NT = _codes(model, train)
    np.add.at(counts_TK, (np.broadcast_to(places_T, codes_NT.shape), codes_NT), 1)
    share_TK = counts_TK / counts_TK.sum(1, keepdims=True)
    return float(-np.log2(share_TK[places_T, _codes(model, evaluated)]).mean())


@torch.inference_mode()
def _codes(model: IGPT, batches: Batches) -> Array:
    return distributed.gather_rows(np.concatenate([model.codes(images).cpu().numpy() for images, _ in batches]))


@torch.inference_mode()
def generative_classes(model: IGPT, batches: Batches) -> tuple[Array, Array]:
    """The class whose token makes an image most probable, the first of equals, and its label: int64 [N] each, on every
    process."""
    model.eval()
    found = [
        (model.class_log_probs(model.codes(images_BCHW)).argmax(1).cpu(), labels_B.cpu())
        for images_BCHW, labels_B in batches
    ]
    first, second = (distributed.gather_rows(torch.cat(parts).numpy()) for parts in zip(*found, strict=True))
    return first, second


@torch.inference_mode()
def completed_classes(
    model: IGPT, train: Batches, batches: Batches, places: Sequence[int], config: CompletionConfig
) -> dict[str, Array]:
    """Whether the nearest train images of each image, by pixels, have its class: bool [N, draws] of `completed` images,
    whose lower halves are drawn, and [N, 1] of `whole` images and of the `upper_half` alone. places: of the images in
    their split, which key the draws."""
    model.eval()
    half, most = model.config.upper_half, max(distributed.gather(max(places, default=0))) + 1
    known = [(model.codes(images_BCHW), labels_B) for images_BCHW, labels_B in train]
    train_MT, train_M = (torch.from_numpy(distributed.gather_rows(torch.cat(parts).cpu().numpy())).to(model.device)
                         for parts in zip(*known, strict=True))  # fmt: skip
    rows: dict[str, list[Array]] = {"completed": [], "whole": [], "upper_half": []}
    search, done = SearchConfig(search="sample", seed=config.seed), 0
    for images_BCHW, labels_B in batches:
        codes_BT, numbers = model.codes(images_BCHW), places[done : done + len(labels_B)]
        any_B = torch.full_like(labels_B, -1)
        drawn = [
            draw_codes(model, any_B, search, [number + draw * most for number in numbers], codes_BT[:, :half])
            for draw in range(config.draws)
        ]
        for name, given, cut in (
            ("completed", drawn, False),
            ("whole", [codes_BT], False),
            ("upper_half", [codes_BT], True),
        ):
            right = [
                _neighbor_class(_values(model, each_BT, cut), _values(model, train_MT, cut), train_M, config.k)
                == labels_B
                for each_BT in given
            ]
            rows[name].append(torch.stack(right, dim=1).cpu().numpy())
        done += len(labels_B)
    return {name: distributed.gather_rows(np.concatenate(parts)) for name, parts in rows.items()}


def _values(model: IGPT, codes_NT: Tensor, cut: bool) -> Tensor:
    """The pixels of these codes, [N, X]; cut: those of the upper half."""
    images_NCHW = model.images(codes_NT)
    return (images_NCHW[:, :, : images_NCHW.shape[2] // 2] if cut else images_NCHW).flatten(1)


def _neighbor_class(own_BX: Tensor, train_MX: Tensor, labels_M: Tensor, k: int) -> Tensor:
    """The commonest class of the k nearest train images (Euclidean), of equals that of the nearest one: [B]."""
    distance_BM = torch.cdist(own_BX, train_MX, compute_mode="donot_use_mm_for_euclid_dist")
    label_BJ = labels_M[distance_BM.topk(min(k, len(labels_M)), largest=False).indices]
    votes_BJ = (label_BJ[:, :, None] == label_BJ[:, None]).sum(2)
    return label_BJ.gather(1, votes_BJ.argmax(1, keepdim=True))[:, 0]
