"""Weights in few bits in the report: a line on the terminal, a table in the page."""

from __future__ import annotations

from typing import Any

from qcompiler.report import weight_only


def layer(node: str, **changes: Any) -> dict[str, Any]:
    return {
        "node": node, "depth": 256, "width": 128, "format": "int4", "block": 64, "method": "gptq", "bytes": 17_000,
        "weight_db": 19.0, "output_db": 25.5, "gain_db": 6.25, "why": "", **changes,
    }  # fmt: skip


def found(*layers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    forms = {"int4 in blocks of 64": len(layers)}
    return {
        "method": "awq+gptq", "layers": list(layers), "forms": forms, "bytes_before": 131_000, "bytes_after": 34_000,
        "restored": [], "scaled": {}, **changes,
    }  # fmt: skip


def test_the_line_has_form_method_bytes_and_the_worst_layer() -> None:
    text = weight_only.line(found(layer("up"), layer("down <1>", output_db=21.0)))
    assert text == "2 int4 in blocks of 64, by awq+gptq: 131 kB to 34 kB; down <1> errs most, 21.0 dB"
    assert "; 2 went back to float for a gate;" in weight_only.line(found(layer("up"), restored=["a", "b"]))
    assert "; 1 table int8 per row; up errs" in weight_only.line(found(layer("up"), tables=["embed"]))
    assert weight_only.line(found()) == "none"


def test_methods_that_were_chosen_are_counted_and_the_figure_says_where_it_was_measured() -> None:
    told = found(layer("up", judged="held out"), method="auto", methods={"gptq": 3, "rtn": 1})
    text = weight_only.line(told)
    assert ", by auto (gptq 3, rtn 1): " in text
    assert text.endswith("up errs most, 25.5 dB (held out)")
    assert "held out" in weight_only.weight_only(told)


def test_without_data_the_weight_s_own_error_stands_in() -> None:
    text = weight_only.line(
        found(layer("a", output_db=None, weight_db=18.0), layer("b", output_db=None, weight_db=17.0))
    )
    assert text.endswith("b errs most, 17.0 dB")


def test_the_section_lists_every_layer_escaped() -> None:
    page = weight_only.weight_only(
        found(
            layer("down <1>"),
            layer("head", format="int8", block=None, gain_db=None, why="INT8, because it gives the logits"),
            scaled={"x": 3.25, "y": 1.5},
        )
    )
    for text in ("down &lt;1&gt;", "INT4, blocks of 64", "25.5 dB", "because it gives the logits"):
        assert text in page
    assert "AWQ scaled 2 activations, which gained up to 3.2 dB" in page
    assert "<1>" not in page
    assert weight_only.weight_only(None) == weight_only.weight_only(found()) == ""
