"""Recurrent encoder-decoders beside the equations written out, and beside torch's own layers.

Shape letters: B batch, S source tokens, T target tokens, D width, X width of the memory's tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.sequences import PAD, RECURRENT, VARIANTS, build, texts
from vitral.errors import UserError
from vitral.models.create import create_sequence_model
from vitral.models.lstm import RecurrentSeq2Seq
from vitral.models.parameters import compute_copy_of
from vitral.models.presets import resolve_sequence
from vitral.models.summary import count_macs, count_parameters


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def recurrent(name: str, **options: Any) -> RecurrentSeq2Seq:
    model = build(name, **options)
    assert isinstance(model, RecurrentSeq2Seq)
    return model


def lstm_cell(rnn: nn.Module, end: str, x_BD: Tensor, h_BD: Tensor, c_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Hochreiter and Schmidhuber's cell with forget gates; gates i, f, g, o are packed in this order."""
    w: Any = rnn
    gates = x_BD @ getattr(w, f"weight_ih_{end}").T + getattr(w, f"bias_ih_{end}")
    i, f, g, o = (gates + h_BD @ getattr(w, f"weight_hh_{end}").T + getattr(w, f"bias_hh_{end}")).chunk(4, 1)
    c_BD = f.sigmoid() * c_BD + i.sigmoid() * g.tanh()
    return o.sigmoid() * c_BD.tanh(), c_BD


def plain_cell(rnn: nn.Module, end: str, x_BD: Tensor, h_BD: Tensor) -> Tensor:
    """tanh(W x + U h + b)."""
    w: Any = rnn
    total = x_BD @ getattr(w, f"weight_ih_{end}").T + getattr(w, f"bias_ih_{end}")
    return (total + h_BD @ getattr(w, f"weight_hh_{end}").T + getattr(w, f"bias_hh_{end}")).tanh()


