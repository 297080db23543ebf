"""What changed between two compilations: nothing where nothing did, the largest first, and gates that hold or not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from qcompiler.errors import AccuracyError, UsageError
from qcompiler.report.manifest import read
from qcompiler.tools.diff import diff
from tests.kit import manifests
from tests.kit.tools.stored import KINDS, ODD, folder_of, leaves, numbers, old, stored

DERIVED = {("ranges", "ratio"), ("time", "ratio"), ("accuracy", "loss"), ("precision", "macs"), ("seconds", "a")}
DERIVED |= {("seconds", "b")}


def predicted(manifest: dict[str, Any], engine_us: float, sm: str = "sm89") -> dict[str, Any]:
    return {**manifest, "prediction": {"sms": {sm: {"high_us": 99.5, "engine_us": engine_us}}, "leaves_out": ""}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_in_one_of_the_manifests(kind: str) -> None:
    one, other = predicted(stored("int8"), 12.5), predicted(stored(kind), 14.25)
    known = numbers(one) | numbers(other)
    found = diff(one, other)
    for at, value in leaves(found.to_json()):
        if at[:2] not in DERIVED and not isinstance(value, str | bool) and value is not None:
            assert float(value) in known, at
    for row in found.ranges:
        assert row["ratio"] is None or row["ratio"] == row["b"] / row["a"]
    for row in found.accuracy:
        if row["unit"] == "dB" and row["loss"] is not None:
            assert row["loss"] == float(row["a"]) - float(row["b"])
    macs = {row["node"]: row["macs"] for row in (*one["plan"], *other["plan"])}
    assert all(row["macs"] == sum(macs[node] for node in row["nodes"]) for row in found.precision)
    assert found.seconds["b"] == sum(other["timings"].values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_compilation_is_the_same_as_itself_whatever_time_it_took(kind: str) -> None:
    slower = stored(kind)
    slower["timings"] = {stage: 2 * seconds for stage, seconds in slower["timings"].items()}
    slower["peak_memory_mb"] = 1.0
    found = diff(stored(kind), slower, max_loss_db=None, fail_on=("precision",))
    assert found.same or kind == "failed"
    assert (found.precision, found.ranges, found.recipe, found.versions) == ([], [], [], [])
    assert found.seconds["b"] == pytest.approx(2 * found.seconds["a"])


def test_older_manifests_compare_with_new_ones() -> None:
    assert diff(old(stored("int8")), stored("int8")).same
    assert not diff(manifests.SCHEMA_1, folder_of("int8")).same
    assert diff(read(manifests.SCHEMA_1), manifests.SCHEMA_1).same


def test_versions_recipe_and_data_that_changed_are_named() -> None:
    other = stored("int8")
    other["environment"] = {**other["environment"], "onnx": "9.9", "new-library": "1.0"}
    other["data"] = {**other["data"], "fingerprint": "0" * 64}
    other["recipe"]["safety"]["min_share"] = 0.5
    other["warnings"] = ["look"]
    found = diff(stored("int8"), other)
    assert {row["what"]: row["b"] for row in found.versions} == {"onnx": "9.9", "new-library": "1.0"}
    assert [row["what"] for row in found.source] == ["data fingerprint"]
    assert found.recipe == [{"what": "safety.min_share", "a": 0.97, "b": 0.5}]
    assert found.warnings["new"] == ["look"]
    assert not found.same


def test_types_that_changed_stand_together_by_reason_the_most_work_first() -> None:
    found = diff(folder_of("int8"), folder_of("fp8"))
    first = found.precision[0]
    assert (first["a"], first["b"], first["rule"]) == ("int8", "fp8", "linear")
    assert set(first["nodes"]) == {ODD["c1"], ODD["c2"], ODD["c3"]}
    assert [row["macs"] for row in found.precision] == sorted((row["macs"] for row in found.precision), reverse=True)
    gone = stored("int8")
    gone["plan"] = gone["plan"][1:]
    (row,) = diff(stored("int8"), gone).precision
    assert (row["nodes"], row["b"]) == ([ODD["c1"]], None)


def test_ranges_that_moved_most_come_first() -> None:
    other = stored("int8")
    factors = [1.1, 0.25, 2.0]
    for row, factor in zip(other["quantizers"], factors, strict=True):
        row["amax"] *= factor
    assert [row["ratio"] for row in diff(stored("int8"), other).ranges] == pytest.approx([0.25, 2.0, 1.1])


def worse(**changes: Any) -> dict[str, Any]:
    """The compilation with another SQNR, size, time, plan or verdict."""
    other = stored("int8")
    loss = changes.pop("loss_db", 0.0)
    found = other["verification"]
    found["worst_sqnr_db"] -= loss
    for view in found["views"]:
        view["sqnr_db"] = None if view["sqnr_db"] is None else view["sqnr_db"] - loss
    other["files"]["qdq"]["bytes"] += changes.pop("bytes", 0)
    if changes.pop("high", False):
        other["plan"][0]["precision"] = "fp16"
    slower = changes.pop("slower", 1.0)
    return predicted({**other, **changes}, 12.5 * slower)


def missed(other: dict[str, Any], **gates: Any) -> str:
    return "; ".join(diff(predicted(stored("int8"), 12.5), other, **gates).worse)


def test_gates_hold_up_to_their_limit() -> None:
    every = {"max_loss_db": 0.5, "max_slower": 0.1, "fail_on": ("precision", "accuracy", "size", "time")}
    assert missed(worse(), **every) == ""
    assert missed(worse(loss_db=-3.0, bytes=-5, slower=0.5), **every) == ""
    assert missed(worse(loss_db=0.4), max_loss_db=0.5) == ""
    assert "'worst view' went from" in missed(worse(loss_db=0.6), max_loss_db=0.5)
    assert "'worst view' went from" in missed(worse(loss_db=0.001), fail_on=["accuracy"])
    assert missed(worse(loss_db=0.4), max_loss_db=0.5, fail_on=["accuracy"]) == ""
    assert missed(worse(slower=1.05), max_slower=0.1) == ""
    assert missed(worse(slower=1.2), max_slower=0.1) == "predicted time on sm89 went from 12.5 to 15.0 µs"
    assert "predicted time" in missed(worse(slower=1.001), fail_on=["time"])
    assert "1 nodes left int8 for fp16" in missed(worse(high=True), fail_on=["precision"])
    assert "the quantized ONNX went from" in missed(worse(bytes=1), fail_on=["size"])
    assert missed(worse(loss_db=9.0, bytes=9, high=True, slower=2.0)) == ""  # without a gate nothing is missed


def test_a_verdict_a_metric_and_a_view_that_is_gone_count_as_accuracy() -> None:
    told = missed(worse(verdict={"verdict": "broken", "reasons": []}), fail_on=["accuracy"])
    assert told == "the verdict went from holds to broken"
    one, other = stored("int8"), stored("int8")
    one["verification"]["score"] = {"name": "f1", "float_score": 0.9, "quantized_score": 0.9, "drop": 0.0}
    other["verification"]["score"] = {"name": "f1", "float_score": 0.9, "quantized_score": 0.8, "drop": 0.111}
    assert diff(one, other, fail_on=["accuracy"]).worse == ("'metric f1' went from 0.9 to 0.8",)
    assert diff(one, other, max_loss_db=1.0).worse == ()
    other["verification"]["views"] = []
    assert any("is judged no more" in text for text in diff(one, other, max_loss_db=1.0).worse)


def test_what_was_not_accepted_misses_every_gate() -> None:
    found = diff(folder_of("int8"), folder_of("failed"), fail_on=["precision"])
    assert "it was not accepted" in found.worse[0]
    with pytest.raises(
        AccuracyError, match="m.failed.manifest.json is worse than m.manifest.json: it was not accepted"
    ):
        found.require()
    diff(folder_of("int8"), folder_of("failed")).require()


def test_exact_views_lose_nothing_to_each_other() -> None:
    one, other = stored("int8"), stored("int8")
    for said in (one, other):
        said["verification"]["worst_sqnr_db"] = "inf"
        for view in said["verification"]["views"]:
            view["sqnr_db"] = "inf"
    assert diff(one, other, max_loss_db=0.0).worse == ()
    other["verification"]["worst_sqnr_db"] = 20.0
    found = diff(one, other, max_loss_db=1.0)
    assert found.accuracy[0]["loss"] == math.inf
    assert found.worse == ("'worst view' went from inf to 20.0 dB",)


@pytest.mark.parametrize(
    ("gates", "says"),
    [
        ({"fail_on": ["speed"]}, "nothing can fail on 'speed'"),
        ({"max_loss_db": -1.0}, "--max-loss-db takes a number from 0 up"),
        ({"max_slower": math.nan}, "--max-slower takes a number from 0 up"),
        ({"fail_on": ["time"]}, "have none for the same GPU"),
        ({"max_loss_db": 1.0}, "not both compilations were verified"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_refused(gates: dict[str, Any], says: str) -> None:
    other = {**stored("int8"), "verification": None}
    with pytest.raises(UsageError, match=says):
        diff(stored("int8"), other, **gates)


def test_a_size_that_only_one_has_cannot_be_a_gate() -> None:
    with pytest.raises(UsageError, match="have no artefact in common"):
        diff(stored("int8"), {**stored("int8"), "files": {}}, fail_on=["size"])
