"""Where activations spike: figures of each tensor, and that they are those of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.recipe.recipe import Recipe
from qcompiler.statistics.histogram import Histogram
from qcompiler.tools.inspect.inspection import inspect
from tests.kit.rewrite import model
from tests.kit.tools.inspected import mlp, saved, weights


def spiking(channel: int | None = None, token: int | None = None) -> list[dict[str, Any]]:
    """Four feeds [1, 24, 32] of bell curves; one channel or one token is 50 times as large."""
    rng = np.random.default_rng(0)
    feeds = []
    for _ in range(4):
        x = rng.standard_normal((1, 24, 32)).astype(np.float32)
        if channel is not None:
            x[:, :, channel] *= 50
        if token is not None:
            x[:, token] *= 50
        feeds.append({"x": x})
    return feeds


def test_data_shows_how_well_int8_holds_each_activation(tmp_path: Path) -> None:
    feeds = spiking()
    found = inspect(saved(tmp_path, mlp()), data=feeds)
    assert "4 feeds" in found.data
    spikes = {one.tensor: one for one in found.spikes}
    assert {name: one.readers for name, one in spikes.items()} == {"x": ("A",), "b": ("Y",)}
    values = np.stack([feed["x"] for feed in feeds]).astype(np.float64)
    x = spikes["x"]
    assert x.amax == np.abs(values).max()
    assert x.p99_99 == pytest.approx(np.percentile(np.abs(values), 99.99), rel=0.05)
    assert x.crest == pytest.approx(np.abs(values).max() / np.sqrt((values**2).mean()), rel=1e-2)
    errors = []
    for amax in np.abs(values).max() * np.linspace(0.3, 1, 71):
        grid = np.clip(np.round(values / amax * 127), -128, 127) * amax / 127
        errors.append(((values - grid) ** 2).mean())
    assert x.int8_db == pytest.approx(10 * np.log10((values**2).mean() / min(errors)), abs=0.3)
    assert x.kurtosis == pytest.approx((values**4).mean() / (values**2).mean() ** 2, rel=0.01)
    tokens = np.abs(values).max(axis=3)[:, 0]
    assert x.ratio == pytest.approx((tokens.max(axis=1) / np.median(tokens, axis=1)).mean())
    assert x.over_channels is not None
    assert max(x.ratio, x.over_channels) < 3
    assert {name: one.depth for name, one in spikes.items()} == {"x": 0, "b": 1}


def test_spikes_of_a_channel_and_of_a_token_are_told_apart(tmp_path: Path) -> None:
    path = saved(tmp_path, mlp())
    channel = next(one for one in inspect(path, data=spiking(channel=5)).spikes if one.tensor == "x")
    token = next(one for one in inspect(path, data=spiking(token=7)).spikes if one.tensor == "x")
    assert channel.over_channels is not None
    assert channel.over_channels > 30
    assert channel.ratio < 5
    assert (channel.top_channels[0]["channel"], channel.top_channels[0]["over_median"]) == (5, channel.over_channels)
    assert token.ratio > 30
    assert token.top_tokens[0]["position"] == 7
    assert token.top_tokens[0]["value"] == token.amax
    plain = next(one for one in inspect(path, data=spiking()).spikes if one.tensor == "x")
    assert channel.int8_db < plain.int8_db - 8
    assert token.int8_db < plain.int8_db - 8


def test_the_worst_activation_comes_first(tmp_path: Path) -> None:
    found = inspect(saved(tmp_path, mlp()), data=spiking(channel=5))
    assert [one.int8_db for one in found.spikes] == sorted(one.int8_db for one in found.spikes)


def test_ranges_at_residual_adds_are_those_of_the_tensors(tmp_path: Path) -> None:
    nodes = [("MatMul", "x w1", "a"), ("Relu", "a", "b"), ("MatMul", "b w2", "c"), ("Add", "c x", "y")]
    path = saved(tmp_path, model(*nodes, inputs={"x": ("n", 24, 32)}, weights=(w := weights(w1=(32, 64), w2=(64, 32)))))
    feeds = spiking()
    (one,) = inspect(path, data=feeds).residuals
    x = np.concatenate([feed["x"] for feed in feeds])
    branch = np.maximum(x @ w["w1"], 0) @ w["w2"]
    assert (one.add, one.kind) == ("Y", "feed-forward")
    assert one.stream_amax == np.abs(x).max()
    assert one.branch_amax == pytest.approx(np.abs(branch).max(), rel=1e-5)
    assert one.sum_amax == pytest.approx(np.abs(branch + x).max(), rel=1e-5)
    assert one.ratio == pytest.approx(one.branch_amax / one.stream_amax)
    assert one.branch_p99_99 == pytest.approx(Histogram.of(branch).quantile(99.99), rel=1e-3)


def test_a_batch_is_measured_as_its_samples_are(tmp_path: Path) -> None:
    path, feeds = saved(tmp_path, mlp()), spiking(token=3)
    one, other = (inspect(path, data=feeds, recipe=Recipe(batch=batch)).spikes for batch in (None, 4))
    assert [(row.tensor, row.top_tokens[0]["sample"]) for row in one] == [
        (row.tensor, row.top_tokens[0]["sample"]) for row in other
    ]
    x, y = (next(row for row in rows if row.tensor == "x") for rows in (one, other))
    assert (x.ratio, x.top_channels, x.top_tokens) == (y.ratio, y.top_channels, y.top_tokens)


def test_a_model_that_overflows_is_reported_with_the_node(tmp_path: Path) -> None:
    proto = model(
        ("MatMul", "x w1", "a"),
        ("Mul", "a a", "e"),
        ("Sub", "e e", "d"),
        ("MatMul", "d w2", "y"),
        inputs={"x": ("n", 16, 32)},
        weights=weights(w1=(32, 32), w2=(32, 32)),
    )
    good, bad = (np.full((1, 16, 32), value, np.float32) for value in (0.0, 1e25))
    found = inspect(saved(tmp_path, proto), data=[{"x": good}, {"x": bad}])
    assert "NaN or infinite values on feed 1" in found.overflow
    assert "'E' (Mul)" in found.overflow  # Sub makes NaN of infinities that Mul made of numbers
    assert "1 feed" in found.data
