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
    """One image to explain: the model's input, its picture, the class to explain, the views to draw, and the token
    reduction of the groups view. Every view adds its numbers to `found`, the JSON output."""

    predictor: Predictor
    options: ExplainOptions
    methods: set[str]
    name: str  # of its files
    x_BCHW: Tensor
    picture: plots.Array
    reduction: TokenReduction | None
    found: dict[str, Any]
    target: int | None = None

    @property
    def vit(self) -> VisionTransformer:
        """Return the model. Raises UserError for a model without tokens."""
        return require_transformer(self.predictor.model, "this view")

    @property
    def label(self) -> str:
        """Return the class to explain as text."""
        return f"class {self.predictor.classes[self.class_index()]}"

    @property
    def mark(self) -> tuple[int, int] | None:
        """Return the patch that is framed, if the token is one."""
        return patch_of(self.options.token) if self.options.token else None

    def class_index(self) -> int:
        """Return the class to explain, of a model with classes."""
        assert self.target is not None
        return self.target

    def on_patches(self, values_T: Tensor) -> plots.Array:
        """Return the values of the patches, [..., r, c], from those of all tokens."""
        return on_grid(values_T, self.vit.prefix_tokens, self.vit.grid).float().cpu().numpy()

    def heat(
        self, heat_rc: plots.Array, side: int, high: float | None = None, mark: tuple[int, int] | None = None
    ) -> plots.Array:
        """Return the panel of one map, colored from 0 to `high` (None: its largest value)."""
        return plots.heat_panel(self.picture, heat_rc, side, float(heat_rc.max()) if high is None else high, mark)

    def figure(self, png: bytes, alt: str, caption: str, name: str, *, wide: bool = True) -> Figure:
        """Return the figure of a view with its file name."""
        return Figure(png, f"{self.name}: {alt}", caption, wide=wide, name=f"{self.name}-{name}.png")


def explain_image(
    predictor: Predictor, path: str, number: int, methods: set[str], options: ExplainOptions,
    reduction: TokenReduction | None,
) -> tuple[Section, dict[str, Any]]:  # fmt: skip
    """Return the configured figures of one image and their numbers. Raises UserError for an unreadable image, and for
    a token, layer, head or class that the model lacks."""
    x_CHW, size = predictor.prepare(path)
    x_BCHW = x_CHW[None].to(predictor.device)
    picture = plots.as_picture(x_BCHW[0].permute(1, 2, 0).cpu().numpy())
    name = f"{number:02d}-" + re.sub(r"[^\w.-]+", "_", Path(path).stem)[:40]
    look, text = Look(predictor, options, methods, name, x_BCHW, picture, reduction, {"image": path}), list[str]()
    if predictor.task.has_places:
        look, text = _in_best_box(look, size)
    elif predictor.classes:
        with torch.no_grad():
            scores_S = predictor.scores(predictor.model(x_BCHW))[0].cpu().numpy()
        task = predictor.task
        best = task.chosen(scores_S)
        target = best if options.label is None else _class(predictor, options.label)
        look = look._replace(target=target)
        look.found["prediction"] = task.answer_of(scores_S, best)
        look.found["class"] = task.answer_of(scores_S, target)
        look.found["answer"] = task.answer_line(scores_S)
        text = [f"Predicted: {task.answer_line(scores_S)}."]
        text += [f"Explained: {task.answer_text(scores_S, target)}."] if target != best else []
    parts = [part for draw, names in _VIEWS.items() if names & methods for part in draw(look)]
    return Section(f"Image {number}: {Path(path).name}", [" ".join(text), *parts] if text else parts), look.found


def _in_best_box(look: Look, size: tuple[int, int]) -> tuple[Look, list[str]]:
    """Of a detector: attention is that of the patch in the middle of its best box, unless a token is configured or
    nothing is found. size: (height, width) of the file, in whose pixels the JSON has its boxes."""
    with torch.no_grad():
        outputs = look.predictor.model(look.x_BCHW).float()
    (seen,), (found,) = look.predictor.postprocess(outputs), look.predictor.postprocess(outputs, sizes=[size])
    look.found["detections"] = found["detections"]
    if not seen["detections"]:
        return look, ["Nothing is found."]
    best, patch = seen["detections"][0], look.vit.config.patch_size
    text = f"Boxes found: {len(seen['detections'])}, the best one {best['label']} with a score of {best['score']:.2f}."
    if look.options.token is not None:
        return look, [text]
    x0, y0, x1, y1 = best["box"]
    places = (int((low + high) / 2 / patch) for low, high in ((y0, y1), (x0, x1)))
    row, column = (min(place, count - 1) for place, count in zip(places, look.vit.grid, strict=True))
    options = look.options.model_copy(update={"token": f"{row},{column}"})
    return look._replace(options=options), [text, "Attention is that of the patch in its middle."]


def _class(predictor: Predictor, label: str) -> int:
    """Return the index of a class given by name or number."""
    classes = list(predictor.classes)
    if same := [number for number, name in enumerate(classes) if numbered_of(name) == label]:
        expected = ", ".join(map(str, [*([classes.index(label)] if label in classes else []), *same]))
        what = "several classes have this name; pass the class number"
        raise UserError(what, where="class", got=label, expected=expected)
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


