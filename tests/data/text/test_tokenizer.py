"""Round trips of every kind of tokenizer on random Unicode, fixed ids, determinism, and files of strangers."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vitral.data.text.config import MAX_ENTRY, TokenizerConfig, TokenizerKind
from vitral.data.text.tokenizer import (
    END,
    PAD,
    REPLACEMENT,
    SPECIAL,
    START,
    UNKNOWN,
    Bytes,
    Characters,
    TextTokenizer,
    Words,
    normalized,
    train_tokenizer,
)  # fmt: skip
from vitral.data.text.tokenizer_file import Tokenizers, load_tokenizers, train_tokenizers
from vitral.errors import UserError

KINDS: tuple[TokenizerKind, ...] = ("characters", "bytes", "words", "bpe", "wordpiece")
CORPUS = [
    "the quick brown fox jumps over the lazy dog", "ein Wörterbuch für alle Fälle", "## # <pad> <end>", "<start> ##a",
    "thequick thebrown thefox", "naïve café", "日本語 テキスト", "<pad><pad><pad> <pad><pad>",
] * 3  # fmt: skip


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def trained(kind: TokenizerKind, texts: list[str] | None = None) -> TextTokenizer:
    if kind in ("bpe", "wordpiece"):
        pytest.importorskip("tokenizers")
        return train_tokenizer(TokenizerConfig(kind=kind, vocab_size=420), texts or CORPUS)
    return train_tokenizer(TokenizerConfig(kind=kind), texts or CORPUS)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.text(max_size=30))
def test_a_text_as_it_is_written_is_the_round_trip(kind: TokenizerKind, text: str) -> None:
    """Where nothing is unknown; the form of unknown parts is that of known ones."""
    known = trained(kind, [*CORPUS[:7], f"x {text}"]) if kind in ("characters", "words") else trained(kind)
    for each in (text, *CORPUS, f" {text}  caf\u00e9\tcafe\u0301 "):
        written = known.as_written(each)
        if not known.unknown(each):
            assert known.decode(known.encode(each)) == written
        assert known.as_written(written) == written
        assert known.encode(written) == known.encode(each)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4).filter(lambda texts: any(texts)))
def test_characters_and_bytes_give_back_the_text_in_nfc(texts: list[str]) -> None:
    for tokenizer in (Bytes(), train_tokenizer(TokenizerConfig(), texts)):
        for text in texts:
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == nfc(text)
            assert tokenizer.decode([START, *ids, END, 5, PAD]) == nfc(text)
            assert all(len(SPECIAL) <= each < len(tokenizer) for each in ids), "text is never a special id"
            assert tokenizer.unknown(text) == []
            assert tokenizer.encode(nfc(text)) == ids


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_bpe_gives_back_any_text(text: str) -> None:
    tokenizer = _kept("bpe")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == nfc(text)
    assert UNKNOWN not in ids
    assert min(ids, default=4) >= 4


SIGNS = st.text(st.sampled_from("abdeh#<>pötx日 \t\n\u0301\x1f"), max_size=20)


@settings(max_examples=200, deadline=None)
@given(SIGNS)
def test_wordpiece_and_words_join_with_one_blank(text: str) -> None:
    for kind in ("wordpiece", "words"):
        tokenizer = _kept(kind)
        ids, unknown = tokenizer.encode(text), Counter(tokenizer.unknown(text))
        words = nfc(text).split()
        assert tokenizer.decode(ids) == " ".join(REPLACEMENT if word in unknown else word for word in words)
        assert ids.count(UNKNOWN) == unknown.total()
        assert not {PAD, START, END} & set(ids)


_trained: dict[str, TextTokenizer] = {}


def _kept(kind: TokenizerKind) -> TextTokenizer:
    if kind not in _trained:
        _trained[kind] = trained(kind)
    return _trained[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_ids_are_the_same_in_all_kinds(kind: TokenizerKind) -> None:
    tokenizer = trained(kind)
    assert tokenizer.vocabulary[:4] == SPECIAL
    assert (PAD, START, END, UNKNOWN) == (0, 1, 2, 3)
    assert len(tokenizer.vocabulary) == len(tokenizer)
    text = "the <pad> <end> <start>"
    assert not {PAD, START, END} & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("") == []
    assert tokenizer.decode([START, END]) == ""


def test_ids_by_hand() -> None:
    characters = train_tokenizer(TokenizerConfig(), ["cab", "e\u0301"])
    assert characters.vocabulary[4:] == ("a", "b", "c", "é")
    assert characters.encode("be\u0301z") == [5, 7, UNKNOWN]
    assert characters.decode([6, UNKNOWN, 4, END, 4]) == "c\ufffda"
    assert Bytes().encode("Aé") == [4 + 65, 4 + 0xC3, 4 + 0xA9]
    assert Bytes().decode([4 + 0xC3]) == REPLACEMENT, "half of a character"
    words = train_tokenizer(TokenizerConfig(kind="words"), ["K AE T", "D AO G"])
    assert words.vocabulary[4:] == ("AE", "AO", "D", "G", "K", "T")
    assert words.decode(words.encode(" K  AO\tG ")) == "K AO G"


def test_unknown_parts_are_named() -> None:
    assert Characters(["a", "b"]).unknown("axbé x") == ["x", "é", " ", "x"]
    assert Words(["K"]).unknown("K AE AE") == ["AE", "AE"]
    assert Bytes().unknown("日本") == []


@pytest.mark.parametrize("kind", KINDS)
def test_allowed_tokens_write_allowed_characters_alone(kind: TokenizerKind) -> None:
    """All that they write, in any order, has these characters alone; and all of these can be written."""
    tokenizer = trained(kind)
    allowed = {"words": "the fox dog", "wordpiece": "thefox", "bytes": "the fox"}.get(kind, "the f\u00fcr")
    ids = tokenizer.ids_within(allowed)
    assert ids == sorted(set(ids))
    text = tokenizer.decode([*ids, *reversed(ids)])
    if kind == "words":
        assert set(text.split()) == set(allowed.split())
    else:
        assert set(text) - {" "} == set(allowed) - {" "}
    others = set(range(4, len(tokenizer))) - set(ids)
    assert all(not set(tokenizer.decode([each])) <= set(allowed) for each in others if kind != "words")
    unknown = "\u00fc" if kind == "bytes" else "Q!" if kind != "bpe" else "\u042f"
    with pytest.raises(UserError, match=r"(?s)no token of the model writes such.*" + unknown[-1]):
        tokenizer.ids_within(allowed + " " + unknown)
    if kind == "words":
        with pytest.raises(UserError, match="no token"):
            tokenizer.ids_within("  ")


@pytest.mark.parametrize("kind", KINDS)
def test_files_round_trip(kind: TokenizerKind, tmp_path: Path) -> None:
    target = trained(kind)
    for made in (Tokenizers(target), Tokenizers(target, target), Tokenizers(target, Characters(["\u2028", "é", "\\"]))):
        made.save(tmp_path)
        read = load_tokenizers(tmp_path)
        assert read.digest == made.digest
        assert (read.source is read.target) == (made.source is made.target)
        for text in (*CORPUS[:8], "neu \u2028 日"):
            assert read.target.encode(text) == target.encode(text)
        read.require(made.digest, "model")
        with pytest.raises(UserError, match="another model's"):
            read.require(Tokenizers(Characters(["q"])).digest, "model")


def test_every_difference_changes_the_digest() -> None:
    digests = [Characters("ab").digest, Characters("ba").digest, Characters("abc").digest, Words(["a", "b"]).digest]
    digests += [Words(["ab"]).digest, Bytes().digest, Tokenizers(Bytes(), Bytes()).digest]
    assert len(set(digests)) == len(digests)


CODE = """
from vitral.data.text.config import TokenizerConfig
from vitral.data.text.tokenizer import train_tokenizer
texts = [f"{a}{b}{a}{c} ##{a}" for a in "xyzuv" for b in "klmno" for c in "rst"]
digests = [train_tokenizer(TokenizerConfig(kind=kind, vocab_size=420), texts).digest for kind in ("bpe", "wordpiece")]
"""


def test_learned_vocabularies_are_the_same_in_every_process() -> None:
    """The library's hash tables have another order in each."""
    pytest.importorskip("tokenizers")
    own: dict[str, Any] = {}
    exec(CODE, own)
    done = subprocess.run([sys.executable, "-c", f"{CODE}\nprint(digests)"], capture_output=True, text=True,
                          encoding="utf-8", cwd=Path(__file__).parents[3], check=True)  # fmt: skip
    assert done.stdout.strip() == str(own["digests"])


