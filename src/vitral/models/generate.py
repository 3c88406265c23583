"""Search for output sequences: greedy, beam search and sampling, over any model that gives logits step by step.

Beam search has the semantics of transformers 5, token for token and score for score, per sample: of the 2k best
continuations of k beams, those that end are finished outputs if they rank among the first k; the best k of the others
continue. The k best finished outputs are kept. A sample stops when no beam can enter them (`SearchConfig`,
`early_stopping`), whatever the other samples of its batch do.

A score is the sum of log-probabilities divided by length^alpha, or by ((5 + length) / 6)^alpha (Wu et al. 2016, arXiv
1609.08144, equation 14). Nucleus sampling: Holtzman et al. 2020 (arXiv 1904.09751), section 3.1.

Shape letters: B samples that are not done, K beams or copies per sample, R = B * K rows, V vocabulary, C candidates, T
target tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.data.counter_rng import Stream, uniform
from vitral.errors import UserError
from vitral.models.search_config import SearchConfig

Tokens = tuple[int, ...]
# Which tokens may follow: bool [V] for every step, or a function from the prefix of each row (without the start token)
# to bool [R, V].
Allowed = Tensor | Callable[[Sequence[Tokens]], Tensor]
_NEVER = float("-inf")


class StepModel(Protocol):
    """What is searched: a decoder that advances by one token. Row r of a state belongs to sample r // copies."""

    def start(self, memory: Any, copies: int, max_length: int) -> Any:
        """Return the state before the first token, `copies` rows per sample, for at most `max_length` steps."""
        ...

    def step(self, tokens_R: Tensor, state: Any) -> Tensor:
        """Advance `state` by one token per row (int64 [R]) and return the logits of the next one, [R, V]."""
        ...

    def reorder(self, state: Any, index_R: Tensor) -> Any:
        """Make row index_R[r] of `state`, which is of the same sample, its row r. Fewer rows leave out whole samples,
        which are done."""
        ...


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One output of a search.

    `tokens`: ids without start and end. `log_prob`: the model's log-probability of them, with the end token where
    `finished`. `score`: what n-best lists are ordered by. `finished`: false for an output cut at `max_length`, or where
    no token was allowed. `beams`: for each token, the end token included, the row of its sample (0 to K - 1) whose
    logits chose it, so that its attention can be traced back.
    """

    tokens: Tokens
    log_prob: float
    score: float
    finished: bool
    beams: Tokens = ()


@torch.no_grad()
def generate(
    model: StepModel,
    memory: Any,
    batch: int,
    config: SearchConfig,
    *,
    start: int,
    end: int,
    allowed: Allowed | None = None,
    samples: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> list[list[Hypothesis]]:
    """Return the `n_best` outputs of each of `batch` samples, best first.

    start, end: ids. allowed: tokens that may follow, the end token among them; probabilities of other tokens are not
    redistributed, so scores stay the model's own. samples: the numbers of the samples, which key sampling with
    `config.seed` (default: 0, 1, ...); global random state is not used. device: of the tokens that the model gets. Put
    the model into eval mode first. Beam search returns fewer than `n_best` outputs where fewer exist. Of equal scores
    the lower beam, then the lower token comes first. Raises UserError for logits that are NaN and for sample numbers
    that do not fit `batch`.
    """
    numbers = list(range(batch) if samples is None else samples)
    if len(numbers) != batch:
        raise UserError("sample numbers do not match the batch", got=f"{len(numbers)}", expected=f"{batch}")
    if not batch:
        return []
    rules = _Rules(config, start, end, allowed, torch.device(device))
    if config.search == "beam" and config.beams > 1:
        return _beam_search(model, memory, batch, rules)
    copies = config.n_best
    rows = [_Row((), 0.0)] * (batch * copies)
    ended: set[int] = set()
    for step in _walk(model, memory, numbers, rules):
        for row, token, log_prob in step:
            rows[row] = rows[row].extended(token, log_prob, row % copies)
            if token == end:
                ended.add(row)
    found = [row.output(config, place in ended) for place, row in enumerate(rows)]
    return [
        sorted(found[first : first + copies], key=lambda output: -output.score)
        for first in range(0, len(found), copies)
    ]


def stream(
    model: StepModel,
    memory: Any,
    config: SearchConfig,
    *,
    start: int,
    end: int,
    allowed: Allowed | None = None,
    sample: int = 0,
    device: torch.device | str = "cpu",
) -> Generator[int, None, Hypothesis]:
    """Yield the tokens of one sample as they are chosen, without the end token, greedily or by sampling; return the
    whole output.

    Both are `generate`'s for the same sample number. Raises UserError for beam search, whose first token is known
    only at the end, and for `n_best` over 1.
    """
    if (config.search == "beam" and config.beams > 1) or config.n_best > 1:
        raise UserError(
            "tokens cannot be streamed", got=f"search={config.search}, n_best={config.n_best}",
            expected="search=greedy or search=sample, n_best=1",
        )  # fmt: skip
    rules = _Rules(config, start, end, allowed, torch.device(device))
    return _tokens(model, memory, sample, rules)


@torch.no_grad()
def _tokens(model: StepModel, memory: Any, sample: int, rules: _Rules) -> Generator[int, None, Hypothesis]:
    row, finished = _Row((), 0.0), False
    for step in _walk(model, memory, [sample], rules):
        for _, token, log_prob in step:
            row, finished = row.extended(token, log_prob, 0), token == rules.end
            if not finished:
                yield token
    return row.output(rules.config, finished)


def sequence_log_probs(logits_BTV: Tensor, targets_BT: Tensor, pad: int) -> Tensor:
    """Return the log-probability of each target sequence, float32 [B]: the sum over its tokens but `pad`."""
    log_probs_BTV = F.log_softmax(logits_BTV.float(), -1)
    real_BT = targets_BT != pad
    chosen_BT = log_probs_BTV.gather(-1, targets_BT.where(real_BT, 0)[..., None])[..., 0]
    return chosen_BT.where(real_BT, 0).sum(-1)


def sampling_probabilities(logits_RV: Tensor, config: SearchConfig) -> tuple[Tensor, Tensor]:
    """Return what sampling draws from, in falling order: probabilities float64 [R, V] and the tokens [R, V].

    Temperature first, then the `top_k` most probable, then the smallest set of those that has at least `top_p` of their
    probability; all others get 0. Of equal logits the lower token comes first.
    """
    sorted_RV, tokens_RV = torch.sort(logits_RV.float(), dim=-1, descending=True, stable=True)
    # The largest becomes 0 first, so that no temperature makes infinities.
    scaled_RV = (sorted_RV - sorted_RV[:, :1]) / config.temperature
    if config.top_k:
        scaled_RV[:, config.top_k :] = _NEVER
    probs_RV = scaled_RV.double().softmax(-1)
    if config.top_p < 1:
        before_RV = probs_RV.cumsum(-1) - probs_RV
        probs_RV = probs_RV.where(before_RV < config.top_p, 0)
    return probs_RV / probs_RV.sum(-1, keepdim=True), tokens_RV


class _Row(NamedTuple):
    """The tokens of a partial output, with the end token, and their sum of log-probabilities."""

    tokens: Tokens
    log_prob: float
    beams: Tokens = ()

    def extended(self, token: int, log_prob: float, beam: int) -> _Row:
        return _Row((*self.tokens, token), self.log_prob + log_prob, (*self.beams, beam))

    def output(self, config: SearchConfig, finished: bool) -> Hypothesis:
        score = self.log_prob / config.divisor(max(len(self.tokens), 1))
        return Hypothesis(self.tokens[:-1] if finished else self.tokens, self.log_prob, score, finished, self.beams)


class _Rules:
    """What may follow: the configuration, the special tokens and the caller's mask."""

    def __init__(
        self, config: SearchConfig, start: int, end: int, allowed: Allowed | None, device: torch.device
    ) -> None:
        self.config, self.start, self.end, self.device = config, start, end, device
        self._allowed = allowed.to(device) if isinstance(allowed, Tensor) else allowed

    def log_probs(self, logits_RV: Tensor, prefixes: Sequence[Tokens]) -> Tensor:
        """Log-probabilities [R, V], -inf for tokens that may not follow `prefixes`; those of samples that are done may
        be shorter than the others."""
        scores_RV = F.log_softmax(logits_RV.float(), -1)
        if max(map(len, prefixes)) < self.config.min_length:
            scores_RV[:, self.end] = _NEVER
        if self._allowed is not None:
            allowed = self._allowed if isinstance(self._allowed, Tensor) else self._allowed(prefixes)
            scores_RV = scores_RV.masked_fill(~allowed.to(scores_RV.device), _NEVER)
        if self.config.no_repeat_ngram:
            pairs = [(row, token) for row, prefix in enumerate(prefixes) for token in self._repeats(prefix)]
            if pairs:
                rows, tokens = torch.tensor(pairs, device=scores_RV.device).T
                scores_RV[rows, tokens] = _NEVER
        return scores_RV

    def _repeats(self, prefix: Tokens) -> list[int]:
        """Tokens that would complete an n-gram of `prefix` a second time."""
        size = self.config.no_repeat_ngram
        last = prefix[len(prefix) - size + 1 :]
        return [prefix[at + size - 1] for at in range(len(prefix) - size + 1) if prefix[at : at + size - 1] == last]


