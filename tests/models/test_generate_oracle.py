"""Search over random models of transformers: the tokens, scores and beam indices of their own `generate`."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import load_oracle
from vitral.models.generate import Hypothesis, generate, sampling_probabilities
from vitral.models.search_config import SearchConfig

pytestmark = pytest.mark.oracle

VOCABULARY, START, END, STEPS = 11, 9, 1, 7
SETTINGS: list[dict[str, Any]] = [
    {"num_beams": beams, "length_penalty": alpha, "early_stopping": early}
    for beams in (2, 5)
    for alpha in (0.0, 1.0, 2.0)
    for early in (True, False, "never")
]


@dataclass
class Recomputed:
    """A model of transformers, one forward pass over all tokens per step."""

    model: Any

    def start(self, memory: tuple[Tensor, Tensor], copies: int, max_length: int) -> dict[str, Any]:
        outputs = load_oracle("transformers").modeling_outputs.BaseModelOutput
        memory_BSD, mask_BS = (each.repeat_interleave(copies, 0) for each in memory)
        tokens = torch.empty(len(memory_BSD), 0, dtype=torch.long)
        return {"encoder_outputs": outputs(memory_BSD), "attention_mask": mask_BS, "decoder_input_ids": tokens}

    def step(self, tokens_R: Tensor, state: dict[str, Any]) -> Tensor:
        state["decoder_input_ids"] = torch.cat([state["decoder_input_ids"], tokens_R[:, None]], 1)
        return self.model(**state, use_cache=False).logits[:, -1]

    def reorder(self, state: dict[str, Any], index_R: Tensor) -> None:
        state |= {key: state[key][index_R] for key in ("decoder_input_ids", "attention_mask")}
        state["encoder_outputs"] = type(state["encoder_outputs"])(state["encoder_outputs"][0][index_R])


def tiny(kind: str, seed: int) -> Any:
    """A model with random weights, so large that its outputs differ, and a bias that lets its outputs end."""
    hf = load_oracle("transformers")
    ids = {"pad_token_id": 0, "eos_token_id": END, "decoder_start_token_id": START}
    if kind == "t5":
        config = hf.T5Config(
            vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2, **ids
        )
        made = hf.T5ForConditionalGeneration
    else:
        config_class, made = {
            "marian": (hf.MarianConfig, hf.MarianMTModel),
            "bart": (hf.BartConfig, hf.BartForConditionalGeneration),
        }[kind]
        config = config_class(
            vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
            forced_eos_token_id=None, **ids,
        )  # fmt: skip
    torch.manual_seed(seed)
    model = made(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1) + (parameter == 1))
        if kind != "t5":
            nn.init.normal_(model.final_logits_bias)
            model.final_logits_bias[0, END] += 1.5
        else:
            model.lm_head.weight.mul_(3)
    return model


def theirs(model: Any, source: dict[str, Tensor], keys: dict[str, Any]) -> list[list[Hypothesis]]:
    beams = keys.get("num_beams", 1)
    with torch.no_grad():
        found = model.generate(
            **source, **keys, num_return_sequences=beams, max_new_tokens=STEPS, do_sample=False, output_logits=True,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    outputs: list[Hypothesis] = []
    for row, tokens in enumerate(found.sequences[:, 1:].tolist()):
        finished = END in tokens
        cut = tokens[: tokens.index(END)] if finished else tokens
        size = len(cut) + finished
        if beams == 1:
            log_probs = [step[row].float().log_softmax(-1) for step in found.logits]
            score = sum(float(log_probs[at][tokens[at]]) for at in range(size)) / size
            order: tuple[int, ...] = (0,) * size
        else:
            score = float(found.sequences_scores[row])
            order = tuple(index - row // beams * beams for index in found.beam_indices[row].tolist()[:size])
        outputs.append(Hypothesis(tuple(cut), 0.0, score, finished, order))
    return [outputs[at : at + beams] for at in range(0, len(outputs), beams)]


def ours(model: Any, source: dict[str, Tensor], config: SearchConfig, **more: Any) -> list[list[Hypothesis]]:
    with torch.no_grad():
        memory = model.get_encoder()(**source).last_hidden_state, source["attention_mask"]
    return generate(Recomputed(model), memory, len(memory[0]), config, start=START, end=END, **more)


def assert_equal(one: list[list[Hypothesis]], two: list[list[Hypothesis]]) -> None:
    for ours_, theirs_ in zip(one, two, strict=True):
        for mine, other in zip(ours_, theirs_, strict=True):
            assert (mine.tokens, mine.finished, mine.beams) == (other.tokens, other.finished, other.beams)
            assert mine.score == pytest.approx(other.score, abs=1e-5)


def sources(seed: int) -> dict[str, Tensor]:
    """Three of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids_BS = torch.randint(2, VOCABULARY, (3, 6), generator=generator)
    mask_BS = torch.arange(6) < torch.tensor([[6], [3], [5]])
    return {"input_ids": ids_BS.where(mask_BS, 0), "attention_mask": mask_BS.long()}


