"""Ranges that exist already, in the forms that people have."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.data.files.known_ranges import KnownRanges, Span, looks_like, read
from qcompiler.errors import DataError


def table(**amax: float) -> str:
    lines = [f"{name}: {struct.pack('>f', value / 127).hex()}" for name, value in amax.items()]
    return "\n".join(["TRT-8601-EntropyCalibration2", *lines, ""])


def read_text(folder: Path, text: str | dict[str, Any], name: str = "ranges") -> KnownRanges:
    (folder / name).write_text(text if isinstance(text, str) else json.dumps(text))
    return read(folder / name)


@pytest.mark.parametrize("header", ["TRT-8601-EntropyCalibration2", "TRT-100900-MinMaxCalibration", "TRT-7000-Legacy"])
def test_a_table_of_tensorrt_has_scales_in_hexadecimal(tmp_path: Path, header: str) -> None:
    found = read_text(tmp_path, table(a=6.35, b=0.5).replace("TRT-8601-EntropyCalibration2", header))
    assert found.kind == "a calibration table of TensorRT"
    assert {name: one.amax for name, one in found.spans.items()} == pytest.approx({"a": 6.35, "b": 0.5})
    assert not any(one.exact for one in found.spans.values())


def test_names_may_have_colons_blanks_and_windows_line_ends(tmp_path: Path) -> None:
    text = f"TRT-8601-EntropyCalibration2\r\nconv/Relu:0: {struct.pack('>f', 1.0).hex()}\r\n"
    text += f"(Unnamed Layer* 0) [Convolution]_output: {struct.pack('>f', 2.0).hex().upper()}\r\n"
    assert {name: one.amax for name, one in read_text(tmp_path, text).spans.items()} == {
        "conv/Relu:0": 127.0,
        "(Unnamed Layer* 0) [Convolution]_output": 254.0,
    }


def test_a_table_without_a_header_has_the_largest_values(tmp_path: Path) -> None:
    found = read_text(tmp_path, "x 3.25\nconv_out 1e-2\n")
    assert {name: one.amax for name, one in found.spans.items()} == {"x": 3.25, "conv_out": 0.01}
    assert found.kind == "a calibration table"


@pytest.mark.parametrize(
    ("value", "span"),
    [
        (3.5, Span(-3.5, 3.5, exact=False)),
        ([-1.5, 2], Span(-1.5, 2.0)),
        ([4], Span(-4.0, 4.0, exact=False)),
        ({"amax": 3}, Span(-3.0, 3.0, exact=False)),
        ({"min": -1, "max": 2}, Span(-1.0, 2.0)),
        ([{"min": 0.0, "max": 6.0, "bitwidth": 8}], Span(0.0, 6.0)),
        ({"lowest": [-1.0], "highest": {"data": [2.0]}}, Span(-1.0, 2.0)),
        ({"scale": 0.5}, Span(-63.5, 63.5, exact=False)),
    ],
)
@pytest.mark.parametrize("key", ["", "activation_encodings", "ranges", "data"])
def test_json_says_it_in_many_ways(tmp_path: Path, value: Any, span: Span, key: str) -> None:
    whole: dict[str, Any] = {"x": value}
    found = read_text(tmp_path, {key: whole, "__class__": "TensorsData"} if key else whole)
    assert found.spans == {"x": span}


def test_encodings_may_be_a_list_with_names(tmp_path: Path) -> None:
    listed = {"activation_encodings": [{"name": "x", "scale": [0.5], "offset": [0]}], "version": "1.0.0"}
    assert read_text(tmp_path, listed).spans == {"x": Span(-63.5, 63.5, exact=False)}


def test_a_tensor_that_may_be_called_like_a_table_is_one(tmp_path: Path) -> None:
    assert read_text(tmp_path, {"data": {"amax": 2.0}, "y": 1}).spans.keys() == {"data", "y"}
    assert read_text(tmp_path, {"data": 2.0}).spans == {"data": Span(-2.0, 2.0, exact=False)}


def manifest(**changes: Any) -> dict[str, Any]:
    rows = [
        {"tensor": "x", "amax": 2.0, "span": None},
        {"tensor": "r", "amax": 3.0, "span": [0.0, 3.0]},
        {"tensor": "smoothed", "amax": 1.0},
    ]
    groups = [{"tensor": "smoothed", "alpha": 0.5}, {"tensor": "x", "alpha": None}]
    return {"qcompiler": "0.1.0", "schema": 2, "quantizers": rows, "smooth_quant": {"groups": groups}, **changes}


def test_a_manifest_gives_what_its_run_did_not_rescale(tmp_path: Path) -> None:
    found = read_text(tmp_path, manifest())
    assert found.kind == "the manifest of an earlier compilation"
    assert found.spans == {"x": Span(-2.0, 2.0, exact=False), "r": Span(0.0, 3.0)}
    assert found.left_out == {"smoothed": "SmoothQuant had rescaled it there"}
    equalized = read_text(tmp_path, manifest(recipe={"equalize": True}))
    assert not equalized.spans
    assert set(equalized.left_out.values()) == {"equalization had rescaled it there"}


def test_a_tensor_that_is_always_zero_has_no_range_of_use(tmp_path: Path) -> None:
    found = read_text(tmp_path, {"x": 0.0, "y": 1.0})
    assert (list(found.spans), found.left_out) == (["y"], {"x": "it is 0 throughout"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no tensor with a range"),
        ("{}", "names no tensor with a range"),
        ("[1, 2]", "it is a list"),
        ('{"x": ', "cannot be read as ranges"),
        ("hello world\n", "line 1 is 'hello world'"),
        ("TRT-8601-EntropyCalibration2\nx: 12\n", "line 2 is 'x: 12'"),
        ('{"x": "wide"}', "says of tensor 'x' \"wide\", which is no range"),
        ('{"x": [2, -1]}', "which is no range"),
        ('{"x": -1}', "which is no range"),
        ('{"x": true}', "which is no range"),
        ('{"x": {"scale": 0.1, "zero_point": 3}}', "which is no range"),
        ('{"x": NaN}', "no range"),
        ('{"x": Infinity}', "no range"),
        ("TRT-8601-EntropyCalibration2\nx: 7fc00000\n", "no range"),
    ],
)
def test_what_holds_no_ranges_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_text(tmp_path, text)
    assert words in str(caught.value)
    assert looks_like(tmp_path / "ranges") == ""


def test_other_files_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    with pytest.raises(DataError, match="it is no text"):
        read(tmp_path / "a.npz")
    with pytest.raises(DataError, match="cannot be read as ranges"):
        read(tmp_path / "none")
    assert looks_like(tmp_path / "a.npz") == looks_like(tmp_path) == looks_like(tmp_path / "none") == ""
    (tmp_path / "calib").write_text(table(x=1.0))
    assert looks_like(tmp_path / "calib") == "a calibration table of TensorRT"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TRT-8601-X\na: 3f800000\na: 3c800000\n", "'a' twice"),
        ("a 1\na 0\n", "'a' twice"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ('{"a": 1' + "0" * 400 + "}", "no range"),
        ('{"a": [0, 1' + "0" * 400 + "]}", "no range"),
        ("[" * 100_000, "cannot be read as ranges"),
        ('{"a": {"scale": 0.1, "offset": "x"}}', "no range"),
        ("a" + " " * 100_000 + "b", "line 1"),
        ("a " + "1" * 100_000 + "b", "line 1"),
        ("TRT-8601-X\n: 3f800000\n", "line 2"),
        ("TRT-8601-X\na: bf800000\n", "no range"),
        ("TRT-8601-X\na: 7fc00000\n", "no range"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_takes_no_time(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_text(tmp_path, text)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantizers": 3},
        {"quantizers": [{}]},
        {"quantizers": [{"tensor": "a", "amax": None}]},
        {"smooth_quant": [1]},
        {"recipe": 3},
    ],
)
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="whose quantizers cannot be read"):
        read_text(tmp_path, manifest(**changes))
    assert looks_like(tmp_path / "ranges") == ""


def test_the_same_range_may_be_there_twice(tmp_path: Path) -> None:
    assert read_text(tmp_path, "a 1\na 1\n").spans["a"].amax == 1.0


def test_the_mark_that_windows_puts_in_front_is_not_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "ranges").write_text('{"a": 1}', "utf-8-sig")
    assert set(read(tmp_path / "ranges").spans) == {"a"}
