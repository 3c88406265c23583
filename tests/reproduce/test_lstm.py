"""The comparison of Transformer and LSTM: gradients in closed form, verdicts by hand, equal sizes, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vitral.cli.main import main
from vitral.errors import UserError
from vitral.models.create import build_sequence_model, create_sequence_model
from vitral.models.decoder import TokenEmbedding
from vitral.models.presets import resolve_sequence
from vitral.models.sequence_model import SequenceModel
from vitral.reproduce.lstm import verdicts
from vitral.reproduce.lstm.changes import Change, change
from vitral.reproduce.lstm.comparison import lstm, lstm_text
from vitral.reproduce.lstm.config import PARTS, LstmOptions
from vitral.reproduce.lstm.gradients import encoder_norms, factor_per_step, gradient_norms
from vitral.reproduce.lstm.setup import ONE_WAY, RECURRENT, Comparison
from vitral.reproduce.lstm.speed import decode, decode_again, in_turns, ratios
from vitral.reproduce.lstm.training import TOLERANCE, buckets, counted, equal_lstm

SIZES: dict[str, Any] = {"vocabulary": 9, "source_vocabulary": 11, "max_length": 24}
NARROW: dict[str, Any] = {**SIZES, "width": 16, "heads": 2, "mlp_dim": 32, "dropout": 0.0}


def transformer(**options: Any) -> SequenceModel:
    torch.manual_seed(0)
    return create_sequence_model("transformer_tiny", **{**NARROW, **options}).eval()


@pytest.mark.parametrize("eigenvalue", [0.5, 0.9, 1.0, 1.1])
def test_gradients_of_a_linear_recurrence_fall_by_its_eigenvalue(eigenvalue: float) -> None:
    """h_t = L Q h_{t-1} + x_t with an orthogonal Q: the norm at distance d is L^d, in any direction."""
    generator = torch.Generator().manual_seed(1)
    q_DD, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))

    def last(x_BTD: torch.Tensor) -> torch.Tensor:
        h_BD = torch.zeros_like(x_BTD[:, 0])
        for x_BD in x_BTD.unbind(1):
            h_BD = eigenvalue * h_BD @ q_DD + x_BD
        return h_BD

    norms_T = gradient_norms(last, torch.randn(3, 13, 5, generator=generator, dtype=torch.float64))
    np.testing.assert_allclose(norms_T, eigenvalue ** np.arange(13), rtol=1e-9)
    assert factor_per_step(norms_T) == pytest.approx(eigenvalue, rel=1e-9)


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_gradients_of_an_encoder_are_those_of_its_embeddings(cell: str) -> None:
    """Beside differences of the output for a changed embedding of one token that occurs once."""
    torch.manual_seed(2)
    model = create_sequence_model(
        "lstm_tiny", **SIZES, width=6, cell=cell, attention="none", bidirectional=False, dropout=0.0
    )
    source_BT = torch.tensor([[4, 5, 6, 7, 8, 9]])
    norms_T = encoder_norms(model, source_BT)
    table_VD = dict(model.named_parameters())["encoder.weight"]
    direction = torch.randn((1, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = direction / direction.norm()
    for place in range(6):
        slopes: list[float] = []
        for feature in range(6):
            ends: list[float] = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    table_VD[4 + place, feature] += step
                    ends.append(float((direction * model.encode(source_BT).memory_BMD[:, -1]).sum()))
                    table_VD[4 + place, feature] -= step
            slopes.append((ends[0] - ends[1]) / 2e-6)
        assert norms_T[5 - place] == pytest.approx(np.linalg.norm(slopes), rel=1e-4)


def test_a_line_through_logarithms() -> None:
    assert factor_per_step([7.0, 8.0, 4.0, 2.0, 1.0]) == pytest.approx(0.5)
    assert factor_per_step([9.0, 4.0, 0.0, 1.0]) == pytest.approx(0.5)


@pytest.mark.parametrize("own", [*RECURRENT.values(), *ONE_WAY.values()], ids=str)
def test_models_of_equal_size(own: dict[str, Any]) -> None:
    like = resolve_sequence("transformer_tiny", **{**SIZES, "width": 48})
    found, count = equal_lstm(like, own)
    assert count == sum(parameter.numel() for parameter in build_sequence_model(found).parameters())
    assert abs(count / counted(like) - 1) <= TOLERANCE


def test_no_model_of_equal_size() -> None:
    with pytest.raises(UserError, match="as many parameters"):
        equal_lstm(resolve_sequence("transformer_tiny", **{**SIZES, "width": 4, "mlp_dim": 4}), {"attention": "dot"})


def logits(model: SequenceModel, source: list[int], target: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([source]), torch.tensor([target]))[0]


def test_without_the_causal_mask_later_tokens_are_seen() -> None:
    masked, unmasked = transformer(), transformer()
    change(unmasked, "no causal mask")
    firsts = [[logits(model, [4, 5, 2], [1, 4, last])[:2] for last in (5, 6)] for model in (masked, unmasked)]
    torch.testing.assert_close(*firsts[0])
    assert (firsts[1][0] - firsts[1][1]).abs().max() > 1e-3


def test_without_the_padding_mask_padding_is_read() -> None:
    masked, unmasked = transformer(), transformer()
    change(unmasked, "no padding mask")
    pairs = [[logits(model, source, [1, 4]) for source in ([4, 5, 2], [4, 5, 2, 0, 0])] for model in (masked, unmasked)]
    torch.testing.assert_close(*pairs[0])
    assert (pairs[1][0] - pairs[1][1]).abs().max() > 1e-3


def test_without_the_scale_queries_are_as_if_multiplied() -> None:
    """The same as weights and biases of queries times sqrt(d), here sqrt(8)."""
    hooked, scaled = transformer(), transformer()
    change(hooked, "no scale")
    with torch.no_grad():
        for name, parameter in scaled.named_parameters():
            if ".attn.qkv." in name:
                parameter[:16] *= 8**0.5
            elif ".cross_attn.q." in name:
                parameter *= 8**0.5
    torch.testing.assert_close(logits(hooked, [4, 5, 2], [1, 4, 5]), logits(scaled, [4, 5, 2], [1, 4, 5]))
    assert (logits(hooked, [4, 5, 2], [1, 4, 5]) - logits(transformer(), [4, 5, 2], [1, 4, 5])).abs().max() > 1e-3


def test_without_positions_the_order_of_the_source_is_unknown() -> None:
    model = transformer(positions="learned")
    change(model, "no positions")
    torch.testing.assert_close(logits(model, [4, 5, 6, 2], [1, 4]), logits(model, [6, 5, 4, 2], [1, 4]))
    for module in model.modules():
        if isinstance(module, TokenEmbedding) and module.positions is not None:
            assert not module.positions.requires_grad


@pytest.mark.parametrize("kind", ["no causal mask", "no scale", "no positions"])
def test_changes_are_of_transformers(kind: Change) -> None:
    with pytest.raises(UserError, match="Transformers"):
        change(create_sequence_model("lstm_tiny", **SIZES), kind)


def test_decoding_without_the_cache_writes_the_same() -> None:
    model = transformer()
    assert torch.equal(decode(model, 12), decode_again(model, 12))


def test_times_are_taken_in_turns() -> None:
    calls: list[str] = []
    seconds = in_turns({name: (lambda name=name: calls.append(name), 2) for name in "ab"}, 3)
    assert calls == ["a", "b"] * 4
    assert {name: len(own) for name, own in seconds.items()} == {"a": 3, "b": 3}
    assert ratios({"seconds": {"x": [2.0, 3.0], "y": [1.0, 6.0]}}, "x", "y") == [2.0, 0.5]


def test_buckets_cover_all_lengths_once() -> None:
    found = buckets(8, 64, 4)
    assert [length for low, high in found for length in range(low, high + 1)] == list(range(8, 65))


def test_errors_between_two_points() -> None:
    curve = [{"seconds": 2.0, "error_rate": 0.6}, {"seconds": 4.0, "error_rate": 0.2}]
    assert verdicts.errors_at([curve], 3.0) == pytest.approx([0.4])
    assert verdicts.errors_at([curve], 1.0) == pytest.approx([0.8])
    assert verdicts.errors_at([curve], 9.0) == pytest.approx([0.2])


LOW, HIGH, WIDE = [0.10, 0.11, 0.12], [0.50, 0.52, 0.51], [0.05, 0.30, 0.60]


def test_verdicts_by_hand() -> None:
    one, dot, none = verdicts.TRANSFORMER, verdicts.DOT, verdicts.NONE
    claim = verdicts.accuracy_claim({one: LOW, dot: HIGH}, "x")
    assert (claim["verdict"], claim["fewest_errors"]) == ("holds", one)
    claim = verdicts.accuracy_claim({one: HIGH, dot: LOW, none: WIDE}, "x")
    assert (claim["verdict"], claim["fewest_errors"]) == ("does not hold", dot)
    assert verdicts.accuracy_claim({one: LOW, dot: WIDE}, "x")["verdict"] == "undecided"
    assert verdicts.copy_claim({one: HIGH, none: LOW})["verdict"] == "holds"
    assert verdicts.carousel_claim({none: HIGH, verdicts.RNN: LOW})["verdict"] == "holds"
    assert verdicts.causal_claim((HIGH, LOW), (HIGH, LOW))["verdict"] == "holds"
    assert verdicts.causal_claim((LOW, HIGH), (HIGH, LOW))["verdict"] == "does not hold"
    assert verdicts.better_claim("x", [HIGH, HIGH], LOW)["verdict"] == "holds"
    assert verdicts.better_claim("x", [HIGH, WIDE], LOW)["verdict"] == "undecided"
    assert verdicts.faster_claim("x", [1.1, 1.3])["verdict"] == "holds"
    assert verdicts.faster_claim("x", [0.9, 1.3])["verdict"] == "undecided"
    assert verdicts.faster_claim("x", [0.9, 0.8])["verdict"] == "does not hold"


@pytest.mark.parametrize(
    ("factors", "found"),
    [
        ([[0.6, 0.7], [0.9, 0.8], [1.0, 0.99]], "holds"),
        ([[0.6, 0.7], [0.9, 0.97], [1.0, 0.99]], "undecided"),
        ([[0.96, 0.97], [0.99, 0.97], [1.0, 0.99]], "does not hold"),
        ([[0.6, 0.7], [0.9, 0.8], [0.9, 0.8]], "does not hold"),
    ],
)
def test_verdicts_on_vanishing_gradients(factors: list[list[float]], found: str) -> None:
    names = (verdicts.RNN, verdicts.NONE, verdicts.TRANSFORMER)
    assert verdicts.vanishing_claim(dict(zip(names, factors, strict=True)))["verdict"] == found


@pytest.mark.parametrize(
    ("shares", "found"),
    [(([0, 0], [0.1, 0.2]), "holds"), (([0, 0], [0, 0.2]), "undecided"), (([0, 0], [0, 0]), "does not hold"),
     (([0.3, 0.3], [0.1, 0.2]), "does not hold")],
)  # fmt: skip
def test_verdicts_on_padding(shares: tuple[list[float], list[float]], found: str) -> None:
    assert verdicts.padding_claim(*shares)["verdict"] == found


TINY: dict[str, Any] = {
    "model.width": 32, "model.mlp_dim": 64, "model.encoder_depth": 1, "model.decoder_depth": 1, "data.count": 160,
    "train.batch_size": 8,
}  # fmt: skip
SHORT: dict[str, Any] = {
    "data": "reverse", "seeds": 2, "steps": 4, "copy_steps": 4, "copy_length": 16, "gradient_steps": 4,
    "gradient_length": 8, "speed_lengths": (4, 8), "rounds": 3, "evaluations": 2, "samples": 8,
}  # fmt: skip


@pytest.mark.slow
def test_a_whole_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jiwer")
    options: dict[str, Any] = {**SHORT, "out": str(tmp_path / "a")}
    found = lstm(LstmOptions(**options), TINY)
    files = {path.name for path in (tmp_path / "a").iterdir()}
    pictures = {f"{name}.svg" for name in ("learning", "length", "copy", "gradients", "speed", "effects")}
    assert pictures | {"table.json", "report.html"} <= files
    assert json.loads((tmp_path / "a/table.json").read_text(encoding="utf-8")) == found
    results = found["results"]
    sizes = [row["parameters"] for row in results["accuracy"]["rows"]]
    assert max(sizes) / min(sizes) - 1 < 2 * TOLERANCE
    for part in results.values():
        assert all(claim["verdict"] in ("holds", "does not hold", "undecided") for claim in part["claims"])
    assert [row["model"] for row in results["heads"]["rows"]] == ["1 head", "2 heads", "4 heads", "8 heads"]
    assert results["heads"]["rows"][2]["nll"] == results["masks"]["rows"][0]["nll"]
    assert results["masks"]["rows"][0]["batch_changes"] == [0, 0]
    assert "Gradients over distance" in lstm_text(found)
    # what is finished is not computed again
    monkeypatch.setattr("vitral.reproduce.lstm.setup.train", lambda *_, **__: pytest.fail("trained again"))
    read = ("seeds", "steps", "samples", "out")
    masks = LstmOptions(**{key: options[key] for key in read}, parts=("masks",), resume=True)
    again = lstm(masks.model_copy(update={"parts": ("masks", "speed"), "speed_lengths": (4, 8), "rounds": 3}), TINY)
    assert again["results"]["masks"] == results["masks"]
    with pytest.raises(UserError, match=r"configured otherwise[\s\S]*optim\.lr"):
        lstm(masks, {**TINY, "optim.lr": 0.1})


def test_times_of_other_numbers_of_threads_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = Comparison(LstmOptions(), {}, tmp_path)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    assert comparison.finished("speed", {"rounds": 3}, lambda: {"seconds": 1.5}) == {"seconds": 1.5}
    assert comparison.finished("speed", {"rounds": 3}, lambda: pytest.fail("measured again")) == {"seconds": 1.5}
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    with pytest.raises(UserError, match=r"(?s)configured otherwise.*got: +threads.*OMP_NUM_THREADS=3"):
        comparison.finished("speed", {"rounds": 3}, dict)


# What each option is read by.
READ_BY: dict[str, tuple[Any, set[str]]] = {
    "data": ("reverse", {"accuracy"}), "evaluations": (3, {"accuracy"}), "copy_steps": (9, {"accuracy"}),
    "copy_length": (16, {"accuracy"}), "gradient_steps": (9, {"gradients"}), "gradient_length": (9, {"gradients"}),
    "speed_lengths": ((4, 8), {"speed"}), "rounds": (3, {"speed"}), "lstm_lr": (1e-3, {"accuracy", "gradients"}),
    "steps": (9, {*PARTS} - {"gradients", "speed"}), "seeds": (2, {*PARTS} - {"speed"}),
    "samples": (9, {*PARTS} - {"speed"}),
}  # fmt: skip


@pytest.mark.parametrize("name", READ_BY)
def test_options_of_parts_that_are_not_chosen_are_refused(name: str) -> None:
    value, readers = READ_BY[name]
    for part in PARTS:
        if part in readers:
            LstmOptions.model_validate({name: value, "parts": (part,)})
        else:
            with pytest.raises(ValidationError, match=f"{name}=.* has no effect here"):
                LstmOptions.model_validate({name: value, "parts": (part,)})
    assert READ_BY.keys() == LstmOptions.model_fields.keys() - {"parts", "out", "resume"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("seed=1", "seed: this key is set by the comparison"),
        ("model.name=lstm_tiny", "model.name: this key is set by the comparison"),
        ("device=cuda", "device: this key is set by the comparison"),
        ("parts=typo", "parts"),
        ("data=digits", "data"),
        ("parts=heads model.heads=7", "7 heads"),
        ("steps=9 optim.warmup=9 parts=masks", "the warm-up is longer than the run"),
    ],
)
def test_bad_input(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "lstm", *words.split(), f"out={tmp_path / 'a'}"]) == 2
    assert message in capsys.readouterr().err
