"""The manifest out of what stages recorded."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.record import ABSENT, manifest
from qcompiler.passes.base import Changed, Report, Skipped
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


@stage()
def smooth_quant(run: Compilation, reports: tuple[Report, ...]) -> Done[None]:
    return Done(None, passes=tuple((report, None) for report in reports))


def test_what_passes_did_is_told_by_the_place_where_they_did_it() -> None:
    run = Compilation()
    folded = (Changed("n", "folded into 'c'"), Skipped("m", "no"), Changed("n", "twice"))
    run(
        smooth_quant,
        (
            Report("fold-pad{much=1}", folded, 0.1),
            Report("fold-constants", (Changed("k", "computed"),), 0.1, undone="it moved an output"),
            Report("normalize-constants", (Changed("w", "an initializer"),), 0.1),
        ),
    )
    run(rewriting, None)  # a stage that does not edit the float model
    assert manifest(run, Recipe())["edits"] == {"fold-pad": {"n": "folded into 'c'; twice"}}
