"""Views of the explorer for one image: predictions and internals of the model as arrays and plain dictionaries.

All of it is for the one thread that computes with a model: some views leave its tokens whole for a moment. Shape
letters: C channels, H W image height and width, N patches, T tokens (prefix and patches), h heads, L layers, S classes.
"""

from __future__ import annotations

import base64
import io
import statistics
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitral.attacks.registry import create_attack
from vitral.compression.tome import ToMe
from vitral.data.channels import MODES
from vitral.data.resize import fit_image
from vitral.errors import UserError
from vitral.interpret.attention import fill_heads, stream_maps
from vitral.interpret.logit_lens import logit_lens
from vitral.interpret.patches import patch_norms, patch_similarity
from vitral.interpret.rollout import Fuse, roll
from vitral.interpret.tokens import default_token, patch_of, require_transformer, token_names, token_rows
from vitral.models.registry import token_encoder
from vitral.models.token_reduction import TokenReduction, reduced_by
from vitral.models.vit import VisionTransformer
from vitral.predictor import Predictor
from vitral.serve.decoding import DecodedImage

Floats = NDArray[np.float32]
AttackKind = Literal["fgsm", "pgd"]

LEAST = 0.05  # score of a box that is shown

_RACES, _RACE_SECONDS = 9, 0.6  # timed pairs of a whole and a merged pass: most, and until when


