"""Loops compiled by numba, and their twins in numpy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcompiler.support import compiled


def _plain(x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    out[0] = x.sum()


def _loop(x: Any, out: Any) -> None:  # pragma: no cover - compiled by numba
    for i in range(x.size):
        out[0] += x[i]


def _made() -> compiled.Loop[Any]:
    return compiled.Loop(_plain, _loop, lambda types: types.void(types.float32[::1], types.float32[::1]))


def _sum(way: Any) -> float:
    out = np.zeros(1, np.float32)
    way(np.arange(10, dtype=np.float32), out)
    return float(out[0])


def test_numba_is_taken_for_many_elements_and_numpy_for_few() -> None:
    loop = _made()
    assert loop.of(compiled.COMPILED_FROM - 1) is _plain
    assert loop.of(compiled.COMPILED_FROM) is not _plain
    assert _sum(loop.of(compiled.COMPILED_FROM)) == 45


def test_either_way_can_be_forced_and_is_compiled_once() -> None:
    loop = _made()
    assert loop.of(1 << 20, compiled=False) is _plain
    assert loop.of(1, compiled=True) is loop.of(1, compiled=True)
    assert loop.of(1, compiled=True) is not _plain


def test_without_numba_it_is_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert _made().of(1 << 20, compiled=True) is _plain


def test_where_numba_is_told_not_to_compile_it_is_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert _made().of(1 << 20) is _plain


def test_without_a_cache_directory_it_is_compiled_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    real, kept = numba.njit, []

    def no_locator(*args: Any, **options: Any) -> Any:
        kept.append(options.pop("cache", False))
        if kept[-1]:
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **options)

    monkeypatch.setattr(numba, "njit", no_locator)
    way = _made().of(1, compiled=True)
    assert way is not _plain
    assert _sum(way) == 45
    assert kept == [True, False]


def test_modules_with_loops_do_not_import_numba() -> None:
    modules = (
        "qcompiler.statistics, qcompiler.statistics.maxima, qcompiler.numerics.blocks, qcompiler.weight_only.gptq_loops"
    )
    code = f"import sys, {modules}; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
