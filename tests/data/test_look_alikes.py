"""Look-alikes: copies are found however they were changed, and what only looks alike from afar is not one."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch.nn.functional import interpolate

from vitral.data.check import check_dataset
from vitral.data.dataset import Dataset, memory_split
from vitral.data.findings import Finding
from vitral.data.near_duplicates import likeness, part_likeness, similarity
from vitral.data.perceptual_hash import WINDOWS, cross_pairs, mirrored, perceptual_hash, seen_through, window_hashes

SIDE = 64
COPIES = 40


def photo(number: int) -> Image.Image:
    """Shapes with edges and texture over a shaded ground, as photographs have."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    image = np.stack([random.uniform(40, 200) + random.uniform(-60, 60) * (x + y) for _ in range(3)], axis=2)
    for _ in range(12):
        cx, cy, rx, ry = *random.uniform(0, 1, 2), *random.uniform(0.05, 0.3, 2)
        inside = (
            ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
            if random.random() < 0.5
            else ((np.abs(x - cx) < rx) & (np.abs(y - cy) < ry))
        )
        image[inside] = random.uniform(0, 255, 3) + 20 * np.sin(random.uniform(10, 60) * x[inside])[:, None]
    return Image.fromarray(image.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))


def saved(image: Image.Image, random: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return Image.open(buffer).convert("RGB")


def flipped(image: Image.Image, random: np.random.Generator) -> Image.Image:
    return saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), random)


def tinted(image: Image.Image, random: np.random.Generator) -> Image.Image:
    gains = random.uniform(0.75, 1.2, 3)
    return saved(Image.fromarray((np.asarray(image) * gains + 10).clip(0, 255).astype(np.uint8)), random)


def cropped(image: Image.Image, random: np.random.Generator) -> Image.Image:
    share = random.uniform(0.82, 0.95)
    left, top = random.uniform(0, (1 - share) * SIDE, 2)
    box = (left, top, left + share * SIDE, top + share * SIDE)
    return saved(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box), random)


def findings(images: list[Image.Image], labels: list[int] | None = None) -> dict[str, Finding]:
    pixels_NCHW = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2).copy()
    labels_N = np.array(labels or [0] * len(images), np.int64)
    split = memory_split(pixels_NCHW, labels_N, [str(place) for place in range(len(images))], 3)
    classes = tuple("abcdef"[: max(labels_N.max() + 1, 2)])
    report = check_dataset(Dataset("photos", classes, {"train": split}, 3, (), "0"), workers=1)
    return {each.code: each for each in report.findings}


def pairs(finding: Finding) -> list[tuple[int, int]]:
    return [(int(one.name), int(other.name)) for one, other in finding.groups]


@pytest.mark.parametrize(
    ("change", "kind", "recall"),
    [(saved, None, 1.0), (flipped, "mirrored", 1.0), (tinted, None, 0.97), (cropped, "cropped", 0.6)],
)
def test_copies_are_found_and_nothing_else(
    change: Callable[[Image.Image, np.random.Generator], Image.Image], kind: str | None, recall: float
) -> None:
    random = np.random.default_rng(0)
    originals = [photo(number) for number in range(150)]
    copies = [change(image, random) for image in originals[:COPIES]]
    near = findings(originals + copies)["near"]
    expected = {(place, 150 + place) for place in range(COPIES)}
    assert len(expected & set(pairs(near))) >= recall * COPIES
    assert set(pairs(near)) <= expected
    if kind is not None:
        assert near.numbers[kind] >= 0.5 * near.numbers["pairs"]  # small crops are near as they are
        assert f"{near.numbers[kind]:,} {kind}" in near.message


