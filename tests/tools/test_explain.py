"""What is known of a node: found under many names, and no figure that the manifest does not have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from qcompiler.errors import UsageError
from qcompiler.report.manifest import read
from qcompiler.tools.explain import Explanation, explain
from tests.kit import manifests
from tests.kit.tools.stored import KINDS, ODD, folder_of, leaves, numbers, old, stored

DERIVED = {("decision", "share"), ("trials", "sqnr_db"), ("net", "place")}  # each is held against its source below


def nodes(manifest: Mapping[str, Any]) -> list[str]:
    return [one["node"] for one in manifest["plan"]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_of_every_node_is_in_the_manifest(kind: str) -> None:
    manifest = stored(kind)
    known = numbers(manifest)
    assert nodes(manifest)
    for node in nodes(manifest):
        found = explain(manifest, node)
        assert found.node == node
        for at, value in leaves(found.to_json()):
            if at[:2] not in DERIVED and not isinstance(value, str) and value is not None:
                assert float(value) in known, at
        _derived(found, manifest)


def _derived(found: Explanation, manifest: Mapping[str, Any]) -> None:
    assert found.decision is not None
    macs = found.decision["macs"]
    assert found.decision["share"] == (macs / manifest["macs"]["total"] if macs else None)
    for trial in found.trials:
        assert trial["sqnr_db"] == pytest.approx(-10 * math.log10(trial["noise"])) or trial["noise"] == 0
    if found.net is not None and found.net["restored"]:
        assert found.activation is not None
        assert manifest["safety"]["restored"][found.net["place"] - 1] == found.activation["tensor"]


@pytest.mark.parametrize("name", ODD.values())
def test_odd_names_are_found_as_they_stand(name: str) -> None:
    manifest = stored("int8")
    if name in nodes(manifest):
        assert (explain(manifest, name).node, explain(manifest, name).found_by) == (name, "name")
    else:  # a normalization, which a pass folded away
        found = explain(manifest, name)
        assert (found.found_by, found.decision) == ("edits", None)
        assert [edit["pass"] for edit in found.edits] == ["fold-batch-norm"]
        assert ODD["c2"] in found.edits[0]["text"]
        assert "the plan does not speak of it" in found.unknown[0]


@pytest.mark.parametrize(
    ("asked", "node", "how"),
    [
        (f"t {ODD['c1']}", "c1", "tensor"),
        ("größe", "c1", "part"),
        ("BACKBONE", "c2", "part"),
        ("^sch.*0$", "c1", "pattern"),
        ("\\name", "c3", "part"),
    ],
)
def test_a_node_is_found_by_what_it_writes_a_part_or_a_pattern(asked: str, node: str, how: str) -> None:
    found = explain(stored("int8"), asked)
    assert (found.node, found.found_by, found.asked) == (ODD[node], how, asked)


def test_what_is_not_unique_or_not_there_names_what_could_be_meant() -> None:
    manifest = stored("int8")
    with pytest.raises(UsageError, match="3 nodes match '.*', name one of them: 'R1', 'R2', 'R3'$"):
        explain(manifest, r"^R\d")
    with pytest.raises(UsageError, match="has no node 'schicht grosse/0': did you mean 'schicht größe/0'"):
        explain(manifest, "schicht grosse/0")
    with pytest.raises(UsageError, match=r"has no node '\(\(': it has \d+, such as '"):
        explain(manifest, "((")
    with pytest.raises(UsageError, match="has no node ''"):
        explain(manifest, "")
    with pytest.raises(UsageError, match="has no plan"):
        explain({"schema": 2}, "x")


def test_neighbours_weight_range_and_histogram_of_a_layer() -> None:
    manifest = stored("int8")
    found = explain(manifest, ODD["c2"])
    assert found.decision is not None
    assert found.weight is not None
    assert (found.weight["shape"], found.weight["axis"]) == ([32, 32, 3, 3], 0)
    (source,) = found.reads
    assert source["by"]["op"] == "Relu"
    (target,) = found.writes
    assert [one["node"] for one in target["by"]] == [ODD["s2"]]
    first = found.quantizers[0]
    assert found.activation is not None
    assert first["tensor"] == found.activation["tensor"] == source["tensor"]
    bars = first["histogram"]
    assert sum(bars["counts"]) + bars["zeros"] + bars["below"] == bars["elements"]
    assert bars["maximum"] == pytest.approx(first["observed"])
    assert (explain(manifest, ODD["c1"]).reads[0]["input"], explain(manifest, ODD["y"]).writes[0]["output"]) == (
        True,
        True,
    )


def test_every_trial_says_how_it_was_measured() -> None:
    manifest = stored("mixed")
    trials = [one for node in nodes(manifest) for one in explain(manifest, node).trials]
    assert {one["format"] for one in trials} == {"int8", "fp8"}
    assert {one["how"] for one in trials} == {"alone"}
    restored = [node for node in nodes(manifest) if (explain(manifest, node).net or {}).get("restored")]
    assert restored
    assert not any(one["chosen"] for node in restored for one in explain(manifest, node).trials)
    assert set(explain(manifest, ODD["c2"]).costs) == {"int8", "fp8", "high"}


def test_a_figure_that_nobody_measured_alone_is_not_called_so() -> None:
    manifest = stored("int8")
    name = next(iter(manifest["safety"]["amax"]))
    net = {
        **manifest["safety"],
        "tried": {},
        "alone": {name: {"int8": 0.01}},
        "blocks": {name: {"groups": 3, "noise": 0.02}},
    }
    node = next(one["node"] for one in manifest["plan"] if f"'{name}'" in one["why"])
    (trial,) = explain({**manifest, "safety": net}, node).trials
    assert (trial["how"], trial["sqnr_db"]) == ("its share of a block of 3 groups", pytest.approx(20.0))
    (trial,) = explain({**manifest, "safety": {**net, "blocks": {}}}, node).trials
    assert trial["how"] == "from joint runs"
    del net["tried"]
    (trial,) = explain({**manifest, "safety": {**net, "blocks": {}}}, node).trials
    assert trial["how"] == "alone"


def test_kernels_are_those_of_the_engine_with_what_was_fused() -> None:
    found = explain(folder_of("engine") / "m.engine", ODD["c1"])
    assert found.engine is not None
    assert found.engine["compiled"] == "int8"
    assert any(one["what"].startswith("corrltn int8 int8") for one in found.engine["kernels"])
    manifest = stored("engine")
    relu = next(one["node"] for one in manifest["plan"] if one["op"] == "Relu")
    fused = explain(manifest, relu).engine
    assert fused is not None
    assert any(set(one["with"]) & set(ODD.values()) for one in fused["kernels"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_manifest_explains_what_it_has_and_says_what_it_lacks(kind: str) -> None:
    manifest = old(stored(kind))
    for node in nodes(manifest):
        found = explain(manifest, node)
        assert any("neighbours" in text for text in found.unknown)
        assert found.reads == found.writes == []
        now = explain(stored(kind), node)
        assert found.decision == now.decision
        if now.trials:
            assert (found.activation or {}).get("tensor") == (now.activation or {}).get("tensor")


def test_a_manifest_of_schema_1_is_explained() -> None:
    manifest = read(manifests.SCHEMA_1)
    for node in nodes(manifest):
        assert explain(manifests.SCHEMA_1, node).decision is not None


def test_of_a_compilation_that_failed_the_reason_is_told() -> None:
    found = explain(folder_of("failed"), ODD["c1"])
    assert "150 dB" in found.manifest["missed"]
    assert found.decision is not None
    assert found.decision["precision"] not in ("int8", "fp8")


def test_without_data_there_is_a_stored_weight_and_no_trial() -> None:
    found = explain(folder_of("bare"), ODD["y"])
    assert found.weight is not None
    assert found.weight["stored"] is not None
    assert found.trials == []
    assert any("there was no data" in text for text in found.unknown)


def test_methods_and_warnings_that_name_it_are_told() -> None:
    manifest = stored("int8")
    tensor = explain(manifest, ODD["c1"]).reads[0]["tensor"]
    manifest["warnings"] = [f"'{tensor}' is odd", "'something' else"]
    manifest["rungs"] = [{"name": "smooth-quant", "tried": True, "kept": False, "gain_db": -0.5, "why": "spikes"}]
    manifest["half"] = {"noisy": {ODD["c1"]: 51.5}}
    manifest["front"] = [{"id": 0, "formats": {tensor: "int8"}, "high": []}, {"id": 1, "formats": {}, "high": [tensor]}]
    found = explain(manifest, ODD["c1"])
    assert found.front == [{"id": 0, "type": "int8"}, {"id": 1, "type": "high"}]
    assert found.warnings == [f"'{tensor}' is odd"]
    assert found.methods["half"] == {"sqnr_db": 51.5}
    assert found.rungs[0]["name"] == "smooth-quant"
