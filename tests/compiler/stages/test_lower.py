"""The stage that makes the plan's graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qcompiler.compiler.stages.lower import lower
from qcompiler.planning.search import half_noise
from qcompiler.planning.search.half_noise import HalfNoise
from qcompiler.recipe.tables import SmoothQuantTable
from qcompiler.statistics import ranges
from qcompiler.target import DType
from tests.kit.cases import QUANTIZED, prepared
from tests.kit.subjects import before


@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_the_graph_is_typed_and_the_plan_says_what_became_of_the_rest(tmp_path: Path, name: str) -> None:
    standing = before("lower", prepared(tmp_path, name))
    assert standing.decided is not None
    floats = {node.op for node in standing.decided.model.graph.nodes}
    done = standing.run(lower, standing.subject, standing.decided, standing.asked.target, standing.asked.lower)
    assert "QuantizeLinear" not in floats
    assert "QuantizeLinear" in {node.op for node in done.model.graph.nodes}
    assert {node.op for node in standing.decided.model.graph.nodes} == floats  # as it was handed on
    assert {one.node for one in done.plan.quantized()} == QUANTIZED[name]
    assert DType.FP16 in {one.precision for one in done.plan}
    assert standing.run.records["macs"]["quantized_share"] == done.plan.share()
    assert standing.run.records["plan"] == list(done.plan)


def test_what_keeps_its_type_is_told(tmp_path: Path) -> None:
    standing = before("lower", prepared(tmp_path, "conv"), io_types="high-precision")
    assert standing.decided is not None
    done = standing.run(lower, standing.subject, standing.decided, standing.asked.target, standing.asked.lower)
    kept = [
        tensor.name for tensor in (*done.model.graph.inputs, *done.model.graph.outputs) if tensor.dtype != "float16"
    ]
    assert all(any(f"'{name}' keeps its type" in text for text in standing.run.warnings) for name in kept)


class _Counted:
    """Stands in for `ranges.measure` and says what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self._measure = ranges.measure

    def __call__(self, model: Any, feeds: Any, names: Any = None, **options: Any) -> ranges.Ranges:
        self.asked.append(tuple(names or ()))
        return self._measure(model, feeds, names, **options)


def test_what_was_observed_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standing = before("lower", prepared(tmp_path, "conv"), precision="fp16")
    assert standing.decided is not None
    counted = _Counted()
    monkeypatch.setattr(ranges, "measure", counted)
    first = standing.run(lower, standing.subject, standing.decided, standing.asked.target, standing.asked.lower)
    again = standing.run(lower, standing.subject, standing.decided, standing.asked.target, standing.asked.lower, first)
    assert counted.asked == []
    assert dict(first.ranges) == dict(standing.subject.seen.ranges) == dict(again.ranges)
    assert again.half is first.half


def test_what_smoothing_changed_is_measured_again_over_the_samples_that_were_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing = before("lower", prepared(tmp_path, "transformer"), smooth_quant=SmoothQuantTable(alpha=0.5))
    assert standing.decided is not None
    assert standing.subject.model is not standing.subject.measured
    counted = _Counted()
    monkeypatch.setattr(ranges, "measure", counted)
    done = standing.run(lower, standing.subject, standing.decided, standing.asked.target, standing.asked.lower)
    (asked,) = counted.asked
    seen, known = standing.subject.seen, standing.subject.seen.ranges
    whole = ranges.measure(standing.decided.model, [*seen.kept, *seen.held])
    assert done.ranges.keys() == whole.keys()
    same = [name for name in done.ranges if name not in asked]
    assert 0 < len(asked) < len(same)  # what the layers give holds what it held
    assert all(done.ranges[name] == known[name] and done.ranges[name].low_at >= 0 for name in same)
    for name in asked:
        assert done.ranges[name].low == pytest.approx(whole[name].low, rel=1e-4, abs=1e-5)
        assert done.ranges[name].high == pytest.approx(whole[name].high, rel=1e-4, abs=1e-5)
        assert done.ranges[name].low_at == -1  # nobody knows where in the data it stands


def test_what_half_does_is_recorded_and_nothing_is_measured_for_fp32(tmp_path: Path) -> None:
    standing = before("lower", prepared(tmp_path, "conv"))
    assert standing.decided is not None
    done = standing.run(lower, standing.subject, standing.decided, standing.asked.target, standing.asked.lower)
    assert done.half is not None
    assert standing.run.records["half"] == done.half.to_json()
    assert done.half.met
    wide = before("lower", prepared(tmp_path, "conv"), high_precision="fp32")
    assert wide.decided is not None
    plain = wide.run(lower, wide.subject, wide.decided, wide.asked.target, wide.asked.lower)
    assert (plain.half, len(plain.ranges), wide.run.records["half"]) == (None, 0, None)
    assert not wide.subject.seen.ranges


def test_noise_that_nobody_is_to_blame_for_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standing = before("lower", prepared(tmp_path, "conv"), precision="fp16")
    assert standing.decided is not None
    monkeypatch.setattr(half_noise, "find", lambda *_, **__: HalfNoise(54.0, 30.0, 31.0))
    standing.run(lower, standing.subject, standing.decided, standing.asked.target, standing.asked.lower)
    assert any("rounding to fp16 alone leaves 31.0 dB" in text for text in standing.run.warnings)


def test_ranges_alone_tell_what_fits_into_half(tmp_path: Path) -> None:
    (tmp_path / "ranges.json").write_text('{"x": 4.5, "c1": 9.0, "r1": 6.0, "r2": 7.0, "f": 3.0}')
    standing = before("lower", prepared(tmp_path, "conv"), data=False, ranges=str(tmp_path / "ranges.json"))
    assert standing.decided is not None
    done = standing.run(lower, standing.subject, standing.decided, standing.asked.target, standing.asked.lower)
    assert done.ranges["c1"] == ranges.Range(-9.0, 9.0)
    assert done.ranges["p"] == done.ranges["f"]  # the same values in another shape
    assert "s2" not in done.ranges
    assert {done.plan.precision(name) for name in ("C1", "C2", "C3")} == {DType.INT8}
    assert done.plan.precision("R1") is DType.FP16
    assert done.plan.precision("S2") is DType.FP32  # nobody knows what fits there
    assert done.half is None  # nothing was run