def test_shared_and_separate_vocabularies() -> None:
    characters = TokenizerConfig()
    separate = train_tokenizers(characters, ["ab"], TokenizerConfig(kind="words"), ["K AE"])
    assert separate.target.entries == ("a", "b")
    assert separate.source is not None
    assert separate.source.entries == ("AE", "K")
    shared = train_tokenizers(characters, ["ab"], None, ["bc"], shared=True)
    assert shared.source is shared.target
    assert shared.target.entries == ("a", "b", "c")
    assert train_tokenizers(characters, ["ab"]).source is None


BAD: dict[str, Any] = {
    "wrong version": {"version": 2, "target": {"kind": "characters", "entries": ["a"]}},
    "unknown kind": {"version": 1, "target": {"kind": "runes", "entries": ["a"]}},
    "unknown key": {"version": 1, "target": {"kind": "characters", "entries": ["a"], "code": "x"}},
    "no target": {"version": 1},
    "a list": [1, 2],
    "entries of another type": {"version": 1, "target": {"kind": "characters", "entries": ["a", 7]}},
    "entries as text": {"version": 1, "target": {"kind": "characters", "entries": "abc"}},
    "twice": {"version": 1, "target": {"kind": "characters", "entries": ["a", "b", "a"]}},
    "two characters": {"version": 1, "target": {"kind": "characters", "entries": ["ab"]}},
    "empty": {"version": 1, "target": {"kind": "characters", "entries": [""]}},
    "another form": {"version": 1, "target": {"kind": "characters", "entries": ["\u212b"]}},
    "half a character": {"version": 1, "target": {"kind": "characters", "entries": ["\ud800"]}},
    "a blank in a word": {"version": 1, "target": {"kind": "words", "entries": ["a b"]}},
    "long": {"version": 1, "target": {"kind": "words", "entries": ["a" * (MAX_ENTRY + 1)]}},
    "bytes": {"version": 1, "target": {"kind": "bytes", "entries": ["a"]}},
    "merges of words": {"version": 1, "target": {"kind": "words", "entries": ["a"], "merges": [["a", "a"]]}},
    "shared and own": {"version": 1, "shared": True, "target": {"kind": "words", "entries": ["a"]},
                       "source": {"kind": "words", "entries": ["a"]}},
}  # fmt: skip


