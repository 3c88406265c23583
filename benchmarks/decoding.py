"""Decoding of texts by a Transformer of the base size: with the cache beside without it, and beside transformers.

    python benchmarks/decoding.py
    python benchmarks/decoding.py rows=beams clock=processor save=benchmarks/results/decoding_beams.json

`transformer_base` (arXiv 1706.03762) with random weights, batch 1, exactly `tokens` new tokens, in three rows. cache:
greedy search, and what it costs to compute all tokens so far again for each next one. beams 1, beams 5: from the source
to the best tokens by `vitral.models.generate`, and by transformers' `generate` with the same weights (Marian). Unless
all peers of a row write the same tokens, the script fails. Peers take turns in one process, in an order that turns with
the rounds. Printed: quartiles of the peer's time over ours. clock=processor is for a machine that is busy with
something else.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train import environment

from tests.models.test_sequence_oracle import block
from tests.oracles import load_oracle
from vitral.config import parse_yaml, split_words
from vitral.models.attention import AttentionContext
from vitral.models.create import create_sequence_model
from vitral.models.decoder import TextDecoder
from vitral.models.generate import generate
from vitral.models.search_config import SearchConfig
from vitral.models.sequence_model import SequenceModel

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
PAD, END = 0, 1
DEFAULTS: dict[str, Any] = {
    "rounds": 15, "threads": 1, "clock": "wall", "rows": "", "tokens": 64, "source": 32, "beams": 5,
    "vocabulary": 37_000, "save": None,
}  # fmt: skip


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options = DEFAULTS | {key: parse_yaml(value) for key, value in pairs.items()}
    torch.set_num_threads(options["threads"])
    theirs, ours = same_models(options["vocabulary"], max(options["tokens"], options["source"]) + 1)
    source_BS = torch.randint(2, options["vocabulary"], (1, options["source"]))
    loads = [os.getloadavg()[0]]
    rows = {"cache": partial(cache_peers, ours, source_BS, options["tokens"])} | {
        f"beams {beams}": partial(search_peers, theirs, ours, source_BS, beams, options["tokens"])
        for beams in (1, options["beams"])
    }
    with torch.no_grad():
        results = [compare(name, peers(), options) for name, peers in rows.items() if options["rows"] in name]
    loads.append(os.getloadavg()[0])
    found: dict[str, Any] = {
        "environment": environment() | {"instructions": instructions()}, "options": options, "load": loads,
        "results": results,
    }  # fmt: skip
    found["environment"].pop("presets")
    if options["save"]:
        Path(options["save"]).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def same_models(vocabulary: int, max_length: int) -> tuple[Any, SequenceModel]:
    """transformers' Marian of the base size with random weights, and ours with the same; end and padding never win."""
    transformers: Any = load_oracle("transformers")
    ours = create_sequence_model(
        "transformer_base", vocabulary=vocabulary, source_vocabulary=vocabulary, positions="sinusoidal_halves",
        output_bias=True, max_length=max_length,
    ).eval()  # fmt: skip
    config = transformers.MarianConfig(
        vocab_size=vocabulary, d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048, activation_function="relu",
        max_position_embeddings=max_length, scale_embedding=True, pad_token_id=PAD, decoder_start_token_id=PAD,
        eos_token_id=END, forced_eos_token_id=None,
    )  # fmt: skip
    theirs = transformers.MarianMTModel(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:
                parameter.normal_(std=0.02)
        theirs.model.decoder.layers[-1].final_layer_norm.weight[::2] = -1  # else a token is followed by itself
        theirs.final_logits_bias[0, [PAD, END]] = -1e9
    tensors = theirs.state_dict()
    state = {"decoder.embed.weight": tensors["model.shared.weight"],
             "decoder.output_bias": tensors["final_logits_bias"][0]}  # fmt: skip
    for half in ("encoder", "decoder"):
        for i in range(6):
            state |= block(tensors, f"{half}.blocks.{i}", f"model.{half}.layers.{i}", half == "decoder")
    ours.load_state_dict(state)
    return theirs, ours


def cache_peers(model: SequenceModel, source_BS: Tensor, tokens: int) -> dict[str, Callable[[], list[int]]]:
    """Greedy tokens by `generate`; without a cache: all logits computed again, and those of the last token alone."""
    memory = model.encode(source_BS)
    decoder = model.get_submodule("decoder")
    assert isinstance(decoder, TextDecoder)

    def cached() -> list[int]:
        return list(generate(model, memory, 1, SearchConfig(max_length=tokens), start=PAD, end=END)[0][0].tokens)

    def again(next_logits: Callable[[Tensor], Tensor]) -> list[int]:
        prefix_BT = torch.full((1, 1), PAD)
        for _ in range(tokens):
            prefix_BT = torch.cat([prefix_BT, next_logits(prefix_BT).argmax(-1)[:, None]], 1)
        return prefix_BT[0, 1:].tolist()

    def last_alone(prefix_BT: Tensor) -> Tensor:
        context = AttentionContext(causal=True, memory_BMD=memory.memory_BMD, attend_BM=memory.attend_BM)
        x_BTD = decoder.embed(prefix_BT)
        for each in decoder.blocks:
            x_BTD = each(x_BTD, context)
        return decoder.logits(x_BTD[:, -1])

    return {
        "cache": cached,
        "no cache": lambda: again(lambda prefix_BT: model.decode(memory, prefix_BT).logits_BTV[:, -1]),
        "no cache, last logits": lambda: again(last_alone),
    }


def search_peers(
    theirs: Any, ours: SequenceModel, source_BS: Tensor, beams: int, tokens: int
) -> dict[str, Callable[[], list[int]]]:
    """From the source to the best tokens: greedy search with one beam, else beam search."""
    config, keys = SearchConfig(max_length=tokens), dict[str, Any]()
    if beams > 1:
        config, keys = SearchConfig(search="beam", beams=beams, max_length=tokens), {"early_stopping": "never"}
    keys |= {"num_beams": beams, "max_new_tokens": tokens, "do_sample": False}
    mask_BS = torch.ones_like(source_BS)

    def vitral() -> list[int]:
        return list(generate(ours, ours.encode(source_BS), 1, config, start=PAD, end=END)[0][0].tokens)

    def transformers() -> list[int]:
        return theirs.generate(input_ids=source_BS, attention_mask=mask_BS, **keys)[0, 1:].tolist()

    return {"vitral": vitral, "transformers": transformers}


def compare(title: str, peers: dict[str, Callable[[], list[int]]], options: dict[str, Any]) -> dict[str, Any]:
    """Times of all peers in turns, after one call of each whose tokens must be equal."""
    first, *others = peers
    found = {name: peer() for name, peer in peers.items()}
    if any(tokens != found[first] or len(tokens) != options["tokens"] for tokens in found.values()):
        raise SystemExit(f"{title}: the tokens differ: {found}")
    names, clock = list(peers), CLOCKS[options["clock"]]
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options["rounds"]):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            peers[name]()
            times[name].append(clock() - start)
    ratios = {name: [one / own for one, own in zip(times[name], times[first], strict=True)] for name in others}
    result: dict[str, Any] = {
        "row": title, "distinct_tokens": len(set(found[first])),
        "median_ms": {name: round(1000 * statistics.median(own), 1) for name, own in times.items()},
        "ratio_quartiles": {name: quartiles(own) for name, own in ratios.items()},
        "ratio_range": {name: [round(min(own), 3), round(max(own), 3)] for name, own in ratios.items()},
    }  # fmt: skip
    for name in others:
        low, middle, high = result["ratio_quartiles"][name]
        print(f"{title:<8} {name:<22} {result['median_ms'][name]:>8.1f} ms over {result['median_ms'][first]:>8.1f} ms: "
              f"{middle:.2f} [{low:.2f}, {high:.2f}]")  # fmt: skip
    return result


def quartiles(values: list[float]) -> list[float]:
    return [round(value, 3) for value in statistics.quantiles(values, n=4)]


def instructions() -> list[str]:
    """Of the processor: the vector extensions that kernels choose by."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0].split()
    return [name for name in ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if name in flags]


if __name__ == "__main__":
    main()