def _attributions(look: Look) -> list[Figure | Table]:
    """Draw the image beside single maps: rollout, gradient-weighted attention, integrated gradients."""
    token, fuse = look.options.token, look.options.fuse
    panels, bars, captions = {"image": plots.enlarged(look.picture, _SIDE)}, list[plots.Bar](), list[str]()
    heats: dict[str, Tensor] = {}
    if "rollout" in look.methods:
        heats["rollout"] = rollout(look.vit, look.x_BCHW, token, fuse)
        captions.append(
            f"Rollout ({fuse} over the heads): how much {_token_text(look)} draws on each patch, all layers."
        )
    if "gradient_attention" in look.methods:
        heats["gradient-weighted attention"] = gradient_attention(look.vit, look.x_BCHW, look.class_index(), token)
        captions.append(f"Gradient-weighted attention: patches whose attention increases the logit of {look.label}.")
    for name, values_BT in heats.items():
        heat_rc = look.on_patches(values_BT[0])
        panels[name] = look.heat(heat_rc, _SIDE, mark=look.mark)
        look.found[name.replace("-weighted ", "_")] = [[float(f"{value:.6g}") for value in row] for row in heat_rc]
        bars = [_HEAT]
    if "integrated_gradients" in look.methods:
        panels["integrated gradients"], sentence = _integrated(look)
        bars.append(plots.Bar(plots.SIGNED, -1, 1, "against (-) and for (+) the class"))
        captions.append(sentence)
    png = plots.sheet([list(panels.values())], list(panels), [""], bars)
    return [look.figure(png, f"{', '.join(panels)}, side by side", " ".join(captions), "attributions")]


def _integrated(look: Look) -> tuple[plots.Array, str]:
    """Return the panel of integrated gradients and its caption with the completeness gap."""
    keys, model, size = look.options.gradients, look.predictor.model, look.options.batch_size
    sums = integrated_gradients(model, look.x_BCHW, look.class_index(), keys.baseline, keys.steps, size)
    above, gap = float(sums.difference_B[0]), float(sums.gap_B[0])
    numbers = {"steps": keys.steps, "baseline": keys.baseline, "logit_difference": above, "gap": gap}
    look.found["integrated_gradients"] = numbers
    captions = (
        f"Integrated gradients of {look.label}, {keys.steps} steps from gray level {keys.baseline:g}: their sum is "
        f"{above + gap:.4f}, the difference of the logits is {above:.4f}, the gap is {gap:.2g}."
    )
    if abs(gap) > _LARGE_GAP * abs(above):
        more = "The gap is large, so the map is inaccurate. Increase gradients.steps to reduce it."
        log.warning("%s: %s", look.name, more)
        captions += f" {more}"
    value_HW = sums.attributions_BCHW[0].sum(0).cpu().numpy()
    return plots.signed_panel(look.picture, value_HW, _SIDE, float(np.quantile(np.abs(value_HW), 0.99))), captions


def _chosen_layers(look: Look) -> list[int]:
    depth = look.vit.config.depth
    if look.options.layers:
        return pick(look.options.layers, depth, "layers")
    return sorted({round(place) for place in np.linspace(0, depth - 1, min(depth, _FEW_LAYERS))})


def _attention(look: Look) -> list[Figure | Table]:
    """Draw the attention of the token, one row per layer, one column per head."""
    count, layers = max(look.vit.config.heads_of_blocks), _chosen_layers(look)
    heads = pick(look.options.heads, count, "heads") if look.options.heads else list(range(min(count, _FEW_HEADS)))
    shares_LhT = token_attention(look.vit, look.x_BCHW, look.options.token, layers)[0]
    mean_LT = shares_LhT.nanmean(1, keepdim=True)
    shown = look.on_patches(torch.cat([mean_LT, shares_LhT[:, heads]], 1))
    names = ["mean of heads", *(f"head {head}" for head in heads)]
    blank = plots.enlarged(np.ones_like(look.picture), _SMALL_SIDE)
    panels = [
        [blank if np.isnan(heat_rc).any() else look.heat(heat_rc, _SMALL_SIDE, mark=look.mark) for heat_rc in line]
        for line in shown
    ]
    prefix_L = mean_LT[:, 0, : look.vit.prefix_tokens].sum(-1).tolist()
    look.found["attention"] = {
        "token": look.options.token or default_token(look.vit.config), "layers": layers,
        "prefix_share": [round(share, 6) for share in prefix_L],
    }  # fmt: skip
    caption = f"Attention of {_token_text(look)} in each layer and head. Each panel has its own color scale."
    if np.isnan(shown).any():
        caption += " Empty panels: the layer has fewer heads."
    if look.vit.prefix_tokens:
        shares = ", ".join(f"{100 * share:.0f} %" for share in prefix_L)
        caption += f" Attention on class token and registers, mean of the heads, per layer: {shares}."
    alt = f"attention of {len(layers)} layers and {len(heads)} heads over the image"
    png = plots.sheet(panels, names, [f"layer {layer}" for layer in layers], [_HEAT])
    return [look.figure(png, alt, caption, "attention")]


