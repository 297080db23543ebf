"""What the engine must serve: profiles of the user's, or of the data."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx

from qcompiler.compiler.serving import BuildOptions, profiles_of, shown
from qcompiler.data import lacks
from qcompiler.data.samples import ShapeRange
from qcompiler.ir import model as models
from qcompiler.ir.signature import inputs_of
from qcompiler.recipe.tables import GenerationTable
from qcompiler.statistics.observe import Observations
from qcompiler.target import parse_target
from tests.kit.cases import prepared
from tests.kit.rewrite import model
from tests.kit.subjects import before

TARGET = parse_target("tensorrt-rtx")


def untold(text: str) -> None:
    raise AssertionError(text)


def test_the_profile_is_what_the_user_says_else_what_the_data_showed(tmp_path: Path) -> None:
    standing = before("smooth_quant", prepared(tmp_path, "conv"))
    subject, seen, inputs = standing.subject.model, standing.subject.seen, standing.subject.inputs
    shapes = {"x": ((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))}
    (given,) = profiles_of(subject, seen, inputs, BuildOptions(TARGET, shapes, GenerationTable(), False), untold)
    (seen_alone,) = profiles_of(subject, seen, inputs, BuildOptions(TARGET, None, GenerationTable(), False), untold)
    none = profiles_of(subject, Observations(), inputs, BuildOptions(TARGET, None, GenerationTable(), False), untold)
    assert given.shapes == shapes
    assert seen_alone.shapes["x"][0] == (1, 3, 16, 16)
    assert none == []


def test_a_profile_of_sizes_that_depend_on_each_other_fits_together(tmp_path: Path) -> None:
    nodes = (("Concat", "a b", "c", {"axis": 1}), ("Add", "c m", "y"))
    onnx.save(model(*nodes, inputs={"a": ("n", "k"), "b": ("n", "l"), "m": ("n", "t")}), tmp_path / "m.onnx")
    loaded, shapes = models.load(tmp_path / "m.onnx"), ShapeRange()
    feeds = [
        {name: np.ones((1, size), np.float32) for name, size in {"a": a, "b": b, "m": a + b}.items()}
        for a, b in ((9, 1), (2, 6), (4, 4))
    ]
    for feed in feeds:
        shapes.watch(feed)
    seen = Observations(kept=(feeds[0],), shapes=shapes, feeds=3)
    options = BuildOptions(TARGET, None, GenerationTable(), False)
    (found,) = profiles_of(loaded, seen, inputs_of(loaded.graph), options, untold)
    assert found.shapes["m"] == ((1, 3), (1, 8), (1, 15))
    (told,) = lacks.sizes(shown(loaded, seen, inputs_of(loaded.graph)), inputs_of(loaded.graph))  # the batch alone
    assert re.findall(r"[abm]=1x(\d+),\d+x(\d+),\d+x(\d+)", told)[2] == ("3", "8", "15")
    for end in range(3):
        assert found.shapes["a"][end][1] + found.shapes["b"][end][1] == found.shapes["m"][end][1]
