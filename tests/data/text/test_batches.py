"""Batches of text: every sample once per epoch, pure in seed and step, the same for any number of processes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitral.data.config import AugmentConfig, StreamConfig
from vitral.data.counter_rng import permutation
from vitral.data.image_spec import ResizeSpec
from vitral.data.image_store import ImageStore
from vitral.data.loader import TrainLoader
from vitral.data.sampling import Buckets, Sampler, bucket_order
from vitral.data.text.batches import SplitIds, TextStream, TokenIds, bucket_key, shifted, split_ids, token_ids
from vitral.data.text.config import TextConfig, TextSource, TokenizerConfig
from vitral.data.text.dataset import TextSplit
from vitral.data.text.sources import open_text
from vitral.data.text.tokenizer import END, PAD, START, Bytes, Characters
from vitral.data.text.tokenizer_file import Tokenizers, train_tokenizers
from vitral.errors import UserError
from vitral.structs import STREAM_SPAN, Batch, device_of, micro_batches


def lengths(count: int, longest: int = 40) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(count).integers(1, longest + 1, count).astype(np.int64)


def ids_of(length_N: np.ndarray[Any, np.dtype[np.int64]], seed: int = 0) -> TokenIds:
    """Random texts of these lengths, their end included."""
    starts = np.concatenate([[0], np.cumsum(length_N)]).astype(np.int64)
    flat = np.random.default_rng(seed).integers(4, 60, starts[-1]).astype(np.int32)
    flat[starts[1:] - 1] = END
    return TokenIds(flat, starts)


def stream(count: int = 203, batch: int = 16, seed: int = 5, **more: Any) -> TextStream:
    text = TextConfig(window=more.pop("window", 3), pad_multiple=more.pop("pad_multiple", 8))
    ids = SplitIds(ids_of(lengths(count)), ids_of(lengths(count, 25), 1))
    return TextStream(ids, StreamConfig(batch, AugmentConfig()), text, seed, **more)


def equal(one: Batch, other: Batch) -> bool:
    parts = [(one.sample_ids_B, other.sample_ids_B), *((one.targets[k], other.targets[k]) for k in one.targets)]
    parts += [(a.images_BCHW, b.images_BCHW) for a, b in zip(one.views, other.views, strict=True)]
    return one.targets.keys() == other.targets.keys() and all(torch.equal(a, b) for a, b in parts)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 90), st.integers(1, 20), st.integers(1, 6), st.integers(0, 5), st.integers(0, 9))
def test_an_order_of_buckets_is_a_permutation(count: int, batch: int, window: int, epoch: int, seed: int) -> None:
    order_N = permutation(seed, epoch, count)
    found = bucket_order(order_N, lengths(count), batch, window, seed, epoch)
    assert sorted(found.tolist()) == list(range(count))
    start = min(-epoch * count % batch, count)
    whole = (count - start) // batch
    assert (found[:start] == order_N[:start]).all()
    assert (found[start + whole * batch :] == order_N[start + whole * batch :]).all()
    for first in range(start, start + whole * batch, window * batch):
        own = found[first : min(first + window * batch, start + whole * batch)]
        assert set(own.tolist()) == set(order_N[first : first + len(own)].tolist()), "samples stay in their window"
        rows = np.sort(lengths(count)[own].reshape(-1, batch), axis=1)
        rows = rows[np.lexsort((rows[:, -1], rows[:, 0]))]
        assert (rows[1:, 0] >= rows[:-1, -1]).all(), "batches of a window do not overlap in length"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 24), st.integers(1, 5))
def test_every_epoch_holds_every_sample_once(count: int, batch: int, window: int) -> None:
    sampler = Sampler(np.zeros(count, np.int64), batch, 3, buckets=Buckets(lengths(count), window))
    places = [sampler.rows(step, 0, batch) for step in range(-(-4 * count // batch))]
    index = np.concatenate([each.index_B for each in places])[: 4 * count]
    draws = np.concatenate([each.draw_B for each in places])[: 4 * count]
    for epoch in range(4):
        own = slice(epoch * count, (epoch + 1) * count)
        assert sorted(index[own].tolist()) == list(range(count))
        assert set(draws[own].tolist()) == {epoch}


def test_repeats_keep_their_counts() -> None:
    sampler = Sampler(np.zeros(40, np.int64), 16, 3, repeats=2, buckets=Buckets(lengths(40), 3))
    places = [sampler.rows(step, 0, 16) for step in range(5)]
    assert Counter(np.concatenate([each.index_B for each in places]).tolist()) == dict.fromkeys(range(40), 2)


def test_batches_are_pure_in_seed_and_step() -> None:
    one, other = stream(), stream()
    forwards = [one.batch(step) for step in range(30)]
    backwards = [other.batch(step) for step in reversed(range(30))][::-1]
    assert all(map(equal, forwards, backwards))
    resumed = list(stream().stream(17, 30))
    assert all(map(equal, forwards[17:], resumed))
    assert not all(equal(a, stream(seed=6).batch(step)) for step, a in enumerate(forwards))


@pytest.mark.parametrize("world", [2, 4])
def test_parts_of_all_processes_are_the_batch_of_one(world: int) -> None:
    whole = stream(batch=32)
    parts = [stream(batch=32, rank=rank, world=world) for rank in range(world)]
    for step in range(12):
        batches = [part.batch(step) for part in parts]
        assert all(len(each.sample_ids_B) == 32 // world for each in batches)
        joined = Batch(
            (), {key: torch.cat([each.targets[key] for each in batches]) for key in ("text", "source")},
            torch.cat([each.sample_ids_B for each in batches]),
        )  # fmt: skip
        assert equal(joined, whole.batch(step))
    with pytest.raises(UserError, match="multiple of 16"):
        stream(batch=24, rank=0, world=2)


def test_batches_hold_the_texts_of_their_samples() -> None:
    made = stream(pad_multiple=1, number=2)
    for step in range(5):
        batch = made.batch(step)
        assert batch.views == ()
        for row, sample in enumerate(batch.sample_ids_B.tolist()):
            for key, ids in (("text", made.ids.target), ("source", made.ids.source)):
                assert ids is not None
                place = sample - 2 * STREAM_SPAN
                own = ids.ids_P[ids.start_N1[place] : ids.start_N1[place + 1]].tolist()
                found = batch.targets[key][row].tolist()
                assert found == own + [PAD] * (len(found) - len(own))
        for key in ("text", "source"):
            values = batch.targets[key]
            assert values.dtype == torch.int64
            assert (values != PAD).any(dim=0).all(), "no column is all padding"


def test_widths_are_multiples_and_parts_can_be_cut() -> None:
    batch = stream().batch(0)
    assert batch.targets["text"].shape[1] % 8 == batch.targets["source"].shape[1] % 8 == 0
    assert device_of({"train": batch}).type == "cpu"
    cut = [part["train"] for part in micro_batches({"train": batch}, 6)]
    assert [len(part.sample_ids_B) for part in cut] == [6, 6, 4]
    assert torch.equal(torch.cat([part.targets["text"] for part in cut]), batch.targets["text"])


def test_buckets_reduce_padding() -> None:
    """Lengths are uniform from 1 to 40: nearly half is padding at random, little in windows of 100 batches."""
    ids = ids_of(lengths(4000))
    shares: dict[int, float] = {}
    for window in (1, 3, 100):
        text = TextConfig(window=window, pad_multiple=1)
        made = TextStream(SplitIds(ids, ids), StreamConfig(16, AugmentConfig()), text, 0)
        shares[window] = made.padded_share(range(250))
        batches = [made.batch(step).targets["text"] for step in range(250)]
        padding = sum(int((each == PAD).sum()) for each in batches)
        assert shares[window] == pytest.approx(padding / sum(each.numel() for each in batches))
    assert shares[1] > 0.4 > shares[3] > shares[100]
    assert shares[100] < 0.03


def test_pairs_are_sorted_by_source_then_target() -> None:
    """With a correlated target both sides have little padding."""
    source_N = lengths(4000, 12)
    target_N = source_N + np.random.default_rng(1).integers(0, 5, 4000)
    ids = SplitIds(ids_of(target_N), ids_of(source_N))
    assert bucket_key(SplitIds(ids.target), 1).tolist() == target_N.tolist()
    for multiple in (1, 4):
        order = np.argsort(bucket_key(ids, multiple), kind="stable")
        widths = [(-(-one // multiple), other) for one, other in zip(source_N[order], target_N[order], strict=True)]
        assert widths == sorted(widths)
    shares = [
        TextStream(ids, StreamConfig(16, AugmentConfig()), TextConfig(window=window), 0).padded_share(range(250))
        for window in (1, 100)
    ]
    assert shares[0] > 0.3
    assert shares[1] < 0.05


def test_teacher_forcing_by_hand() -> None:
    text_BT = torch.tensor([[5, 6, END, PAD, PAD], [7, 8, 9, 4, END], [END, PAD, PAD, PAD, PAD]])
    target_in_BT, target_out_BT = shifted(text_BT)
    assert target_in_BT.tolist() == [[START, 5, 6, PAD, PAD], [START, 7, 8, 9, 4], [START, PAD, PAD, PAD, PAD]]
    assert target_out_BT.tolist() == text_BT.tolist()
    assert ((target_in_BT != PAD) == (target_out_BT != PAD)).all(), "as many positions are read as predicted"


def test_texts_become_ids_with_their_end() -> None:
    found = token_ids(["ab", "", "b?"], ["x", "y", "z"], Characters(["a", "b"]), 3)
    assert found.ids_P.tolist() == [4, 5, END, END, 5, 3, END]
    assert found.length_N.tolist() == [3, 1, 3]
    assert found.padded(np.array([1, 0]), 4).tolist() == [[END, PAD, PAD, PAD], [4, 5, END, PAD]]
    with pytest.raises(UserError, match=r"x: a text is longer[\s\S]*3 ids with its end[\s\S]*at most 2"):
        token_ids(["ab"], ["x"], Characters(["a", "b"]), 2)
    cut = token_ids(["abab", "a"], ["x", "y"], Characters(["a", "b"]), 3, truncate=True)
    assert cut.ids_P.tolist() == [4, 5, END, 4, END]


def test_a_shortened_target_has_no_end() -> None:
    """The last place of "abab" is its third token; "ab" fits with its end. Sources end as all that a model reads."""
    tokenizer = Characters(["a", "b"])
    split = TextSplit(["abab", "ab", "aba", "a"], list("wxyz"), ["abab", "ab", "aba", "a"])
    ids = split_ids(split, Tokenizers(tokenizer, tokenizer), TextConfig(max_target=3, max_source=3, truncate=True))
    every = np.arange(4)
    text_BT = ids.target.padded(every, 3)
    assert text_BT.tolist() == [[4, 5, 4], [4, 5, END], [4, 5, 4], [4, END, PAD]]
    target_in_BT, target_BT = shifted(text_BT)
    assert target_in_BT.tolist() == [[START, 4, 5], [START, 4, 5], [START, 4, 5], [START, 4, PAD]]
    assert ((target_in_BT != PAD) == (target_BT != PAD)).all()
    assert ids.source is not None
    assert ids.source.padded(every, 3).tolist() == [[4, 5, END], [4, 5, END], [4, 5, END], [4, END, PAD]]
    with pytest.raises(UserError, match=r"data\.truncate=true"):
        split_ids(split, Tokenizers(tokenizer, tokenizer), TextConfig(max_target=3))


def test_images_with_text_use_the_same_loader() -> None:
    data = open_text(TextSource(source="digits_read", count=64))
    split = data.splits["train"]
    tokenizers = train_tokenizers(TokenizerConfig(), list(split.targets))
    ids = split_ids(split, tokenizers, TextConfig())
    augment = AugmentConfig(translate=0.05)

    def made(rank: int = 0, world: int = 1, workers: int = 0) -> TrainLoader:
        assert split.images is not None
        fit = ResizeSpec(resize_mode="squash", interpolation="bilinear")
        cpu, cache_mb = torch.device("cpu"), 0 if workers else 64
        store = ImageStore(split.images, (12, 60), fit, exact=False, workers=workers, cache_mb=cache_mb, device=cpu)
        config, text = StreamConfig(16, augment), TextConfig(window=2)
        return TrainLoader({"train": TextStream(ids, config, text, 0, store=store, rank=rank, world=world)})

    whole = [batches["train"] for batches in made().stream(0, 9)]
    for step, batch in enumerate(whole):
        assert batch.views[0].images_BCHW.shape == (16, 1, 12, 60)
        texts = [tokenizers.target.decode(row.tolist()) for row in batch.targets["text"]]
        assert texts == [split.targets[place] for place in batch.sample_ids_B.tolist()]
        halves = [made(rank, 2).batch(step)["train"] for rank in range(2)]
        assert torch.equal(torch.cat([half.views[0].images_BCHW for half in halves]), batch.views[0].images_BCHW)
        assert torch.equal(torch.cat([half.targets["text"] for half in halves]), batch.targets["text"])
    resumed = [batches["train"] for batches in made(workers=2).stream(4, 9)]
    assert all(map(equal, whole[4:], resumed)), "read on demand, and from the middle"
    assert made().samples == 64
    assert set(whole[0].sample_ids_B.tolist()) | set(whole[1].sample_ids_B.tolist()) <= set(range(64))


def test_pairs_become_ids_on_both_sides() -> None:
    split = TextSplit(["ab"], ["x"], ["日"])
    ids = split_ids(split, Tokenizers(Characters(["a", "b"]), Bytes()), TextConfig())
    assert ids.source is not None
    assert ids.length_N.tolist() == [7]
    assert ids.source.ids_P.tolist() == [0xE6 + 4, 0x97 + 4, 0xA5 + 4, END]
