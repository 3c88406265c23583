"""In a browser, anybody can use the explorer's page: links, files, keyboard, narrow screens, mistakes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vitral
from tests.serve.explorer.app import Rules, make_app, random_host, serving
from tests.serve.explorer.browser import Visit, expect
from tests.serve.explorer.test_explore_views import picture
from tests.serve.explorer.truth import (
    MODELS,
    click_patch,
    click_patch_now,
    percent,
    rows_of,
    slide,
    truth_of_sample,
)
from vitral.serve.model_worker import ModelWorker

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_a_link_restores_the_page(visit: Visit, browser: Browser, base: str, hosts: dict[str, ModelWorker]) -> None:
    page = visit.open("#model=large")
    page.locator("#samples button[value=shapes]").click()
    expect(page.locator("#samples button[value=shapes]")).to_have_attribute("aria-pressed", "true")
    click_patch(page, "#patches", (4, 5), (14, 14))
    slide(page, "#layer", 3)
    page.locator("#head").select_option("2")
    page.locator("#fuse").select_option("max")
    page.locator("#view").select_option("to")
    slide(page, "#r", 5)
    page.get_by_label("Overlay on the image").check()
    visit.quiet()
    link, status = page.url, page.locator("#status").inner_text()
    shown = [visit.pixels(f"#{view} canvas") for view in ("from", "to", "overview", "rollout", "groups")]
    other = Visit(browser, base)
    again = other.open(link.removeprefix(f"{base}/"))
    expect(again.locator("#status")).to_have_text(status)
    other.quiet()
    assert again.url == link
    assert [other.pixels(f"#{view} canvas") for view in ("from", "to", "overview", "rollout", "groups")] == shown
    for control, value in (("#model", "large"), ("#layer", "3"), ("#head", "2"), ("#fuse", "max"), ("#r", "5")):
        expect(again.locator(control)).to_have_value(value)
    # In the page that is open, too; and nonsense is put right.
    again.goto(f"{base}/#model=vitral-digits&token=nobody&layer=99&head=99&patch=77,1&r=999")
    expect(again.locator("#status")).to_contain_text("All patches on average. Layer 4, mean of 4 heads.")
    expect(again.locator("#row")).to_have_value("3")
    other.quiet()
    other.close()


def test_a_given_image_comes_back_by_its_link(visit: Visit, browser: Browser, base: str) -> None:
    page = visit.open()
    visit.hand_over("paste", picture(9, 13, seed=40))
    expect(page.locator("#seen")).to_contain_text("Given: 13 × 9 pixels")
    visit.quiet()
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#notice")).not_to_be_empty()
    other = Visit(browser, base)
    again = other.open(page.url.removeprefix(f"{base}/"))
    expect(again.locator("#seen")).to_contain_text("Given: 13 × 9 pixels")
    assert rows_of(again, "answer-table") == rows_of(page, "answer-table")
    other.close()
    lost = Visit(browser, base)
    lost.refused = True
    page = lost.open(f"#image={'0' * 64}&layer=1", wait=False)
    expect(page.get_by_role("alert").filter(has_text="give it again")).to_be_visible()
    lost.hand_over("drop", picture(9, 13, seed=40))
    lost.settle()
    expect(page.locator("#status")).to_contain_text("Layer 2")
    lost.close()


@pytest.mark.parametrize("name", MODELS)
def test_the_saved_page_stands_alone(
    visit: Visit, browser: Browser, hosts: dict[str, ModelWorker], tmp_path: Path, name: str
) -> None:
    truth, page = truth_of_sample(hosts, name), visit.open(f"#model={name}&token=patch&patch=2,1&layer=0&head=0&r=2")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save page").click()
    download.value.save_as(tmp_path / "saved.html")
    text = (tmp_path / "saved.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    saved = Visit(browser, "file://", java_script_enabled=False)
    page = saved.page
    page.goto((tmp_path / "saved.html").as_uri())
    expect(page.get_by_text("Attention is not an explanation.")).to_be_visible()
    expect(page.locator("body")).to_contain_text(truth.status((2, 1), 0, "0"))
    said = truth.predictor.predict(truth.data, topk=1)[0]["predictions"][0]
    expect(page.locator("table").first).to_contain_text(f"{said['label']}{percent(said['score'])}")
    of_T, _ = truth.attention("2,1", 0, "0")
    numbers = page.locator("details").first.locator("td").all_text_contents()
    assert numbers == [percent(share) for share in of_T[truth.prefix :]]
    images = page.locator("img").all()
    assert len(images) == 8
    assert all((image.get_attribute("src") or "").startswith("data:image/png;base64,") for image in images)
    saved.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", MODELS)
def test_axe_finds_nothing_serious(browser: Browser, base: str, name: str, scheme: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    visit = Visit(browser, base, color_scheme=scheme, reduced_motion="reduce")
    page = visit.open(f"#model={name}&token=patch")
    page.locator("summary").click()
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found
        if each["impact"] in ("serious", "critical")
    ]  # fmt: skip
    assert not serious, serious
    assert page.locator(".fill").first.evaluate("(bar) => getComputedStyle(bar).transitionDuration") == "0s"
    visit.close()


@pytest.mark.parametrize("name", MODELS)
def test_narrow_screens(browser: Browser, base: str, name: str) -> None:
    visit = Visit(browser, base, viewport={"width": 320, "height": 640})
    page = visit.open(f"#model={name}&token=patch")
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    wide = page.evaluate(
        """() => [...document.querySelectorAll("main *")].filter((each) => each.getBoundingClientRect().right > 321
          && !each.closest(".hush")).map((each) => each.outerHTML.slice(0, 80))"""
    )
    assert not wide, wide
    visit.close()


def test_with_the_keyboard_alone(visit: Visit, hosts: dict[str, ModelWorker]) -> None:
    truth, page = truth_of_sample(hosts, "vitral-digits"), visit.open()
    stops: list[str] = []
    for _ in range(45):
        page.keyboard.press("Tab")
        name, style = page.evaluate(
            """() => { const at = document.activeElement; const style = getComputedStyle(at);
              return [at.id || at.value || at.tagName, `${style.outlineStyle} ${style.outlineWidth}`]; }"""
        )
        if name == "BODY" or name in stops:
            break
        assert style == "solid 3px", (name, style)
        stops.append(name)
    first = ["skip", "model", "copy", "save", "file", "digit-0", "patches", "row", "column", "token", "layer", "head"]
    expected = [*first, "view", "overview", "under", "fuse", "r"]
    assert [stop for stop in stops if stop in expected] == expected
    page.locator("#skip").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#status")).to_have_text(truth.status((2, 1), 3, "mean"))
    page.locator("#samples button[value=digit-7]").focus()
    page.keyboard.press("Space")
    expect(page.locator("#answer-table tbody th").first).to_have_text("7")
    visit.quiet()


def test_what_goes_wrong_is_said(visit: Visit, rules: Rules, tmp_path: Path) -> None:
    visit.refused = True
    page = visit.open()
    alert, before = page.locator("#image-error"), rows_of(page, "answer-table")
    for data, kind, message in (
        (b"\x89PNG\r\n\x1a\nbroken", "image/png", "image"),
        (b"text", "text/plain", "image"),
        (b"", "image/png", "This file is empty."),
        (b"x" * 2_000_001, "image/png", "a request may hold 2,000,000 bytes"),
    ):
        visit.hand_over("drop", data, "file", kind)
        expect(alert).to_be_visible()
        expect(alert).to_contain_text(message)
        assert alert.get_attribute("role") == "alert"
        assert rows_of(page, "answer-table") == before
        page.locator("#samples button[value=digit-0]").click()
        expect(alert).to_be_hidden()
        visit.quiet()
    rules.too_many = 1
    visit.hand_over("paste", picture())
    expect(alert).to_have_text("too many requests Again in 2 s.")
    page.route("**/v1/**", lambda route: route.abort())
    visit.hand_over("paste", picture())
    expect(alert).to_have_text("The server does not answer. Is it still running?")
    slide(page, "#r", 2)
    expect(page.locator("#merge-error")).to_be_visible()
    page.unroute("**/v1/**")
    slide(page, "#r", 3)
    expect(page.locator("#merge-error")).to_be_hidden()
    visit.quiet()


def test_an_image_that_the_server_let_go_is_given_again(visit: Visit, hosts: dict[str, ModelWorker]) -> None:
    visit.refused = True
    page, host = visit.open(), hosts["vitral-digits"]
    host.predictor = vitral.load("vitral-digits", "cpu")
    click_patch(page, "#patches", (0, 0), (4, 4))
    expect(page.locator("#status")).to_contain_text("Patch row 0, column 0.")
    visit.quiet()
    assert page.locator(".error:visible").count() == 0


def test_older_answers_never_replace_newer_ones(visit: Visit, hosts: dict[str, ModelWorker]) -> None:
    truth, page = truth_of_sample(hosts, "vitral-digits"), visit.open("#token=patch&patch=0,0")
    asked: list[str] = []

    def late(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:  # while it is under way, two more patches are chosen
            click_patch_now(page, (1, 2))
            click_patch_now(page, (3, 3))
        route.continue_()

    page.route("**/attention**", late)
    click_patch(page, "#patches", (2, 2), (4, 4))
    expect(page.locator("#status")).to_have_text(truth.status((3, 3), 3, "mean"))
    visit.quiet()
    expect(page.locator("#status")).to_have_text(truth.status((3, 3), 3, "mean"))
    assert len(asked) == 2, asked


def test_there_and_back_before_the_answer(visit: Visit, hosts: dict[str, ModelWorker]) -> None:
    truth, page = truth_of_sample(hosts, "vitral-digits"), visit.open("#token=patch&patch=0,0")
    asked: list[str] = []

    def late(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:
            click_patch_now(page, (0, 0))
        route.continue_()

    page.route("**/attention?**", late)
    click_patch(page, "#patches", (2, 2), (4, 4))
    visit.quiet()
    assert len(asked) == 2, asked
    expect(page.locator("#status")).to_have_text(truth.status((0, 0), 3, "mean"))
    assert page.locator("#from .value").inner_text().lower().startswith("row 0, column 0")


def test_the_same_image_again_can_be_looked_at(visit: Visit, hosts: dict[str, ModelWorker]) -> None:
    truth, page = truth_of_sample(hosts, "vitral-digits"), visit.open("#token=patch&patch=0,0")
    page.locator("#samples button[value=digit-0]").click()
    visit.quiet()
    slide(page, "#layer", 1)
    expect(page.locator("#status")).to_have_text(truth.status((0, 0), 1, "mean"))
    page.locator("#overview").click(position={"x": 3, "y": 3})
    expect(page.locator("#status")).to_have_text(truth.status((0, 0), 0, "0"))


def test_from_a_small_grid_to_a_large_one(visit: Visit) -> None:
    page = visit.open("#token=patch&patch=3,3")
    page.locator("#model").select_option("large")
    for view in ("from", "to", "rollout", "similarity", "norms"):
        expect(page.locator(f"#{view} .value")).to_contain_text(re.compile("row 3, column 3: .*[0-9]", re.IGNORECASE))
        expect(page.locator(f"#{view} canvas")).to_have_js_property("width", 14)
    visit.quiet()
    assert page.locator(".error:visible").count() == 0


def test_without_an_answer_no_old_numbers_stand(visit: Visit) -> None:
    visit.refused = True
    page = visit.open("#token=patch&patch=0,0")
    for view in ("attention", "rollout"):
        page.route(f"**/{view}**", lambda route: route.abort())
    click_patch_now(page, (2, 2))
    visit.quiet()
    slide(page, "#layer", 1)
    visit.quiet()
    for part in ("attention-error", "layers-error"):
        expect(page.locator(f"#{part}")).to_have_text("The server does not answer. Is it still running?")
    expect(page.locator("#status")).to_be_empty()
    for view in ("from", "to", "rollout"):
        assert page.locator(f"#{view} .value").text_content() == ""
        assert page.locator(f"#{view} .chosen").is_hidden()
        assert set(visit.pixels(f"#{view} canvas")) == {0}
    expect(page.locator("#norms .value")).to_contain_text(re.compile("row 2, column 2: .*[0-9]", re.IGNORECASE))
    expect(page.locator("#rollout-title")).to_have_text("Rollout of row 2, column 2")
    for view in ("attention", "rollout"):
        page.unroute(f"**/{view}**")
    click_patch_now(page, (2, 1))
    expect(page.locator("#status")).to_contain_text("Patch row 2, column 1. Layer 2")
    expect(page.locator("#layers-error")).to_be_hidden()


def test_a_model_without_views_while_one_is_loading(visit: Visit) -> None:
    page = visit.open("#token=patch&patch=0,3")
    held: list[Any] = []
    for view in ("attention", "norms", "lens", "merge"):
        page.route(f"**/{view}?**", lambda route: held.append(route))
    page.locator("#samples button[value=digit-1]").click()
    expect(page.locator("#samples button[value=digit-1]")).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(300)
    assert len(held) == 4
    page.locator("#model").select_option("conv")
    expect(page.locator("#attention-why")).to_contain_text("convolutional")
    for route in held:
        route.continue_()
    visit.quiet()
    assert page.locator(".error:visible").count() == 0
    assert page.locator("[aria-busy=true]").count() == 0
    picture = page.locator("#patches")
    picture.click(position={"x": 5, "y": 5})
    picture.press("ArrowLeft")
    picture.press(",")
    picture.press("[")
    assert picture.get_attribute("tabindex") == "-1"
    for view in ("attention", "norms", "lens", "merge"):
        page.unroute(f"**/{view}?**")
    page.locator("#model").select_option("vitral-digits")
    expect(page.locator("#status")).to_contain_text("Patch row 0, column 3.")
    visit.quiet()


def test_a_link_to_what_is_gone_changes_nothing(visit: Visit, base: str) -> None:
    visit.refused = True
    page = visit.open("#token=patch&patch=1,1&layer=2")
    before = page.url
    page.goto(f"{base}/#image={'0' * 64}&layer=0")
    expect(page.locator("#image-error")).to_contain_text("give it again")
    assert page.url == before
    click_patch_now(page, (0, 1))
    expect(page.locator("#status")).to_contain_text("Patch row 0, column 1. Layer 3")
    assert "image=sample%3Adigit-0" in page.url
    page.goto(f"{base}/#image=models")  # no image's id: the first sample
    expect(page.locator("#image-error")).to_be_hidden()
    visit.quiet()


def test_an_image_goes_to_the_model_chosen_last(visit: Visit, browser: Browser, base: str) -> None:
    page, asked = visit.open(), list[str]()

    def late(route: Any) -> None:
        if not asked:
            visit.hand_over("drop", picture(9, 13, seed=41))
        asked.append(route.request.url)
        route.continue_()

    page.route("**/v1/explore?**", late)
    page.locator("#model").select_option("large")
    expect(page.locator("#seen")).to_contain_text("Given: 13 × 9 pixels. The model sees 224 × 224")
    expect(page.locator("#model")).to_have_value("large")
    visit.quiet()
    # Nobody here has the file of an image that comes by its link, and yet another model can have it.
    other = Visit(browser, base)
    again = other.open(page.url.removeprefix(f"{base}/"))
    again.locator("#model").select_option("vitral-digits")
    expect(again.locator("#seen")).to_contain_text("Given: 13 × 9 pixels. The model sees 8 × 8")
    other.quiet()
    other.close()


def test_a_model_that_is_replaced_by_one_of_another_shape(browser: Browser, tmp_path: Path) -> None:
    host = random_host(tmp_path, "changing", image_size=(8, 8))
    with serving(make_app({"changing": host})) as base:
        visit = Visit(browser, base)
        visit.refused = True
        page = visit.open("#token=patch&patch=3,3")
        host.predictor = random_host(tmp_path, "other", image_size=(12, 12), registers=2).predictor
        click_patch_now(page, (1, 1))
        expect(page.locator("#token")).to_contain_text("Register 1")
        expect(page.locator("#row")).to_have_attribute("max", "5")
        visit.quiet()
        assert page.locator(".error:visible").count() == 0
        for view in ("from", "norms", "groups"):
            assert page.locator(f"#{view} canvas").evaluate("(canvas) => canvas.width") % 6 == 0
        visit.close()


def test_a_server_that_is_busy_at_first_is_asked_again(browser: Browser, base: str, rules: Rules) -> None:
    rules.too_many = 1
    visit = Visit(browser, base)
    visit.refused = True
    page = visit.open(wait=False)
    expect(page.locator("#image-error")).to_contain_text("Trying again.")
    visit.settle()
    expect(page.locator("#image-error")).to_be_hidden()
    visit.close()


def test_the_key_is_asked_for_once(browser: Browser, base: str, rules: Rules) -> None:
    rules.key = "open sesame"
    try:
        visit = Visit(browser, base)
        visit.refused = True
        page = visit.open(wait=False)
        dialog = page.get_by_role("dialog")
        page.get_by_role("textbox", name="API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_text("That key was refused.")).to_be_visible()
        page.get_by_role("textbox", name="API key").fill("open sesame")
        page.get_by_role("button", name="Continue").click()
        visit.settle()
        expect(dialog).to_be_hidden()
        page.reload()
        visit.settle()
        expect(dialog).to_be_hidden()
        visit.close()
        other = Visit(browser, base)
        other.refused = True
        page = other.open(wait=False)
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("This server wants an API key.").first).to_be_attached()
        expect(page.locator("#image-error")).to_contain_text("Load the page again to give it.")
        other.close()
    finally:
        rules.key = None


def test_what_a_model_lacks_is_said(visit: Visit) -> None:
    page = visit.open("#model=headless")
    expect(page.locator("#answer-why")).to_contain_text("no head")
    expect(page.locator("#lens-why")).to_contain_text("no head")
    expect(page.locator("#answer-table")).to_be_hidden()
    expect(page.locator("#from canvas")).to_be_visible()
    page.locator("#model").select_option("relative")
    expect(page.locator("#merge-why")).to_contain_text("relative")
    expect(page.locator("#merge .body")).to_be_hidden()
    page.locator("#model").select_option("uneven")
    page.locator("#head").select_option("1")
    expect(page.locator("#status")).to_have_text("Layer 2 has no head 1, but 1 head.")
    assert "NaN" not in (page.locator("main").text_content() or "")
    assert rows_of(page, "attention-table") == []
    page.locator("#head").select_option("mean")
    expect(page.locator("#status")).to_contain_text("mean of 1 head.")
    visit.quiet()
    assert re.search("model=uneven", page.url)
