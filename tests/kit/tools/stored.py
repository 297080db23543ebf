"""Manifests of real compilations with odd names, made once in a run of the tests, and figures looked up in them."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx

from qcompiler.compiler.compile import compile, quantize
from qcompiler.errors import AccuracyError
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import SafetyTable, WeightOnlyTable
from qcompiler.report import figures
from qcompiler.report.manifest import to_text
from tests.kit.cases import prepared

ODD = {  # names as other people give them
    "c1": "schicht größe/0",
    "c2": "/backbone/stage.0/conv 2 (int8?)",
    "n2": "层/归一化[2]",
    "s2": "+",
    "c3": "\"quoted' <b>\\name</b>",
    "y": "a.*b",
}
SEARCHED = SafetyTable(target_sqnr_db=55.0, min_share=0.3)
RTN = WeightOnlyTable(method="rtn")
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "int8": {"safety": SafetyTable(target_sqnr_db=55.0, min_share=0.97)},  # searched, and nothing may go back
    "mixed": {"precision": "auto:int8,fp8,fp16", "target": "tensorrt-rtx:sm89", "safety": SEARCHED},
    "fp8": {"precision": "fp8", "target": "tensorrt-rtx:sm89", "safety": SafetyTable(target_sqnr_db=10.0)},
    "dynamic": {"precision": "int8-dynamic", "target": "onnxruntime"},
    "weights": {"precision": "int4-weight"},
    "bare": {"precision": "int8-weight", "high_precision": "bf16", "weight_only": RTN},  # without data
    "failed": {"min_sqnr": 150.0},
}
KINDS = ("engine", *RECIPES)


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="qcompiler-stored-")


@lru_cache
def folder_of(kind: str) -> Path:
    """The folder of outputs of one compilation."""
    place = Path(_folder().name) / kind
    place.mkdir()
    case = prepared(place, "conv")
    onnx.save(renamed(onnx.load(case.source)), case.source)
    recipe = Recipe(**RECIPES.get(kind, {}))
    data = None if kind == "bare" else str(case.data)
    if kind == "engine":
        compile(case.source, data=data, recipe=recipe, output=case.out / "m.engine")
        return case.out
    try:
        quantize(case.source, data=data, recipe=recipe, output=case.out / "m.qdq.onnx")
    except AccuracyError:
        assert kind == "failed"
    return case.out


def stored(kind: str) -> dict[str, Any]:
    """The manifest of it, fresh each time, so that a test may spoil it."""
    ending = "failed.manifest.json" if kind == "failed" else "manifest.json"
    data: dict[str, Any] = json.loads((folder_of(kind) / f"m.{ending}").read_text(encoding="utf8"))
    return data


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The nodes that write certain tensors get the names of `ODD`, and these tensors likewise."""
    for node in model.graph.node:
        for name in node.output:
            if name in ODD:
                node.name = ODD[name]
        inner = {"c1", "c2", "n2", "s2", "c3"}
        node.input[:] = [f"t {ODD[name]}" if name in inner else name for name in node.input]
        node.output[:] = [f"t {ODD[name]}" if name in inner else name for name in node.output]
    return model


def old(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The same as an older qcompiler wrote it."""
    data = {key: value for key, value in manifest.items() if key not in ("graph", "histograms", "edits")}
    audit = manifest.get("audit")
    if audit:
        data["audit"] = {key: value for key, value in audit.items() if key not in ("kinds", "launches")}
    if manifest.get("safety"):
        data["safety"] = {key: value for key, value in manifest["safety"].items() if key != "tried"}
    return data


def leaves(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that is no collection, with the keys that lead to it."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from leaves(one, (*at, str(key)))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from leaves(one, at)
    else:
        yield at, value


def numbers(value: Any) -> set[float]:
    """Every number in it, also infinities that are spelled."""
    found = (figures.number(one) for _, one in leaves(value) if not isinstance(one, str) or one in ("inf", "-inf"))
    return {one for one in found if one is not None}


def spelled(value: Any) -> set[str]:
    """Every way in which the figures of a document may stand in a text, and the figures in its own sentences."""
    found: set[str] = set()
    for at, one in leaves(value):
        found |= set(figures_in(str(one))) | set(figures_in(" ".join(at)))
        figure = figures.number(one)
        if figure is None or isinstance(one, str):
            continue
        ways = (figures.short, figures.percent, figures.size, figures.count, figures.seconds, figures.decibel)
        texts = [way(one) for way in ways]
        texts += [figures.percent(one, 2), f"{1e6 * figure:.4g}", f"{figure:.0f}", f"{figure:.3g}", f"{figure:.4g}"]
        for text in texts:
            found |= set(figures_in(text))
    return found


def figures_in(text: str) -> list[str]:
    """Every figure of a text, without its sign."""
    return re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", text.replace("−", "-"))


def size_of(manifest: Mapping[str, Any]) -> int:
    """Bytes of the file."""
    return len(to_text(manifest).encode())
