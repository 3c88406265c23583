"""What Python says of an image, and small helpers around a page that has to say the same."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from vitral.interpret.attention import stream_maps, token_attention
from vitral.interpret.tokens import token_rows
from vitral.models.vit import VisionTransformer
from vitral.serve.explore_samples import sample
from vitral.serve.model_worker import ModelWorker

if TYPE_CHECKING:
    from playwright.sync_api import Page

MODELS = ["vitral-digits", "large"]
FIRST = {"vitral-digits": "digit-0", "large": "china"}
Array = np.ndarray[Any, Any]


class Truth:
    """What Python says of an image."""

    def __init__(self, host: ModelWorker, data: bytes) -> None:
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

    def status(self, patch: tuple[int, int], layer: int, head: str) -> re.Pattern[str]:
        """What the status line has to say; the last digit of a percentage may differ by rounding."""
        of_T, to_T = (each[self.prefix :] for each in self.attention(f"{patch[0]},{patch[1]}", layer, head))
        named = {"mean": f"mean of {self.vit.config.heads} heads", "max": "maximum over the heads"}
        text = re.escape(
            f"Patch row {patch[0]}, column {patch[1]}. Layer {layer + 1}, {named.get(head, f'head {head}')}. "
            f"Of the patches it attends most to {self.place(of_T)}: @. "
            f"Most attention to it is from {self.place(to_T)}: @. "
            f"To itself: @."
        )
        for share in (of_T.max(), to_T.max(), of_T[patch[0] * self.grid[1] + patch[1]]):
            near = (re.escape(percent(share + change)) for change in (-1e-5, 0, 1e-5))
            text = text.replace("@", f"({'|'.join(near)})", 1)
        return re.compile(text)


def percent(share: float) -> str:
    return f"{100 * share:.3f} %"


def colors(values: Array, low: float, high: float) -> list[int]:
    shares = (values.astype(np.float64) - low) / (high - low)
    return matplotlib.colormaps["viridis"](shares, bytes=True).flatten().tolist()


def truth_of_sample(hosts: dict[str, ModelWorker], name: str) -> Truth:
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
