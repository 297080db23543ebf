"""What planning is asked, and what it chose."""

from __future__ import annotations

import dataclasses

import pytest

from qcompiler.compiler.ask import planning
from qcompiler.plan import Plan
from qcompiler.planning.chosen import Chosen
from qcompiler.planning.search.safety_net import SafetyNet
from qcompiler.recipe.recipe import Recipe
from qcompiler.target import DType


def test_planning_sees_of_a_recipe_what_it_needs() -> None:
    recipe = Recipe(precision="auto:int8,fp8", target="tensorrt", weight_clip="mse", weight_granularity="tensor")
    found = planning(recipe)
    assert (found.formats, found.by_cost, found.everything) == ((DType.INT8, DType.FP8), True, True)
    assert (found.clip_weights, found.per_channel, found.attention) == (True, False, None)
    assert planning(recipe.replace(attention="int8")).attention is DType.INT8
    asked = planning(recipe.replace(objective="time", pick="knee", search_time="2m", reproducible=False))
    assert (asked.objective, asked.pick, asked.effort) == ("time", "knee", "balanced")
    assert (asked.search_time, asked.reproducible) == (120.0, False)


def test_what_is_asked_is_a_value() -> None:
    recipe = Recipe(precision="auto:int8,fp8", target="tensorrt")
    asked = planning(recipe)
    assert planning(recipe) == asked
    with pytest.raises(dataclasses.FrozenInstanceError):
        asked.per_channel = False  # type: ignore[misc]
    assert planning(recipe.replace(min_sqnr=30.0)) == dataclasses.replace(asked, min_sqnr=30.0, likelihood=False)


def test_nothing_is_spared_corrected_or_scored_unless_it_is_said() -> None:
    first, second = (Chosen(Plan(), SafetyNet()) for _ in range(2))
    assert first == second
    assert first.spared.alpha is None
    assert first.corrections == {}
    assert first.scales == {}
    assert len(first.scores) == 0
    assert first.scores is not second.scores
