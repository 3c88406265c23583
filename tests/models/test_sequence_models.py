"""Laws of every model that writes sequences: causality, padding, caches, attention to the memory, and the rest.

Shape letters: B batch, S source tokens, T target tokens, M tokens of the memory, V vocabulary, R rows of a search.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.sequences import ATTENDING, PAD, TEXTS, VARIANTS, VOCABULARY, build, sources, texts
from vitral.errors import UserError
from vitral.models.sequence_model import Memory, SequenceModel

every = pytest.mark.parametrize("name", list(VARIANTS))


def close(found: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def repeated(memory: Memory, copies: int) -> Memory:
    """The memory of every row of a search, copied."""
    attend = None if memory.attend_BM is None else memory.attend_BM.repeat_interleave(copies, 0)
    state = tuple(cell.repeat_interleave(copies, 1) for cell in memory.state)
    return Memory(memory.memory_BMD.repeat_interleave(copies, 0), attend, state)


@every
def test_later_tokens_change_no_earlier_logits(name: str) -> None:
    model, target = build(name), texts([9, 9, 9], 9)
    source = sources(model, 3)
    logits_BTV = model(source, target)
    assert logits_BTV.shape == (3, 9, VOCABULARY)
    for t in range(8):
        other = target.clone()
        other[:, t + 1 :] = (other[:, t + 1 :] + 3) % VOCABULARY
        found = model(source, other)
        close(found[:, : t + 1], logits_BTV[:, : t + 1])
        assert (found[:, t + 1] - logits_BTV[:, t + 1]).abs().max() > 1e-4


@every
def test_steps_are_the_whole_pass_after_any_order_of_rows(name: str) -> None:
    """At each step rows continue others of their sample at random; every third step a sample leaves the batch."""
    model, copies = build(name), 4
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        memory = repeated(model.encode(sources(model, 5)), copies)
        state = model.start(model.encode(sources(model, 5)), copies, 12)
        prefix_RT = torch.zeros(5 * copies, 0, dtype=torch.long)
        for t in range(12):
            rows = len(prefix_RT)
            tokens_R = torch.randint(1, VOCABULARY, (rows,), generator=generator)
            prefix_RT = torch.cat([prefix_RT, tokens_R[:, None]], 1)
            close(model.step(tokens_R, state), model.decode(memory, prefix_RT).logits_BTV[:, -1])
            index_R = torch.randint(copies, (rows,), generator=generator) + torch.arange(rows) // copies * copies
            if t % 3 == 2:
                gone = int(torch.randint(rows // copies, (), generator=generator))
                index_R = torch.cat([index_R[: gone * copies], index_R[(gone + 1) * copies :]])
            model.reorder(state, index_R)
            prefix_RT = prefix_RT[index_R]
            attend = None if memory.attend_BM is None else memory.attend_BM[index_R]
            memory = Memory(memory.memory_BMD[index_R], attend, tuple(cell[:, index_R] for cell in memory.state))
    assert state.length == 12
    assert len(prefix_RT) == copies


@pytest.mark.parametrize("name", TEXTS)
def test_padding_of_the_source_changes_nothing(name: str) -> None:
    """Neither logits nor gradients; a batch is its samples alone; the vector of padding takes no part."""
    model, lengths, target = build(name), [7, 3, 5, 1], texts([6, 6, 6, 6], 6)
    source = texts(lengths, 7)
    padded = F.pad(source, (0, 4), value=PAD)
    logits, grads = logits_and_gradients(model, source, target)
    more, more_grads = logits_and_gradients(model, padded, target)
    close(more, logits)
    for parameter, found, expected in zip(dict(model.named_parameters()), more_grads, grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9, msg=lambda text, p=parameter: f"{p}: {text}")
    for row, length in enumerate(lengths):
        close(model(source[row : row + 1, :length], target[row : row + 1]), logits[row : row + 1])


@every
def test_what_is_behind_the_end_of_a_target_changes_nothing(name: str) -> None:
    model, lengths = build(name), [9, 4, 6]
    source, target = sources(model, 3), texts(lengths, 9)
    real_BT = torch.arange(9) < torch.tensor(lengths)[:, None]
    other = torch.where(real_BT, target, texts([9, 9, 9], 9, seed=1))
    logits, grads = logits_and_gradients(model, source, target, real_BT)
    found, found_grads = logits_and_gradients(model, source, other, real_BT)
    close(found[real_BT], logits[real_BT])
    for one, two in zip(found_grads, grads, strict=True):
        close(one, two, 1e-9)


def logits_and_gradients(
    model: SequenceModel, source: Tensor, target: Tensor, real_BT: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of a loss over the real positions; 0 where a parameter takes no part."""
    logits = model(source, target)
    labels = texts([target.shape[1]] * len(target), target.shape[1], seed=7)
    losses_BT = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    loss = losses_BT.sum() if real_BT is None else losses_BT[real_BT].sum()
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    pairs = zip(cast("tuple[Tensor | None, ...]", grads), model.parameters(), strict=True)
    return logits, [torch.zeros_like(parameter) if grad is None else grad for grad, parameter in pairs]


@pytest.mark.parametrize("name", ATTENDING)
def test_the_memory_is_a_set(name: str) -> None:
    model, target = build(name), texts([5, 5, 5], 5)
    memory = model.encode(sources(model, 3))
    order = torch.randperm(memory.memory_BMD.shape[1])
    attend = None if memory.attend_BM is None else memory.attend_BM[:, order]
    shuffled = Memory(memory.memory_BMD[:, order], attend, memory.state)
    close(model.decode(shuffled, target).logits_BTV, model.decode(memory, target).logits_BTV)


