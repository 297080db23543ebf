"""`verify()`: two models on the same data."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import pytest

from qcompiler.data.text import Text
from qcompiler.errors import DataError
from qcompiler.ir import model as models
from qcompiler.recipe.recipe import Recipe
from qcompiler.tools.verify import verify
from tests.kit import decoder, reading
from tests.kit.verification.chain import WEIGHTS, chain, changed

if TYPE_CHECKING:
    from collections.abc import Iterator

FEEDS = [{"x": np.random.default_rng(k).standard_normal((3, 8)).astype(np.float32)} for k in range(5)]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return chain(tmp_path / "f.onnx", WEIGHTS), chain(tmp_path / "q.onnx", changed(2, 0.05))


def test_files_and_loaded_models_compare_alike(pair: tuple[Path, Path]) -> None:
    files = verify(*pair, data=FEEDS)
    loaded = verify(*(models.load(path) for path in pair), data=FEEDS)
    assert files.samples == 5
    assert files.worst_sqnr_db is not None
    assert 0 < files.worst_sqnr_db < 60
    assert loaded.outputs == files.outputs
    first = files.layers[2]
    assert (first.node, files.layers[1].sqnr_db) == ("mm2", float("inf"))


def test_no_more_samples_are_compared_than_the_recipe_says(pair: tuple[Path, Path]) -> None:
    assert verify(*pair, data=FEEDS, recipe=Recipe(verify_samples=2)).samples == 2
    assert verify(*pair, data=FEEDS, recipe=Recipe(samples=3)).samples == 3


def test_progress_is_one_stage_that_is_told_of_every_sample(pair: tuple[Path, Path]) -> None:
    seen: list[Any] = []

    class Shown:
        @contextmanager
        def stage(self, name: str, total: float | None = None) -> Iterator[Any]:
            seen.append((name, total))
            yield self

        def advance(self, steps: float) -> None:
            seen.append(steps)

    verify(*pair, data=FEEDS, recipe=Recipe(verify_samples=5), progress=cast(Any, Shown()))
    assert seen == [("verify", 5), *[1] * 5]


def test_data_that_does_not_fit_is_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match="'x'"):
        verify(*pair, data=[{"x": np.ones((3, 9), np.float32)}])


def test_of_a_text_the_part_is_used_that_does_not_calibrate(tmp_path: Path) -> None:
    reading.tokenizer(tmp_path)
    (tmp_path / "a.txt").write_text(reading.text(400), encoding="utf8")
    onnx.save(decoder.decoder(cache=False, layers=1), tmp_path / "m.onnx")
    text = Text(tmp_path / "a.txt", tmp_path, length=16)
    recipe = Recipe(verify_samples=3)
    first = verify(tmp_path / "m.onnx", tmp_path / "m.onnx", data=text, recipe=recipe)
    assert first.samples == 3
    assert "last 20 %" in first.data
