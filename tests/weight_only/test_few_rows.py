"""Few rows: which layers, how many, and how much data would do."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.weight_only.few_rows import warnings
from qcompiler.weight_only.stored import Stored
from tests.kit.weight_only.stored import stored


def with_rows(**rows: int) -> Stored:
    """Layers of ten input channels."""
    base = stored(**dict.fromkeys(rows, 20.0))
    return replace(base, weights={name: replace(base.weights[name], rows=count) for name, count in rows.items()})


def test_layers_and_rows_are_named_the_fewest_first() -> None:
    (text,) = warnings(with_rows(A=79, B=20, C=80, D=400))
    assert text.startswith("2 of 4 weights are rounded with few rows of data, less than 8 for each input channel: ")
    assert "'B' 20 rows for 10 channels, 'A' 79 rows for 10 channels." in text
    assert "gptq gains nothing in any of them" in text
    assert text.endswith("give 4 times as much data")


def test_three_are_named_and_the_others_counted() -> None:
    found = stored(A=20.0, B=20.0, C=20.0, D=20.0, E=20.0)
    weights = {name: replace(one, rows=8, method="gptq") for name, one in found.weights.items()}
    (text,) = warnings(replace(found, weights=weights))
    assert "channels and 2 more" in text
    assert "gptq still errs least in 5 of them" in text


def test_enough_rows_and_layers_that_nothing_is_fitted_to_are_not_mentioned() -> None:
    assert warnings(with_rows(A=80, B=0)) == ()
    assert warnings(None) == ()
