"""In a browser, the page of models that write text shows the numbers that Python has; anybody can use it."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.serve.explorer.app import Rules, make_app, random_host, serving
from tests.serve.explorer.browser import Visit, expect
from tests.serve.explorer.test_explore_texts import make_writers
from tests.serve.explorer.test_explore_views import picture
from tests.serve.explorer.truth import colors, percent, rows_of
from vitral.interpret.alignment import alignment, over_patches
from vitral.models.search_config import SearchConfig
from vitral.serve import explore_samples
from vitral.serve.model_worker import ModelWorker
from vitral.tasks.text_writing import Written
from vitral.text_predictor import TextPredictor

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

Array = np.ndarray[Any, Any]
TEXT = "abcea"


@pytest.fixture(scope="module")
def writers() -> dict[str, TextPredictor]:
    return make_writers()


@pytest.fixture(scope="module")
def base(writers: dict[str, TextPredictor], rules: Rules, browser: Browser) -> Generator[str]:
    with serving(make_app({name: ModelWorker(name, each) for name, each in writers.items()}, rules)) as base:
        yield base


def texts_of(writer: TextPredictor, source: Any, beams: int = 5) -> list[Written]:
    search = SearchConfig(max_length=10)
    if beams > 1:
        search = SearchConfig(search="beam", beams=beams, n_best=beams, max_length=10)
    return writer.write([source], search)[0]


def tokens_of(written: Written) -> list[int]:
    return [*written.tokens, *([2] if written.finished else [])]


def maps_of(writer: TextPredictor, source: Any, tokens: list[int]) -> Array:
    """Attention [L, h, T, ...] as Python has it."""
    x_1 = writer.preprocess([source])
    found = alignment(writer.model, x_1, torch.tensor([tokens]))[0]
    return (over_patches(writer.model, found, x_1) if writer.reads_images else found).double().numpy()


def close_to(share: float) -> re.Pattern[str]:
    """The percentage; its last digit may differ by rounding."""
    return re.compile("|".join(re.escape(percent(share + change)) for change in (-1e-5, 0, 1e-5)))


def near(shown: list[int], values: Array, low: float, high: float) -> None:
    """Colors differ by no more than one of 256 steps, where floats differ in the last digit."""
    assert len(shown) == 4 * values.size
    assert np.abs(np.array(shown) - np.array(colors(values, low, high))).max() <= 4


@pytest.mark.parametrize("name", ["transformer", "additive"])
def test_a_text_is_written_and_its_attention_drawn(visit: Visit, writers: dict[str, TextPredictor], name: str) -> None:
    writer, page = writers[name], visit.open(f"#model={name}", wait=False)
    expect(page.get_by_role("button", name="Write")).to_be_enabled()
    page.locator("#text").fill(TEXT)
    page.keyboard.press("Enter")
    visit.settle()
    texts = texts_of(writer, TEXT)
    shown = rows_of(page, "texts-table")
    assert [row[1] for row in shown] == [each.text or "(an empty text)" for each in texts]
    for row, each in zip(shown, texts, strict=True):
        assert float(row[2]) == pytest.approx(each.score, abs=1e-4)
        assert float(row[3]) == pytest.approx(each.log_prob, abs=1e-4)
    page.get_by_role("button", name="Text 2").click()
    visit.quiet()
    assert page.locator("#written").inner_text() == f"Written: {texts[1].text or '(an empty text)'}"
    tokens = tokens_of(texts[1])
    names = [writer.tokenizers.target.vocabulary[token] for token in tokens]
    assert page.locator("#tokens .token").all_inner_texts() == names
    with torch.no_grad():
        logits_TV = writer.model(writer.preprocess([TEXT]), torch.tensor([[1, *tokens[:-1]]]))[0]
    for place, shares_V in enumerate(logits_TV.softmax(-1)):
        chance = page.locator("#tokens .chance").nth(place)
        expect(chance).to_have_text(close_to(float(shares_V[tokens[place]])))
        expect(page.locator("#steps-table tbody tr").nth(place)).to_contain_text(close_to(float(shares_V.max())))
    maps = maps_of(writer, TEXT, tokens)
    layers, heads = maps.shape[:2]
    for layer, head in ((None, None), (layers - 1, None), (None, heads - 1), (0, heads - 1)):
        page.locator("#layer").select_option("" if layer is None else str(layer))
        page.locator("#head").select_option("" if head is None else str(head))
        map_TM = maps[[*range(layers)] if layer is None else [layer]].mean(0)
        map_TM = map_TM.mean(0) if head is None else map_TM[head]
        near(visit.pixels("#cells canvas"), map_TM, 0, 1)
        for place in (0, len(tokens) - 1):
            page.locator("#tokens button").nth(place).click()
            expect(page.locator("#status")).to_contain_text(close_to(map_TM[place].max()))
            source = [*TEXT, "<end>"][int(map_TM[place].argmax())]
            expect(page.locator("#status")).to_contain_text(f"Most attention goes to “{source}”, token")
            expect(page.locator("#top-table tbody tr").first).to_contain_text(close_to(map_TM[place].max()))
    assert page.locator("#map .across span").all_inner_texts() == [*TEXT, "<end>"]
    assert page.locator("#map .down span").all_inner_texts() == names


def test_an_image_is_read_character_by_character(visit: Visit, writers: dict[str, TextPredictor]) -> None:
    writer, page = writers["image"], visit.open("#model=image&beams=1")
    sample, data = explore_samples.sample("strip-314"), picture(8, 40, 3)
    assert sample is not None
    for source in (sample[0], data):
        if source is data:
            visit.hand_over("drop", data)
            visit.quiet()
        (written,) = texts_of(writer, source, 1)
        tokens = tokens_of(written)
        assert page.locator("#written").inner_text() == f"Written: {written.text or '(an empty text)'}"
        maps = maps_of(writer, source, tokens)
        page.locator("#layer").select_option("1")
        page.locator("#head").select_option("2")
        for place in range(len(tokens)):
            page.locator("#tokens button").nth(place).click()
            map_rc = maps[1, 2, place]
            near(visit.pixels("#cells canvas"), map_rc, 0, map_rc.max())
            row, column = divmod(int(map_rc.argmax()), 20)
            status = page.locator("#status")
            expect(status).to_contain_text(f"Layer 2, head 2. Most attention goes to row {row}, column {column}: ")
            expect(status).to_contain_text(close_to(map_rc.max()))
            expect(status).to_contain_text(close_to(1 - map_rc.sum()))
    seen = page.locator("#seen img").evaluate("(image) => [image.naturalHeight, image.naturalWidth]")
    assert seen == [8, 40]


def test_ctc_shows_its_frames(visit: Visit, writers: dict[str, TextPredictor]) -> None:
    writer, page = writers["ctc"], visit.open("#model=ctc&beams=1")
    sample = explore_samples.sample("strip-314")
    assert sample is not None
    with torch.no_grad():
        shares_FV = writer.model(writer.preprocess([sample[0]]))[0].softmax(-1)
    names = [*writer.tokenizers.target.vocabulary, "blank"]
    best = shares_FV.max(-1)
    rows = rows_of(page, "columns-table")
    assert [row[1] for row in rows] == [names[k] for k in best.indices.tolist()]
    for row, share in zip(rows, best.values.tolist(), strict=True):
        assert close_to(share).fullmatch(row[2])
    count = page.locator("#tokens button").count()
    assert [row[3].split(":")[0] for row in rows if row[3]] == [str(place + 1) for place in range(count)]
    for place in range(count):
        page.locator("#tokens button").nth(place).click()
        frame = next(number for number, row in enumerate(rows) if row[3].startswith(f"{place + 1}:"))
        expect(page.locator("#status")).to_contain_text(f"frame {frame} of")
        pixels = np.array(visit.pixels("#cells canvas")).reshape(20, 4)
        assert pixels[:, 0].argmax() == frame
    assert page.locator("#caveat").is_hidden()


def test_a_model_without_attention_says_so(visit: Visit) -> None:
    page = visit.open(f"#model=none&text={TEXT}")
    expect(page.locator("#where-why")).to_contain_text("no attention")
    assert page.locator("#cells").is_hidden()
    assert page.locator("#tokens button").count() > 0


def test_a_link_restores_the_page(visit: Visit, browser: Browser, base: str) -> None:
    page = visit.open(f"#model=transformer&text={TEXT}&beams=3")
    page.get_by_role("button", name="Text 2").click()
    visit.quiet()
    page.locator("#layer").select_option("1")
    page.locator("#head").select_option("0")
    page.locator("#tokens button").nth(1).click()
    status, pixels = page.locator("#status").inner_text(), visit.pixels("#cells canvas")
    other = Visit(browser, base)
    again = other.open(page.url.removeprefix(f"{base}/"))
    expect(again.locator("#status")).to_have_text(status)
    assert other.pixels("#cells canvas") == pixels
    assert again.url == page.url
    expect(again.locator("#text")).to_have_value(TEXT)
    again.goto(f"{base}/#model=nobody&text={TEXT}&beams=0&rank=77&token=99&layer=99&head=x")  # put right
    expect(again.locator("#status")).to_contain_text("Mean of 2 layers, mean of 4 heads")
    expect(again.locator("#beams")).to_have_value("1")
    other.close()


def test_with_the_keyboard_alone(visit: Visit) -> None:
    page = visit.open(f"#model=transformer&text={TEXT}")
    stops: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name, style = page.evaluate(
            """() => { const at = document.activeElement; const style = getComputedStyle(at);
              const name = at.id || at.getAttribute("aria-label") || at.tagName;
              return [name, `${style.outlineStyle} ${style.outlineWidth}`]; }"""
        )
        if name == "BODY":
            break
        assert style == "solid 3px", (name, style)
        stops.append(name)
    expected = ["skip", "model", "copy", "text", "beams", "Text 1", "layer", "head", "cells"]
    assert [stop for stop in stops if stop in expected] == expected
    page.locator("#skip").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#status")).to_contain_text("Token 2,")
    page.locator("#cells").focus()
    for keys, value in (("ArrowDown Home", "(3), source “a” (1)"), ("End ArrowLeft", "(3), source “a” (5)")):
        for key in keys.split():
            page.keyboard.press(key)
        expect(page.locator("#map .value")).to_contain_text(value)
    expect(page.locator("#status")).to_contain_text("Token 3,")


@pytest.mark.parametrize("link", [f"#model=transformer&text={TEXT}", "#model=image", "#model=ctc"])
def test_narrow_screens_and_axe(browser: Browser, base: str, link: str) -> None:
    visit = Visit(browser, base, viewport={"width": 320, "height": 640}, color_scheme="dark", reduced_motion="reduce")
    page = visit.open(link)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    wide = page.evaluate(
        """() => [...document.querySelectorAll("main *")].filter((each) => each.getBoundingClientRect().right > 321
          && !each.closest(".hush, .scroll, .matrix")).map((each) => each.outerHTML.slice(0, 80))"""
    )
    assert not wide, wide
    _no_violations(page)
    visit.close()


def _no_violations(page: Page) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found
        if each["impact"] in ("serious", "critical")
    ]  # fmt: skip
    assert not serious, serious


def test_what_goes_wrong_is_said(visit: Visit, rules: Rules) -> None:
    visit.refused = True
    page = visit.open(f"#model=transformer&text={TEXT}")
    alert, before = page.locator("#image-error"), rows_of(page, "texts-table")
    for text, message in (("aXb", "no such characters"), ("", "empty text"), ("a" * 40, "longer")):
        page.locator("#text").fill(text)
        page.get_by_role("button", name="Write").click()
        expect(alert).to_contain_text(message)
        assert rows_of(page, "texts-table") == before
    rules.too_many = 1
    page.locator("#text").fill("abc")
    page.get_by_role("button", name="Write").click()
    expect(alert).to_contain_text("too many requests")
    page.get_by_role("button", name="Write").click()
    expect(alert).to_be_hidden()
    visit.hand_over("drop", picture())
    expect(alert).to_have_text("This model reads texts, not images.")
    page.locator("#model").select_option("image")
    visit.quiet()
    visit.hand_over("drop", b"text", "file", "text/plain")
    expect(alert).to_contain_text("image")


def test_the_button_waits_for_the_models(visit: Visit) -> None:
    """A form that is submitted before the page listens would load the page again, without the text."""
    waiting: list[Route] = []
    visit.page.route(re.compile("/v1/explore/models"), lambda route: waiting.append(route))
    page = visit.open("#model=transformer", wait=False)
    page.locator("#text").fill(TEXT)
    expect(page.get_by_role("button", name="Write")).to_be_disabled()
    page.locator("#text").press("Enter")
    for route in waiting:
        route.continue_()
    page.get_by_role("button", name="Write").click()
    expect(page.locator("#written")).not_to_be_empty()
    expect(page.locator("#text")).to_have_value(TEXT)


def test_models_change_and_both_pages_lead_to_each_other(
    visit: Visit, browser: Browser, writers: dict[str, TextPredictor], tmp_path: Any
) -> None:
    page = visit.open(f"#model=transformer&text={TEXT}")
    page.locator("#model").select_option("none")
    expect(page.locator("#where-why")).to_be_visible()
    page.locator("#model").select_option("ctc")
    expect(page.locator("#columns")).to_be_visible()
    page.locator("#model").select_option("additive")
    expect(page.locator("#status")).to_contain_text("The one layer, one head.")
    expect(page.locator("#columns")).to_be_hidden()
    assert page.locator("#others").is_hidden()
    hosts = {"cats": random_host(tmp_path, "cats"), "text": ModelWorker("text", writers["transformer"])}
    with serving(make_app(hosts)) as both:
        other = Visit(browser, both)
        page = other.open()
        page.get_by_role("link", name="Models that write text").click()
        page.locator("#text").fill(TEXT)
        page.get_by_role("button", name="Write").click()
        expect(page.locator("#written")).not_to_be_empty()
        page.get_by_role("link", name="Models of images").click()
        expect(page.locator("#answer-table tbody tr")).to_have_count(4)
        other.quiet()
        other.close()