@every
def test_samples_do_not_see_each_other(name: str) -> None:
    model, target = build(name), texts([5, 5, 5], 5)
    source, order = sources(model, 3), [2, 0, 1]
    close(model(source[order], target[order]), model(source, target)[order])
    assert (model(source[order], target) - model(source, target)).abs().max() > 1e-3


@every
def test_alignments(name: str) -> None:
    """Maps of each target to each memory token sum to 1, leave out padding, and capturing changes no logits."""
    model, target = build(name), texts([5, 5, 5], 5)
    memory = model.encode(sources(model, 3))
    out = model.decode(memory, target, model.capture_names())
    close(out.logits_BTV, model.decode(memory, target).logits_BTV)
    assert [*out.captured] == model.capture_names()
    assert bool(model.alignment_names) == (name in ATTENDING)
    for each in model.alignment_names:
        map_BhTM = out.captured[each]
        assert map_BhTM.shape[::2] == (3, 5)
        assert map_BhTM.shape[3] == memory.memory_BMD.shape[1]
        close(map_BhTM.sum(-1), torch.ones_like(map_BhTM[..., 0]))
        if memory.attend_BM is not None:
            assert not map_BhTM.movedim(3, 1)[~memory.attend_BM].any()
    if name in ATTENDING:
        with pytest.raises(UserError, match="unknown name to capture"):
            model.decode(memory, target, ["decoder.blocks.9"])


@every
def test_dropout_acts_in_training_alone(name: str) -> None:
    options: dict[str, Any] = {"dropout": 0.5}
    if "image" in name:
        options["encoder"] = {**VARIANTS[name][1]["encoder"], "dropout": 0.5}
    model, target = build(name, **options), texts([5, 5], 5)
    source = sources(model, 2)
    close(model(source, target), build(name)(source, target))
    model.train()
    one, two = model(source, target), model(source, target)
    assert (one - two).abs().max() > 1e-3


@every
def test_state_dict_round_trip(name: str, tmp_path: Path) -> None:
    """No tensor is there twice, and nothing else is needed."""
    model, target = build(name, torch.float32), texts([5, 5], 5)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")  # refuses tensors that share memory
    other = build(name, torch.float32)
    other.init_weights()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    source = sources(model, 2)
    assert torch.equal(other(source, target), model(source, target))


@every
def test_bfloat16_autocast_is_close(name: str) -> None:
    model, target = build(name, torch.float32), texts([6, 6, 6], 6)
    source = sources(model, 3)
    with torch.no_grad():
        expected = model(source, target)
        with torch.autocast("cpu", torch.bfloat16):
            found, memory = model(source, target).float(), model.encode(source)
            state = model.start(memory, 2, 6)
            steps = [model.step(target[:, t].repeat_interleave(2), state).float() for t in range(6)]
    scale = expected.std()
    assert (found - expected).abs().mean() < 0.03 * scale
    assert (torch.stack(steps, 1)[::2] - expected).abs().mean() < 0.03 * scale


@every
def test_initial_logits_are_small_and_every_parameter_is_set(name: str) -> None:
    model = build(name)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model(sources(model, 3), texts([5, 5, 5], 5)).abs().max() < 8


@every
def test_every_parameter_learns(name: str) -> None:
    model = build(name)
    _, grads = logits_and_gradients(model, sources(model, 3), texts([9, 9, 9], 9))
    silent = [key for (key, _), grad in zip(model.named_parameters(), grads, strict=True) if not grad.any()]
    assert not silent


@pytest.mark.parametrize("name", ["pre", "post", "image"])
def test_checkpointed_blocks_have_the_same_gradients(name: str) -> None:
    model, target = build(name).train(), texts([5, 5], 5)
    expected = logits_and_gradients(model, sources(model, 2), target)[1]
    for count in (1, 3, len(model.checkpointable)):
        model.checkpointed = count
        for found, grad in zip(logits_and_gradients(model, sources(model, 2), target)[1], expected, strict=True):
            close(found, grad)
    assert len(model.checkpointable) == model.config.block_count == 4


@every
def test_texts_beyond_the_longest_are_refused(name: str) -> None:
    model = build(name, max_length=6)
    memory = model.encode(sources(model, 2)[..., :6] if name in TEXTS else sources(model, 2))
    with pytest.raises(UserError, match=r"text too long[\s\S]*7 tokens[\s\S]*at most 6"):
        model.decode(memory, texts([7, 7], 7))
    with pytest.raises(UserError, match="text too long"):
        model.start(memory, 1, 7)
    if name in TEXTS:
        with pytest.raises(UserError, match=r"source: text too long"):
            model.encode(texts([7, 7], 7))


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("pre", {"heads": 5}, "width 12 cannot be split evenly among 5 heads"),
        ("pre", {"width": 9}, "cannot split width 9 into sines and cosines"),
        ("pre", {"share_embeddings": True}, "share_embeddings=true needs one vocabulary, got 13 source and 11 target"),
        ("pre", {"pad_id": 11}, "pad_id 11 is not in a vocabulary of 11"),
        ("pre", {"source_vocabulary": 3, "pad_id": 4}, "pad_id 4 is not in a source vocabulary of 3"),
        ("lstm", {"source_vocabulary": 3, "pad_id": 4}, "pad_id 4 is not in a source vocabulary of 3"),
        ("lstm", {"attention": "luong"}, "none | dot | additive"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as caught:
        build(name, **options)
    assert text in str(caught.value)