def describe(predictor: Predictor) -> dict[str, Any]:
    """What a page has to know of a model: its sizes, the names of its tokens, which views it has and why not others."""
    shown = predictor.config.preprocessing
    can, why = _views(predictor)
    found: dict[str, Any] = {
        "name": predictor.config.name, "classes": len(predictor.classes), "image_size": shown.image_size,
        "channels": shown.channels, "can": can, "why": why,
        "multi_label": not predictor.task.is_exclusive, "threshold": predictor.task.threshold,
    }  # fmt: skip
    if "attention" in can:
        vit = require_transformer(predictor.model, "this view")
        c = vit.config
        found |= {
            "grid": vit.grid, "patch_size": c.patch_size, "heads": c.heads_of_blocks, "layers": c.depth,
            "tokens": token_names(c), "default_token": default_token(c), "reduced": vit.reduce is not None,
            "most_merged": max(1, vit.grid[0] * vit.grid[1] // c.depth),
        }  # fmt: skip
    return found


def _views(predictor: Predictor) -> tuple[list[str], dict[str, str]]:
    """Return the groups of views that a model has; for each other group, a sentence with the reason."""
    can, why = list[str](), dict[str, str]()
    if predictor.task.has_classes:
        can.append("predict")
    elif predictor.task.has_places:
        can.append("boxes")
        why["lens"] = "This model answers with boxes, which its last layer alone gives."
    else:
        why["predict"] = why["lens"] = "This model has no head for classes, so there are no answers to show here."
    if predictor.is_export:
        why["attack"] = "This is an export: it has no gradients to attack by."
    elif not (predictor.task.has_classes and predictor.task.is_exclusive):
        why["attack"] = "Attacks need a model with one class per image."
    else:
        can.append("attack")
    if predictor.is_export:
        why["attention"] = (
            "This is an export, one closed function from image to classes. The model folder that it was made from "
            "shows what is inside."
        )
    elif (encoder := token_encoder(predictor.model)) is None:
        why["attention"] = "This is a convolutional network or an Image GPT: it has no attention between patches."
    else:
        can += ["attention", *(["lens"] if predictor.task.has_classes else [])]
        if predictor.task.has_places:
            why["merge"] = "This model reads all patches where they lie."
        elif encoder.config.by_offset:
            why["merge"] = "Positions are relative: their table has no offset for a merged place."
        else:
            can.append("merge")
    return can, why


def _require(predictor: Predictor, view: str) -> None:
    """Raise UserError for a group of views that the model does not have."""
    can, why = _views(predictor)
    if view not in can:
        raise UserError(why.get(view) or why["attention"], where=predictor.config.name)


def answer(predictor: Predictor, image: DecodedImage, topk: int) -> tuple[dict[str, Any], Tensor]:
    """The answer to an image that is ready for the model's engine, with the model's input as a PNG; and that input
    itself, [C, H, W] in [0,1]. Boxes are in pixels of that input, also those below the model's threshold."""
    assert image.array_CHW is not None
    ready_CHW = torch.from_numpy(image.array_CHW)
    spec = predictor.config.preprocessing
    x_CHW = ready_CHW if ready_CHW.is_floating_point() else fit_image(ready_CHW, spec.image_size, spec)
    start = time.perf_counter()
    answers: dict[str, Any] = {}
    if predictor.task.has_classes:
        answers = predictor.postprocess(predictor.forward([ready_CHW]), topk)[0]
    elif predictor.task.has_places:
        compact = predictor.task.compact(predictor.forward([ready_CHW]))
        state = predictor.task.state
        least = max(LEAST, state["min_score"]) if state.get("suppressed") else LEAST
        (answers,) = predictor.task.at_threshold(least).answers(compact, topk, None, spec)
    milliseconds = 1000 * (time.perf_counter() - start)
    found = {
        "size": image.size, "input": as_png_url(x_CHW), "predictions": [], **answers,
        "latency_ms": round(milliseconds, 3) if answers else None, "device": str(predictor.device),
    }  # fmt: skip
    return found, x_CHW


def as_png_url(x_CHW: Tensor) -> str:
    """The model's input as a data URL of a PNG, rounded to 8 bits."""
    pixels_HWC = (x_CHW * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    mode, file = MODES[pixels_HWC.shape[2]], io.BytesIO()
    Image.frombytes(mode, (pixels_HWC.shape[1], pixels_HWC.shape[0]), pixels_HWC.tobytes()).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@contextmanager
def _whole(predictor: Predictor, x_CHW: Tensor) -> Generator[tuple[VisionTransformer, Tensor]]:
    """The model with all of its tokens, and the image as a batch of one."""
    vit = require_transformer(predictor.model, "this view")
    with reduced_by(vit, None):
        yield vit, x_CHW[None].to(predictor.device)


def attention_maps(predictor: Predictor, x_CHW: Tensor) -> Generator[Tensor]:
    """The map of every layer, [h, T, T] each, rows sum to 1, one after the other; h may differ between the layers of a
    pruned model."""
    with _whole(predictor, x_CHW) as (vit, x_BCHW):
        for _, map_BhTT in stream_maps(vit, x_BCHW):
            yield map_BhTT[0]


def maps_bytes(predictor: Predictor) -> int:
    """Memory of the maps of all layers together."""
    vit = require_transformer(predictor.model, "attention")
    tokens = vit.prefix_tokens + vit.grid[0] * vit.grid[1]
    return 4 * sum(vit.config.heads_of_blocks) * tokens**2


def attention(predictor: Predictor, maps: Iterable[Tensor], token: str | None) -> Floats:
    """Attention from a token and to it in every layer and head, [2, L, h, T]; "from" sums to 1 over T.

    Of "mean": the mean of all patches' rows, and of their columns. NaN for heads that a layer does not have.
    """
    vit = require_transformer(predictor.model, "attention")
    rows = token_rows(vit.config, token, vit.grid)
    most = max(vit.config.heads_of_blocks)
    layers: list[Tensor] = []
    for map_hTT in maps:
        both_2hT = torch.stack([map_hTT[:, rows].mean(1), map_hTT[:, :, rows].mean(2)]).float().cpu()
        layers.append(fill_heads(both_2hT, most))
    return torch.stack(layers, dim=1).numpy()


def rolled(predictor: Predictor, maps: Iterable[Tensor], token: str | None, fuse: Fuse) -> Floats:
    """Rollout of a token, [T]: how much of each token of the first layer reaches it."""
    vit = require_transformer(predictor.model, "rollout")
    rows = token_rows(vit.config, token, vit.grid)
    return roll((map_hTT[None] for map_hTT in maps), fuse)[0, rows].mean(0).float().cpu().numpy()


def similarity(predictor: Predictor, x_CHW: Tensor, patch: str) -> Floats:
    """Cosine of a patch ("row,column") with every patch after each layer, [L, N]."""
    place = patch_of(patch)
    if place is None:
        raise UserError("not a patch", where="patch", got=patch, expected="row,column, both from 0")
    with _whole(predictor, x_CHW) as (vit, x_BCHW):
        return patch_similarity(vit, x_BCHW, place)[0].float().cpu().numpy()


def norms(predictor: Predictor, x_CHW: Tensor) -> Floats:
    """Length of every patch's token after each layer, [L, N]."""
    with _whole(predictor, x_CHW) as (vit, x_BCHW):
        return patch_norms(vit, x_BCHW)[0].float().cpu().numpy()


def lens(predictor: Predictor, x_CHW: Tensor, topk: int) -> dict[str, Any]:
    """The answer after each layer, and after each the probability of what the last one says."""
    _require(predictor, "lens")
    with _whole(predictor, x_CHW) as (vit, x_BCHW):
        logits_LS = logit_lens(vit, x_BCHW)[0]
    scores_LS = predictor.scores(logits_LS).cpu()
    final = int(scores_LS[-1].argmax())
    layers = [
        {**answer, "final_score": round(float(row_S[final]), 6)}
        for answer, row_S in zip(predictor.postprocess(logits_LS, topk), scores_LS, strict=True)
    ]
    return {"final": {"label": predictor.classes[final], "index": final}, "layers": layers}


def merged(predictor: Predictor, x_CHW: Tensor, r: int, topk: int) -> dict[str, Any]:
    """What merging `r` tokens in every block makes of the image: which patches end in one token, the answer then, and
    how long one pass takes with all tokens and with the merged ones."""
    _require(predictor, "merge")
    merging = ToMe(r=r)
    with _whole(predictor, x_CHW) as (vit, x_BCHW), torch.inference_mode():
        patches_BND, grid = vit.embed(x_BCHW)
        whole, fewer = vit.encode_tokens(patches_BND, grid), vit.encode_tokens(patches_BND, grid, reduce=merging)
        pooled_BD = vit.pool(fewer)
        groups_N = torch.arange(patches_BND.shape[1]) if fewer.groups_BN is None else fewer.groups_BN[0].cpu()
        likeness = torch.nn.functional.cosine_similarity(vit.pool(whole).float(), pooled_BD.float())[0]
        found: dict[str, Any] = {
            "r": r, "groups": groups_N.tolist(), "cosine": round(float(likeness), 6),
            "counts": merging.counts(patches_BND.shape[1], vit.config.depth), "whole": [], "merged": [],
            "ms": _race(vit, x_BCHW, merging),
        }  # fmt: skip
        for name, vector_BD in (("whole", vit.pool(whole)), ("merged", pooled_BD)):
            if predictor.task.has_classes:
                found[name] = predictor.postprocess(vit.classify(vector_BD), topk)[0]["predictions"]
    return found


def attacked(
    predictor: Predictor, x_CHW: Tensor, kind: AttackKind, eps: float, steps: int, topk: int
) -> tuple[dict[str, Any], Tensor]:
    """An attack on the answer to one image: the answers before and after, the attacked input and the change (amplified,
    gray is 0) as PNGs; and the attacked input itself, [C, H, W] in [0,1]. Raises UserError for a model that cannot be
    attacked."""
    _require(predictor, "attack")
    with torch.inference_mode(False):
        x_BCHW = x_CHW.detach().clone()[None].float().to(predictor.device)
    label_B = predictor.model(x_BCHW).detach().argmax(1)
    found_BCHW = create_attack(kind, eps=eps, **({"steps": steps} if kind == "pgd" else {}))(
        predictor.model, x_BCHW, label_B
    )
    found_CHW, before_CHW = found_BCHW[0].cpu(), x_BCHW[0].cpu()
    start = time.perf_counter()
    after, before = (
        predictor.postprocess(predictor.forward(each[None]), topk)[0]["predictions"] for each in (found_CHW, before_CHW)
    )
    milliseconds = 1000 * (time.perf_counter() - start) / 2
    found = {
        "kind": kind, "eps": eps, "before": before, "predictions": after, "input": as_png_url(found_CHW),
        "change": as_png_url((0.5 + (found_CHW - before_CHW) * 0.5 / eps).clamp(0, 1)),
        "latency_ms": round(milliseconds, 3), "device": str(predictor.device),
    }  # fmt: skip
    return found, found_CHW


def _race(vit: VisionTransformer, x_BCHW: Tensor, merging: TokenReduction) -> dict[str, Any]:
    """Median milliseconds of a pass over one image with all tokens and with merged ones, in turn, and how many of each:
    one pair at least. Both ran once before."""

    def timed(reduction: TokenReduction | None) -> float:
        with reduced_by(vit, reduction):
            start = _now(x_BCHW)
            vit(x_BCHW)
            return 1000 * (_now(x_BCHW) - start)

    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + _RACE_SECONDS
    while not pairs or (len(pairs) < _RACES and time.perf_counter() < end):
        pairs.append((timed(None), timed(merging)))
    whole, merged = (round(statistics.median(times), 3) for times in zip(*pairs, strict=True))
    return {"whole": whole, "merged": merged, "n": len(pairs)}


def _now(x_BCHW: Tensor) -> float:
    """The time at which the device has done what it was given."""
    if x_BCHW.is_cuda:
        torch.cuda.synchronize(x_BCHW.device)
    return time.perf_counter()
