"""The choice among ways to round a weight: what is fitted to some rows is judged by others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from qcompiler.numerics import blocks
from qcompiler.statistics.hessian import Hessians, Moments
from qcompiler.weight_only import choice, gptq
from qcompiler.weight_only.choice import Layer, Settings, Way
from tests.kit.weight_only.correlated import DEPTH, SIZE, crossed, held, inputs, weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

SETTINGS = Settings(half=True)
EVERY = (Way.NEAREST, Way.MSE, Way.CLIP, Way.GPTQ)
ALL = inputs(rows=2400)
SEEN, OTHER = ALL[:400], ALL[400:]  # one mixture; what no test fits to
LAYER = Layer(weight(), SIZE, "int4")


def moments(x: NDArray[Any], each: int = 4) -> Moments:
    """Of rows that come in samples of four."""
    seen = Hessians({"x": x.shape[1]})
    for start in range(0, len(x), each):
        seen._add("x", x[start : start + each], 1)
    return seen.moments("x")


def ratio(stored: blocks.Blocks, x: NDArray[Any], w: NDArray[Any]) -> float:
    return float(((x @ (blocks.dequantize(stored) - w)) ** 2).sum() / ((x @ w) ** 2).sum())


@pytest.mark.parametrize("rows", [8, 24, 96, 400])
def test_what_is_chosen_never_errs_much_more_than_nearest_integers_on_other_rows(rows: int) -> None:
    x = SEEN[:rows]
    seen = held(x, OTHER[:200])
    shrunk = choice.shrunk({"a": LAYER}, [moments(x)], seen, SETTINGS)
    found = choice.choose(LAYER, EVERY, seen, (shrunk, "a"), SETTINGS)
    nearest = ratio(blocks.round_to_nearest(LAYER.weight, SIZE, "int4"), OTHER[200:], LAYER.weight)
    true = ratio(found.blocks, OTHER[200:], LAYER.weight)
    assert true < 1.05 * nearest
    assert found.error is not None
    assert true == pytest.approx(found.error, rel=0.3)  # the figure holds on rows that neither fit nor choice has seen


def test_few_rows_are_shrunk_more_than_many() -> None:
    shrinks = []
    for rows in (16, 400):
        x = SEEN[:rows]
        shrinks.append(choice.shrunk({"a": LAYER}, [moments(x)], held(x, OTHER), SETTINGS).shrink or 0.0)
    assert shrinks[0] > shrinks[1]


def test_shrinking_is_what_saves_few_rows() -> None:
    x = SEEN[:48]
    found = choice.shrunk({"a": LAYER}, [moments(x)], held(x, OTHER[:200]), SETTINGS)
    plain = gptq.gptq(LAYER.weight, moments(x).hessian, size=SIZE, format="int4")
    shrunk = gptq.gptq(LAYER.weight, found.factor, size=SIZE, format="int4")
    assert ratio(plain, x, LAYER.weight) < ratio(shrunk, x, LAYER.weight), "in sample, it looks worse"
    assert ratio(shrunk, OTHER[200:], LAYER.weight) < 0.8 * ratio(plain, OTHER[200:], LAYER.weight)


def test_folds_are_fitted_apart_and_the_result_to_all_rows() -> None:
    x = SEEN
    parts = [moments(x[:200]), moments(x[200:])]
    found = choice.shrunk({"a": LAYER}, parts, crossed(x), SETTINGS)
    whole = SETTINGS.factor(parts[0] + parts[1], SIZE, lambda share: found.shrink or 0.0)
    np.testing.assert_array_equal(found.factor.order, whole.order)
    np.testing.assert_allclose(found.factor.hessian, whole.hessian, rtol=1e-5, atol=1e-6)
    mine = choice.choose(LAYER, (Way.GPTQ,), crossed(x), (found, "a"), SETTINGS)
    assert mine.error is not None
    assert mine.error > ratio(mine.blocks, x, LAYER.weight), "a fold judges, not the rows that were fitted to"


def test_layers_share_the_shrinkage_and_have_their_own_errors() -> None:
    x = SEEN
    layers = {"a": LAYER, "b": Layer(weight(2), SIZE, "int4")}
    found = choice.shrunk(layers, [moments(x)], held(x, OTHER), SETTINGS)
    assert found.errors.keys() == {"a", "b"}
    for name, one in layers.items():
        stored = gptq.gptq(one.weight, found.factor, size=SIZE, format="int4")
        assert found.errors[name] == pytest.approx(ratio(stored, OTHER, one.weight), rel=1e-3)


def test_a_damping_that_was_asked_for_leaves_the_hessian_as_it_is() -> None:
    x = SEEN
    found = choice.shrunk({"a": LAYER}, [moments(x)], held(x, OTHER), Settings(half=True, damp=0.25))
    assert found.shrink is None
    assert found.factor.damp == 0.25


def test_the_simplest_wins_where_two_err_alike() -> None:
    on_grid = Layer(blocks.dequantize(blocks.round_to_nearest(weight(), SIZE, "int4")), SIZE, "int4")
    found = choice.choose(on_grid, EVERY[:3], held(SEEN, OTHER), None, SETTINGS)
    assert found.way is Way.NEAREST


def test_without_rows_there_is_one_kind_and_no_figure() -> None:
    found = choice.choose(LAYER, (Way.MSE,), None, None, SETTINGS)
    np.testing.assert_array_equal(found.blocks.values, blocks.clip_by_error(weight(), SIZE, "int4").values)
    assert found.error is None


def test_outputs_that_are_all_zero_have_no_figure() -> None:
    nothing = np.zeros((8, DEPTH), np.float32)
    assert choice.error_of(LAYER, Way.NEAREST, held(nothing, nothing), half=True) is None


def test_a_wide_layer_is_judged_by_some_of_its_outputs() -> None:
    wide = Layer(np.random.default_rng(3).standard_normal((DEPTH, 1000)).astype(np.float32), SIZE, "int4")
    assert wide.thin().weight.shape == (DEPTH, 250)
    all_of_it = ratio(blocks.round_to_nearest(wide.weight, SIZE, "int4"), OTHER, wide.weight)
    assert choice.error_of(wide, Way.NEAREST, held(OTHER, OTHER), half=True) == pytest.approx(all_of_it, rel=0.05)
