"""The section about the values that inputs get."""

from __future__ import annotations

from qcompiler.report.inputs import inputs
from tests.kit.report.pages import EVIL, Document


def test_without_data_there_is_no_section() -> None:
    assert inputs(None) == ""
    assert inputs({}) == ""


def test_each_input_has_a_row_for_each_set_of_data() -> None:
    spread = {"elements": 123456, "minimum": -2.25, "maximum": 3.5, "mean": 0.5, "std": 1.25}
    page = inputs({"calibration": {EVIL: spread, "y": spread}, "metric": {EVIL: {**spread, "maximum": 255.0}}})
    document = Document(page)
    assert document.open == []
    text = " ".join(document.texts)
    assert text.count(EVIL) == 2
    assert text.index("calibration") < text.index("metric") < text.index("y calibration")
    for figure in ("-2.25", "3.5", "255", "1.25", "123 k"):
        assert figure in text
