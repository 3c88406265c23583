"""Search against enumeration of all sequences of a toy vocabulary, and its laws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from tests.models.sequences import VARIANTS, build, sources
from tests.models.toy_decoder import END, PAD, START, ToyDecoder
from vitral.errors import UserError
from vitral.models import generate as search
from vitral.models.generate import Hypothesis, generate, sampling_probabilities, sequence_log_probs, stream
from vitral.models.search_config import SearchConfig

SEEDS = list(range(12))


def run(model: ToyDecoder, seeds: Sequence[int], config: SearchConfig, **more: Any) -> list[list[Hypothesis]]:
    return generate(model, list(seeds), len(seeds), config, start=START, end=END, **more)


def assert_same(one: Sequence[Hypothesis], two: Sequence[Hypothesis]) -> None:
    assert [(each.tokens, each.finished) for each in one] == [(each.tokens, each.finished) for each in two]
    np.testing.assert_allclose([each.log_prob for each in one], [each.log_prob for each in two], atol=1e-5)
    np.testing.assert_allclose([each.score for each in one], [each.score for each in two], atol=1e-5)


@pytest.mark.parametrize(
    ("alpha", "kind"),
    [(0.0, "power"), (0.6, "power"), (1.0, "power"), (-0.5, "power"), (0.6, "gnmt"), (1.0, "gnmt"), (-0.5, "gnmt")],
)
def test_wide_beams_find_the_best_of_all_sequences(alpha: float, kind: Literal["power", "gnmt"]) -> None:
    model = ToyDecoder(vocabulary=4)
    config = SearchConfig(
        search="beam", beams=4**3, max_length=4, length_penalty=alpha, length_penalty_kind=kind, n_best=10
    )
    found = run(model, SEEDS, config)
    for seed, outputs in zip(SEEDS, found, strict=True):
        assert_same(outputs, model.all_outputs(seed, config)[:10])


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
def test_never_stopping_early_is_exact(alpha: float) -> None:
    """The outputs are those of a search that never stops before the longest length."""

    def patient(self: search._Beams, best: Any) -> bool:
        return False

    # Three ordinary tokens and few beams: without pruning of the stop, all the same beams would be visited.
    model = ToyDecoder(vocabulary=6, end_bias=1.0)
    config = SearchConfig(search="beam", beams=3, max_length=8, length_penalty=alpha, n_best=3)
    found = run(model, range(40), config)
    fast = model.rows
    decided = search._Beams._decided
    try:
        search._Beams._decided = patient
        slow = run(model, range(40), config)
    finally:
        search._Beams._decided = decided
    for one, two in zip(found, slow, strict=True):
        assert_same(one, two)
    assert alpha > 1 or fast < (model.rows - fast), "it stops before"


def test_true_takes_the_first_outputs_and_false_is_in_between() -> None:
    model, rows, scores = ToyDecoder(vocabulary=6, end_bias=1.5), {}, {}
    for early in (True, False, "never"):
        before = model.rows
        config = SearchConfig(search="beam", beams=3, max_length=10, early_stopping=early)
        scores[early] = [outputs[0].score for outputs in run(model, range(60), config)]
        rows[early] = model.rows - before
    assert rows[True] < rows[False] < rows["never"]
    assert np.all(np.array(scores["never"]) >= np.array(scores[False]) - 1e-6)
    assert np.all(np.array(scores[False]) >= np.array(scores[True]) - 1e-6)


def test_one_beam_is_greedy_search() -> None:
    model = ToyDecoder(vocabulary=7)
    greedy = run(model, SEEDS, SearchConfig(max_length=9))
    beam = run(model, SEEDS, SearchConfig(search="beam", beams=1, max_length=9))
    assert greedy == beam
    # The algorithm too: with plain sums, one beam is decided as soon as it ends.
    config = SearchConfig(search="beam", beams=1, max_length=9, length_penalty=0.0)
    rules = search._Rules(config, START, END, None, torch.device("cpu"))
    for one, two in zip(search._beam_search(model, SEEDS, len(SEEDS), rules), greedy, strict=True):
        assert (one[0].tokens, one[0].finished) == (two[0].tokens, two[0].finished)
        assert one[0].log_prob == pytest.approx(two[0].log_prob, abs=1e-5)


def test_beams_are_no_worse_than_greedy_search_in_sum() -> None:
    model = ToyDecoder(vocabulary=7)
    greedy = run(model, range(40), SearchConfig(max_length=6, length_penalty=0.0))
    beam = run(model, range(40), SearchConfig(search="beam", beams=6, max_length=6, length_penalty=0.0))
    better = [two[0].score - one[0].score for one, two in zip(greedy, beam, strict=True)]
    assert min(better) > -1e-5
    assert max(better) > 0.1


@pytest.mark.parametrize(
    "config",
    [
        SearchConfig(max_length=9),
        SearchConfig(search="beam", beams=3, max_length=9, n_best=3),
        SearchConfig(search="beam", beams=3, max_length=9, early_stopping=True, no_repeat_ngram=2),
        SearchConfig(search="sample", max_length=9, n_best=3, top_p=0.9, seed=5),
    ],
    ids=["greedy", "beam", "early", "sample"],
)
def test_results_do_not_depend_on_the_batch(config: SearchConfig) -> None:
    model = ToyDecoder(vocabulary=6, end_bias=0.5)
    together = run(model, SEEDS, config, samples=SEEDS)
    assert len({len(outputs[0].tokens) for outputs in together}) > 2, "lengths differ"
    for seed in SEEDS:
        assert run(model, [seed], config, samples=[seed])[0] == together[seed]
    order = [7, 3, 3, 11, 0, 7]  # permuted and repeated
    assert run(model, order, config, samples=order) == [together[seed] for seed in order]


def test_lists_are_sorted_and_scores_are_the_models() -> None:
    model = ToyDecoder(vocabulary=6)
    for config in (
        SearchConfig(search="beam", beams=5, max_length=6, n_best=5, length_penalty=0.6),
        SearchConfig(search="sample", n_best=5, max_length=6, temperature=0.7, top_k=4),
    ):
        for seed, outputs in zip(SEEDS, run(model, SEEDS, config), strict=True):
            assert len(outputs) == 5
            assert sorted(outputs, key=lambda each: -each.score) == outputs
            for each in outputs:
                whole = (*each.tokens, END) if each.finished else each.tokens
                assert END not in each.tokens
                assert len(each.beams) == len(whole) <= 6
                assert each.log_prob == pytest.approx(model.log_prob(seed, whole), abs=1e-5)
                assert each.score == pytest.approx(each.log_prob / len(whole) ** config.length_penalty)


def test_beam_indices_lead_to_the_row_that_computed_each_token() -> None:
    """Replay: rows are recorded at each step, and the logits of row beams[t] are those of the first t tokens."""
    seen: list[list[tuple[int, ...]]] = []

    class Recorder(ToyDecoder):
        def step(self, tokens_R: Tensor, state: list[Any]) -> Tensor:
            logits_RV = super().step(tokens_R, state)
            seen.append([prefix[1:] for _, prefix in state])
            return logits_RV

    config = SearchConfig(search="beam", beams=4, max_length=7, n_best=4)
    for each in run(Recorder(vocabulary=5), [3], config)[0]:
        for step, beam in enumerate(each.beams):
            assert seen[step][beam] == each.tokens[:step]


def test_ends_do_not_starve_the_beams() -> None:
    """Where the end is the best continuation of every beam, all beams continue with others all the same."""

    class Ending(ToyDecoder):
        def logits(self, seed: int, prefix: Sequence[int]) -> Tensor:
            return torch.tensor([5.0, 1.0, 0.5, 0.2])

    rows: list[int] = []

    class Counting(Ending):
        def step(self, tokens_R: Tensor, state: list[Any]) -> Tensor:
            logits_RV = super().step(tokens_R, state)
            rows.append(len({prefix for _, prefix in state}))
            return logits_RV

    config = SearchConfig(search="beam", beams=3, max_length=5, length_penalty=4.0, n_best=3)
    (outputs,) = run(Counting(), [0], config)
    assert rows == [1, 3, 3, 3, 3], "three different beams at every step"
    assert all(each.finished for each in outputs)


def test_equal_scores_come_in_order() -> None:
    class Flat(ToyDecoder):
        def logits(self, seed: int, prefix: Sequence[int]) -> Tensor:
            return torch.zeros(self.vocabulary)

    config = SearchConfig(search="beam", beams=3, max_length=1, n_best=3)
    for vocabulary in (4, 64, 999):
        assert [each.tokens for each in run(Flat(vocabulary), [0], config)[0]] == [(), (1,), (2,)]


def test_top_k_of_one_and_no_temperature_are_greedy_search() -> None:
    model = ToyDecoder(vocabulary=9)
    greedy = run(model, SEEDS, SearchConfig(max_length=8))
    each: list[dict[str, Any]] = [{"top_k": 1}, {"temperature": 1e-6}, {"top_p": 1e-6}]
    for keys in each:
        assert run(model, SEEDS, SearchConfig(search="sample", max_length=8, **keys)) == greedy


def test_samples_follow_the_distribution() -> None:
    class Fixed(ToyDecoder):
        def logits(self, seed: int, prefix: Sequence[int]) -> Tensor:
            return torch.tensor([0.4, 0.3, 0.2, 0.1]).log()

    config = SearchConfig(search="sample", max_length=2, n_best=4)
    before = torch.get_rng_state()
    found = Counter(each.tokens for outputs in run(Fixed(), [0] * 1000, config) for each in outputs)
    assert torch.equal(torch.get_rng_state(), before), "the global state is not used"
    share = [0.4, 0.3, 0.2, 0.1]
    expected = {(): share[0]}
    expected |= {(one,): share[one] * share[0] for one in (1, 2, 3)}
    expected |= {(one, two): share[one] * share[two] for one in (1, 2, 3) for two in (1, 2, 3)}
    assert set(found) <= set(expected)
    counts, means = zip(*((found[key], 4000 * value) for key, value in expected.items()), strict=True)
    assert chisquare(counts, means).pvalue > 0.001
    other = run(Fixed(), [0] * 50, config.model_copy(update={"seed": 1}))
    assert other != run(Fixed(), [0] * 50, config)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12),
    top_p=st.floats(0.05, 1.0),
    top_k=st.integers(0, 6),
    temperature=st.floats(0.2, 3.0),
)
def test_the_nucleus_is_the_smallest_set_of_its_mass(
    logits: list[float], top_p: float, top_k: int, temperature: float
) -> None:
    config = SearchConfig(search="sample", top_p=top_p, top_k=top_k, temperature=temperature)
    probs_RV, tokens_RV = sampling_probabilities(torch.tensor([logits]), config)
    probs, tokens = probs_RV[0].numpy(), tokens_RV[0].tolist()
    assert sorted(tokens) == list(range(len(logits)))
    assert probs.sum() == pytest.approx(1)
    scaled = np.exp((np.array(logits) - max(logits)) / temperature)[tokens]
    assert np.all(np.diff(scaled) <= 0)
    scaled[top_k or len(logits) :] = 0
    full, kept = scaled / scaled.sum(), probs > 0
    size = int(kept.sum())
    assert kept[:size].all()
    assert full[:size].sum() >= top_p - 1e-6
    assert full[: size - 1].sum() < top_p + 1e-6, "without its last token it is too small"
    np.testing.assert_allclose(probs[:size], full[:size] / full[:size].sum(), rtol=1e-4)


CONFIGS = (
    SearchConfig(max_length=8),
    SearchConfig(search="beam", beams=3, max_length=8, n_best=3),
    SearchConfig(search="sample", max_length=8, n_best=3),
)


@pytest.mark.parametrize("config", CONFIGS, ids=["greedy", "beam", "sample"])
def test_rules_hold_for_every_search(config: SearchConfig) -> None:
    model = ToyDecoder(vocabulary=7, end_bias=1)
    allowed_V = torch.tensor([True, True, False, True, False, True, True])
    outputs = [each for found in run(model, SEEDS, config, allowed=allowed_V) for each in found]
    assert {token for each in outputs for token in each.tokens} <= {1, 3, 5, 6}

    def rising(prefixes: Sequence[tuple[int, ...]]) -> Tensor:
        least = [prefix[-1] if prefix else 0 for prefix in prefixes]
        return torch.stack([(torch.arange(7) > low) | (torch.arange(7) == END) for low in least])

    for found in run(model, SEEDS, config, allowed=rising):
        for each in found:
            assert list(each.tokens) == sorted(set(each.tokens))
    longer = config.model_copy(update={"min_length": 4})
    lengths = {len(each.tokens) for found in run(model, SEEDS, longer) for each in found}
    assert min(lengths) == 4
    assert min(len(each.tokens) for found in run(model, SEEDS, config) for each in found) < 4


@pytest.mark.parametrize("config", CONFIGS, ids=["greedy", "beam", "sample"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_is_repeated(config: SearchConfig, size: int) -> None:
    model = ToyDecoder(vocabulary=3, end_bias=-3)

    def repeated(tokens: Sequence[int]) -> bool:
        grams = [tokens[at : at + size] for at in range(len(tokens) - size + 1)]
        return len(set(grams)) < len(grams)

    limited = run(model, SEEDS, config.model_copy(update={"no_repeat_ngram": size}))
    assert not any(repeated(each.tokens) for found in limited for each in found)
    assert any(repeated(each.tokens) for found in run(model, SEEDS, config) for each in found)


@pytest.mark.parametrize("config", CONFIGS, ids=["greedy", "beam", "sample"])
def test_a_dead_end_is_an_unfinished_output(config: SearchConfig) -> None:
    """After two tokens nothing is allowed, not even the end."""

    def two(prefixes: Sequence[tuple[int, ...]]) -> Tensor:
        open_end = torch.tensor([len(prefix) < 2 for prefix in prefixes])
        return open_end[:, None] & (torch.arange(4) != END)

    for seed, outputs in zip(SEEDS, run(ToyDecoder(), SEEDS, config, allowed=two), strict=True):
        for each in outputs:
            assert (len(each.tokens), each.finished) == (2, False)
            assert each.log_prob == pytest.approx(ToyDecoder().log_prob(seed, each.tokens), abs=1e-5)


def test_done_samples_are_not_computed() -> None:
    model = ToyDecoder(vocabulary=6, end_bias=1)
    outputs = run(model, range(30), SearchConfig(max_length=20))
    assert model.rows == sum(len(found[0].tokens) + found[0].finished for found in outputs)


@pytest.mark.parametrize("config", CONFIGS, ids=["greedy", "beam", "sample"])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_models_leave_out_samples_that_are_done(
    name: str, config: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample's outputs are those that it has alone, and as many rows are computed."""
    model, rows = build(name), list[int]()
    whole, source, step = config.model_copy(update={"max_length": 20}), sources(model, 5), model.step
    monkeypatch.setattr(model, "step", lambda tokens_R, state: (rows.append(len(tokens_R)), step(tokens_R, state))[1])

    def search(source: Any, samples: list[int]) -> list[list[Hypothesis]]:
        memory = model.encode(source)
        return generate(model, memory, len(samples), whole, start=1, end=2, samples=samples)

    together = search(source, list(range(5)))
    computed = sum(rows)
    rows.clear()
    for number, found in enumerate(together):
        own = source[number : number + 1]
        assert_same(found, search(own if model.config.reads_images else own[:, own[0] != 0], [number])[0])
    assert computed == sum(rows)