def _walk(
    model: StepModel, memory: Any, numbers: Sequence[int], rules: _Rules
) -> Iterator[list[tuple[int, int, float]]]:
    """Yield for each step (row, token, log-probability) of all rows that are not done: greedy search and sampling."""
    config, copies = rules.config, rules.config.n_best
    live = list(range(len(numbers) * copies))
    prefixes: list[Tokens] = [()] * len(live)
    state = model.start(memory, copies, config.max_length)
    tokens_R = torch.full((len(live),), rules.start, device=rules.device)
    done: set[int] = set()
    for length in range(config.max_length):
        scores_RV = rules.log_probs(model.step(tokens_R, state), prefixes)
        if config.search == "sample":
            tokens_R = _drawn(scores_RV, config, length, [divmod(row, copies) for row in live], numbers)
        else:
            tokens_R = scores_RV.argmax(-1)
        tokens, log_probs = _read(tokens_R, scores_RV.gather(-1, tokens_R[:, None])[:, 0])
        chosen = [each for each in zip(live, map(int, tokens), log_probs, strict=True) if each[0] not in done]
        _check(log_prob for _, _, log_prob in chosen)
        yield [each for each in chosen if each[2] > _NEVER]
        done |= {row for row, token, log_prob in chosen if token == rules.end or log_prob == _NEVER}
        samples = [row // copies for row in live[::copies]]
        left = [at for at, sample in enumerate(samples) if not done.issuperset(_rows(sample, copies))]
        if not left:
            return
        prefixes = [
            prefix if row in done else (*prefix, int(token))
            for row, prefix, token in zip(live, prefixes, tokens, strict=True)
        ]
        if len(left) < len(samples):
            keep = [row for at in left for row in _rows(at, copies)]
            keep_R = torch.tensor(keep, device=rules.device)
            model.reorder(state, keep_R)
            tokens_R = tokens_R[keep_R]
            live, prefixes = [live[row] for row in keep], [prefixes[row] for row in keep]


def _rows(sample: int, copies: int) -> range:
    return range(sample * copies, (sample + 1) * copies)


def _drawn(
    scores_RV: Tensor, config: SearchConfig, length: int, places: Sequence[tuple[int, int]], numbers: Sequence[int]
) -> Tensor:
    """Draw one token per row, int64 [R]: the inverse of the distribution function at a number that depends on seed,
    sample, copy and position only."""
    probs_RV, tokens_RV = sampling_probabilities(scores_RV, config)
    ids_R, copies_R = torch.tensor(
        [(numbers[sample], copy) for sample, copy in places], device=scores_RV.device
    ).T.contiguous()
    return inverse_cdf(probs_RV, tokens_RV, uniform(config.seed, length, copies_R, ids_R, Stream.NEXT_TOKEN))


def inverse_cdf(probs_RV: Tensor, tokens_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """The tokens [R] at which the distribution function of `sampling_probabilities` reaches numbers in [0, 1)."""
    total_RV = probs_RV.cumsum(-1)
    place_R1 = (total_RV <= uniform_R.double()[:, None] * total_RV[:, -1:]).sum(-1, keepdim=True)
    return tokens_RV.gather(-1, place_R1)[:, 0]


def _beam_search(model: StepModel, memory: Any, batch: int, rules: _Rules) -> list[list[Hypothesis]]:
    config, width = rules.config, rules.config.beams
    searches = [_Beams(rules) for _ in range(batch)]
    live = searches
    state = model.start(memory, width, config.max_length)
    tokens_R, sums_R1 = _next([row for each in live for row in each.rows], rules)
    while True:
        prefixes = [row.tokens for each in live for row in each.rows]
        scores_RV = rules.log_probs(model.step(tokens_R, state), prefixes) + sums_R1
        vocabulary = scores_RV.shape[1]
        totals_BC = scores_RV.view(len(live), -1)
        values, places = _read(*_best(totals_BC, min(2 * width, totals_BC.shape[1])))
        for at, each in enumerate(live):
            each.advance(values[at], places[at], vocabulary)
        index = [at * width + beam for at, each in enumerate(live) if not each.done for beam in each.order]
        if not index:
            return [each.outputs() for each in searches]
        if index != list(range(len(live) * width)):
            model.reorder(state, torch.tensor(index, device=rules.device))
        live = [each for each in live if not each.done]
        tokens_R, sums_R1 = _next([row for each in live for row in each.rows], rules)


def _best(totals_BC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest totals and their places, [B, count]; where some are equal to the last one of them, those of
    the lowest places, which `topk` does not promise."""
    values_BK, places_BK = totals_BC.topk(count)
    last_B1 = values_BK[:, -1:]
    left_out_B = (totals_BC == last_B1).sum(1) > (values_BK == last_B1).sum(1)
    if bool((left_out_B & (last_B1[:, 0] > _NEVER)).any()):
        values_BC, places_BC = totals_BC.sort(dim=1, descending=True, stable=True)
        return values_BC[:, :count], places_BC[:, :count]
    return values_BK, places_BK


def _next(rows: Sequence[_Row], rules: _Rules) -> tuple[Tensor, Tensor]:
    """Return the last token of each row, int64 [R], and its sum of log-probabilities, float32 [R, 1]."""
    tokens = [row.tokens[-1] if row.tokens else rules.start for row in rows]
    sums = [[row.log_prob] for row in rows]
    return torch.tensor(tokens, device=rules.device), torch.tensor(sums, device=rules.device)


class _Beams:
    """The beam search of one sample: K rows, of which those without a partial output have log-probability -inf."""

    def __init__(self, rules: _Rules) -> None:
        self._config, self._end = rules.config, rules.end
        self.rows = [_Row((), 0.0)] + [_Row((), _NEVER)] * (self._config.beams - 1)
        self.order = list(range(self._config.beams))  # the rows before the last step that `rows` continue
        self._finished: list[Hypothesis] = []
        self.done = False

    def advance(self, values: Sequence[float], places: Sequence[float], vocabulary: int) -> None:
        """Take the best continuations: sums of log-probabilities, falling, and places (beam * vocabulary + token)."""
        _check(values[:1])
        config, width, running = self._config, self._config.beams, list[_Row]()
        last = len(self.rows[0].tokens) + 1 == config.max_length
        best = sorted(zip(values, places, strict=True), key=lambda pair: (-pair[0], pair[1]))
        for rank, (total, place) in enumerate(best):
            if total == _NEVER:
                break
            beam, token = divmod(int(place), vocabulary)
            parent = self.rows[beam]
            row = _Row((*parent.tokens, token), total, (*parent.beams, beam))
            if token == self._end or last:
                if rank < width:
                    self._finished.append(row.output(config, token == self._end))
            elif len(running) < width:
                running.append(row)
        self._finished = sorted(self._finished, key=lambda output: -output.score)[:width]
        self.done = not running or self._decided(running[0])
        if not running and not self._finished:  # no token was allowed
            self._finished = [row.output(config, False) for row in self.rows if row.log_prob > _NEVER]
        if not self.done:
            self.rows = running + [running[0]._replace(log_prob=_NEVER)] * (width - len(running))
            self.order = [row.beams[-1] for row in self.rows]

    def _decided(self, best: _Row) -> bool:
        """Whether no partial output can enter the finished ones; `best` is the best of the partial ones."""
        config = self._config
        if len(self._finished) < config.beams:
            return False
        if config.early_stopping is True:
            return True
        longest = config.early_stopping == "never" and config.length_penalty > 0
        length = config.max_length if longest else len(best.tokens)
        return best.log_prob / config.divisor(length) <= self._finished[-1].score

    def outputs(self) -> list[Hypothesis]:
        return self._finished[: self._config.n_best]


def _read(one: Tensor, two: Tensor) -> tuple[list[Any], list[Any]]:
    """Copy two tensors of one shape from their device at once, as lists; float64 holds all of their values exactly."""
    first, second = torch.stack((one.double(), two.double())).tolist()
    return first, second


def _check(log_probs: Iterable[float]) -> None:
    if any(value != value for value in log_probs):  # NaN
        raise UserError("the model's outputs aren't finite", hint="Did the training diverge?")