@pytest.mark.parametrize("tree", BAD.values(), ids=BAD)
def test_a_file_that_describes_no_tokenizer_gets_one_message(tree: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizers(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["merges"].append(["a", "zz"]), lambda tree: tree["merges"].append(tree["merges"][0]),
        lambda tree: tree["entries"].pop(0), lambda tree: tree["entries"].append("a b"),
        lambda tree: tree["merges"].append(["a"]), lambda tree: tree.update(kind="wordpiece"),
    ],
)  # fmt: skip
def test_damaged_merges_get_one_message(change: Any, tmp_path: Path) -> None:
    tree = {"version": 1, "target": trained("bpe").to_tree()}
    change(tree["target"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizers(tmp_path)


def test_huge_deep_and_missing_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match="no such file"):
        load_tokenizers(tmp_path)
    with file.open("wb") as handle:
        handle.truncate(2**40)
    with pytest.raises(UserError, match="too large"):
        load_tokenizers(tmp_path)
    file.write_text('{"version": 1, "target": ' + "[" * 10**6, encoding="utf-8")
    with pytest.raises(UserError, match="nested deeper"):
        load_tokenizers(tmp_path)
    file.write_text(
        '{"version":1,"target":{"kind":"words","entries":[' + '"a",' * 1_100_000 + '"b"]}}', encoding="utf-8"
    )
    with pytest.raises(UserError, match="items"):
        load_tokenizers(tmp_path)
    entries = json.dumps([f"w{number}" for number in range(250_001)])
    file.write_text('{"version":1,"target":{"kind":"words","entries":' + entries + "}}", encoding="utf-8")
    with pytest.raises(UserError, match="entries"):
        load_tokenizers(tmp_path)


def test_wrong_settings_get_one_message() -> None:
    with pytest.raises(ValidationError, match="vocab_size=9 has no effect"):
        TokenizerConfig(kind="words", vocab_size=9)
    with pytest.raises(UserError, match="training texts are empty"):
        train_tokenizer(TokenizerConfig(), ["", ""])
    with pytest.raises(UserError, match="not Unicode"):
        normalized("a\udc80")
    pytest.importorskip("tokenizers")
    with pytest.raises(UserError, match="256 or more"):
        train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=255), ["a"])
    with pytest.raises(UserError, match="5 or more"):
        train_tokenizer(TokenizerConfig(kind="wordpiece", vocab_size=4), ["abc"])


def test_without_the_library_one_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"data\.tokenizer: tokenizers is not installed") as error:
        train_tokenizer(TokenizerConfig(kind="bpe"), ["a"])
    assert 'pip install "vitral[text]"' in str(error.value)
