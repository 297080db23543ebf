"""The inner loops of GPTQ: what each channel becomes, and that the compiled way gives what the numpy way gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.weight_only.gptq_loops import TILE, loops

Array = np.ndarray[Any, np.dtype[Any]]
LOW, HIGH = -8.0, 7.0


def block(rows: int, width: int) -> dict[str, Array]:
    rng = np.random.default_rng([rows, width])
    w = rng.standard_normal((rows, width)).astype(np.float32)
    whole = np.abs(w).max(axis=0) / HIGH
    return {
        "w": w,
        "t": w + (0.1 * rng.standard_normal(w.shape)).astype(np.float32),
        "m": np.tril(0.2 * rng.standard_normal((rows, rows)), -1).astype(np.float32),
        "importance": rng.uniform(0.5, 2, rows).astype(np.float32),
        "scales": np.stack([whole, 0.8 * whole, 0.6 * whole]).astype(np.float32),
    }


def rounded(given: dict[str, Array], columns: tuple[int, int] | None = None, compiled: bool = False) -> list[Array]:
    width = given["w"].shape[1]
    q, e = np.full_like(given["w"], 99), np.full_like(given["w"], 99)
    best = np.full(width, 99, np.float32)
    loops(1, compiled)[0](*given.values(), LOW, HIGH, columns or (0, width), q, e, best)
    return [q, e, best]


def test_errors_are_what_was_lost_and_integers_stay_in_range() -> None:
    given = block(9, 5)
    q, e, best = rounded(given)
    np.testing.assert_allclose(e, given["w"] - best * q, atol=1e-6)
    assert q.min() >= LOW
    assert q.max() <= HIGH
    assert (q == np.rint(q)).all()


def test_of_several_scales_the_one_that_errs_least_is_kept_for_every_output() -> None:
    given = block(9, 5)

    def cost(scales: Array) -> Array:
        q, e, best = rounded({**given, "scales": scales[None]})
        target = given["t"] + np.stack([given["m"][i] @ e for i in range(len(e))])
        return np.asarray(given["importance"] @ (target - best * q) ** 2)

    _, _, best = rounded(given)
    costs = np.stack([cost(one) for one in given["scales"]])
    np.testing.assert_array_equal(best, np.take_along_axis(given["scales"], costs.argmin(axis=0)[None], 0)[0])


def test_outputs_outside_of_the_part_are_left_alone() -> None:
    for found in rounded(block(4, 6), (2, 4)):
        assert (found[..., :2] == 99).all()
        assert (found[..., 4:] == 99).all()
        assert (found[..., 2:4] != 99).any()


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, TILE + 3), (32, 2 * TILE)])
def test_both_ways_of_rounding_agree(rows: int, width: int) -> None:
    pytest.importorskip("numba")
    given = block(rows, width)
    plain, fast = rounded(given), rounded(given, compiled=True)
    agreeing = (plain[0] == fast[0]).all(axis=0)  # a tie may go either way
    assert agreeing.mean() > 0.97
    for one, other in zip(plain, fast, strict=True):
        np.testing.assert_allclose(one[..., agreeing], other[..., agreeing], rtol=1e-4, atol=1e-5)


def hessian(rows: int) -> Array:
    x = np.random.default_rng(rows).standard_normal((4 * rows, rows))
    return np.asarray(x.T @ x, np.float32)


def descended(rows: int, width: int, compiled: bool) -> tuple[Array, Array, Array, Array, Array]:
    given = block(rows, width)
    w, h, scale = given["w"], hessian(rows), given["scales"][0]
    before = np.clip(np.rint(w / scale), LOW, HIGH).astype(np.float32)
    q, moved = before.copy(), np.full_like(w, 99)
    loops(1, compiled)[1](h @ (w - before * scale), h, scale, LOW, HIGH, (0, width), q, moved)
    return w, h, scale, before, np.stack([q, moved])


def error(w: Array, h: Array, scale: Array, q: Array) -> Array:
    gap = (w - q * scale).astype(np.float64)
    return np.asarray(np.einsum("kn,kj,jn->n", gap, h.astype(np.float64), gap))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_descent_never_adds_error_and_says_what_moved(compiled: bool) -> None:
    w, h, scale, before, (q, moved) = descended(12, 40, compiled)
    assert (error(w, h, scale, q) <= error(w, h, scale, before) * (1 + 1e-4)).all()
    assert (q != before).any()
    np.testing.assert_allclose(moved, (before - q) * scale, atol=1e-6)


def test_both_ways_of_descending_agree() -> None:
    pytest.importorskip("numba")
    first, second = descended(12, TILE + 5, False)[-1], descended(12, TILE + 5, True)[-1]
    assert (first[0] == second[0]).all(axis=0).mean() > 0.97
