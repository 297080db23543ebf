"""Ranges of activations that are known already: calibration tables, JSON, manifests of earlier compilations."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qcompiler.errors import DataError

_HEADER = re.compile(r"(TRT-\d+-\S*Calibrat\S*|TRT-\d+-\S+|1)\s*$")
_HEX = re.compile(r"[0-9a-fA-F]{8}")
_DECIMAL = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_STEPS: Final = 127  # of INT8 on each side of zero
_TABLE: Final = "a calibration table of TensorRT"
FORMS: Final = (
    'a calibration table of TensorRT (calibration.cache), JSON such as {"tensor": 3.2, "other": [-1.5, 2.0]}, or a '
    "manifest of an earlier compilation"
)


@dataclass(frozen=True, slots=True)
class Span:
    """Lowest and highest value of a tensor; symmetric where only the largest |x| is known.

    Attributes:
        low: in the tensor's own unit.
        high: at least `low`.
        exact: both ends are known; else they are the largest |x| with both signs.
    """

    low: float
    high: float
    exact: bool = True

    @property
    def amax(self) -> float:
        """Largest |x|."""
        return max(-self.low, self.high)


@dataclass(frozen=True)
class KnownRanges:
    """What a file says of tensors.

    Attributes:
        path: of the file.
        kind: what it is, for people.
        spans: by tensor name.
        left_out: tensors whose ranges are of no use here, each with why.
    """

    path: str
    kind: str
    spans: Mapping[str, Span]
    left_out: Mapping[str, str]


def looks_like(path: Path) -> str:
    """What kind of file with ranges this is; empty for none."""
    try:
        return "" if path.is_dir() or path.stat().st_size > 1 << 28 else read(path).kind
    except (DataError, OSError):
        return ""


def read(path: Path) -> KnownRanges:
    """The ranges of a file.

    Raises:
        DataError: it cannot be read, or holds no ranges.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
        raise DataError(f"'{path}' cannot be read as ranges ({why}); give {FORMS}.") from error
    found = _of_json(path, text) if text.lstrip()[:1] in ("{", "[") else _of_table(path, text)
    if not found.spans and not found.left_out:
        raise DataError(f"'{path}' names no tensor with a range; give {FORMS}.")
    return found


def _of_table(path: Path, text: str) -> KnownRanges:
    """`TRT-8601-EntropyCalibration2` and a line `tensor: 3c010a14` each: the scale as a big-endian float.

    Without that header, `tensor 3.2` each: what ONNX Runtime writes for its TensorRT provider.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    header = bool(lines) and _HEADER.match(lines[0].strip()) is not None
    spans: dict[str, Span] = {}
    zero: dict[str, str] = {}
    for number, line in enumerate(lines[header:], start=1 + header):
        name, value = _split(line.strip(), header)
        if not name or (_HEX if header else _DECIMAL).fullmatch(value) is None:
            raise DataError(f"'{path}' cannot be read as ranges: line {number} is {line[:60]!r}; give {FORMS}.")
        amax = struct.unpack(">f", bytes.fromhex(value))[0] * _STEPS if header else float(value)
        _put(path, name, Span(-amax, amax, exact=False), spans, zero)
    kind = _TABLE if header else "a calibration table"
    return KnownRanges(str(path), kind, spans, zero)


def _split(line: str, header: bool) -> tuple[str, str]:
    """Name and number of a line: behind its last colon, or, without a header, its last colon or space."""
    cut = max(line.rfind(one) for one in (":" if header else ": \t"))
    return line[: max(cut, 0)].rstrip(": \t"), line[cut + 1 :].strip()


def _of_json(path: Path, text: str) -> KnownRanges:
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' cannot be read as ranges ({error}); give {FORMS}.") from error
    if not isinstance(found, Mapping):
        raise DataError(f"'{path}' cannot be read as ranges: it is a list; give {FORMS}.")
    if "qcompiler" in found and "quantizers" in found:
        return _of_manifest(path, found)
    spans: dict[str, Span] = {}
    zero: dict[str, str] = {}
    for name, value in _entries(found):
        _put(path, name, _span(path, name, value), spans, zero)
    return KnownRanges(str(path), "JSON with ranges", spans, zero)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which no key may be twice: nothing says which of them is meant."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"'{key}' is there twice")
        found[key] = value
    return found


def _entries(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Tensors and what is said of them: at the top, or where AIMET, ONNX Runtime and others have it."""
    for key in ("activation_encodings", "ranges", "tensors", "data"):
        inner = found.get(key)
        if isinstance(inner, Mapping) and not _is_span(inner):
            yield from _entries(inner)
            return
        if isinstance(inner, Sequence) and inner and all(isinstance(one, Mapping) and "name" in one for one in inner):
            yield from ((str(one["name"]), one) for one in inner)
            return
    yield from ((name, value) for name, value in found.items() if not name.startswith("__"))


