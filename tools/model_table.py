"""Measure every preset and write src/vitral/models/table.json, which `vitral models` shows without importing torch.

python tools/model_table.py
"""

from __future__ import annotations

import json
from pathlib import Path

from vitral.models.presets import PRESETS, resolve_any
from vitral.models.summary import count_macs, count_parameters

TABLE = Path(__file__).parents[1] / "src" / "vitral" / "models" / "table.json"


def table() -> str:
    """Return the file's text: one line per preset."""
    lines = list[str]()
    for name in PRESETS:
        config = resolve_any(name)
        numbers = {
            "parameters": count_parameters(config), "macs_all_tokens": sum(count_macs(config, whole=True).values()),
        }  # fmt: skip
        lines.append(f"{json.dumps(name)}: {json.dumps(numbers)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
