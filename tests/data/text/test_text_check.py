"""The check of data with text: every finding by an example that has it, and nothing found in clean data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitral.data.config import DataConfig
from vitral.data.findings import CODES, Finding
from vitral.data.text.check import check_images, check_text
from vitral.data.text.config import TextConfig, TextSource, TokenizerConfig
from vitral.data.text.dataset import TextDataset, TextSplit, text_dataset
from vitral.data.text.sources import open_text
from vitral.data.text.tokenizer_file import train_tokenizers

CLEAN = [(f"wort {chr(97 + n)}", f"word {chr(97 + n)}") for n in range(12)]
Pairs = list[tuple[str, str]]


def dataset(train: Pairs, test: Pairs = ()) -> TextDataset:  # type: ignore[assignment]
    def split(name: str, pairs: Pairs) -> TextSplit:
        names = [f"{name}:{number}" for number in range(len(pairs))]
        return TextSplit([other for _, other in pairs], names, [one for one, _ in pairs])

    return text_dataset("x", {"train": split("train", train), **({"test": split("test", list(test))} if test else {})})


def checked(data: TextDataset, kind: Any = "characters", **keys: Any) -> dict[str, Finding]:
    train = data.splits["train"]
    config = TokenizerConfig(kind=kind)
    sources = None if train.sources is None else list(train.sources)
    found = check_text(data, train_tokenizers(config, list(train.targets), config, sources), TextConfig(**keys))
    assert [each.severity for each in found] == sorted(each.severity for each in found), "errors first"
    return {each.code: each for each in found}


def test_clean_data() -> None:
    assert checked(dataset(CLEAN)) == {}
    assert checked(open_text(TextSource(source="digits_read", count=16))) == {}
    assert checked(open_text(TextSource(source="reverse", count=100))) == {}


@pytest.mark.parametrize(
    ("pairs", "code", "parts"),
    [
        (("wort x", " "), "text-empty", ("1 empty target text",)),
        (("", "word b"), "text-empty", ("1 empty source text",)),
        (("wort", "word Ωb日日"), "text-unknown", ("<unknown> (id 3)", r"\u65e5 (2)", r"\u03a9 (1)", "target")),
        (("wort", "word " + "a" * 300), "text-long", ("1 target text", "256", "306", "test:0 (test)")),
        (("wort", "word " + "a" * 60), "text-length", ("8 times the median of 6",)),
        (("wort b", "word c"), "text-across", ("1 source text is in more than one split",)),
        ((" wort b", "word c"), "text-across", ("more than one split",)),
        (("wort", "word \u05d0\u05d1"), "text-direction", ("1 target text", "right to left")),
        (("wort", "word a\u0301"), "text-form", ("1 target text", "NFC")),
        (("wort", "wo\x07rd\u202e\u202e"), "text-control", (r"\u202e (2)", r"\x07 (1)")),
    ],
)
def test_findings(pairs: tuple[str, str], code: str, parts: tuple[str, ...]) -> None:
    found = checked(dataset(CLEAN, [pairs]))[code]
    assert all(part in found.message for part in parts), found.message
    assert found.severity == CODES[code][0]
    assert found.groups[0][-1].split == "test"


def lines(folder: Path, names: dict[str, tuple[int, str]]) -> TextDataset:
    """Images 48 x 96 of noise, by name: the number of the noise and the text."""
    for name, (number, text) in names.items():
        pixels = np.random.default_rng(number).integers(0, 256, (6, 12), np.uint8)
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(folder / name)
        (folder / name).with_suffix(".gt.txt").write_text(text, encoding="utf-8")
    return open_text(TextSource(source="image_text_files", path=str(folder)), DataConfig(path=str(folder)))


def test_copies_of_images_are_found(tmp_path: Path) -> None:
    names = {f"train/{number}.png": (number, f"{number:04d}") for number in range(12)}
    names |= {f"test/{number}.png": (100 + number, f"{number:04d}") for number in range(4)}
    names |= {"test/copy.png": (3, "0003"), "train/other.png": (5, "9999"), "train/again.png": (7, "0007")}
    data = lines(tmp_path, names)
    report = check_images(data, DataConfig(path=str(tmp_path)))
    found = {each.code: each for each in report.findings}
    assert found.keys() == {"duplicates-across", "duplicates-labels", "duplicates"}
    (group,) = found["duplicates-across"].groups
    assert sorted(map(str, group)) == ["test/copy.png (test, 0003)", "train/3.png (train, 0003)"]
    assert {sample.label for sample in found["duplicates-labels"].groups[0]} == {"0005", "9999"}
    assert found["duplicates-across"].severity == found["duplicates-labels"].severity == "error"


def test_damaged_images_are_found(tmp_path: Path) -> None:
    data = lines(tmp_path, {f"train/{number}.png": (number, f"{number:04d}") for number in range(12)})
    (tmp_path / "train/3.png").write_bytes((tmp_path / "train/4.png").read_bytes()[:60])
    report = check_images(data, DataConfig(path=str(tmp_path)))
    assert [each.code for each in report.findings] == ["damaged"]
    assert report.damaged.keys() == {"train"}


def test_long_texts_of_images_in_two_splits_are_a_warning(tmp_path: Path) -> None:
    long = "the same line of a book"
    names = {f"train/{number}.png": (number, f"{number:04d}{long[number]}") for number in range(len(long))}
    found = checked(
        lines(tmp_path, {**names, "train/x.png": (50, long), "test/x.png": (51, long), "test/y.png": (52, "0000t")})
    )
    assert found.keys() == {"text-across"}
    assert (found["text-across"].severity, found["text-across"].numbers) == ("warning", {"texts": 1})


def test_equal_columns_are_a_warning() -> None:
    found = checked(dataset([(one, one) for one, _ in CLEAN]))["text-equal"]
    assert (found.severity, found.numbers) == ("warning", {"pairs": 12})
    assert "text-equal" not in checked(dataset([*CLEAN, ("ab", "ab")]))


def test_truncation_makes_long_texts_a_warning() -> None:
    data = dataset([*CLEAN, ("wort", "word " + "a" * 10)])
    assert checked(data, max_target=16) == {}
    found = checked(data, max_target=15)["text-long"]
    assert (found.severity, found.numbers) == ("error", {"texts": 1, "longest": 16})
    cut = checked(data, max_target=15, truncate=True)["text-long"]
    assert cut.severity == "warning"
    assert "shortened" in cut.message


def test_words_and_bytes() -> None:
    found = checked(dataset(CLEAN, [("wort", "word zzz")]), "words")["text-unknown"]
    assert found.message.startswith("words of target texts that training lacks")
    assert found.numbers == {"different": 1, "occurrences": 1}
    assert "text-unknown" not in checked(dataset(CLEAN, [("wort", "日")]), "bytes")


def test_joiners_tabs_and_line_ends_are_no_finding() -> None:
    assert "text-control" not in checked(dataset([*CLEAN, ("a\tb", "क्\u200dष\r\n")]))
