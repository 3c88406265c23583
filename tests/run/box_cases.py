"""Cases of the keys of boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from vitral.data.config import DataConfig
from vitral.data.sources import open_dataset


def test_how_boxes_are_written(tmp_path: Path) -> None:
    """As a source reads them."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("path,label,x0,y0,x1,y1\na.png,cat,.5,.5,.5,.2\n", encoding="utf-8")

    def read(**keys: Any) -> list[list[float]]:
        data = DataConfig(path=str(tmp_path / "boxes.csv"), **keys)
        boxes = open_dataset(data, hold_out=False, boxes=True).splits["train"].boxes
        assert boxes is not None
        return boxes.boxes_X4.tolist()

    assert read() == [[0.5, 0.5, 0.5, 0.2]]
    assert read(box_unit="normalized") == [[20, 15, 20, 6]]
    assert read(box_unit="normalized", box_format="cxcywh") == [[10, 12, 30, 18]]
