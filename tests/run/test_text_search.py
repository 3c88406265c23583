"""Which texts the keys of a search lead to: allowed characters, and keys without effect."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.text_models import image_writer, save, text_writer
from tests.run.text_runs import CTC_STRIPS, text_config
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.models.search_config import SearchConfig
from vitral.run.text_run import TextRun
from vitral.tasks import text_writing
from vitral.text_predictor import TextPredictor, load_text

CTC: dict[str, Any] = {**CTC_STRIPS, "data": {**CTC_STRIPS["data"], "count": 16}}
KINDS = ("transformer_tiny", "lstm_tiny", "ctc", "transformer")
TEXTS = ["abc", "eca", "b", "abcdea"]


def writer_of(kind: str) -> tuple[TextPredictor, list[Any]]:
    if kind.endswith("tiny"):
        return text_writer(kind, scale=2.0), TEXTS
    noise_NHW = torch.rand(3, 8, 40, generator=torch.Generator().manual_seed(1)).numpy()
    return image_writer(kind, seed=4), [*noise_NHW]


@pytest.mark.parametrize("kind", KINDS)
def test_only_allowed_characters_are_written(kind: str) -> None:
    predictor, sources = writer_of(kind)
    ways: list[dict[str, Any]] = [{}, {"search": "beam", "beams": 3, "n_best": 3}]
    ways += [{"search": "sample", "n_best": 3}] if kind != "ctc" else []
    for keys in ways:
        free = predictor.write(sources, SearchConfig(**keys))
        taken = next(each.text[0] for texts in free for each in texts if each.text)
        others = "edcba".replace(taken, "")
        for texts in predictor.write(sources, SearchConfig(allowed=others, **keys)):
            assert all(set(each.text) <= set(others) for each in texts)
        one = predictor.write(sources, SearchConfig(allowed="abcde", **keys))
        special = any(each.text and set(each.tokens) & {0, 1, 2, 3} for texts in free for each in texts)
        if not special:  # of a random model, which writes starts too
            assert one == free
    with pytest.raises(UserError, match=r"(?s)search\.allowed.*no token.*X Y"):
        predictor.write(sources, SearchConfig(allowed="aXYb"))


def test_streams_have_allowed_characters_alone() -> None:
    predictor = text_writer(scale=2.0)
    search = SearchConfig(allowed="bd")
    assert "".join(predictor.stream("abcde", search)) == predictor.write(["abcde"], search)[0][0].text


def test_allowed_characters_are_kept_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictor = text_writer(scale=2.0)
    own = predictor.config.model_copy(update={"search": SearchConfig(max_length=10, allowed="ce")})
    save(TextPredictor(predictor.model, own, predictor.tokenizers), tmp_path / "model")
    assert set(load_text(tmp_path / "model").write(["abcde"])[0][0].text) <= set("ce")
    assert main(["predict", str(tmp_path / "model"), "--text", "abcde", "search.allowed=ab"]) == 0
    assert set(json.loads(capsys.readouterr().out)["text"]) <= set("ab")
    assert main(["predict", str(tmp_path / "model"), "--text", "abcde", "search.allowed=0123456789"]) == 2
    assert "no token of the model writes such characters" in capsys.readouterr().err


def test_a_run_refuses_characters_that_its_texts_lack(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no token of the model writes such characters"):
        TextRun(text_config(tmp_path, CTC, search__allowed="01x"))


OF_STEPS: list[dict[str, Any]] = [
    {"max_length": 9}, {"min_length": 1}, {"no_repeat_ngram": 2}, {"length_penalty": 0.5},
    {"length_penalty_kind": "gnmt"}, {"search": "beam", "early_stopping": True},
]  # fmt: skip


@pytest.mark.parametrize("keys", OF_STEPS)
def test_keys_of_steps_are_refused_for_ctc(keys: dict[str, Any], tmp_path: Path) -> None:
    name = list(keys)[-1]
    with pytest.raises(UserError, match=rf"(?s)search\.{name}: no effect: CTC.*expected: +search\.{name}="):
        TextRun(text_config(tmp_path, CTC, **{f"search__{key}": value for key, value in keys.items()}))
    predictor, sources = writer_of("ctc")
    with pytest.raises(UserError, match=rf"search\.{name}: CTC gives all tokens at once"):
        predictor.write(sources, SearchConfig(**keys))
    own = predictor.config.model_copy(update={"search": SearchConfig(**keys)})  # as older folders have it
    folder = TextPredictor(predictor.model, own, predictor.tokenizers)
    assert folder.write(sources) == folder.write(sources, SearchConfig(**keys))


def test_short_texts_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    text_writing._warn_of_short_texts.cache_clear()  # pyright: ignore[reportPrivateUsage]
    predictor = text_writer()
    with caplog.at_level(logging.WARNING, "vitral"):
        for alpha in (1.0, -1.0, -2.0):
            predictor.write(TEXTS, SearchConfig(search="beam", beams=2, length_penalty=alpha), batch_size=1)
    assert [record.getMessage() for record in caplog.records].count(caplog.records[0].getMessage()) == 1
    assert "favor short texts" in caplog.records[0].getMessage()
    assert len(caplog.records) == 1


def test_negative_penalties_do_favor_short_texts() -> None:
    predictor = text_writer(scale=2.0)
    lengths = [
        sum(
            len(texts[0].tokens)
            for texts in predictor.write(TEXTS, SearchConfig(search="beam", beams=6, length_penalty=alpha))
        )
        for alpha in (-3.0, 0.0, 3.0)
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_messages_name_what_is_wrong() -> None:
    predictor = text_writer()
    with pytest.raises(UserError, match=r"(?s)search\.allowed.*no token.*got: +' '"):
        predictor.write(["abc"], SearchConfig(allowed="a b"))
    with pytest.raises(UserError, match=r"(?s)text 1.*half of a surrogate pair"):
        predictor.write(["abc", "a\ud800"])
    for each in (predictor, image_writer()):
        with pytest.raises(UserError, match="nothing to read"):
            each.preprocess([])
