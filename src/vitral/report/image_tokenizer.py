"""Sections of an evaluation of an image tokenizer. Shape letters: K codes, B images, H W C of a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.report.features import picture_sections
from vitral.report.sections import Figure, Note, Picture, Section

CODES = "codes"  # among the pictures: one sheet with a patch for each code
_BINS = 400
_SHEET = 512  # pixels of the sheet's longer side, about


def use_sections(counts_K: Sequence[int], split: str, pictures: Mapping[str, NDArray[Any]]) -> list[Section]:
    """How often each code occurs, and reconstructions. pictures: columns [B, H, W, C] of equal B, and the sheet
    [1, H, W, C] under `CODES`, if there are any."""
    columns = {name: images for name, images in pictures.items() if name != CODES}
    parts: list[Any] = [
        Figure(frequency_curve(counts_K), "frequency of each code, most frequent first",
               f"Share of each code among those of the {split} images, most frequent first"),
    ]  # fmt: skip
    if CODES in pictures:
        caption = "What the decoder makes of each code, the same code all around"
        sheet_HWC = pictures[CODES][0]
        scale = max(1, _SHEET // max(sheet_HWC.shape[:2]))
        parts.append(Picture(sheet_HWC.repeat(scale, axis=0).repeat(scale, axis=1), caption))
    return [*picture_sections(columns), Section("Use of the codes", parts)]


def worse_than_kmeans(psnr: float, baseline: float) -> str | None:
    """A warning where a network is no better than mean patches."""
    if psnr > baseline:
        return None
    return (
        f"not better than k-means of patches with as many codes and the same grid ({psnr:.2f} dB and {baseline:.2f} "
        "dB): the network adds nothing yet. A longer run or another learning rate may help"
    )


def warning_note(psnr: float, baseline: float | None) -> list[Note]:
    """The warning as a part of a section, if there is one."""
    text = None if baseline is None else worse_than_kmeans(psnr, baseline)
    return [] if text is None else [Note(f"Warning: {text}.")]


def frequency_curve(counts_K: Sequence[int]) -> bytes:
    """The share of each code, in falling order, beside that of equally frequent ones, as SVG."""
    from vitral.report.plots import BLUE, GRAY, single_axes, svg

    share_K = np.sort(np.asarray(counts_K, float))[::-1] / max(sum(counts_K), 1)
    place_X = np.unique(np.linspace(0, len(share_K) - 1, min(len(share_K), _BINS)).astype(int))
    with single_axes(6.4, 2.8) as (figure, axes):
        axes.plot(place_X + 1, 100 * share_K[place_X], color=BLUE)
        axes.axhline(100 / len(share_K), color=GRAY, linestyle="--", label="all equally frequent")
        axes.set_xlabel("code, by frequency")
        axes.set_ylabel("share (%)")
        axes.set_ylim(bottom=0)
        axes.legend()
        return svg(figure)
