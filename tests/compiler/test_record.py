"""The manifest out of what stages recorded."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.record import ABSENT, manifest
from qcompiler.passes.base import Changed, Report
from qcompiler.recipe.recipe import Recipe
from qcompiler.report.manifest import SCHEMA, to_text


@stage()
def rewriting(run: Compilation, error: float | None) -> Done[None]:
    report = Report("fold-pad", (Changed("n", "gone"),), 0.25)
    return Done(None, passes=((report, error),))


@stage()
def recording(run: Compilation, sections: dict[str, Any]) -> Done[None]:
    return Done(None, sections)


def test_every_key_is_there_and_the_recipe_is_whole() -> None:
    told = manifest(Compilation(), Recipe(precision="fp8", target="tensorrt-rtx:sm89"))
    assert set(ABSENT) <= set(told)
    assert told["schema"] == SCHEMA
    assert told["target"]["sms"] == ["sm89"]
    assert Recipe.from_dict(told["recipe"]) == Recipe(precision="fp8", target="tensorrt-rtx:sm89")


def test_passes_stand_in_order_with_what_they_moved() -> None:
    run = Compilation()
    run(rewriting, 1e-6)
    (row,) = manifest(run, Recipe())["passes"]
    figures = {"changed": 1, "skipped": 0, "relative_error": 1e-6}
    assert row == {"pass": "fold-pad", "seconds": 0.25, **figures, "undone": None}


def test_a_stage_that_ran_again_tells_of_its_last_run() -> None:
    run = Compilation()
    run(rewriting, 1e-6)
    run(rewriting, None)
    assert [row["relative_error"] for row in manifest(run, Recipe())["passes"]] == [None]


def test_it_is_json_whatever_was_recorded() -> None:
    run = Compilation()
    run(recording, {"audit": {"share": np.float32(0.5), "nodes": (1, 2)}, "verification": {"worst": float("inf")}})
    read = json.loads(to_text(manifest(run, Recipe())))
    assert read["audit"] == {"share": 0.5, "nodes": [1, 2]}
    assert read["verification"] == {"worst": "inf"}