def _layers(look: Look) -> list[Figure | Table]:
    """Draw similarity to one patch and norms of all patches per layer."""
    layers, vit = _chosen_layers(look), look.vit
    lines, columns = dict[str, list[plots.Array]](), dict[str, list[float]]()
    tokens_LND = patch_tokens(vit, look.x_BCHW, layers)[0]
    patch = look.mark or (vit.grid[0] // 2, vit.grid[1] // 2)
    if "similarity" in look.methods:
        cosine_Lrc = patch_similarity(vit, look.x_BCHW, patch, layers)[0].unflatten(-1, vit.grid).float().cpu().numpy()
        lines["similarity"] = [look.heat(each, _SMALL_SIDE, 1.0, patch) for each in cosine_Lrc]
        columns["Mean similarity"] = mean_similarity(tokens_LND).tolist()
    if "norms" in look.methods:
        norms_Lrc = patch_norms(vit, look.x_BCHW, layers)[0].unflatten(-1, vit.grid).float().cpu().numpy()
        lines["norm"] = [look.heat(each, _SMALL_SIDE) for each in norms_Lrc]
        columns["Median norm"] = np.median(norms_Lrc, axis=(1, 2)).tolist()
        columns["Largest norm"] = norms_Lrc.max(axis=(1, 2)).tolist()
    numbers = {key.lower().replace(" ", "_"): value for key, value in columns.items()}
    look.found["layers"] = {"layers": layers, **numbers}
    captions = {
        "similarity": f"Similarity: cosine between each patch and the patch in row {patch[0]}, column {patch[1]}, "
        "after the layer. Values below 0 have the color of 0.",
        "norm": "Norm: L2 norm of each patch token, divided by the largest of the layer.",
    }
    bar = plots.Bar(plots.HEAT, 0, 1, "cosine, or share", mixed=True)
    png = plots.sheet(list(lines.values()), [f"layer {layer}" for layer in layers], list(lines), [bar])
    alt = f"{' and '.join(lines)} of the patches in {len(layers)} layers"
    cells = [[f"{layer}", *(f"{each[i]:.3g}" for each in columns.values())] for i, layer in enumerate(layers)]
    caption = "Similarity: mean over all pairs of patches. Norms: over all patches."
    return [
        look.figure(png, alt, " ".join(captions[row] for row in lines), "layers"),
        Table(["Layer", *columns], cells, caption),
    ]


def _lens(look: Look) -> list[Figure | Table]:
    """Plot the prediction after each layer."""
    scores_LS = look.predictor.scores(logit_lens(look.vit, look.x_BCHW)[0]).cpu()
    shown = list(dict.fromkeys([look.class_index(), *scores_LS[-1].argsort(descending=True).tolist()]))[:_LENS_CLASSES]
    best_L, classes = scores_LS.argmax(1).tolist(), look.predictor.classes
    answers = list(map(look.predictor.task.answer_of, scores_LS.numpy(), best_L))
    look.found["lens"] = answers
    png = plots.lens_curves(scores_LS.numpy(), classes, shown)
    caption = (
        "Logit lens: the prediction from the tokens after each layer, by the model's last norm, pooling and head. The "
        "head was trained on the last layer only, so early predictions may be wrong although the tokens suffice."
    )
    rows = [[str(i), classes[row["index"]], f"{100 * row['score']:.1f}"] for i, row in enumerate(answers)]
    alt = f"probability of {len(shown)} classes after each of {len(best_L)} layers"
    text = "Logit lens: the most probable class after each layer."
    table = Table(["Layer", "Prediction", "Probability %"], rows, text)
    return [look.figure(png, alt, caption, "lens", wide=False), table]


def _groups(look: Look) -> list[Figure | Table]:
    """Draw the token that each patch was merged into, with the prediction from the reduced tokens."""
    if look.reduction is None:
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
    found = look.found["groups"] = {
        "tokens": counts,
        "dropped": dropped,
        "cosine": cosine,
        "of_patches": groups_rc.tolist(),
    }
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
        found["prediction"] = task.answer_of(scores_S, task.chosen(scores_S))
        caption += f" The prediction is then {task.answer_line(scores_S)}."
    panels = [plots.enlarged(look.picture, _SIDE), plots.group_panel(look.picture, groups_rc, _SIDE)]
    png = plots.sheet([panels], ["image", f"{counts[-1]} token{'s' * (counts[-1] != 1)}"], [""], [])
    alt = f"which of the {groups_rc.size} patches went into the same token"
    return [look.figure(png, alt, caption, "groups", wide=False)]


# In the order of the page, each with the methods that it draws.
_VIEWS = {
    _attributions: {"rollout", "gradient_attention", "integrated_gradients"}, _attention: {"attention"},
    _layers: {"similarity", "norms"}, _lens: {"lens"}, _groups: {"groups"},
}  # fmt: skip
