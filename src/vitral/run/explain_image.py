"""Figures and numbers of `vitral explain` for one image.

Shape letters: B batch (one image), C channels, H W height and width, D image channels, T tokens, h heads, L layers, S
classes, r c rows and columns of patches.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitral.errors import UserError, nearest
from vitral.interpret.attention import token_attention
from vitral.interpret.gradients import gradient_attention, integrated_gradients
from vitral.interpret.logit_lens import logit_lens
from vitral.interpret.patches import mean_similarity, patch_norms, patch_similarity, patch_tokens
from vitral.interpret.rollout import rollout
from vitral.interpret.tokens import default_token, on_grid, patch_of, pick, require_transformer
from vitral.models.token_reduction import TokenReduction
from vitral.models.vit import VisionTransformer
from vitral.predictor import Predictor
from vitral.report import explain_plots as plots
from vitral.report.sections import Figure, Section, Table
from vitral.run.command_options import ExplainOptions
from vitral.tasks.imagenet_names import numbered_of
from vitral.training.metrics_log import log

_FEW_LAYERS, _FEW_HEADS = 6, 12
_LENS_CLASSES = 5
_LARGE_GAP = 0.05  # of the difference that integrated gradients should sum to
_SIDE, _SMALL_SIDE = 224, 96  # pixels of a panel: of one row, of a table of them
_HEAT = plots.Bar(plots.HEAT, 0, 1, "share of the panel's largest value", mixed=True)


class Look(NamedTuple):
    """One image to explain: the model's input, its picture, the class to explain, and the token reduction of the groups
    view."""

    predictor: Predictor
    options: ExplainOptions
    name: str  # of its files
    x_BCHW: Tensor
    picture: plots.Array
    target: int | None
    reduction: TokenReduction | None

    @property
    def vit(self) -> VisionTransformer:
        """Return the model. Raises UserError for a model without tokens."""
        return require_transformer(self.predictor.model, "this view")

    def on_patches(self, values_T: Tensor) -> plots.Array:
        """Return the values of the patches, [..., r, c], from those of all tokens."""
        return on_grid(values_T, self.vit.prefix_tokens, self.vit.grid).float().cpu().numpy()


def explain_image(
    predictor: Predictor,
    path: str,
    number: int,
    methods: set[str],
    options: ExplainOptions,
    reduction: TokenReduction | None,
) -> tuple[Section, dict[str, Any]]:
    """Return the configured figures of one image and their numbers. Raises UserError for an unreadable image, and for
    a token, layer, head or class that the model lacks."""
    x_BCHW = predictor.preprocess(path)[None].to(predictor.device)
    picture = plots.as_picture(x_BCHW[0].permute(1, 2, 0).cpu().numpy())
    stem = re.sub(r"[^\w.-]+", "_", Path(path).stem)[:40]
    found: dict[str, Any] = {"image": path}
    target, text = None, list[str]()
    if predictor.classes:
        with torch.no_grad():
            scores_S = predictor.scores(predictor.model(x_BCHW))[0].cpu().numpy()
        task = predictor.task
        best = task.chosen(scores_S)
        target = best if options.label is None else _class(predictor, options.label)
        found["prediction"] = task.answer_of(scores_S, best)
        found["class"] = task.answer_of(scores_S, target)
        found["answer"] = task.answer_line(scores_S)
        text.append(f"Predicted: {task.answer_line(scores_S)}.")
        if target != best:
            text.append(f"Explained: {task.answer_text(scores_S, target)}.")
    look = Look(predictor, options, f"{number:02d}-{stem}", x_BCHW, picture, target, reduction)
    parts = [part for draw in _VIEWS for part in draw(look, methods, found)]
    return Section(f"Image {number}: {Path(path).name}", [" ".join(text), *parts] if text else parts), found


def _class(predictor: Predictor, label: str) -> int:
    """Return the index of a class given by name or number."""
    classes = list(predictor.classes)
    if same := [number for number, name in enumerate(classes) if numbered_of(name) == label]:
        expected = ", ".join(map(str, [*([classes.index(label)] if label in classes else []), *same]))
        raise UserError(
            "several classes have this name; pass the class number", where="class", got=label, expected=expected
        )
    if label in classes:
        return classes.index(label)
    if label.isdecimal() and int(label) < len(classes):
        return int(label)
    few = ", ".join(classes) if len(classes) <= 20 else f"one of {len(classes)} names, or 0 to {len(classes) - 1}"
    raise UserError("unknown class", where="class", got=label, expected=few, nearest=nearest(label, classes))


def _token_text(look: Look) -> str:
    """Describe the token whose attention is shown."""
    token = look.options.token or default_token(look.vit.config)
    if token == "mean":
        reads = " (the mean is what the head reads)" if look.vit.config.pool == "avg" else ""
        return f"all {look.vit.grid[0] * look.vit.grid[1]} patches on average{reads}"
    patch = patch_of(token)
    if patch is not None:
        return f"the patch in row {patch[0]}, column {patch[1]}"
    return {"cls": "the class token", "distill": "the distillation token"}.get(token, token.replace(":", " "))


def _mark(look: Look) -> tuple[int, int] | None:
    return patch_of(look.options.token) if look.options.token else None


def _attributions(look: Look, methods: set[str], found: dict[str, Any]) -> list[Figure | Table]:
    """Draw the image beside single maps: rollout, gradient-weighted attention, integrated gradients."""
    token, fuse = look.options.token, look.options.fuse
    panels, names, bars, captions = [plots.enlarged(look.picture, _SIDE)], ["image"], list[plots.Bar](), list[str]()
    heats: dict[str, Tensor] = {}
    if "rollout" in methods:
        heats["rollout"] = rollout(look.vit, look.x_BCHW, token, fuse)
        captions.append(
            f"Rollout ({fuse} over the heads): how much {_token_text(look)} draws on each patch, all layers."
        )
    if "gradient_attention" in methods:
        heats["gradient-weighted attention"] = gradient_attention(look.vit, look.x_BCHW, _target(look), token)
        captions.append(f"Gradient-weighted attention: patches whose attention increases the logit of {_label(look)}.")
    for name, values_BT in heats.items():
        heat_rc = look.on_patches(values_BT[0])
        panels.append(plots.heat_panel(look.picture, heat_rc, _SIDE, float(heat_rc.max()), _mark(look)))
        names.append(name)
        found[name.replace("-weighted ", "_")] = [[float(f"{value:.6g}") for value in row] for row in heat_rc]
        bars = [_HEAT]
    if "integrated_gradients" in methods:
        panel, sentence = _integrated(look, found)
        panels.append(panel)
        names.append("integrated gradients")
        bars.append(plots.Bar(plots.SIGNED, -1, 1, "against (-) and for (+) the class"))
        captions.append(sentence)
    if len(panels) == 1:
        return []
    alt = f"{look.name}: {', '.join(names)}, side by side"
    png = plots.sheet([panels], names, [""], bars)
    return [Figure(png, alt, " ".join(captions), wide=True, name=f"{look.name}-attributions.png")]


def _integrated(look: Look, found: dict[str, Any]) -> tuple[plots.Array, str]:
    """Return the panel of integrated gradients and its caption with the completeness gap."""
    keys, model, size = look.options.gradients, look.predictor.model, look.options.batch_size
    sums = integrated_gradients(model, look.x_BCHW, _target(look), keys.baseline, keys.steps, size)
    above, gap = float(sums.difference_B[0]), float(sums.gap_B[0])
    found["integrated_gradients"] = {
        "steps": keys.steps, "baseline": keys.baseline, "logit_difference": above, "gap": gap
    }  # fmt: skip
    captions = (
        f"Integrated gradients of {_label(look)}, {keys.steps} steps from gray level {keys.baseline:g}: their sum is "
        f"{above + gap:.4f}, the difference of the logits is {above:.4f}, the gap is {gap:.2g}."
    )
    if abs(gap) > _LARGE_GAP * abs(above):
        more = "The gap is large, so the map is inaccurate. Increase gradients.steps to reduce it."
        log.warning("%s: %s", look.name, more)
        captions += f" {more}"
    value_HW = sums.attributions_BCHW[0].sum(0).cpu().numpy()
    return plots.signed_panel(look.picture, value_HW, _SIDE, float(np.quantile(np.abs(value_HW), 0.99))), captions


def _target(look: Look) -> int:
    assert look.target is not None
    return look.target


def _label(look: Look) -> str:
    return f"class {look.predictor.classes[_target(look)]}"


def _chosen_layers(look: Look) -> list[int]:
    depth = look.vit.config.depth
    if look.options.layers:
        return pick(look.options.layers, depth, "layers")
    return sorted({round(place) for place in np.linspace(0, depth - 1, min(depth, _FEW_LAYERS))})


def _attention(look: Look, methods: set[str], found: dict[str, Any]) -> list[Figure | Table]:
    """Draw the attention of the token, one row per layer, one column per head."""
    if "attention" not in methods:
        return []
    count, layers = max(look.vit.config.heads_of_blocks), _chosen_layers(look)
    heads = pick(look.options.heads, count, "heads") if look.options.heads else list(range(min(count, _FEW_HEADS)))
    shares_LhT = token_attention(look.vit, look.x_BCHW, look.options.token, layers)[0]
    mean_LT = shares_LhT.nanmean(1, keepdim=True)
    shown = look.on_patches(torch.cat([mean_LT, shares_LhT[:, heads]], 1))
    names = ["mean of heads", *(f"head {head}" for head in heads)]
    blank = plots.enlarged(np.ones_like(look.picture), _SMALL_SIDE)
    mark = _mark(look)

    def panel(heat_rc: plots.Array) -> plots.Array:
        missing = np.isnan(heat_rc).any()
        return blank if missing else plots.heat_panel(look.picture, heat_rc, _SMALL_SIDE, float(heat_rc.max()), mark)

    panels = [[panel(each) for each in line] for line in shown]
    prefix_L = mean_LT[:, 0, : look.vit.prefix_tokens].sum(-1).tolist()
    found["attention"] = {
        "token": look.options.token or default_token(look.vit.config), "layers": layers,
        "prefix_share": [round(share, 6) for share in prefix_L],
    }  # fmt: skip
    caption = f"Attention of {_token_text(look)} in each layer and head. Each panel has its own color scale."
    if np.isnan(shown).any():
        caption += " Empty panels: the layer has fewer heads."
    if look.vit.prefix_tokens:
        shares = ", ".join(f"{100 * share:.0f} %" for share in prefix_L)
        caption += f" Attention on class token and registers, mean of the heads, per layer: {shares}."
    alt = f"{look.name}: attention of {len(layers)} layers and {len(heads)} heads over the image"
    png = plots.sheet(panels, names, [f"layer {layer}" for layer in layers], [_HEAT])
    return [Figure(png, alt, caption, wide=True, name=f"{look.name}-attention.png")]


def _layers(look: Look, methods: set[str], found: dict[str, Any]) -> list[Figure | Table]:
    """Draw similarity to one patch and norms of all patches per layer."""
    if not {"similarity", "norms"} & methods:
        return []
    layers, vit, lines, rows = _chosen_layers(look), look.vit, list[list[plots.Array]](), list[str]()
    tokens_LND = patch_tokens(vit, look.x_BCHW, layers)[0]
    columns: dict[str, list[float]] = {}
    patch = _mark(look) or (vit.grid[0] // 2, vit.grid[1] // 2)
    if "similarity" in methods:
        cosine_Lrc = patch_similarity(vit, look.x_BCHW, patch, layers)[0].unflatten(-1, vit.grid).float().cpu().numpy()
        lines.append([plots.heat_panel(look.picture, each, _SMALL_SIDE, 1.0, patch) for each in cosine_Lrc])
        rows.append("similarity")
        columns["Mean similarity"] = mean_similarity(tokens_LND).tolist()
    if "norms" in methods:
        norms_Lrc = patch_norms(vit, look.x_BCHW, layers)[0].unflatten(-1, vit.grid).float().cpu().numpy()
        lines.append([plots.heat_panel(look.picture, each, _SMALL_SIDE, float(each.max())) for each in norms_Lrc])
        rows.append("norm")
        columns["Median norm"] = np.median(norms_Lrc, axis=(1, 2)).tolist()
        columns["Largest norm"] = norms_Lrc.max(axis=(1, 2)).tolist()
    found["layers"] = {"layers": layers, **{key.lower().replace(" ", "_"): value for key, value in columns.items()}}
    captions = {
        "similarity": f"Similarity: cosine between each patch and the patch in row {patch[0]}, column {patch[1]}, "
        "after the layer. Values below 0 have the color of 0.",
        "norm": "Norm: L2 norm of each patch token, divided by the largest of the layer.",
    }
    bar = plots.Bar(plots.HEAT, 0, 1, "cosine, or share", mixed=True)
    png = plots.sheet(lines, [f"layer {layer}" for layer in layers], rows, [bar])
    alt = f"{look.name}: {' and '.join(rows)} of the patches in {len(layers)} layers"
    cells = [[f"{layer}", *(f"{each[i]:.3g}" for each in columns.values())] for i, layer in enumerate(layers)]
    figure = Figure(png, alt, " ".join(captions[row] for row in rows), wide=True, name=f"{look.name}-layers.png")
    caption = "Similarity: mean over all pairs of patches. Norms: over all patches."
    return [figure, Table(["Layer", *columns], cells, caption)]


def _lens(look: Look, methods: set[str], found: dict[str, Any]) -> list[Figure | Table]:
    """Plot the prediction after each layer."""
    if "lens" not in methods:
        return []
    scores_LS = look.predictor.scores(logit_lens(look.vit, look.x_BCHW)[0]).cpu()
    shown = list(dict.fromkeys([_target(look), *scores_LS[-1].argsort(descending=True).tolist()]))[:_LENS_CLASSES]
    best_L, classes = scores_LS.argmax(1).tolist(), look.predictor.classes
    answer_of = look.predictor.task.answer_of
    found["lens"] = [answer_of(row_S, best) for row_S, best in zip(scores_LS.numpy(), best_L, strict=True)]
    png = plots.lens_curves(scores_LS.numpy(), classes, shown)
    caption = (
        "Logit lens: the prediction from the tokens after each layer, by the model's last norm, pooling and head. The "
        "head was trained on the last layer only, so early predictions may be wrong although the tokens suffice."
    )
    rows = [[str(i), classes[row["index"]], f"{100 * row['score']:.1f}"] for i, row in enumerate(found["lens"])]
    alt = f"{look.name}: probability of {len(shown)} classes after each of {len(best_L)} layers"
    text = "Logit lens: the most probable class after each layer."
    table = Table(["Layer", "Prediction", "Probability %"], rows, text)
    return [Figure(png, alt, caption, name=f"{look.name}-lens.png"), table]


def _groups(look: Look, methods: set[str], found: dict[str, Any]) -> list[Figure | Table]:
    """Draw the token that each patch was merged into, with the prediction from the reduced tokens."""
    if "groups" not in methods or look.reduction is None:
        return []
    vit = look.vit
    with torch.no_grad():
        out = vit.encode_tokens(*vit.embed(look.x_BCHW), reduce=look.reduction)
        pooled_BD = vit.pool(out)
        full_BD = vit.pool(vit.encode(look.x_BCHW))
    assert out.groups_BN is not None
    groups_rc = out.groups_BN[0].view(vit.grid).cpu().numpy()
    counts = look.reduction.counts(vit.grid[0] * vit.grid[1], vit.config.depth)
    dropped = int((groups_rc < 0).sum())
    cosine = float(torch.nn.functional.cosine_similarity(pooled_BD, full_BD)[0])
    found["groups"] = {"tokens": counts, "dropped": dropped, "cosine": cosine, "of_patches": groups_rc.tolist()}
    caption = (
        f"Patches that were merged into one token have its mean color; lines separate tokens. {counts[-1]} of "
        f"{groups_rc.size} tokens remain. The cosine between the image's features with and without the reduction is "
        f"{cosine:.3f}."
    )
    if dropped:
        caption += f" {dropped} hatched patches were dropped."
    if look.predictor.classes:
        task = look.predictor.task
        scores_S = look.predictor.scores(vit.classify(pooled_BD).detach())[0].cpu().numpy()
        found["groups"]["prediction"] = task.answer_of(scores_S, task.chosen(scores_S))
        caption += f" The prediction is then {task.answer_line(scores_S)}."
    panels = [plots.enlarged(look.picture, _SIDE), plots.group_panel(look.picture, groups_rc, _SIDE)]
    png = plots.sheet([panels], ["image", f"{counts[-1]} token{'s' * (counts[-1] != 1)}"], [""], [])
    alt = f"{look.name}: which of the {groups_rc.size} patches went into the same token"
    return [Figure(png, alt, caption, name=f"{look.name}-groups.png")]


# In the order of the page; each returns figures and tables and adds its numbers to the JSON output.
_VIEWS = (_attributions, _attention, _layers, _lens, _groups)
