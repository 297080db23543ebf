"""The protobuf wire format of ONNX files, as far as weights need it: cut them out on reading, stream them on writing.

protobuf copies every `raw_data` it parses, so a model would be held twice before anything has been done with it.
`strip` walks the length-delimited fields that can lead to a weight,

    ModelProto.graph(7) > GraphProto.initializer(5) > TensorProto.raw_data(9)
                        > GraphProto.node(1) > NodeProto.attribute(5) > AttributeProto.t(5) > TensorProto.raw_data(9)
                                                                      > AttributeProto.g(6) > GraphProto ...

and leaves in the place of each large `raw_data` an external-data note that points into the very same file. The rest
is handed to protobuf, and the weights become views of the mapped file. `delimited` is the writing half: the tag and
length in front of a field whose content is streamed from somewhere else.

Everything here is a pure function of bytes. The encoding is specified at
https://protobuf.dev/programming-guides/encoding, the field numbers in onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

EMBEDDED = "\0embedded"  # location of a weight inside the model file; NUL cannot occur in the name of a real file
THRESHOLD = 4096  # bytes of raw_data from which cutting pays

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 100  # protobuf's own limit on nested messages
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
}


class WireError(ValueError):
    """The bytes are not a protobuf message: cut short or something else altogether."""


class Field(NamedTuple):
    """One field of a message: its number, wire type, and where its tag, its value and the next field begin."""

    number: int
    kind: int
    start: int
    value: int
    end: int


def strip(data: memoryview, threshold: int = THRESHOLD) -> bytes:
    """Returns the ModelProto `data` without the `raw_data` of `threshold` bytes or more.

    A tensor so cut has `data_location` EXTERNAL and the entries location = `EMBEDDED`, offset and length (decimal, in
    bytes from the beginning of `data`). Tensors that already are external, or that give `raw_data` twice, stay as
    they are; so do weights inside local functions and sparse tensors.

    Raises:
        WireError: `data` is not a well-formed message.
    """
    return b"".join(_strip(data, 0, len(data), "model", threshold, 0))


def varint(number: int) -> bytes:
    """Encodes a non-negative integer, seven bits a byte, lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def delimited(number: int, length: int) -> bytes:
    """The tag and length in front of `length` bytes of the length-delimited field `number`."""
    return varint(number << 3 | _DELIMITED) + varint(length)


def fields(data: memoryview, start: int, end: int) -> Iterator[Field]:
    """Yields the fields of the message in `data[start:end]`.

    Raises:
        WireError: a field reaches beyond `end`, or has a wire type that ONNX never uses.
    """
    at = start
    while at < end:
        tag, value = _read_varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise WireError(f"field number 0 at byte {at}")
        stop = _end_of_value(data, kind, value, end)
        if kind == _DELIMITED:
            size, value = _read_varint(data, value, end)
            stop = value + size
        if stop > end:
            raise WireError(f"field {number} at byte {at} ends {stop - end} bytes behind the end of its message")
        yield Field(number, kind, at, value, stop)
        at = stop


def _end_of_value(data: memoryview, kind: int, value: int, end: int) -> int:
    if kind == _VARINT:
        return _read_varint(data, value, end)[1]
    if kind == _FIXED64:
        return value + 8
    if kind == _FIXED32:
        return value + 4
    if kind == _DELIMITED:
        return value
    raise WireError(f"wire type {kind} before byte {value}")


def _read_varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise WireError(f"the message ends in the middle of a number at byte {at}")
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
    raise WireError(f"a number of more than ten bytes before byte {at}")


def _strip(
    data: memoryview, start: int, end: int, message: str, threshold: int, depth: int
) -> list[bytes | memoryview]:
    """The message as pieces; what holds no large weight is passed on as one view."""
    if depth > _MAX_DEPTH:
        raise WireError(f"messages nested more than {_MAX_DEPTH} deep")
    if message == "tensor":
        return _strip_tensor(data, start, end, threshold)
    children = _CHILDREN[message]
    pieces: list[bytes | memoryview] = []
    copied = start
    for field in fields(data, start, end):
        child = children.get(field.number) if field.kind == _DELIMITED else None
        if child is None or field.end - field.value < threshold:
            continue
        inner = _strip(data, field.value, field.end, child, threshold, depth + 1)
        pieces.append(data[copied : field.start])
        pieces.append(delimited(field.number, sum(map(len, inner))))
        pieces.extend(inner)
        copied = field.end
    pieces.append(data[copied:end])
    return pieces


def _strip_tensor(data: memoryview, start: int, end: int, threshold: int) -> list[bytes | memoryview]:
    raw: list[Field] = []
    for field in fields(data, start, end):
        if field.number in (_EXTERNAL_DATA, _DATA_LOCATION):
            return [data[start:end]]
        if field.number == _RAW_DATA and field.kind == _DELIMITED:
            raw.append(field)
    if len(raw) != 1 or raw[0].end - raw[0].value < threshold:
        return [data[start:end]]
    cut = raw[0]
    note = (
        _entry("location", EMBEDDED)
        + _entry("offset", str(cut.value))
        + _entry("length", str(cut.end - cut.value))
        + varint(_DATA_LOCATION << 3 | _VARINT)
        + varint(1)
    )
    return [data[start : cut.start], data[cut.end : end], note]


def _entry(key: str, value: str) -> bytes:
    """One StringStringEntryProto as an element of `external_data`."""
    pair = b"".join(delimited(number, len(text)) + text for number, text in ((1, key.encode()), (2, value.encode())))
    return delimited(_EXTERNAL_DATA, len(pair)) + pair
