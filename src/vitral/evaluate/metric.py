"""A metric: name, value, interval, direction and format, for log, summary, report, model card and console."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


def percent(share: float, digits: int = 2) -> str:
    """Format a fraction as a percentage, with more digits where rounding would give a false 0 or 100: "99.996"."""
    for more in range(digits, 6):
        text = f"{100 * share:.{more}f}"
        if share in (0, 1) or float(text) not in (0, 100):
            return text
    return repr(100 * share)


def eps_text(eps: float) -> str:
    """Format the size of a change of images in [0,1]: "8/255" where that is exact (up to 32), else "0.1"."""
    levels = round(255 * eps)
    return f"{levels}/255" if 0 < levels <= 32 and abs(255 * eps - levels) < 1e-6 else f"{eps:.4g}"


@dataclass(frozen=True)
class Metric:
    """A number with its meaning.

    `name` is its key in summary.json and in the JSON of commands, `label` its name in reports. `value` is in natural
    units: a share is in [0, 1], independent of `format`. `interval` is (low, high) at 95 %, in the units of `value`.
    None as `value`: undefined on these samples. `unit` follows the number where `format` is not "percent".
    """

    name: str
    label: str
    value: float | int | None
    interval: tuple[float, float] | None = None
    higher_is_better: bool = True
    format: Literal["percent", "number", "integer"] = "percent"
    unit: str = ""

    def better(self, other: float) -> bool:
        """Return whether `value` is better than `other`; an undefined value never is."""
        if self.value is None:
            return False
        return self.value > other if self.higher_is_better else self.value < other

    def text(self, value: float | None = None) -> str:
        """Format `value`, by default the metric's own: "97.22 %", "3.14 years", "1,024"."""
        shown = self.value if value is None else value
        if shown is None:
            return "–"
        match self.format:
            case "percent":
                return f"{percent(shown)} %"
            case "integer":
                return f"{int(shown):,} {self.unit}".rstrip()
            case "number":
                return f"{shown:.4g} {self.unit}".rstrip()

    def interval_text(self) -> str:
        """Format the interval: "95 % interval 95.1 to 98.3 %"; empty without an interval."""
        if self.interval is None:
            return ""
        low, high = (self.text(end) for end in self.interval)
        return f"95 % interval {low.removesuffix(' %')} to {high}"

    def row(self) -> dict[str, Any]:
        """Return the `"primary"` entry of summary.json and of commands: name, value and interval."""
        return {"name": self.name, "value": self.value, "interval": list(self.interval) if self.interval else None}


def missed_limits(limits: Mapping[str, float], values: Mapping[str, Any]) -> list[str]:
    """Return one sentence per metric beyond its limit; keys of limits are min_METRIC or max_METRIC. A metric that is
    undefined or was not measured meets no limit."""
    missed: list[str] = []
    for key, limit in limits.items():
        side, _, name = key.partition("_")
        value = values.get(name)
        if value is None:
            why = "is undefined on these samples" if name in values else "was not measured by these evaluators"
            missed.append(f"{name} {why}, so {key}={limit} is not met")
        elif value < limit if side == "min" else value > limit:
            missed.append(f"{name} {value:.4f} is {'below' if side == 'min' else 'above'} {key}={limit}")
    return missed
