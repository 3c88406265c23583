"""Sections in three media: nothing that is shown is markup, and each medium shows what it can."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.report.test_report import Page
from vitral.evaluate.metric import Metric
from vitral.report.render import as_text, to_console, to_html, to_markdown
from vitral.report.sections import Bullets, Code, Facts, Figure, Gallery, Note, Part, Picture, Section, Table

EVERYWHERE = frozenset({"report", "card", "console"})
HOSTILE = [
    "<script>alert(1)</script>", "</title><b>", "a|b", "`code`", "``", "*b* _i_ [x](y) ![z](w)", "# no heading",
    "1. no", "= x", "$x$", "&lt;", "{{ 7 * 7 }}{% raw %}", "[bold]rich[/bold] :warning:", '"onload="x', "'",
    "\x1b[31mred", "\r\x08", "\udc80", "\u202eevil", "two\nlines", "ünïcode 日本",
]  # fmt: skip
SHARE = Metric("top1", "top-1 <b>", 0.97222, (0.951, 0.9833))
FIGURE = Figure(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "alt <i>", "caption <i>")


def everything(text: str) -> list[Section]:
    """Every field of every part that holds text."""
    picture = Picture(np.zeros((2, 2)), text, text, text)
    metric = Metric(text, text, 2.0, format="number", unit=text)
    parts: list[Part] = [
        metric, text, metric, Note(text), Bullets([text]), Facts([(text, text), (text, metric)]), Code(text),
        Code(text, text), Table([text, text], [[text, metric], [text, None], [text, 1]], text, 2),
        Table([text], [[picture]]), Figure(b"<svg/>", text, text), Gallery([picture, Picture(None, text)], text),
        Gallery([Gallery([picture], text)], text), Gallery([FIGURE._replace(caption=text)]),
    ]  # fmt: skip
    return [Section(text, parts, EVERYWHERE), Section("", [text], EVERYWHERE)]


@pytest.mark.parametrize("text", HOSTILE)
def test_html_shows_text_as_text(text: str) -> None:
    page = to_html(text, everything(text))
    assert page.encode("utf-8")
    found, plain = Page(page), Page(to_html("x", everything("x")))
    assert found.tags == [
        (tag, {**attributes, **{key: found.tags[place][1][key] for key in {"alt", "src"} & attributes.keys()}})
        for place, (tag, attributes) in enumerate(plain.tags)
    ], "the same elements as with a harmless text"
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", page)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_text_as_text(text: str) -> None:
    sections = everything(text)
    blocks = to_markdown([each._replace(parts=[part for part in each.parts if not isinstance(part, Code)])
                          for each in sections])  # fmt: skip
    plain = to_markdown([each._replace(parts=[part for part in each.parts if not isinstance(part, Code)])
                         for each in everything("x")])  # fmt: skip
    markup = r"(?<!\\)[`*|\[\]$]|<|(?m:^#+)|(?m:^\d+\.)|(?m:^[-+] )"
    assert len(re.findall(markup, blocks)) > 20
    assert re.findall(markup, blocks) == re.findall(markup, plain), "only our own markup begins anything"
    assert blocks.encode("utf-8")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", blocks)


def test_markdown_fences_are_longer_than_what_they_hold() -> None:
    assert to_markdown([Section("", [Code("```\nx\n````")], EVERYWHERE)]) == "`````\n```\nx\n````\n`````"


@pytest.mark.parametrize("text", HOSTILE)
def test_the_console_shows_text_as_text(text: str) -> None:
    shown = to_console(everything(text))
    assert shown.encode("utf-8")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
    if text.isprintable():
        assert shown.count(text) >= 15


def test_the_same_table_in_three_media() -> None:
    rows = [["a", Metric("f1", "F1", 0.5), 12], ["b|c", Metric("f1", "F1", None), 3400], ["d", None, 1]]
    section = Section("Classes", [Table(["Class", "F1", "Images"], rows, "Worst first.", 2)], EVERYWHERE)
    assert to_markdown([section]) == (
        "## Classes\n\nWorst first.\n\n"
        "| Class | F1 | Images |\n|---|---:|---:|\n| a | 50.00 % | 12 |\n| b\\|c | – | 3,400 |"
    )
    assert to_console([section]) == (
        "Classes\n\nWorst first.\nClass       F1  Images\na      50.00 %      12\nb|c          –   3,400"
    )
    page = to_html("t", [section])
    assert '<tr><th class="name" scope="row">b|c</th><td>–</td><td>3,400</td></tr>' in page
    assert page.index("<summary>Show 1 more</summary>") < page.index('scope="row">d</th>')


def test_the_headline_and_metrics_after_it() -> None:
    age = Metric(
        "mae", "mean absolute error", 3.14159, (2.9, 3.4), higher_is_better=False, format="number", unit="years"
    )
    section = Section("", [SHARE, "on 360 test images", age, Metric("n", "images", 1024, format="integer")], EVERYWHERE)
    said = "97.22 % top-1 \\<b\\>, 95 % interval 95.10 to 98.33 %".replace("\\<b\\>", "&lt;b&gt;")
    assert to_markdown([section]) == (
        f"{said}\n\non 360 test images\n\n"
        "- mean absolute error: 3.142 years (95 % interval 2.9 years to 3.4 years)\n- images: 1,024"
    )
    assert to_console([section]).splitlines()[0] == "97.22 % top-1 <b>, 95 % interval 95.10 to 98.33 %"
    titled = to_markdown([section._replace(title="Result", parts=[SHARE, "text", age])])
    assert titled.startswith(
        "## Result\n\n- top-1 &lt;b&gt;: 97.22 % (95 % interval 95.10 to 98.33 %)\n\ntext\n\n- mean"
    )
    assert "<p><strong>97.22 %</strong> top-1 &lt;b&gt;, 95 % interval 95.10 to 98.33 %</p>" in to_html("t", [section])


def test_each_medium_has_its_own_sections() -> None:
    sections = [Section(name, [name], frozenset({name})) for name in ("report", "card", "console")]
    assert [word in to_html("t", sections) for word in ("<p>report", "<p>card", "<p>console")] == [True, False, False]
    assert to_markdown(sections) == "## card\n\ncard"
    assert to_console(sections) == "console\n\nconsole"


def test_pictures_are_inside_the_page_and_nowhere_else() -> None:
    png, photo = Figure(b"\x89PNG\r\n\x1a\n", "p", wide=True), Picture(np.zeros((300, 100)), "c")
    parts: list[Part] = [FIGURE, png, Gallery([photo])]
    sections = [Section("Pictures", parts, EVERYWHERE)]
    found = [each["src"] or "" for each in Page(to_html("t", sections)).attributes("img")]
    assert [each.partition(",")[0] for each in found] == [
        "data:image/svg+xml;base64", "data:image/png;base64", "data:image/jpeg;base64"
    ]  # fmt: skip
    assert to_markdown(sections) == "## Pictures"
    assert to_console(sections) == "Pictures"


def test_what_is_empty_is_shown_as_nothing() -> None:
    parts: list[Part] = [Gallery([], "none"), Table(["a"], []), Bullets([]), Facts([])]
    sections = [Section("Empty", parts, EVERYWHERE), Section("", [], EVERYWHERE)]
    assert not Page(to_html("t", sections)).attributes("img")
    assert to_markdown(sections) == "## Empty\n\n| a |\n|---|"
    assert to_console(sections) == "Empty\n\na"


def test_long_lines_wrap_in_a_terminal_alone() -> None:
    section = Section("", ["word " * 40], EVERYWHERE)
    assert len(to_console([section]).splitlines()) == 1
    assert max(map(len, to_console([section], width=40).splitlines())) <= 40


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.58333333, "0.5833"), (1234.5678, "1,234.6"), (206154, "206,154"), (True, "yes"), (None, "–"),
     ([1, 2.5], "1, 2.5"), ({"a": 1}, "a 1"), ("x", "x")],
)  # fmt: skip
def test_numbers_as_people_read_them(value: object, text: str) -> None:
    assert as_text(value) == text
