"""`vitral data`: what it prints, what it writes, and what wrong words get."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.test_usage import refused
from tests.helpers import write_colors
from tests.report.test_report import Page
from vitral.cli.main import main
from vitral.data.findings import CODES, CheckReport, Finding, Sample
from vitral.report.data_page import write_check_page

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return write_colors(tmp_path / "pets", "cat dog", 12, (40, 36))


def output(argv: str, code: int, capsys: Capture) -> str:
    assert main(argv.split()) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ("data chek pets", ("chek: unknown subcommand", "did you mean 'check'?")),
        ("data check", ("exactly one data path", "PATH, or data=PATH")),
        ("data check pets more", ("unexpected argument: more", "usage: vitral data check PATH")),
        ("data check nowhere", ("nowhere",)),
        ("data check digits allow=[nearr]", ("allow", "did you mean 'near'?")),
        ("data check digits allow=[damaged]", ("data.max_bad",)),
        ("data check digits init=nowhere", ("no such model",)),
        ("data check digits out=nowhere/check.html", ("out", "HTML file")),
        ("data check digits source=folder", ("source: unknown key", "data.source")),
        ("data stats digits images=0", ("images",)),
        ("data convert digits", ("out",)),
        ("data convert digits out=x layout=zip", ("layout", "'zip'")),
    ],
)
def test_wrong_words_get_one_message(argv: str, parts: tuple[str, ...], capsys: Capture) -> None:
    refused(argv, capsys, *parts)


def test_help_of_each_action(capsys: Capture) -> None:
    text = output("data check --help", 0, capsys)
    assert all(code in text for code in CODES)
    assert "data.max_bad" in text
    assert "layout" in output("data convert --help", 0, capsys)
    assert "images" in output("data stats --help", 0, capsys)
    assert "check|stats|convert" in output("data --help", 0, capsys)
    assert main(["data"]) == 2


def test_check_as_text_json_and_page(pets: Path, capsys: Capture) -> None:
    shutil.copy(pets / "cat/1.png", pets / "dog/<b>&cat_1.png")
    (pets / "dog/cut.png").write_bytes(b"")
    text = output("data check pets", 2, capsys)
    assert "error [damaged] 1 image" in text
    assert "cat/1.png (train, cat) = dog/<b>&cat_1.png (train, dog)" in text
    tree = json.loads(output("data check pets --json out=check.html", 2, capsys))
    assert tree["errors"] == 2
    assert tree["cached"]
    codes = [finding["code"] for finding in tree["findings"] if finding["severity"] == "error"]
    assert codes == ["damaged", "duplicates-labels"]
    page = Path("check.html").read_text(encoding="utf-8")
    assert "<b>&cat" not in page
    assert "&lt;b&gt;&amp;cat_1.png" in page
    sections = Page(page).sections
    assert "cannot be read" in sections["Error: damaged"]
    assert "http" not in page.replace("http-equiv", "")
    tree = json.loads(output("data check pets --json allow=[duplicates-labels] data.max_bad=1", 0, capsys))
    assert tree["errors"] == 0


def test_fresh_looks_again(pets: Path, capsys: Capture) -> None:
    assert not json.loads(output("data check pets --json", 0, capsys))["cached"]
    assert json.loads(output("data check pets --json", 0, capsys))["cached"]
    assert not json.loads(output("data check pets --json fresh=true", 0, capsys))["cached"]


def test_stats_as_text_json_and_page(pets: Path, capsys: Capture) -> None:
    assert "train: 24 images; height x width 36 x 40 (24)" in output("data stats pets", 0, capsys)
    tree = json.loads(output("data stats pets --json out=stats.html images=3", 0, capsys))
    assert tree["splits"]["train"]["classes"] == {"cat": 12, "dog": 12}
    page = Path("stats.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 6
    Page(page)


def test_a_pair_is_shown_once() -> None:
    one, two, three = (Sample(split, place, f"{split}/{place}.png", "cat") for split, place in
                       (("train", 0), ("test", 0), ("test", 1)))  # fmt: skip
    findings = (
        Finding("duplicates-labels", "error", "different labels", ((one, two, three),)),
        Finding("duplicates-across", "error", "two splits", ((one, two, three), (replace(three, place=5), one))),
        Finding("duplicates", "warning", "twice", ((two, three),)),
    )
    report = CheckReport("pets", "00", {"train": 1, "test": 2}, findings, {}, (), ())
    write_check_page("check.html", report, lambda sample: None)
    page = Path("check.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 5, "three, and the pair that is new"
    sections = Page(page).sections
    assert "1 group shown above: duplicates-labels" in sections["Error: duplicates-across"]
    assert "1 group shown above: duplicates-labels" in sections["Warning: duplicates"]


def test_stats_go_on_at_damaged_files(pets: Path, capsys: Capture) -> None:
    (pets / "dog/cut.png").write_bytes(b"")
    tree = json.loads(output("data stats pets --json", 0, capsys))
    assert (tree["splits"]["train"]["images"], tree["splits"]["train"]["damaged"]) == (24, 1)
    assert main(["data", "stats", "pets", "data.max_bad=0"]) == 2
    assert "1 damaged image:" in capsys.readouterr().err


def test_convert_says_what_to_open(pets: Path, capsys: Capture) -> None:
    tree = json.loads(output("data convert pets out=new layout=csv --json", 0, capsys))
    assert tree == {"path": "new/manifest.csv", "counts": {"train": 24}, "copied": 24, "lost": []}
    assert "24 train" in output("data stats new/manifest.csv", 0, capsys).replace("train: 24", "24 train")
    refused("data convert pets out=new", capsys, "not empty")
    (pets / "cat/cut.png").write_bytes(b"")
    refused("data convert pets out=other", capsys, "cut.png", "data.max_bad")


def test_what_was_left_out_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_colors(tmp_path / "pets", "cat dog", 4, (12, 9))
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "pets" / "dog" / "broken.png").write_bytes(b"no image")
    for action in (["stats"], ["convert", "out=copy"]):
        assert main(["data", *action, "pets", "data.max_bad=1"]) == 0
        assert "broken.png" in capsys.readouterr().err


def test_data_that_are_refused_give_json_and_a_page_too(pets: Path, capsys: Capture) -> None:
    refused("data check pets data.source=filename", capsys, "names that the pattern doesn't fit")
    tree = json.loads(output("data check pets data.source=filename --json out=page.html", 2, capsys))
    assert [(each["code"], each["severity"]) for each in tree["findings"]] == [("layout", "error")]
    assert (tree["errors"], tree["counts"]) == (1, {})
    assert "pattern doesn" in Page(Path("page.html").read_text(encoding="utf-8")).sections["Error: layout"]
    refused("data check nowhere --json", capsys, "no such folder")
    refused("data check pets allow=[layout]", capsys, "cannot be opened")
    shutil.rmtree(pets / "dog")
    (pets / "owl").mkdir()
    tree = json.loads(output("data check pets --json", 2, capsys))
    assert [each["code"] for each in tree["findings"][:2]] == ["one-class", "empty-class"]
    assert json.loads(output("data check pets --json allow=[one-class,empty-class]", 0, capsys))["errors"] == 0
