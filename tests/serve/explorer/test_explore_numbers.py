"""In a browser, the explorer's page shows the numbers that Python has, in the right colors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.serve.explorer.browser import Visit, expect
from tests.serve.explorer.test_explore_views import picture
from tests.serve.explorer.truth import (
    MODELS,
    Array,
    click_patch,
    colors,
    percent,
    rows_of,
    slide,
    truth_of_sample,
)
from vitral.compression.tome import ToMe
from vitral.interpret.logit_lens import logit_lens
from vitral.interpret.patches import patch_norms, patch_similarity
from vitral.interpret.rollout import rollout
from vitral.interpret.tokens import token_names
from vitral.serve.model_worker import ModelWorker


@pytest.mark.parametrize("name", MODELS)
def test_chosen_pasted_and_dropped_images(
    visit: Visit, hosts: dict[str, ModelWorker], tmp_path: Path, name: str
) -> None:
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
def test_patches_by_mouse_and_keys(visit: Visit, hosts: dict[str, ModelWorker], name: str) -> None:
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
def test_colors_and_numbers_of_the_maps(visit: Visit, hosts: dict[str, ModelWorker], name: str) -> None:
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
        found, expected = np.array(visit.pixels(f"#{view} canvas")), np.array(colors(values_N, low, high))
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
    page.get_by_label("Overlay on the image").check()
    assert page.locator("#from canvas").evaluate("(canvas) => getComputedStyle(canvas).opacity") == "0.6"


@pytest.mark.parametrize("name", MODELS)
def test_layers_heads_and_the_overview(visit: Visit, hosts: dict[str, ModelWorker], name: str) -> None:
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
            assert cell.flatten().tolist() == colors(values_N, 0, values_N.max())
    page.locator("#token").select_option("cls")
    expect(status).to_contain_text("Class token. Layer 3, head 1.")


@pytest.mark.parametrize("name", MODELS)
def test_the_lens_and_merging(visit: Visit, hosts: dict[str, ModelWorker], name: str) -> None:
    truth, page = truth_of_sample(hosts, name), visit.open(f"#model={name}&r=0")
    scores_LS = truth.predictor.scores(logit_lens(truth.vit, truth.x_BCHW)[0])
    final = int(scores_LS[-1].argmax())
    assert rows_of(page, "lens-table") == [
        [str(layer + 1), truth.predictor.classes[int(row_S.argmax())], percent(row_S.max()), percent(row_S[final])]
        for layer, row_S in enumerate(np.round(scores_LS.double().numpy(), 6))
    ]
    expect(page.locator("#merge-speed")).to_have_text("Nothing is merged.")
    slide(page, "#r", 3)
    merging, count = ToMe(r=3), truth.grid[0] * truth.grid[1]
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
    # Patches of one token have one color, those alone none.
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