def encoded_by_hand(model: RecurrentSeq2Seq, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One text without padding, one layer, both directions: outputs [S, X], last states of both directions [X]."""
    x_SD, rnn, width = model.encoder.weight[source], model.encoder.rnn, model.config.width
    outputs: list[list[Tensor]] = []
    last: list[tuple[Tensor, Tensor]] = []
    for end, order in (("l0", range(len(source))), ("l0_reverse", reversed(range(len(source))))):
        h, c, found = torch.zeros(1, width).double(), torch.zeros(1, width).double(), {}
        for s in order:
            h, c = lstm_cell(rnn, end, x_SD[s : s + 1], h, c)
            found[s] = h[0]
        outputs.append([found[s] for s in range(len(source))])
        last.append((h[0], c[0]))
    memory_SX = torch.stack([torch.cat(pair) for pair in zip(*outputs, strict=True)])
    h, c = (torch.cat([last[0][k], last[1][k]]) for k in (0, 1))
    return memory_SX, h, c


@pytest.mark.parametrize("attention", ["none", "dot", "additive"])
def test_equals_the_equations_step_by_step(attention: str) -> None:
    model = recurrent("lstm_dot", attention=attention)
    lengths, target = [6, 2, 4], texts([5, 5, 5], 5)
    source, d = texts(lengths, 6), model.decoder
    logits = model(source, target)
    for row, length in enumerate(lengths):
        memory_SX, h, c = encoded_by_hand(model, source[row, :length])
        bridge: Any = model.bridge
        h, c = bridge[0](h).tanh()[None], bridge[1](c)[None]
        for t in range(5):
            y, context = d.weight[target[row, t]][None], torch.zeros(0).double()
            if attention == "additive":
                w: Any = d.cross_attn
                energy_S = torch.stack([
                    (w.v.weight[0] * (w.query.weight @ h[0] + w.key.weight @ token_X).tanh()).sum()
                    for token_X in memory_SX
                ])  # fmt: skip
                context = energy_S.softmax(0) @ memory_SX
                h, c = lstm_cell(d.rnn, "l0", torch.cat([y, context[None]], 1), h, c)
            else:
                h, c = lstm_cell(d.rnn, "l0", y, h, c)
            read = h[0]
            if attention == "dot":
                w = d.cross_attn
                context = torch.stack([h[0] @ w.key.weight @ token_X for token_X in memory_SX]).softmax(0) @ memory_SX
            if attention != "none":
                assert d.mix is not None
                read = d.mix(torch.cat([context, h[0]])).tanh()
            close(logits[row, t], model.output(read))


def test_plain_cells_are_written_out() -> None:
    model = recurrent("rnn", attention="none", bidirectional=False, layers=1)
    source, target = texts([4, 4], 4), texts([3, 3], 3)
    h = torch.zeros(2, 12).double()
    for s in range(4):
        h = plain_cell(model.encoder.rnn, "l0", model.encoder.weight[source[:, s]], h)
    for t in range(3):
        h = plain_cell(model.decoder.rnn, "l0", model.decoder.weight[target[:, t]], h)
        close(model(source, target)[:, t], model.output(h))


def test_two_layers_without_attention_are_torchs() -> None:
    """Without a bridge the last states of the encoder are the first of the decoder (arXiv 1409.3215)."""
    model = recurrent("lstm", bidirectional=False)
    source, target = texts([6, 6], 6), texts([5, 5], 5)
    _, cells = model.encoder.rnn(F.embedding(source, model.encoder.weight))
    y, _ = model.decoder.rnn(F.embedding(target, model.decoder.weight), cells)
    close(model(source, target), model.output(y))
    assert not len(model.bridge)


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("more", [1, 6])
def test_more_padding_never_enters_either_direction(name: str, more: int) -> None:
    model, source = build(name), texts([7, 1, 4], 7)
    short, long = model.encode(source), model.encode(F.pad(source, (0, more), value=PAD))
    close(long.memory_BMD[:, :7], short.memory_BMD)
    assert not long.memory_BMD[:, 7:].any()
    for one, two in zip(long.state, short.state, strict=True):
        close(one, two)


def test_the_vector_of_padding_is_never_read() -> None:
    model, source, target = recurrent("lstm_dot"), texts([7, 1, 4], 7), texts([5, 5, 5], 5)
    expected = model(source, target)
    with torch.no_grad():
        model.encoder.weight[PAD] = float("nan")
    close(model(source, target), expected)


def test_a_source_of_padding_alone_is_refused() -> None:
    with pytest.raises(UserError, match=r"row 1 of the batch: a source without tokens"):
        build("lstm_dot").encode(texts([3, 0], 3))


@pytest.mark.parametrize("name", RECURRENT)
def test_the_count_is_that_of_the_module(name: str) -> None:
    preset, options = VARIANTS[name]
    config = resolve_sequence(preset, **options)
    model = create_sequence_model(preset, **options)
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())


def test_parameters_and_compute_by_closed_form() -> None:
    """Both directions and the decoder have 4 D (2 D + 2) values each; 64 tokens are embedded twice and put out once."""
    config, D, T, V = resolve_sequence("lstm_small"), 128, 32, 64
    layer, embedded = 4 * D * (2 * D + 2), 2 * V * D
    bridge, attention, output = 2 * (2 * D * D + D), 2 * D * D + (3 * D * D + D), D * V + V
    assert count_parameters(config) == 3 * layer + embedded + bridge + attention + output
    macs = {
        "encoder": 2 * T * 8 * D * D, "bridge": 2 * 2 * D * D, "output": T * D * V,
        "decoder": T * 8 * D * D + T * 2 * D * D + T * 3 * D * D + T * T * D + T * T * 2 * D,
    }  # fmt: skip
    assert count_macs(config) == macs


@pytest.mark.parametrize("name", RECURRENT)
def test_bfloat16_parameters_give_nearly_the_same_gradients(name: str) -> None:
    """Also on a CPU without AVX-512: 8 bits of mantissa round by up to 0.4 %, in each of the steps."""
    model = recurrent(name).float()
    source, target = texts([7, 4], 7), texts([5, 6], 6)
    grads: list[Tensor] = []
    for each in (model, compute_copy_of(model)):
        F.cross_entropy(each(source, target).float().flatten(0, 1), target.flatten()).backward()
        grads.append(torch.cat([p.grad.float().flatten() for p in each.parameters() if p.grad is not None]))
    assert grads[1].isfinite().all()
    assert float((grads[1] - grads[0]).norm() / grads[0].norm()) < 0.05
