"""Class names that look alike, and words for a missing label."""

from __future__ import annotations

import pytest

from vitral.data.class_names import class_name_findings


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("cat", "dog"), {}),
        (("caf\u00e9", "cafe\u0301"), {"alike-classes": "error"}),  # composed, decomposed
        (("cat", "cat\u200b"), {"alike-classes": "error"}),  # a space without width
        (("cat", "cat\u00a0"), {"alike-classes": "error"}),
        (("cat", "\ufeffcat"), {"alike-classes": "error"}),
        (("polar bear", "polar\u00a0bear", "owl"), {"alike-classes": "error"}),
        (("cat", "\uff43at"), {"alike-classes": "error"}),  # a full-width letter
        (("\u2764", "\u2764\ufe0f"), {"alike-classes": "error"}),  # a variation selector
        (("R", "\u211d"), {"alike-classes": "warning"}),  # signs that differ, though of one letter
        (("1", "\u2460"), {"alike-classes": "warning"}),
        (("m2", "m\u00b2"), {"alike-classes": "warning"}),
        (("\uff71", "\u30a2"), {"alike-classes": "warning"}),
        (("Cat", "cat"), {"alike-classes": "warning"}),
        (("polar bear", "polar_bear"), {"alike-classes": "warning"}),
        (("A", "a", "B", "b"), {"alike-classes": "warning"}),
        (("caf\u00e9", "cafe"), {}),
        (("cat", "dog", "nan"), {"missing-label": "error"}),
        (("cat", "dog", "NaN"), {"missing-label": "error"}),
        (("cat", "dog", "N/A"), {"missing-label": "error"}),
        (("cat", "dog", "<NA>"), {"missing-label": "error"}),
        (("cat", "None"), {"missing-label": "warning"}),
        (("DE", "FR", "NA"), {"missing-label": "warning"}),
        (("null", "ring"), {"missing-label": "warning"}),
        (("-1", "0", "1", "2"), {"missing-label": "error"}),
        (("-1", "0", "1"), {"missing-label": "warning"}),
        (("-1", "1"), {}),
        (("-1", "cold"), {}),
        (("nanny", "naan"), {}),
    ],
)
def test_class_names(classes: tuple[str, ...], expected: dict[str, str]) -> None:
    assert {each.code: each.severity for each in class_name_findings(classes)} == expected


def test_names_are_written_so_that_the_difference_is_seen() -> None:
    [finding] = class_name_findings(("cat", "cat\u200b", "dog"))
    assert "'cat' and 'cat\\u200b'" in finding.message
    assert finding.numbers == {"classes": 2}
