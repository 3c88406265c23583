"""The counter hash: published vectors, the same bits everywhere, the right distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitral.data.counter_rng import Stream, bits, normals, permutation, philox, uniform, uniform_runs, uniforms

# Known answers of Philox4x32-10, published with Random123 (Salmon et al., SC 2011).
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = counter
    assert philox((c0, c1, c2, c3), key) == words
    with np.errstate(over="ignore"):
        arrays = philox(tuple(np.array([c], np.int64) for c in counter), key)  # type: ignore[arg-type]
    assert tuple(int(a[0]) for a in arrays) == words
    tensors = philox(tuple(torch.tensor([c]) for c in counter), key)  # type: ignore[arg-type]
    assert tuple(int(t[0]) for t in tensors) == words


def test_a_number_depends_on_its_sample_alone_not_on_the_batch_it_came_in() -> None:
    index = torch.arange(1000)
    whole = uniform(7, 3, 0, index, Stream.FLIP)
    parts = torch.cat([uniform(7, 3, 0, index[i : i + 37], Stream.FLIP) for i in range(0, 1000, 37)])
    assert torch.equal(whole, parts)
    flip, crop = uniforms(7, 3, 0, index, [Stream.FLIP, Stream.CROP_X])
    assert torch.equal(flip, whole)
    assert torch.equal(crop, uniform(7, 3, 0, index, Stream.CROP_X))
    assert np.array_equal(bits(7, 3, 0, index.numpy(), Stream.FLIP), bits(7, 3, 0, index, Stream.FLIP).numpy())


def test_every_part_of_the_key_matters() -> None:
    index = torch.arange(256)
    base = uniform(0, 0, 0, index, Stream.FLIP)
    others = [
        uniform(1, 0, 0, index, Stream.FLIP),
        uniform(1 << 32, 0, 0, index, Stream.FLIP),
        uniform(0, 1, 0, index, Stream.FLIP),
        uniform(0, 0, 1, index, Stream.FLIP),
        uniform(0, 0, 0, index + 256, Stream.FLIP),
        uniform(0, 0, 0, index, Stream.ROTATE),
    ]
    for other in others:
        assert (base == other).float().mean() < 0.01
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.25


def test_uniform_is_uniform() -> None:
    values = uniform(0, torch.arange(200_000) % 3, 0, torch.arange(200_000), Stream.CROP_X)
    assert values.dtype == torch.float32
    assert values.min() >= 0
    assert values.max() < 1
    counts = torch.histc(values, 50, 0, 1)
    chi_square = ((counts - 4000) ** 2 / 4000).sum()
    assert chi_square < 100, "49 degrees of freedom: 100 has a probability of 2e-5"


def test_a_permutation_holds_every_sample_once_and_differs_by_epoch() -> None:
    orders = [permutation(0, epoch, 1293) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(1293))
    assert (orders[0] == orders[1]).mean() < 0.01
    assert np.array_equal(orders[0], permutation(0, 0, 1293))


def test_several_draws_of_a_stream_are_draws_of_their_own() -> None:
    index = torch.arange(512)
    assert len({int(stream) for stream in Stream}) == len(Stream)
    assert max(Stream) < 256, "numbered draws count in steps of 256"
    crop, flip = uniform_runs(7, index % 3, index % 2, index, [Stream.CROP_X, Stream.FLIP], 5)
    assert torch.equal(crop[0], uniform(7, index % 3, index % 2, index, Stream.CROP_X))
    rows = torch.cat([crop, flip])
    assert (torch.corrcoef(rows) - torch.eye(10)).abs().max() < 0.2
    assert torch.equal(uniform_runs(7, index % 3, index % 2, index, [Stream.FLIP], 3)[0], flip[:3])


def test_normal_numbers_have_the_normal_distribution_and_depend_on_their_sample_alone() -> None:
    from scipy.stats import kstest

    index = torch.arange(500)
    found = normals(7, 3, 1, index, 41)
    assert found.shape == (500, 41)
    assert torch.equal(found[100:137, :20], normals(7, 3, 1, index[100:137], 20))
    assert kstest(found.flatten().double().numpy(), "norm").pvalue > 0.01
    assert kstest((found[:, ::2][:, :20] + found[:, 1::2]).flatten().double().numpy() / 2**0.5, "norm").pvalue > 0.01
    assert not torch.equal(found, normals(7, 4, 1, index, 41))
