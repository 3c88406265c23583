"""The explorer's page in a browser: what it shows is what Python says, and anybody can use it."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pytest
import torch

import vitral
from tests.serve.browser import Visit, browsing
from tests.serve.explorer_app import Rules, large_host, make_app, random_host, serving
from tests.serve.test_explore import picture
from vitral.interpret.attention import stream_maps, token_attention
from vitral.interpret.lens import logit_lens
from vitral.interpret.patches import patch_norms, patch_similarity
from vitral.interpret.rollout import rollout
from vitral.interpret.tokens import token_names, token_rows
from vitral.models.vit import VisionTransformer
from vitral.serve.explore_samples import sample
from vitral.serve.host import Host

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, expect
else:
    try:
        from playwright.sync_api import expect
    except ImportError:
        expect = None

MODELS = ["vitral-digits", "large"]
FIRST = {"vitral-digits": "digit-0", "large": "china"}
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def hosts(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    root = tmp_path_factory.mktemp("models")
    digits = Host("vitral-digits", vitral.load("vitral-digits", "cpu"))
    headless = random_host(root, "headless", classes=())
    relative = random_host(root, "relative", positions="relative")
    uneven = random_host(root, "uneven", block_heads=[2, 1])
    return {each.name: each for each in (digits, large_host(root), headless, relative, uneven)}


@pytest.fixture(scope="module")
def rules() -> Rules:
    return Rules()


@pytest.fixture(scope="module")
def base(hosts: dict[str, Host], rules: Rules) -> Generator[str]:
    with serving(make_app(hosts, rules)) as base:
        yield base


@pytest.fixture
def visit(browser: Browser, base: str) -> Generator[Visit]:
    visit = Visit(browser, base)
    yield visit
    visit.close()


class Truth:
    """What Python says of an image."""

    def __init__(self, host: Host, data: bytes) -> None:
        assert isinstance(host.predictor.model, VisionTransformer)
        self.predictor, self.vit, self.data = host.predictor, host.predictor.model, data
        self.x_BCHW = host.predictor.preprocess(data)[None]
        self.prefix, self.grid = self.vit.prefix_tokens, self.vit.grid

    def attention(self, token: str, layer: int, head: str) -> tuple[Array, Array]:
        """From and to the token, [T] each."""
        shares_hT = token_attention(self.vit, self.x_BCHW, token, [layer])[0, 0].double().numpy()
        map_hTT = next(map_BhTT[0] for at, map_BhTT in stream_maps(self.vit, self.x_BCHW, [layer]) if at == layer)
        rows = token_rows(self.vit.config, token, self.grid)
        both = shares_hT, map_hTT[:, :, rows].mean(2).double().numpy()
        fuse = {"mean": lambda each: each.mean(0), "max": lambda each: each.max(0)}
        one, other = (fuse[head](each) if head in fuse else each[int(head)] for each in both)
        return one, other

    def place(self, values_N: Array) -> str:
        row, column = divmod(int(values_N.argmax()), self.grid[1])
        return f"row {row}, column {column}"

    def status(self, patch: tuple[int, int], layer: int, head: str) -> str:
        """What the status line has to say."""
        of_T, to_T = (each[self.prefix :] for each in self.attention(f"{patch[0]},{patch[1]}", layer, head))
        named = {"mean": f"mean of {self.vit.config.heads} heads", "max": "greatest of the heads"}
        return (
            f"Patch row {patch[0]}, column {patch[1]}. Layer {layer}, {named.get(head, f'head {head}')}. "
            f"Of the patches it attends most to {self.place(of_T)}: {percent(of_T.max())}. "
            f"Most attention to it is from {self.place(to_T)}: {percent(to_T.max())}. "
            f"To itself: {percent(of_T[patch[0] * self.grid[1] + patch[1]])}."
        )


def percent(share: float) -> str:
    return f"{100 * share:.3f} %"


def colours(values: Array, low: float, high: float) -> list[int]:
    shares = (values.astype(np.float64) - low) / (high - low)
    return matplotlib.colormaps["viridis"](shares, bytes=True).flatten().tolist()


def truth_of_sample(hosts: dict[str, Host], name: str) -> Truth:
    found = sample(FIRST[name])
    assert found is not None
    return Truth(hosts[name], found[0])


def rows_of(page: Page, table: str) -> list[list[str]]:
    rows = page.locator(f"#{table} tbody tr").all()
    return [[text.strip() for text in row.locator("th, td").all_inner_texts()] for row in rows]


def click_patch(page: Page, box: str, patch: tuple[int, int], grid: tuple[int, int]) -> None:
    place = page.locator(box)
    place.scroll_into_view_if_needed()
    size = place.bounding_box()
    assert size is not None
    at = (patch[1] + 0.5) / grid[1] * size["width"], (patch[0] + 0.5) / grid[0] * size["height"]
    place.click(position={"x": at[0], "y": at[1]})


def slide(page: Page, control: str, value: int) -> None:
    """Moves a slider with the keyboard."""
    page.locator(control).focus()
    page.keyboard.press("Home")
    for _ in range(value):
        page.keyboard.press("ArrowRight")


@pytest.mark.parametrize("name", MODELS)
def test_chosen_pasted_and_dropped_images(visit: Visit, hosts: dict[str, Host], tmp_path: Path, name: str) -> None:
    page = visit.open(f"#model={name}")
    for seed, how in enumerate(("choose", "paste", "drop")):
        data = picture(31, 47, seed)
        if how == "choose":
            (tmp_path / "image.png").write_bytes(data)
            visit.choose(tmp_path / "image.png")
        else:
            visit.hand_over(how, data)
        predictor = hosts[name].predictor
        said = predictor.predict(data, topk=10 if name == "vitral-digits" else 5)[0]["predictions"]
        expect(page.locator("#answer-table tbody tr").first).to_contain_text(percent(said[0]["score"]))
        visit.quiet()
        assert rows_of(page, "answer-table") == [[row["label"], percent(row["score"])] for row in said]
        expect(page.locator("#seen")).to_contain_text("Given: 47 × 31 pixels")
        seen = page.locator("#picture img").evaluate("(image) => [image.naturalHeight, image.naturalWidth]")
        assert tuple(seen) == predictor.config.preprocessing.image_size


@pytest.mark.parametrize("name", MODELS)
def test_patches_by_mouse_and_keys(visit: Visit, hosts: dict[str, Host], name: str) -> None:
    truth, page = truth_of_sample(hosts, name), visit.open(f"#model={name}&layer=1")
    rows, columns = truth.grid
    status, patches = page.locator("#status"), page.locator("#patches")
    click_patch(page, "#patches", (1, 2), truth.grid)
    expect(status).to_have_text(truth.status((1, 2), 1, "mean"))
    patches.focus()
    for keys, patch in (
        ("ArrowDown ArrowRight", (2, 3)), ("Home", (2, 0)), ("ArrowUp PageDown", (rows - 1, 0)),
        ("End", (rows - 1, columns - 1)), ("PageUp ArrowLeft", (0, columns - 2)),
        ("ArrowUp PageDown", (rows - 1, columns - 2)),
        ("ArrowDown End ArrowRight", (rows - 1, columns - 1)), ("PageUp ArrowLeft", (0, columns - 2)),
    ):  # fmt: skip
        for key in keys.split():
            page.keyboard.press(key)
        expect(status).to_have_text(truth.status(patch, 1, "mean"))
        assert f"row {patch[0]}, column {patch[1]}" in (patches.get_attribute("aria-label") or "")
    for key, layer, head in ((".", 2, "mean"), (",", 1, "mean"), ("]", 1, "max"), ("]", 1, "0"), ("[", 1, "max")):
        page.keyboard.press(key)
        expect(status).to_have_text(truth.status((0, columns - 2), layer, head))
    page.locator("#row").fill("2")
    page.locator("#row").press("Tab")
    expect(status).to_have_text(truth.status((2, columns - 2), 1, "max"))
    click_patch(page, "#similarity .stack", (3, 1), truth.grid)
    expect(status).to_have_text(truth.status((3, 1), 1, "max"))
    page.locator("#row").fill("99")
    page.locator("#row").press("Tab")
    expect(page.locator("#row")).to_have_value(str(rows - 1))


@pytest.mark.parametrize("name", MODELS)
def test_colours_and_numbers_of_the_maps(visit: Visit, hosts: dict[str, Host], name: str) -> None:
    truth, page = truth_of_sample(hosts, name), visit.open(f"#model={name}&token=patch&patch=1,3&layer=2&head=1")
    attention = truth.attention("1,3", 2, "1")
    cosine_N = patch_similarity(truth.vit, truth.x_BCHW, (1, 3), [2])[0, 0].numpy()
    maps: dict[str, tuple[Array, float, float]] = {
        "from": (attention[0][truth.prefix :], 0, attention[0][truth.prefix :].max()),
        "to": (attention[1][truth.prefix :], 0, attention[1][truth.prefix :].max()),
        "similarity": (cosine_N, min(0, cosine_N.min()), 1),
    }
    for view, values_X in (
        ("rollout", rollout(truth.vit, truth.x_BCHW, "1,3")[0, truth.prefix :].numpy()),
        ("norms", patch_norms(truth.vit, truth.x_BCHW, [2])[0, 0].numpy()),
    ):
        maps[view] = (values_X, 0, values_X.max())
    for view, (values_N, low, high) in maps.items():
        found, expected = np.array(visit.pixels(f"#{view} canvas")), np.array(colours(values_N, low, high))
        # Sums of many layers may differ in the last bit, and then lie on the other side of one of 256 steps.
        assert np.abs(found - expected).max() <= (6 if view == "rollout" else 0), view
        at = values_N[1 * truth.grid[1] + 3]
        shown = f"{at:.3f}" if view in ("similarity", "norms") else percent(at)
        expect(page.locator(f"#{view} .value")).to_have_text(f"row 1, column 3: {shown}")
    for name_T, value in zip(token_names(truth.vit.config), attention[0], strict=False):
        words = {"cls": "class token"}.get(name_T, name_T.replace(":", " "))
        expect(page.locator("#from-rest")).to_contain_text(f"{words} {percent(value)}")
    page.locator("#to .stack").hover(position={"x": 2, "y": 2})
    expect(page.locator("#from .value")).to_have_text(f"row 0, column 0: {percent(maps['from'][0][0])}")
    page.locator("#fuse").select_option("max")
    most = rollout(truth.vit, truth.x_BCHW, "1,3", "max")[0, truth.prefix :].numpy()
    expect(page.locator("#rollout .high")).to_have_text(percent(most.max()))
    page.get_by_label("Let the picture shine through").check()
    assert page.locator("#from canvas").evaluate("(canvas) => getComputedStyle(canvas).opacity") == "0.6"


@pytest.mark.parametrize("name", MODELS)
def test_layers_heads_and_the_overview(visit: Visit, hosts: dict[str, Host], name: str) -> None:
    truth, page = truth_of_sample(hosts, name), visit.open(f"#model={name}&token=patch&patch=0,1")
    depth, heads, status = truth.vit.config.depth, truth.vit.config.heads, page.locator("#status")
    expect(status).to_have_text(truth.status((0, 1), depth - 1, "mean"))
    slide(page, "#layer", 1)
    expect(status).to_have_text(truth.status((0, 1), 1, "mean"))
    page.locator("#head").select_option("max")
    expect(status).to_have_text(truth.status((0, 1), 1, "max"))
    click_patch(page, "#overview", (2, 1), (depth, heads))
    expect(status).to_have_text(truth.status((0, 1), 2, "1"))
    expect(page.locator("#head")).to_have_value("1")
    page.locator("#overview").focus()
    for key, layer, head in (("ArrowUp", 1, "1"), ("ArrowLeft", 1, "0"), ("ArrowRight", 1, "1"), ("ArrowDown", 2, "1")):
        page.keyboard.press(key)
        expect(status).to_have_text(truth.status((0, 1), layer, head))
    for view in ("from", "to"):
        page.locator("#view").select_option(view)
        maps = {(layer, head): truth.attention("0,1", layer, str(head)) for layer in (0, 2) for head in (0, heads - 1)}
        rows, columns = truth.grid
        scale = -(-28 // columns)
        width = heads * (columns * scale + 3) - 3
        pixels = np.array(visit.pixels("#overview canvas")).reshape(-1, width, 4)
        for (layer, head), both in maps.items():
            values_N = both[view == "to"][truth.prefix :]
            top, left = layer * (rows * scale + 3), head * (columns * scale + 3)
            cell = pixels[top : top + rows * scale : scale, left : left + columns * scale : scale]
            assert cell.flatten().tolist() == colours(values_N, 0, values_N.max())
    page.locator("#token").select_option("cls")
    expect(status).to_contain_text("Class token. Layer 2, head 1.")


@pytest.mark.parametrize("name", MODELS)
def test_the_lens_and_merging(visit: Visit, hosts: dict[str, Host], name: str) -> None:
    truth, page = truth_of_sample(hosts, name), visit.open(f"#model={name}&r=0")
    scores_LS = truth.predictor.scores(logit_lens(truth.vit, truth.x_BCHW)[0])
    final = int(scores_LS[-1].argmax())
    assert rows_of(page, "lens-table") == [
        [str(layer), truth.predictor.classes[int(row_S.argmax())], percent(row_S.max()), percent(row_S[final])]
        for layer, row_S in enumerate(np.round(scores_LS.double().numpy(), 6))
    ]
    expect(page.locator("#merge-speed")).to_have_text("Nothing is merged.")
    slide(page, "#r", 3)
    from vitral.efficient.merge import TokenMerging

    merging, count = TokenMerging(r=3), truth.grid[0] * truth.grid[1]
    with torch.no_grad():
        out = truth.vit.encode_tokens(*truth.vit.embed(truth.x_BCHW), reduce=merging)
        merged_S = truth.predictor.scores(truth.vit.classify(truth.vit.pool(out)))[0]
    counts = merging.counts(count, truth.vit.config.depth)
    expect(page.locator("#merge-counts")).to_have_text(f"Patch tokens after each block: {', '.join(map(str, counts))}.")
    expect(page.locator("#merge-speed")).to_contain_text(f"{counts[-1]} of {count} patch tokens are left.")
    expect(page.locator("#merge-speed")).to_contain_text("times as fast")
    visit.quiet()
    table = rows_of(page, "merge-table")
    best = scores_LS[-1].sort(descending=True), merged_S.sort(descending=True)
    for number, row in enumerate(table):
        labels = [truth.predictor.classes[int(each.indices[number])] for each in best]
        shares = [percent(round(float(each.values[number]), 6)) for each in best]
        assert row == [str(number + 1), labels[0], shares[0], labels[1], shares[1]]
    # Patches of one token have one colour, those alone none.
    assert out.groups_BN is not None
    groups = out.groups_BN[0].tolist()
    rows, columns = truth.grid
    cell = round(336 / columns)
    pixels = np.array(visit.pixels("#groups canvas")).reshape(rows * cell, columns * cell, 4)
    pixels = pixels[cell // 2 :: cell, cell // 2 :: cell].reshape(-1, 4)
    for group in set(groups):
        members = [tuple(pixel) for pixel, of in zip(pixels.tolist(), groups, strict=True) if of == group]
        assert len(set(members)) == 1
        assert (members[0][3] > 0) == (len(members) > 1)


def test_a_link_restores_the_page(visit: Visit, browser: Browser, base: str, hosts: dict[str, Host]) -> None:
    page = visit.open("#model=large")
    page.locator("#samples button[value=shapes]").click()
    expect(page.locator("#samples button[value=shapes]")).to_have_attribute("aria-pressed", "true")
    click_patch(page, "#patches", (4, 5), (14, 14))
    slide(page, "#layer", 3)
    page.locator("#head").select_option("2")
    page.locator("#fuse").select_option("max")
    page.locator("#view").select_option("to")
    slide(page, "#r", 5)
    page.get_by_label("Let the picture shine through").check()
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
    expect(again.locator("#status")).to_contain_text("All patches on average. Layer 3, mean of 4 heads.")
    expect(again.locator("#row")).to_have_value("3")
    other.quiet()
    other.close()


def test_a_given_image_comes_back_by_its_link(visit: Visit, browser: Browser, base: str) -> None:
    page = visit.open()
    visit.hand_over("paste", picture(9, 13, seed=40))
    expect(page.locator("#seen")).to_contain_text("Given: 13 × 9 pixels")
    visit.quiet()
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#said")).not_to_be_empty()
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
    expect(page.locator("#status")).to_contain_text("Layer 1")
    lost.close()


@pytest.mark.parametrize("name", MODELS)
def test_the_saved_page_stands_alone(
    visit: Visit, browser: Browser, hosts: dict[str, Host], tmp_path: Path, name: str
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


def test_with_the_keyboard_alone(visit: Visit, hosts: dict[str, Host]) -> None:
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
        (b"x" * 2_000_001, "image/png", "the request is larger than 2000000 bytes"),
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


def test_an_image_that_the_server_let_go_is_given_again(visit: Visit, hosts: dict[str, Host]) -> None:
    visit.refused = True
    page, host = visit.open(), hosts["vitral-digits"]
    host.predictor = vitral.load("vitral-digits", "cpu")
    click_patch(page, "#patches", (0, 0), (4, 4))
    expect(page.locator("#status")).to_contain_text("Patch row 0, column 0.")
    visit.quiet()
    assert page.locator(".error:visible").count() == 0


def test_older_answers_never_replace_newer_ones(visit: Visit, hosts: dict[str, Host]) -> None:
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


def click_patch_now(page: Page, patch: tuple[int, int]) -> None:
    """Chooses a patch by the number inputs, without waiting for anything."""
    page.evaluate(
        """([row, column]) => {
          document.querySelector("#row").value = row;
          document.querySelector("#column").value = column;
          document.querySelector("#column").dispatchEvent(new Event("change"));
        }""",
        list(patch),
    )


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
        page.get_by_role("button", name="Go on").click()
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
        expect(page.locator("#image-error")).to_have_text("This server wants an API key.")
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
    expect(page.locator("#status")).to_have_text("Layer 1 has no head 1, but 1 head.")
    page.locator("#head").select_option("mean")
    expect(page.locator("#status")).to_contain_text("mean of 1 head.")
    visit.quiet()
    assert re.search("model=uneven", page.url)