def _is_span(value: Mapping[str, Any]) -> bool:
    return any(key in value for key in ("amax", "min", "max", "lowest", "highest", "scale"))


def _span(path: Path, name: str, value: Any) -> Span:
    """One entry: a number, two numbers, or a table with `amax`, `min` and `max`, or `scale`."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        low, high = value.get("min", value.get("lowest")), value.get("max", value.get("highest"))
        if low is not None and high is not None:
            value = [_number(low), _number(high)]
        elif value.get("amax") is not None:
            value = _number(value["amax"])
        elif value.get("scale") is not None and _number(value.get("zero_point", value.get("offset", 0))) == 0:
            scale = _number(value["scale"])
            value = None if scale is None else scale * _STEPS
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        low, high = map(_number, value)
        if low is not None and high is not None and low <= high:
            return Span(low, high)
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return Span(-_float(value), _float(value), exact=False)
    raise DataError(
        f"'{path}' says of tensor '{name}' {json.dumps(value)[:80]}, which is no range: give its largest |x|, [lowest, "
        'highest], or {"amax": ...}.'
    )


def _number(value: Any) -> float | None:
    """A number, alone, in a list of one, or as ONNX Runtime's calibration writes it."""
    if isinstance(value, Mapping):
        value = value.get("data")
    while isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
        value = value[0]
    return _float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _float(value: float) -> float:
    """Infinite where an integer is beyond all floats."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _put(path: Path, name: str, span: Span, spans: dict[str, Span], zero: dict[str, str]) -> None:
    if not (math.isfinite(span.low) and math.isfinite(span.high)) or span.amax < 0:
        raise DataError(f"'{path}' says of tensor '{name}' that it goes from {span.low:g} to {span.high:g}: no range.")
    if (name in zero or name in spans) and spans.get(name, Span(0.0, 0.0)).amax != span.amax:
        raise DataError(f"'{path}' names tensor '{name}' twice, with different ranges: leave one of them out.")
    if span.amax == 0:
        zero[name] = "it is 0 throughout"
    else:
        spans[name] = span


def _of_manifest(path: Path, found: Mapping[str, Any]) -> KnownRanges:
    """The quantizers of an earlier run, without the tensors that it has rescaled."""
    spans: dict[str, Span] = {}
    left: dict[str, str] = {}
    try:
        smoothed = found.get("smooth_quant") or found.get("smoothing") or {}  # its name before schema 2
        rescaled = {str(one["tensor"]) for one in smoothed.get("groups", []) if one.get("alpha") is not None}
        equalized = bool((found.get("recipe") or {}).get("equalize"))
        known = [(str(row["tensor"]), _quantizer(row)) for row in found["quantizers"] or []]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"'{path}' is a manifest whose quantizers cannot be read ({type(error).__name__}: {error}): take it from "
            f"the folder of that compilation again, or give {FORMS}."
        ) from error
    for name, span in known:
        if name in rescaled or equalized:
            left[name] = f"{'equalization' if equalized else 'SmoothQuant'} had rescaled it there"
        else:
            _put(path, name, span, spans, left)
    return KnownRanges(str(path), "the manifest of an earlier compilation", spans, left)


def _quantizer(row: Mapping[str, Any]) -> Span:
    amax, span = float(row["amax"]), row.get("span")
    return Span(float(span[0]), float(span[1])) if span else Span(-amax, amax, exact=False)
