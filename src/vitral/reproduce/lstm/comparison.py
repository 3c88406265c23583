"""What replaces the recurrence: the Transformer (arXiv 1706.03762) beside LSTMs (1409.3215) without attention, with
additive (1409.0473) and with dot attention (1508.04025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitral.config import flatten
from vitral.errors import UserError
from vitral.report.render import to_console, write_page
from vitral.reproduce.lstm.config import LstmOptions
from vitral.reproduce.lstm.page import figures, sections
from vitral.reproduce.lstm.parts import PARTS
from vitral.reproduce.lstm.setup import SETS, Comparison
from vitral.reproduce.runs import comparison, settings, write_plot, write_table
from vitral.run.finish import versions
from vitral.training.metrics_log import console_logging, log

PAGE = "report.html"


def lstm(options: LstmOptions | None = None, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Answer the questions of `options.parts`; returns what table.json holds; writes pictures and report.html.

    Each part has "rows" with the values of all seeds, their mean and standard deviation, and "claims", each with its
    rule and verdict. overrides: further keys of the runs, those of `model` for the Transformer. Raises UserError for
    keys that the comparison sets itself, and for all that a run raises.
    """
    console_logging()
    options, keys = options or LstmOptions(), flatten(overrides or {})
    for key in keys.keys() & SETS.keys():
        raise UserError("this key is set by the comparison", where=key, hint=SETS[key])
    with comparison("lstm", options, overrides or {}) as folder:
        context = Comparison(options, keys, folder)
        parts: dict[str, Any] = {}
        for name in PARTS:
            if name in options.parts:
                log.info("part %s", name)
                parts[name] = PARTS[name](context)
        found = {**settings(options), "versions": versions(), "results": parts}
        drawn = figures(found)
        for figure in drawn.values():
            write_plot(folder / figure.name, figure.content)
        write_page(folder / PAGE, "Transformer and LSTM", sections(found, drawn))
        write_table(folder, found)  # last: a folder that has it is complete
    return found


def lstm_text(found: Mapping[str, Any]) -> str:
    """Return the tables and claims as text."""
    return to_console(sections(found, {}))
