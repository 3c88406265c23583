"""The ViT paper's table of position embeddings (arXiv 2010.11929, appendix D.4, table 8) on any images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vitral.reproduce.config import ReproduceOptions
from vitral.reproduce.runs import base_keys, comparison, finished, mean_and_std, write_table
from vitral.run.assembly import resolve_steps
from vitral.run.config import draft_architecture, load_config
from vitral.training.metrics_log import console_logging, log

SETS = {f"model.{key}": "Every row has its own." for key in ("positions", "positions_at")}


class Variant(NamedTuple):
    """Settings of a row with the paper's number: ImageNet 5-shot linear accuracy of ViT-B/16."""

    name: str
    positions: str
    at: str | None
    paper: float | None


VARIANTS = (
    Variant("none", "none", None, 0.61382),
    Variant("1-D, at the stem", "learned", "stem", 0.64206),
    Variant("1-D, every layer", "learned", "layers", 0.63964),
    Variant("1-D, every layer, shared", "learned", "layers_shared", 0.64292),
    Variant("2-D, at the stem", "learned_2d", "stem", 0.64001),
    Variant("2-D, every layer", "learned_2d", "layers", 0.64046),
    Variant("2-D, every layer, shared", "learned_2d", "layers_shared", 0.64022),
    Variant("relative", "relative", "layers", 0.64032),
    Variant("relative, shared", "relative", "layers_shared", None),
    Variant("sine and cosine, fixed", "sincos", "stem", None),
    Variant("rotation (RoPE)", "rope", None, None),
)


def positions(options: ReproduceOptions | None = None, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train every variant with every seed; returns what table.json holds: "rows" with top-1, "claims", "seeds".

    The paper finds that any positions are better than none by far, and that kind and place matter little beside that.
    Both are evaluated on the mean over the seeds: `gap`, the mean of all variants the paper has less that of none, with
    its standard error over seeds; `range`, largest less smallest mean among those variants.
    """
    console_logging()
    options = options or ReproduceOptions()
    recipe, keys = base_keys(options, overrides or {}, SETS)
    places = {variant: {"model.positions": variant.positions, "model.positions_at": variant.at} for variant in VARIANTS}
    for each in places.values():  # before the folder is made and anything is trained
        config = load_config(recipe, {**keys, **each})
        draft_architecture(config)
        resolve_steps(config, samples=0)  # steps are given, so the number of samples has no effect
    rows: list[dict[str, Any]] = []
    split = count = None
    with comparison("positions", options, overrides or {}) as folder:
        for variant in VARIANTS:
            top1: list[float] = []
            for seed in range(options.seeds):
                log.info("%s, seed %d", variant.name, seed)
                where = folder / f"{variant.positions}-{variant.at or 'own'}-{seed}"
                summary = finished(where, recipe, {**keys, **places[variant], "seed": seed})
                top1.append(summary["top1"])
                split, count = summary["split"], summary["count"]
            rows.append({"variant": variant.name, "top1": top1, **mean_and_std(top1), "paper": variant.paper})
    found = {"data": options.data, "steps": options.steps, "seeds": options.seeds, "split": split, "count": count,
             "rows": rows, "claims": claims(rows)}  # fmt: skip
    write_table(folder, found)
    return found


def claims(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return whether the paper's ordering holds among its rows, with the rank correlation of all of them."""
    from scipy.stats import spearmanr

    known = [row for row in rows if row["paper"] is not None]
    none, others = known[0], known[1:]
    gap_S = np.mean([row["top1"] for row in others], axis=0) - np.array(none["top1"])
    means, theirs = [row["mean"] for row in others], [row["paper"] for row in others]
    agreement: Any = spearmanr([row["mean"] for row in known], [row["paper"] for row in known])
    return {
        "none_is_worst": none["mean"] < min(means),
        "gap": float(gap_S.mean()),
        "gap_error": float(gap_S.std(ddof=1) / len(gap_S) ** 0.5),
        "gap_paper": float(np.mean(theirs) - none["paper"]),
        "range": max(means) - min(means),
        "range_paper": max(theirs) - min(theirs),
        "rank_correlation": float(agreement.statistic),
    }