def test_what_has_no_details_is_no_pair() -> None:
    """Pale skies, pictures of nearly one color and of low contrast: their hashes are near, and say nothing."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    images: list[Image.Image] = []
    for _ in range(40):
        sky = np.stack([170 + 50 * y + random.uniform(-5, 5) * x, 200 + 30 * y, 240 + 8 * y], axis=2)
        flat = np.full((SIDE, SIDE, 3), random.uniform(40, 220))
        faint = 128 + 1.5 * np.sin(6 * (x + random.uniform(0, 0.05)) + 4 * y)[..., None].repeat(3, 2)
        for image in (sky, flat, faint):
            noisy = image + random.normal(0, 0.7, image.shape)
            images.append(saved(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), random))
    hashes = perceptual_hash(np.stack([np.asarray(image.resize((32, 32))) for image in images]).transpose(0, 3, 1, 2))
    assert len(cross_pairs(hashes, hashes)[0]) > 100  # the hash alone would name these
    assert not {"near", "near-across"} & findings(images).keys()


def test_the_same_kind_of_thing_is_no_copy() -> None:
    """One outline, nearly in one place, in another pattern: what a hash takes for the same garment."""
    images: list[Image.Image] = []
    for number in range(30):
        random = np.random.default_rng(number)
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE
        cx, cy, wide, high = random.normal((0.5, 0.5, 0.25, 0.35), 0.012)
        body = (np.abs(x - cx) < wide) & (np.abs(y - cy) < high)
        shirt = body | ((np.abs(y - cy + 0.25) < 0.08) & (np.abs(x - cx) < wide + 0.17))
        pattern = 120 + 60 * np.sin(random.uniform(20, 60) * x + random.uniform(20, 60) * y + random.uniform(0, 6))
        images.append(Image.fromarray(np.where(shirt, pattern, 240)[..., None].repeat(3, 2).astype(np.uint8)))
    hashes = perceptual_hash(np.stack([np.asarray(image.resize((32, 32))) for image in images]).transpose(0, 3, 1, 2))
    assert len(cross_pairs(hashes, hashes)[0]) > 20
    assert not {"near", "near-across"} & findings(images).keys()


def test_different_labels_come_first_then_the_likest() -> None:
    random = np.random.default_rng(0)
    originals = [photo(number) for number in range(6)]
    worse = Image.fromarray(np.asarray(originals[0]) // 2 + 60).filter(ImageFilter.GaussianBlur(0.8))
    near = findings(
        [*originals, worse, saved(originals[1], random), saved(originals[2], random)], [0, 0, 0, 0, 0, 0, 0, 0, 1]
    )["near"]
    assert pairs(near) == [(2, 8), (1, 7), (0, 6)]
    assert near.numbers["different_labels"] == 1


def test_a_mirrored_hash_is_the_hash_of_the_mirrored_picture() -> None:
    thumbs_NCSS = np.random.default_rng(2).integers(0, 256, (50, 3, 32, 32), np.uint8)
    assert np.array_equal(mirrored(perceptual_hash(thumbs_NCSS)), perceptual_hash(thumbs_NCSS[..., ::-1].copy()))


def test_a_windows_hash_is_the_hash_of_what_it_shows() -> None:
    """Against torch's interpolation, but for bits whose wave is nearly 0."""
    images = torch.from_numpy(np.stack([np.asarray(photo(n).resize((32, 32))) for n in range(40)])).permute(0, 3, 1, 2)
    found_NW = window_hashes(images.numpy())
    large = interpolate(images.float(), (800, 800), mode="bilinear", align_corners=False)
    for window, (share, top, left) in enumerate(WINDOWS):
        y, x = (round(start * (1 - share) * 800) for start in (top, left))
        seen = interpolate(large[:, :, y : y + 704, x : x + 704], (32, 32), mode="area").round().byte().numpy()
        assert np.bitwise_count(found_NW[:, window] ^ perceptual_hash(seen)).mean() < 2
        assert np.allclose(seen_through(share, top).sum(1), 1)


@pytest.mark.parametrize("radius", [0, 3, 9])
def test_pairs_across_are_those_of_brute_force(radius: int) -> None:
    random = np.random.default_rng(radius)
    hashes_N = random.integers(0, 2**64, 800, dtype=np.uint64)
    flips_N = np.bitwise_or.reduce(np.uint64(1) << random.integers(0, 64, (10, 800)).astype(np.uint64), axis=0)
    queries_N = np.roll(hashes_N, 1) ^ np.where(random.random(800) < 0.5, flips_N, np.uint64(0))
    near_NN = np.bitwise_count(queries_N[:, None] ^ hashes_N[None]) <= radius
    np.fill_diagonal(near_NN, False)
    found_P2, complete = cross_pairs(queries_N, hashes_N, radius)
    assert complete
    assert np.array_equal(found_P2, np.argwhere(near_NN))


def test_likeness_is_the_smaller_correlation() -> None:
    random = np.random.default_rng(3)
    gray = random.integers(0, 256, (4, 32, 32), np.uint8)
    colors = random.integers(0, 256, (4, 3, 16, 16), np.uint8)
    other = random.integers(0, 256, (4, 3, 16, 16), np.uint8)
    np.testing.assert_allclose(likeness((colors, colors), (gray, gray)), 1, rtol=1e-5)
    np.testing.assert_allclose(likeness((colors, other), (gray, gray)), similarity(colors, other), rtol=1e-5)
    assert np.abs(likeness((colors, colors), (gray, gray[::-1].copy()))).max() < 0.2
    flat = np.full_like(gray, 9)
    assert likeness((colors, colors), (flat, flat)).tolist() == [0] * 4
    assert part_likeness(flat, flat, 4).tolist() == [0] * 4