def test_streams_are_what_generate_gives() -> None:
    model = ToyDecoder(vocabulary=6)
    for config in (SearchConfig(max_length=7), SearchConfig(search="sample", max_length=7, seed=2)):
        whole = run(model, SEEDS, config)
        for seed in SEEDS:
            tokens = stream(model, [seed], config, start=START, end=END, sample=seed)
            assert tuple(tokens) == whole[seed][0].tokens
    tokens = stream(model, [5], SearchConfig(max_length=7), start=START, end=END)
    before = model.rows
    next(tokens)
    assert model.rows == before + 1, "a token is given as soon as it is known"
    assert torch.is_grad_enabled()
    with pytest.raises(UserError, match="streamed"):
        stream(model, [1], SearchConfig(search="beam"), start=START, end=END)


def test_log_probs_of_targets_are_those_of_the_search() -> None:
    model = ToyDecoder(vocabulary=6)
    outputs = [found[0] for found in run(model, SEEDS, SearchConfig(max_length=6))]
    targets_BT = torch.full((len(SEEDS), 8), PAD)
    logits_BTV = torch.zeros(len(SEEDS), 8, 6)
    for row, (seed, each) in enumerate(zip(SEEDS, outputs, strict=True)):
        whole = (*each.tokens, END) if each.finished else each.tokens
        targets_BT[row, : len(whole)] = torch.tensor(whole)
        for step in range(len(whole)):
            logits_BTV[row, step] = model.logits(seed, (START, *whole[:step]))
    found_B = sequence_log_probs(logits_BTV, targets_BT, PAD)
    np.testing.assert_allclose(found_B, [each.log_prob for each in outputs], atol=1e-5)