@pytest.mark.parametrize("kind", ["marian", "t5", "bart"])
@pytest.mark.parametrize("seed", range(8))
def test_search_is_that_of_transformers(kind: str, seed: int) -> None:
    model, source = tiny(kind, seed), sources(seed)
    assert_equal(ours(model, source, SearchConfig(max_length=STEPS)), theirs(model, source, {}))
    # Each setting meets two or three models of each kind.
    for keys in random.Random(seed).sample(SETTINGS, 5):
        beams = keys["num_beams"]
        config = SearchConfig(
            search="beam", beams=beams, n_best=beams, max_length=STEPS, length_penalty=keys["length_penalty"],
            early_stopping=keys["early_stopping"],
        )  # fmt: skip
        assert_equal(ours(model, source, config), theirs(model, source, keys))


@pytest.mark.parametrize("seed", range(4))
def test_rules_are_those_of_transformers(seed: int) -> None:
    model, source = tiny("marian", 20 + seed), sources(seed)
    allowed_V = torch.ones(VOCABULARY, dtype=torch.bool)
    allowed_V[[0, START, 5]] = False
    shared: dict[str, Any] = {"max_length": STEPS, "min_length": seed, "no_repeat_ngram": 1 + seed % 2}
    keys = {"suppress_tokens": [0, START, 5], "min_new_tokens": seed, "no_repeat_ngram_size": 1 + seed % 2}
    for beams in (1, 4):
        searched: dict[str, Any] = {"search": "beam", "beams": beams, "n_best": beams} if beams > 1 else {}
        found = ours(model, source, SearchConfig(**shared, **searched), allowed=allowed_V)
        assert_equal(found, theirs(model, source, {**keys, "num_beams": beams, "early_stopping": "never"}))


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(0, 0.7, 1.0), (4, 1.0, 0.5), (6, 0.9, 2.0), (0, 1.0, 0.3)]
)
def test_sampling_probabilities_are_those_of_transformers(top_k: int, top_p: float, temperature: float) -> None:
    generation = load_oracle("transformers").generation
    logits_RV = torch.randn(50, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    config = SearchConfig(search="sample", top_k=top_k, top_p=top_p, temperature=temperature)
    probs_RV, tokens_RV = sampling_probabilities(logits_RV, config)
    expected_RV = generation.TemperatureLogitsWarper(temperature)(None, logits_RV)
    if top_k:
        expected_RV = generation.TopKLogitsWarper(top_k)(None, expected_RV)
    if top_p < 1:
        expected_RV = generation.TopPLogitsWarper(top_p)(None, expected_RV)
    found_RV = torch.zeros_like(probs_RV).scatter(1, tokens_RV, probs_RV)
    torch.testing.assert_close(found_RV, expected_RV.double().softmax(-1), atol=1e-6, rtol=1e-5)
