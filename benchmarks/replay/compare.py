"""Two folders of the replay side by side: what differs, as short paths with both values.

JSON is compared value by value, type and order included; everything else byte by byte. ONNX files that are not equal
are opened to say where. Only stamps and what is measured of a run are left out: see `STAMPS` and `MEASURED`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

STAMPS: Final = ("schema", "qcompiler", "peak_memory_mb", "estimate")  # of a manifest: not compared
NEW_NAMES: Final[Mapping[str, str]] = MappingProxyType({"smoothing": "smooth_quant"})  # keys of a manifest, old → new
NEW_STAGES: Final[Mapping[str, str]] = MappingProxyType(  # in its `timings`
    {
        "clean up": "clean_up",
        "pre-flight": "preflight",
        "smooth": "smooth_quant",
        "llm-int8": "llm_int8",
        "weights": "weight_only",
        "build": "build_engine",
    }
)
NEW_FLAGS: Final[Mapping[str, str]] = MappingProxyType(  # that texts advise
    {
        "--smooth": "--smooth-quant",
        "--smooth-insert": "--smooth-quant-insert",
        "--weight-method": "--weight-only-method",
        "--block-size": "--weight-only-block-size",
        "--weight-head": "--weight-only-head",
        "--weight-storage": "--weight-only-storage",
    }
)
MEASURED: Final = frozenset({"seconds", "peak_rss_mb"})  # keys whose number is a time or memory, wherever they stand
SHOWN = 100  # characters of a value
FEW = 4  # elements of a tensor whose values are shown
_FLAG: Final = re.compile(r"--[a-z][a-z0-9-]*")
MODELS: Final = "models"  # the folder beside those of the cases


def names(folder: Path, only: str = "") -> list[str]:
    """The cases that a folder has and that match a regular expression."""
    return sorted(
        one.name for one in folder.iterdir() if one.is_dir() and one.name != MODELS and re.search(only, one.name)
    )


def case(first: Path, second: Path) -> dict[str, list[str]]:
    """What differs between the folders of one case, by file, one line each; empty if nothing does."""
    if not first.is_dir() or not second.is_dir():
        return {"": [f"only in {(first if first.is_dir() else second).parent}"]}
    files = sorted({path.name for path in (*first.iterdir(), *second.iterdir())})
    found = {file: list(_file(first / file, second / file)) for file in files}
    return {file: lines for file, lines in found.items() if lines}


def _file(first: Path, second: Path) -> Iterator[str]:
    if not first.exists() or not second.exists():
        yield f"{first.name}: only in {(first if first.exists() else second).parent.parent}"
        return
    contents = first.read_bytes(), second.read_bytes()
    if contents[0] == contents[1]:
        return
    if first.suffix == ".json":
        yield from values(first.name, *(_normal(first.name, json.loads(content)) for content in contents))
        return
    yield f"{first.name}: {len(contents[0])} and {len(contents[1])} bytes that differ"
    if first.suffix == ".onnx":
        yield from values(first.name, _graph(first), _graph(second))


def _normal(name: str, data: Any) -> Any:
    """A manifest under its newest names and without stamps; what is measured becomes None, and its keys stay."""
    if name == "m.manifest.json":
        data = {NEW_NAMES.get(key, key): value for key, value in data.items() if key not in STAMPS}
        data["timings"] = dict.fromkeys(NEW_STAGES.get(stage, stage) for stage in data["timings"])
        if data["engine"]:
            data["engine"]["sha256"] = None  # of two builds of one graph some bytes may differ, not size or listing
            profiles = data["engine"]["profiles"] or []  # schema 1 had an empty "values" in each
            data["engine"]["profiles"] = [{k: v for k, v in one.items() if k != "values" or v} for one in profiles]
    return _unmeasured(data)


def _unmeasured(data: Any) -> Any:
    """Without what is measured, with the newest flags in texts."""
    if isinstance(data, str):
        return _FLAG.sub(lambda found: NEW_FLAGS.get(found[0], found[0]), data)
    if isinstance(data, dict):
        return {key: None if key in MEASURED else _unmeasured(value) for key, value in data.items()}
    return [_unmeasured(value) for value in data] if isinstance(data, list) else data


def values(path: str, first: Any, second: Any) -> Iterator[str]:
    """Paths into plain data at which the two differ, with both values; 1 and 1.0 are not the same, NaN is."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in first | second:
            if key not in first or key not in second:
                yield f"{path}.{key}: only in the {'first' if key in first else 'second'}"
                continue
            yield from values(f"{path}.{key}", first[key], second[key])
        if first.keys() == second.keys() and list(first) != list(second):
            yield f"{path}: keys in another order"
    elif isinstance(first, list) and isinstance(second, list):
        if len(first) != len(second):
            yield f"{path}: {len(first)} and {len(second)} entries"
        for at, (one, other) in enumerate(zip(first, second, strict=False)):
            yield from values(f"{path}[{at}]", one, other)
    elif json.dumps(first) != json.dumps(second):
        yield f"{path}: {_short(first)} → {_short(second)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _graph(path: Path) -> dict[str, Any]:
    """A model as plain data, large tensors as hashes; weights in files beside it are files of their own."""
    proto = onnx.load(path, load_external_data=False)
    graph = proto.graph
    nodes = [
        {
            "name": node.name,
            "op": f"{node.domain}::{node.op_type}" if node.domain else node.op_type,
            "inputs": list(node.input),
            "outputs": list(node.output),
            "attributes": {one.name: _bytes(one) for one in node.attribute},
        }
        for node in graph.node
    ]
    return {
        "opsets": {one.domain: one.version for one in proto.opset_import},
        "nodes": nodes,
        "weights": {one.name: _tensor(one) for one in graph.initializer},
        "inputs": {one.name: _bytes(one) for one in graph.input},
        "outputs": {one.name: _bytes(one) for one in graph.output},
        "inner": {one.name: _bytes(one) for one in graph.value_info},
        "metadata": {one.key: one.value for one in proto.metadata_props},
    }


def _tensor(tensor: onnx.TensorProto) -> Any:
    """A hash, and of a small tensor the values too."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL or math.prod(tensor.dims) > FEW:
        return _bytes(tensor)
    held = numpy_helper.to_array(tensor)
    return {"dtype": str(held.dtype), "values": held.astype(np.float64).tolist(), "bytes": _bytes(tensor)}


def _bytes(message: Any) -> str:
    content: bytes = message.SerializeToString(deterministic=True)
    return hashlib.sha256(content).hexdigest()[:12]