def test_what_cannot_be_searched_is_refused() -> None:
    class Broken(ToyDecoder):
        def logits(self, seed: int, prefix: Sequence[int]) -> Tensor:
            return torch.full((4,), torch.nan if len(prefix) > 1 else 0.0)

    for config in CONFIGS:
        with pytest.raises(UserError, match="finite"):
            run(Broken(), [0, 1], config.model_copy(update={"min_length": 3}))
    with pytest.raises(UserError, match="sample numbers"):
        run(ToyDecoder(), [0, 1], CONFIGS[0], samples=[1])
    assert run(ToyDecoder(), [], CONFIGS[1]) == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"beams": 3}, "beams=3 has no effect"),
        ({"search": "beam", "temperature": 0.5}, "temperature=0.5 has no effect"),
        ({"early_stopping": True}, "early_stopping=True has no effect"),
        ({"search": "beam", "beams": 2, "n_best": 3}, "n_best=3"),
        ({"n_best": 2}, "n_best=2"),
        ({"min_length": 9, "max_length": 8}, "min_length=9"),
        ({"min_length": 8, "max_length": 8}, "no place for the end token"),
        ({"length_penalty": 1e308}, "length_penalty"),
        ({"length_penalty": -10.1}, "length_penalty"),
        ({"search": "sample", "temperature": 1e308}, "temperature"),
        ({"search": "sample", "temperature": 1e-320}, "temperature"),
        ({"length_penalty": 0.0, "length_penalty_kind": "gnmt"}, "length_penalty_kind"),
    ],
)
def test_keys_without_effect_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**keys)
