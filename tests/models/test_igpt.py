"""Image GPT: laws of a distribution over sequences, exact causality, and what it refuses."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests.models.igpt_models import Uncached, codes_of, igpt
from vitral.errors import UserError
from vitral.models.code_sampling import CodeSteps
from vitral.models.create import create_model
from vitral.models.generate import generate
from vitral.models.igpt import IGPT
from vitral.models.igpt_config import IGPTS, IGPTConfig
from vitral.models.presets import preset_table, resolve
from vitral.models.registry import code_model
from vitral.models.search_config import SearchConfig
from vitral.models.summary import count_parameters


def test_a_code_depends_on_those_before_it_alone() -> None:
    model = igpt(torch.float64)
    codes = codes_of(model, 1)
    for place in range(codes.shape[1]):
        changed = codes.clone()
        changed[0, place] = (changed[0, place] + 1) % model.config.colors
        one, two = (model.code_head(model.read(each).patches_BND)[0] for each in (codes, changed))
        assert torch.equal(one[: place + 1], two[: place + 1]), "no earlier code, and not itself"
        if place + 1 < codes.shape[1]:
            assert (one[place + 1 :] != two[place + 1 :]).any(dim=1).all(), "every later one"


def test_by_gradients_too() -> None:
    """d logits_t / d embedding_s is exactly 0 for s >= t."""
    model = igpt(torch.float64)
    codes, N = codes_of(model, 1), model.config.tokens
    shown: list[torch.Tensor] = []
    model.drop.register_forward_hook(lambda *given: shown.append(given[2]))
    logits = model.code_head(model.read(codes).patches_BND)[0]
    for t in range(N):
        (grad,) = torch.autograd.grad(logits[t].square().sum(), shown[0], retain_graph=True)
        assert not grad[0, t + 1 :].any()
        assert grad[0, : t + 1].any(dim=1).all()


@pytest.mark.parametrize("label", [None, 1])
def test_probabilities_of_all_images_sum_to_one(label: int | None) -> None:
    model = igpt(torch.float64, std=1.0, image_size=(2, 2), colors=3, class_tokens=2)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    labels = None if label is None else torch.full((len(every),), label)
    nll = model.nll(model.read(every, labels).patches_BND, every).sum(1).detach()
    assert nll.std() > 0.5, "not a uniform distribution"
    assert float((-nll).exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_new_model_is_uniform(dtype: torch.dtype) -> None:
    model = create_model("igpt_micro_8", num_classes=0).to(dtype)
    assert isinstance(model, IGPT)
    codes = codes_of(model)
    nll = model.nll(model.read(codes).patches_BND, codes).sum(1)
    torch.testing.assert_close(nll, torch.full_like(nll, 64 * math.log(17)))


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 3, 1.0), (1.5, 0, 0.8)])
def test_sampling_with_a_cache_is_sampling_without(temperature: float, top_k: int, top_p: float) -> None:
    model = igpt(torch.float64, class_tokens=3)
    config = SearchConfig(
        search="sample", max_length=12, temperature=temperature, top_k=top_k, top_p=top_p, seed=4, n_best=2
    )
    memory = torch.tensor([-1, 0, 2])
    found = [
        generate(steps, memory, 3, config, start=5, end=-1, samples=[0, 1, 7])
        for steps in (CodeSteps(model), Uncached(model))
    ]
    tokens = [[each.tokens for row in rows for each in row] for rows in found]
    assert tokens[0] == tokens[1]
    assert len({*tokens[0]}) == 6
    assert {len(each) for each in tokens[0]} == {12}
    logs = [[each.log_prob for row in rows for each in row] for rows in found]
    assert logs[0] == pytest.approx(logs[1], abs=1e-5)
    codes = torch.tensor(tokens[0])
    nll = model.nll(model.read(codes, memory.repeat_interleave(2)).patches_BND, codes).sum(1)
    assert (-nll).tolist() == pytest.approx(logs[0], abs=1e-4), "the log-probability of a sample is the model's"


def test_a_search_may_exchange_rows() -> None:
    model = igpt(torch.float64, class_tokens=1)
    steps, memory = CodeSteps(model), torch.tensor([-1, 0])
    state = steps.start(memory, 1, 4)
    steps.step(torch.zeros(2, dtype=torch.int64), state)
    one = steps.step(torch.tensor([3, 1]), state)
    steps.reorder(state, torch.tensor([1, 0]))
    two = steps.step(torch.tensor([2, 2]), state)
    fresh = steps.start(memory.flip(0), 1, 4)
    steps.step(torch.zeros(2, dtype=torch.int64), fresh)
    torch.testing.assert_close(steps.step(torch.tensor([1, 3]), fresh), one.flip(0))
    torch.testing.assert_close(steps.step(torch.tensor([2, 2]), fresh), two)


def test_the_bert_variant_sees_all_but_the_hidden() -> None:
    model = igpt(torch.float64, mask_ratio=0.2)
    codes = codes_of(model, 2)
    hidden = torch.zeros_like(codes, dtype=torch.bool)
    hidden[:, [2, 7]] = True
    other = codes.clone()
    other[hidden] = (other[hidden] + 1) % 5
    one, two = (model.read(each, hidden_BN=hidden).patches_BND for each in (codes, other))
    assert torch.equal(one, two)
    last = codes.clone()
    last[:, -1] = (last[:, -1] + 1) % 5
    assert (model.read(last, hidden_BN=hidden).patches_BND[:, 0] != one[:, 0]).any()


def test_images_and_codes() -> None:
    model = igpt(colors=5, in_channels=3)
    codes = codes_of(model)
    images = model.images(codes)
    assert images.shape == (3, 3, 3, 4)
    assert torch.equal(model.codes(images), codes)
    out = model.encode(images, capture=["blocks.1"])
    torch.testing.assert_close(model.norm(out.captured["blocks.1"]), out.patches_BND)
    torch.testing.assert_close(model(images), out.patches_BND.mean(1))
    assert code_model(model) is model
    assert code_model(torch.nn.Linear(1, 1)) is None
    with pytest.raises(UserError, match="wrong image size"):
        model.codes(images[..., 1:])
    with pytest.raises(UserError, match="wrong shape"):
        model.codes(images[:, :1])
    with pytest.raises(UserError, match="unknown name to capture"):
        model.encode(images, capture=["blocks.2"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 5}, "cannot be split"),
        ({"image_size": 65}, r"4,225 pixels.*1 to 4,096"),
        ({"class_tokens": 2, "mask_ratio": 0.2}, "class_tokens=0"),
        ({"mask_ratio": 0.001}, "hides no code"),
        ({"mean": (0.4,)}, "data.mean=auto"),
        ({"colors": 1}, "2 or more"),
    ],
)
def test_what_cannot_be_built(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve("igpt_micro_8", **{"in_channels": 1, **options})


def test_sizes_of_the_paper() -> None:
    for name, facts in {"small": (24, 512, 8), "medium": (36, 1024, 8), "large": (48, 1536, 16)}.items():
        config = resolve(f"igpt_{name}_32", num_classes=0)
        assert isinstance(config, IGPTConfig)
        assert (config.depth, config.width, config.heads) == facts
        assert (config.colors, config.tokens, config.mlp_dim) == (512, 1024, 4 * config.width)


@pytest.mark.parametrize("name", IGPTS)
def test_exact_count(name: str) -> None:
    """Embeddings, positions, blocks with biases and norms without, the final norm, and both heads."""
    config = resolve(name)
    assert isinstance(config, IGPTConfig)
    D, M, K, N, S = config.width, config.mlp_dim, config.colors, config.tokens, config.num_classes
    block = 2 * D + 4 * (D * D + D) + 2 * D * M + M + D
    count = (K + 1) * D + N * D + config.depth * block + D + K * D + (D + 1) * S
    assert count_parameters(config) == count
    assert preset_table()[name]["parameters"] == count
